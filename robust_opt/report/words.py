"""The words and rows of the report, from the values of robust_opt.report.data.

headline(run)          # two numbers and a sentence
result_table(runs)     # the runs side by side
"""

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from robust_opt.evaluation.trust_checks import Check
from robust_opt.experiments import overrides
from robust_opt.report.data import Evaluation, Rate, Result, Run
from robust_opt.sets import BALLS
from robust_opt.tables import Percent, counted, norm_name
from robust_opt.training.overfitting import Overfitting, in_words

_ENSEMBLES = {"standard": "AutoAttack", "quick": "AutoAttack, quick version"}


class Headline(NamedTuple):
  """The most important numbers of a run."""

  clean: str  # accuracy
  robust: str  # accuracy under the strongest attack that has been run
  attack: str  # that attack
  sentence: str  # all of it in words
  warning: str  # why not to trust it, a sentence; may be empty


class Row(NamedTuple):
  """A row of the table of results."""

  title: str
  cells: tuple[tuple[Rate, bool] | None, ...]  # of every run, with whether it was trained on this
  mean: str  # over the runs, as if they were seeds; empty if one has no such result


class FactRow(NamedTuple):
  """A key of the config or a fact, its value in every run, and whether they differ."""

  key: str
  values: tuple[str, ...]
  differs: bool


def percent(accuracy: float) -> str:
  """'97.14 %': two decimals resolve one example of 10,000."""
  return f"{100 * accuracy:.2f}\u00a0%"


def interval(rate: Rate) -> str:
  """'96.8 to 97.5'."""
  low, high = rate.interval
  return f"{100 * low:.1f} to {100 * high:.1f}"


def ball(norm: str, radius: float) -> str:
  """A norm and its radius."""
  sign = norm_name(norm).sign
  return sign if math.isnan(radius) else f"{sign} {radius:.4g}"


def result_title(result: Result) -> str:
  """'clean', or ball and steps."""
  if result.norm is None:
    return "clean"
  return f"{ball(result.norm, result.radius)}, {counted(result.num_steps, 'step')}"


def attack_title(evaluation: Evaluation) -> str:
  """Ensemble and ball."""
  claim = evaluation.stored.claim
  ensemble = _ENSEMBLES.get(claim.version, f"ensemble {claim.version}")
  return f"{ensemble}, {ball(claim.norm, claim.radius)}"


def evaluation_title(evaluation: Evaluation) -> str:
  """Ensemble, ball and count."""
  return f"{attack_title(evaluation)}, {counted(evaluation.robust.total, 'image')}"


def breakable(name: str) -> Markup:
  """A name that may wrap after its separators, for narrow columns."""
  return Markup(re.sub(r"([_/.-])", r"\1<wbr>", str(escape(name))))


def overfitting(run: Run) -> str:
  """The warning of the run; empty if its training did not overfit."""
  detected = run.summary.get("overfitting")
  return in_words(Overfitting(**detected)) if detected else ""


def headline(run: Run) -> Headline:
  """By the strongest evaluation of the run, or by its own attack where there is none."""
  clean, own, evaluation = run.results[0].rate, run.results[1], strongest(run)
  sentence = (
    f"{percent(clean.accuracy)} of {clean.total:,} clean test images are classified correctly "
    f"(95 % interval {interval(clean)})"
  )
  if evaluation is None:
    robust, attack = own.rate, result_title(own)
    sentence += f", and {percent(robust.accuracy)} ({interval(robust)}) under {attack}"
    sentence += ", the attack of training." if own.trained_on else "."
    warning = (
      "No ensemble of attacks has been run: a single attack gives an upper bound, often far too "
      "high."
    )
  else:
    robust, attack = evaluation.robust, attack_title(evaluation)
    trusted, warning = _trust(evaluation.checks)
    part = "all" if robust.total == clean.total else "the first"
    sentence += (
      f"; of {part} {robust.total:,}, {percent(robust.accuracy)} ({interval(robust)}) remain "
      f"correctly classified under {attack}.{trusted}"
    )
  return Headline(percent(clean.accuracy), percent(robust.accuracy), attack, sentence, warning)


def _trust(checks: Sequence[Check]) -> tuple[str, str]:
  """A sentence that the trust report passes, and why not to trust an evaluation; one is empty."""
  failed = [check.name for check in checks if check.failed]
  unclear = [check.name for check in checks if check.passed is None]
  if failed:
    return "", (
      f"{counted(len(failed), 'check')} of the trust report failed ({', '.join(failed)}): do not "
      f"trust the number before you understand why."
    )
  if not checks:
    return "", "The evaluation has no trust report (--notrust)."
  if not unclear:
    return f" All {len(checks)} checks of the trust report pass.", ""
  return (
    f" {len(checks) - len(unclear)} of {len(checks)} checks of the trust report pass; not "
    f"measurable on these images: {', '.join(unclear)}."
  ), ""


def strongest(run: Run) -> Evaluation | None:
  """The evaluation in the run's own ball, by the standard ensemble, on the most images."""
  own = run.results[1]

  def rank(evaluation: Evaluation) -> tuple[bool, bool, bool, int]:
    claim = evaluation.stored.claim
    same_norm, same_radius = claim.norm == own.norm, claim.radius == own.radius
    return same_norm, same_radius, claim.version == "standard", evaluation.robust.total

  return max(run.evaluations, key=rank, default=None)


def radius_tables(runs: Sequence[Run]) -> dict[str, dict[float, list[Rate | None]]]:
  """The numbers of the radius charts: title -> radius -> rate of each run."""
  tables: dict[str, dict[float, list[Rate | None]]] = {}
  for index, run in enumerate(runs):
    for sweep in run.sweeps:
      rows = tables.setdefault(f"radius in {norm_name(sweep.norm).sign}", {})
      for radius, rate in zip(sweep.radii, sweep.rates):
        # Radii are products of floats: those that print alike share a row.
        rows.setdefault(float(f"{radius:.4g}"), [None] * len(runs))[index] = rate
  return {title: dict(sorted(rows.items())) for title, rows in tables.items()}


def result_table(runs: Sequence[Run]) -> list[Row]:
  """Clean, the attacks of the runs, then the evaluations, with a cell for every run."""
  results = [{result_title(r): (r.rate, r.trained_on) for r in run.results} for run in runs]
  evaluations = [{evaluation_title(e): (e.robust, False) for e in run.evaluations} for run in runs]
  columns = [a | b for a, b in zip(results, evaluations)]
  rows = []
  for title in dict.fromkeys(title for column in [*results, *evaluations] for title in column):
    cells = tuple(column.get(title) for column in columns)
    rates = [cell[0] for cell in cells if cell is not None]
    mean = Percent.of([rate.accuracy for rate in rates], min(rate.total for rate in rates))
    rows.append(Row(title, cells, str(mean) if len(rates) == len(runs) else ""))
  return rows


def are_seeds(runs: Sequence[Run]) -> bool:
  """Whether the runs are one experiment with several seeds."""
  aside = ("seed", "data.data_dir", "data.cache_dir")  # locations do not affect results
  rest = [{k: v for k, v in run.config.items() if k not in aside} for run in runs]
  seeds = {run.config.get("seed") for run in runs}
  return len(runs) > 1 and len(seeds) == len(runs) and all(other == rest[0] for other in rest)


def facts(summary: Mapping[str, Any]) -> dict[str, Any]:
  """Versions, hashes, device and sizes of a run."""
  versions, hashes = summary.get("versions", {}), summary.get("data_sha256", {})
  return {
    "checkpoint": f"{summary.get('checkpoint', 'last')}, step {summary.get('step')}",
    "training examples": summary.get("train_examples"),
    "held-out examples": summary.get("heldout_examples"),
    "device": summary.get("device"),
    **{f"version of {name}": version for name, version in versions.items()},
    "peak memory (MB)": summary.get("peak_memory_mb"),
    "SHA-256 of the weights": summary.get("params_sha256"),
    **{f"SHA-256 of the {split} data": sha256 for split, sha256 in hashes.items()},
  }


def fact_rows(columns: Sequence[Mapping[str, Any]]) -> list[FactRow]:
  """All keys of the configs or facts of the runs, in order."""
  rows = []
  for key in dict.fromkeys(key for column in columns for key in column):
    values = tuple(_text(column[key]) if key in column else "(absent)" for column in columns)
    rows.append(FactRow(key, values, len(set(values)) > 1))
  return rows


def _text(value: Any) -> str:
  return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def training_command(run: Run) -> str | None:
  """Trains the same network again; None if no flags make its config."""
  flags = overrides.flags_of(run.config)
  return None if flags is None else _command("robust_opt.main", [*flags, "--workdir=NEW_RUN"])


def evaluation_command(run: Run, evaluation: Evaluation) -> str:
  """Makes the same evaluation again, or prints the finished one."""
  claim = evaluation.stored.claim
  values: dict[str, Any] = {**claim.flags, "version": claim.version, "seed": claim.seed}
  values |= {"batch_size": claim.batch_size}
  values |= {k: claim.source[k] for k in ("examples", "checkpoint") if claim.source.get(k)}
  flags = [f"--{key}={value}" for key, value in values.items()]
  return _command("robust_opt.evaluate", [f"--workdir={run.workdir}", *flags])


def first_evaluation_command(run: Run) -> str:
  """Evaluates a run over its own set."""
  own, flags = run.results[1], ["--version=pgd"]
  if own.norm in BALLS:
    flags = [f"--norm={own.norm}", f"--radius={own.radius!r}"]
  return _command("robust_opt.evaluate", [f"--workdir={run.workdir}", *flags])


def _command(module: str, flags: Sequence[str]) -> str:
  """A shell command with one flag per line."""
  return " \\\n  ".join([f"python -m {module}", *map(shlex.quote, flags)])
