"""The headline of a measurement, as the commands print it and the report shows it.

  ball = {"name": "LInf", "radius": 0.1, "box": [0, 1]}
  headline = of_ensemble(Rate(348, 360), Rate(280, 360), "standard", ball, checks)
  headline.sentence, headline.warning

By how much to trust it, checks of the trust report have an order: `by_importance`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from robust_opt.evaluation.trust_checks import Check
from robust_opt.sets.words import threat_model
from robust_opt.tables import Rate, counted

_ENSEMBLES = {
  "standard": "AutoAttack",
  "quick": "AutoAttack, quick version",
  "rand": "AutoAttack for random networks",
  "pgd": "PGD with restarts",
  "grid": "a grid search",
  "sparse": "PGD and Sparse-RS",
  "patch": "PGD in 20 places",
  "labels": "attacks that see labels alone",
  "adaptive": "AutoAttack, adaptive version",
}


class Headline(NamedTuple):
  """The most important numbers of a network."""

  clean: Rate
  robust: Rate  # under the strongest attack that has been run
  attack: str  # that attack and its set
  sentence: str  # all of it in words
  warning: str  # why not to trust it, in sentences; may be empty


def ensemble(version: str) -> str:
  """The attacks of that version: 'AutoAttack, quick version'."""
  return _ENSEMBLES.get(version, f"the ensemble {version}")


def ensemble_over(version: str, u: Mapping[str, Any], *, unicode: bool = False) -> str:
  """The ensemble and the config of the set: 'AutoAttack over l_inf 0.1 within [0, 1]'."""
  name, model = ensemble(version), threat_model(u, unicode=unicode)
  return f"{name}{',' if ',' in name else ''} over {model}"


def attack_over(num_steps: int, u: Mapping[str, Any], *, unicode: bool = False) -> str:
  """Its steps and the config of the set: '1 step over l_inf 0.1, pixels may leave [0, 1]'."""
  return f"{counted(num_steps, 'step')} over {threat_model(u, unicode=unicode)}"


def of_attack(clean: Rate, robust: Rate, attack: str, trained_on: bool) -> Headline:
  """Of a run that has been attacked by a single attack only, maybe that of its training."""
  whose = ", the attack of training" if trained_on else ""
  sentence = f"{_clean(clean)}, and {robust.percent} ({robust.range}) under {attack}{whose}."
  warning = (
    "No ensemble of attacks has been run: a single attack gives an upper bound, often far too high."
  )
  return Headline(clean, robust, attack, sentence, warning)


def of_ensemble(
  clean: Rate,
  robust: Rate,
  attack: str,
  checks: Sequence[Check],
  first: bool = False,
  data: str = "",
  bound: int | None = None,
) -> Headline:
  """Of an evaluation of as many images as `clean`, or of the first of them.

  `first`: whether the clean images are but the first of a data set. `data`: where the images are
  from, if not from the test set of a run. `bound`: as for `skipped`; None if nothing was skipped.
  """
  trusted, warning = _trust(checks)
  same = robust.total == clean.total
  sentence = (
    f"{_clean(clean, first, data)}{', and' if same else f'; of the first {robust.total:,},'} "
    f"{robust.percent} ({robust.range}) remain correctly classified under {attack}."
    f"{skipped(bound, robust)}{trusted}"
  )
  return Headline(clean, robust, attack, sentence, warning)


def of_targeted(
  clean: Rate,
  success: Rate,
  attack: str,
  target: str,
  checks: Sequence[Check],
  first: bool = False,
  data: str = "",
) -> Headline:
  """Of an evaluation toward target classes.

  `success`: of the attacked images, those classified as the target. `target`: as in
  `verdict.Claim`. `first`, `data`: as for `of_ensemble`.
  """
  trusted, warning = _trust(checks)
  resist = Rate(success.total - success.correct, success.total)
  sentence = (
    f"{_clean(clean, first, data)}. Of the {success.total:,} of them whose label is not the target "
    f"({target_in_words(target)}), {success.percent} ({success.range}) are classified as the "
    f"target under {attack}: the targeted attack success rate. {resist.percent} resist.{trusted}"
  )
  robust = Rate(clean.correct - success.correct, clean.total)
  return Headline(clean, robust, attack, sentence, warning)


def target_in_words(target: str) -> str:
  """'class 3', 'the least likely class', 'a random class for each image'."""
  words = {"least_likely": "the least likely class", "random": "a random class for each image"}
  return words.get(target, f"class {target}")


def skipped(bound: int | None, robust: Rate) -> str:
  """What the attacks that the adaptive version skipped may still break, after a space."""
  if not bound:
    return "" if bound is None else " No attack that could still break an image was skipped."
  share, low = Rate(bound, robust.total), Rate(max(0, robust.correct - bound), robust.total)
  return (
    f" At most {share.percent} of the images could still fall to the attacks that were skipped "
    f"(95 % confidence): the standard version would leave at least {low.percent}."
  )


def by_importance(checks: Sequence[Check]) -> list[Check]:
  """Failed checks first, then those that are not measurable, then those that pass."""
  return sorted(checks, key=lambda check: (not check.failed, check.passed is not None))


def _clean(clean: Rate, first: bool = False, data: str = "") -> str:
  which = f"clean images of {data}" if data else "clean test images"
  return (
    f"{clean.percent} of {'the first ' if first else ''}{clean.total:,} {which} are classified "
    f"correctly (95 % interval {clean.range})"
  )


def _trust(checks: Sequence[Check]) -> tuple[str, str]:
  """A sentence that the trust report passes, and why not to trust an evaluation; one is empty."""
  failed = [check for check in checks if check.failed]
  unclear = [check.name for check in checks if check.passed is None]
  if failed:
    names = ", ".join(check.name for check in failed)
    return "", (
      f"{counted(len(failed), 'check')} of the trust report failed ({names}): do not trust the "
      f"number before you understand why. {' '.join(check.meaning for check in failed)}"
    )
  if not checks:
    return "", "There is no trust report: the measurement itself has not been checked."
  if not unclear:
    return f" All {len(checks)} checks of the trust report pass.", ""
  return (
    f" {len(checks) - len(unclear)} of {len(checks)} checks of the trust report pass; not "
    f"measurable on these images: {', '.join(unclear)}."
  ), ""
