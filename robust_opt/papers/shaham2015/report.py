"""The tables, claims and figures of what was measured; no jax.

  shown = results_of(measured)           # {"accuracy": Table, "claims": Table, ...}
  draw(Accuracies(measured), folder)

`measured` holds counts of every seed. The published figures carry marks: [code] read in the
authors' code, [mem] recalled and not checked against a source.
"""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from robust_opt import tables
from robust_opt.plots import studies
from robust_opt.statistics import PairedTest, accuracy_interval, all_of, has_learned, paired_t
from robust_opt.studies import claims
from robust_opt.studies.claims import Claim
from robust_opt.tables import Percent, Table

ROBUST = ("l1", "l2", "linf")
NORMS = ("linf", "l2", "l1")  # of the attacks
NAMES = {"baseline": "baseline", "l1": "robust l_1", "l2": "robust l_2", "linf": "robust l_inf"}
NUM_CLASSES = 10  # of every data set here
# Converged: clean test accuracy has reached this share of the baseline's at the end.
CONVERGED = 0.995
# "No more updates": not more than the baseline's by this share of its mean.
MORE_UPDATES = 0.1

# (clean test, collection), in percent.
PUBLISHED: dict[str, dict[str, tuple[str, str]]] = {
  "mnist": {
    "baseline": ("99.09 [code]", "0 by construction"),
    "l1": ("99.12 [code], 99.16 [mem]", "33.83 [mem]"),
    "l2": ("99.29 [code], 99.28 [mem]", "76.55 [mem]"),
    "linf": ("99.34 [code], 99.33 [mem]", "79.96 [mem]"),
  },
  "cifar10": {
    "baseline": ("90.79 [mem]", "0 by construction"),
    "l1": ("91.11 [mem]", "56.31 [mem]"),
    "l2": ("91.04 [mem]", "59.92 [mem]"),
    "linf": ("91.36 [mem]", "65.01 [mem]"),
  },
}
TITLES = {"mnist": "Table 1 (MNIST)", "cifar10": "Table 2 (CIFAR-10)", "digits": "Digits"}
ATTACKS = {"single": "one step", "pgd": "PGD-50"}


class Accuracies:
  """The counts of `measured` as accuracies in [0, 1], one entry a seed."""

  def __init__(self, measured: dict[str, Any]) -> None:
    self.measured, self.scores = measured, measured["scores"]
    self.published = PUBLISHED.get(measured["dataset"], {})

  def clean(self, net: str) -> np.ndarray:
    """On the clean test set, [S]."""
    return np.array([score["nets"][net]["clean"] / score["test_total"] for score in self.scores])

  def learned(self, net: str) -> np.ndarray:
    """Which seeds learned, [S]."""
    return has_learned(self.clean(net), NUM_CLASSES)

  def collection(self, net: str, kind: str = "collection", norm: str | None = None) -> np.ndarray:
    """On each seed's collection, [S]; kind 'rounded': after rounding to 8 bits; norm None: all."""
    return _sums((score["nets"][net][kind] for score in self.scores), norm) / self.collected(norm)

  def collected(self, norm: str | None = None) -> np.ndarray:
    """The size of each seed's collection, [S]; norm None: of all norms together."""
    sizes = _sums((score["totals"] for score in self.scores), norm)
    return np.maximum(1, sizes)  # a baseline that nothing fools has an empty collection

  def sweep(self, net: str, attack: str, norm: str) -> dict[str, Any]:
    """What `measure.radius_sweep` counted."""
    return self.measured["sweeps"][net][attack][norm]

  def against_radius(self, net: str, attack: str, norm: str) -> np.ndarray:
    """Against the radius, [S, K]."""
    sweep = self.sweep(net, attack, norm)
    return np.array(sweep["correct"]) / sweep["total"]

  def curve(self, net: str) -> tuple[np.ndarray, np.ndarray]:
    """(updates [P], clean test accuracy [S, P])."""
    curve = self.measured["curves"][net]
    return np.array(curve["steps"]), np.array(curve["correct"]) / self.measured["test_total"]


def _sums(counts: Iterable[dict[str, int]], norm: str | None) -> np.ndarray:
  """Of every seed the count of a norm, or of all norms."""
  return np.array([count[norm] if norm else sum(count.values()) for count in counts])


def results_of(measured: dict[str, Any]) -> dict[str, Table | dict[str, Any]]:
  """The tables by name, and the counts that they are made of."""
  accuracies = Accuracies(measured)
  results: dict[str, Table | dict[str, Any]] = {
    "measured": {name: value for name, value in measured.items() if name != "examples"},
    "accuracy": accuracy_table(accuracies),
    "accuracy_against_radius": sweep_table(accuracies),
    "claims": claims_table(accuracies),
  }
  if measured.get("autoattack"):
    results["autoattack"] = autoattack_table(measured)
  return results


def accuracy_table(accuracies: Accuracies) -> Table:
  """Table 1 or 2 of the paper, and accuracies on the collection of each norm."""
  measured, rows = accuracies.measured, []
  for net, name in NAMES.items():
    learned = accuracies.learned(net)
    clean = Percent.of(accuracies.clean(net), measured["test_total"], learned)
    row: dict[str, Any] = {"net": name, "clean": clean}
    for title, kind in (("A", "collection"), ("A, 8 bits", "rounded")):
      for norm in (None, *ROBUST):
        values, size = accuracies.collection(net, kind, norm), accuracies.collected(norm).min()
        row[f"{title}, {norm}" if norm else title] = Percent.of(values, int(size), learned)
    row |= {f"{title} by seed": row[title].by_seed() for title in ("clean", "A")}
    row["published clean"], row["published A"] = accuracies.published.get(net, (None, None))
    rows.append(row)
  counts = [score["totals"] for score in accuracies.scores]
  totals = [sum(count.values()) for count in counts]
  means = {norm: round(np.mean([count[norm] for count in counts])) for norm in ROBUST}
  sizes = ", ".join(f"{norm} {mean:,}" for norm, mean in means.items())
  radii = ", ".join(f"{norm} {measured['radii'][norm]:.4g}" for norm in ROBUST)
  notes = [
    f"{tables.interval_note(len(measured['seeds']))} {tables.FAILED_NOTE} "
    f"{measured['test_total']:,} test examples, {tables.counted(measured['epochs'], 'epoch')} on "
    f"{measured['train_total']:,} training examples, none held out; networks of the last epoch. "
    "Each seed has the collection of its own baseline: "
    f"{min(totals):,} to {max(totals):,} examples ({sizes} on average), all norms pooled in A. "
    "Intervals on a collection are for the smallest size. Radii in pixels of [0, 1]: "
    f"{radii}.",
    "8 bits: the same examples clipped to [0, 1] and rounded to multiples of 1/255. "
    "Marks of the published figures: [code] the authors' code, [mem] recalled, not checked.",
  ]
  title = (
    f"{TITLES[measured['dataset']]}: accuracy (%) on the clean test set and on the collection A"
  )
  return Table(title, list(rows[0]), rows, notes)


def sweep_table(accuracies: Accuracies) -> Table:
  """The numbers of figures 2 and 4, and the same under PGD-50."""
  rows = []
  for attack, norm in itertools.product(ATTACKS, NORMS):
    sweep = accuracies.sweep("baseline", attack, norm)
    for index, radius in enumerate(sweep["radii"]):
      row: dict[str, Any] = {"attack": ATTACKS[attack], "norm": norm, "radius": f"{radius:.4g}"}
      row["test examples"] = sweep["total"]
      for net, name in NAMES.items():
        values = accuracies.against_radius(net, attack, norm)[:, index]
        row[name] = Percent.of(values, sweep["total"], accuracies.learned(net))
        zeros = accuracies.sweep(net, attack, norm)["zero_gradients"]
        row[f"{name}: zero gradients"] = int(np.sum(zeros, axis=0)[index])
      rows.append(row)
  columns = [c for c in rows[0] if "zero gradients" not in c or any(row[c] for row in rows)]
  note = (
    f"{tables.interval_note(len(accuracies.measured['seeds']))} {tables.FAILED_NOTE} Zero "
    "gradients: examples, summed over the seeds, whose input gradient at the clean example is "
    "exactly zero; the attack leaves them unchanged, and they count as classified. Networks "
    "without any have no such column."
  )
  title = "Accuracy (%) against the radius, each net attacked by its own gradient"
  return Table(title, columns, rows, [note])


def autoattack_table(measured: dict[str, Any]) -> Table:
  """The accuracy of each network after each attack of AutoAttack."""
  rows = []
  for net, norm in itertools.product(NAMES, ROBUST):
    result, radius = measured["autoattack"][net][norm], measured["radii"][norm]
    left = result["total"] - np.cumsum([*result["broken"].values()])
    row = {"net": NAMES[net], "norm": norm, "radius": f"{radius:.4g}"}
    shares = 100 * left / result["total"]
    row |= {f"after {a}": f"{share:.1f}" for a, share in zip(result["broken"], shares)}
    rows.append(row)
  title = "Accuracy (%) under AutoAttack, standard version, attack after attack"
  note = (
    f"The first {result['total']} test examples, within the pixel box, nets of seed "
    f"{measured['seeds'][0]}."
  )
  return Table(title, list(rows[0]), rows, [note])


def claims_table(accuracies: Accuracies) -> Table:
  """Every claim of the paper and whether it holds here."""
  listed = [
    *_accuracy_claims(accuracies),
    *_attack_claims(accuracies),
    *_convergence_claims(accuracies),
    _one_pixel_claim(accuracies),
  ]
  columns = ["claim", "net", "answer", "statistic", claims.P, "published"]
  note = (
    f"{claims.note(len(accuracies.measured['seeds']))} Statistics: differences in "
    "percentage points with their 95 % t interval over the seeds, and p before the correction. "
    "'yes' and 'no' are differences beyond noise. A claim about every radius is a yes if it "
    "holds at each of them, a no if it fails at one beyond noise after Bonferroni's correction. "
    f"'No more updates' is a test of non-inferiority with a margin of {MORE_UPDATES:.0%} of the "
    "baseline's updates."
  )
  title = f"Claims on {accuracies.measured['dataset']}"
  return claims.table(title, listed, columns, note, answer="answer")


def _claim(
  claim: str, net: str, evidence: PairedTest | bool | str, statistic: str, published: str | None
) -> Claim:
  cells = {"net": NAMES[net], "statistic": statistic, "published": published}
  return Claim(claim, evidence, cells)


def _accuracy_claims(accuracies: Accuracies) -> Iterator[Claim]:
  published = accuracies.published
  kinds = {
    "clean test accuracy improves": accuracies.clean,
    "accuracy on the collection improves": accuracies.collection,
  }
  for net in ROBUST:
    for index, (claim, accuracy) in enumerate(kinds.items()):
      test = paired_t(accuracy(net), accuracy("baseline"))
      figures = [published[name][index] for name in (net, "baseline") if published]
      yield _claim(claim, net, test, _points(test), " against ".join(figures) or None)
  linf = accuracies.collection("linf")
  tests = {norm: paired_t(linf, accuracies.collection(norm)) for norm in ("l2", "l1")}
  words = "; ".join(f"against {norm}: {_points(test)}" for norm, test in tests.items())
  figures = [f"{norm} {published[norm][1]}" for norm in ROBUST if published]
  evidence = all_of([*tests.values()])
  yield _claim("best on the collection", "linf", evidence, words, ", ".join(figures))


def _attack_claims(accuracies: Accuracies) -> Iterator[Claim]:
  for (attack, words), norm in itertools.product(ATTACKS.items(), NORMS):
    radii = np.array(accuracies.sweep("baseline", attack, norm)["radii"])
    baseline = accuracies.against_radius("baseline", attack, norm)
    reported = attack == "single" and norm == "linf"
    for net in ROBUST:
      robust = accuracies.against_radius(net, attack, norm)
      tests = [paired_t(robust[:, k], baseline[:, k]) for k in np.flatnonzero(radii > 0)]
      differences = [test.difference for test in tests]
      least = int(np.argmin(differences))
      statistic = (
        f"higher at {sum(d > 0 for d in differences)} of {len(tests)} radii; "
        f"least at {radii[radii > 0][least]:.4g}: {_points(tests[least])}"
      )
      claim = f"harder to attack at every radius: {norm}, {words}"
      published = "yes (figures 2 and 4)" if reported else "not reported"
      yield _claim(claim, net, all_of(tests), statistic, published)


def _convergence_claims(accuracies: Accuracies) -> Iterator[Claim]:
  target = CONVERGED * accuracies.curve("baseline")[1][:, -1]
  baseline = updates_to_reach(*accuracies.curve("baseline"), target)
  margin = MORE_UPDATES * baseline.mean()
  for net in ROBUST:
    steps, curve = accuracies.curve(net)
    updates = updates_to_reach(steps, curve, target)
    test = paired_t(baseline + margin, updates)
    plain = test._replace(difference=test.difference - margin)  # t and p stay those of the margin
    words = (
      f"updates to {CONVERGED:.1%} of the baseline's last accuracy: {updates.mean():,.0f} against "
      f"{baseline.mean():,.0f}, fewer by {_signed(plain, 1.0, ',.0f')}, margin {margin:,.0f}"
    )
    late = int((curve < target[:, None]).all(axis=1).sum())
    unknown = f"not measured: {tables.counted(late, 'seed')} never reached it"
    yield _claim("no more updates to converge", net, unknown if late else test, words, "yes")


def _one_pixel_claim(accuracies: Accuracies) -> Claim:
  right = np.maximum(1, [s["nets"]["baseline"]["clean"] for s in accuracies.scores])
  fooled = [score["totals"]["l1"] for score in accuracies.scores]
  lowest, learned = min(fooled), accuracies.learned("baseline")
  kept = 1 - accuracies.collection("baseline", "rounded", "l1")
  words = (
    f"{Percent.of(fooled / right, int(right.min()), learned)} % of the correctly classified test "
    f"points; of these {Percent.of(kept, max(1, lowest), learned)} % still fool it as 8-bit images "
    f"in [0, 1]; at least {lowest} a seed"
  )
  claim = "one pixel suffices to fool the net (some examples)"
  return _claim(claim, "baseline", lowest > 0, words, "yes (figure 1)")


def updates_to_reach(steps: np.ndarray, curve: np.ndarray, target: np.ndarray) -> np.ndarray:
  """The first of steps [P] at which each curve [S, P] reaches its target [S]; else the last."""
  reached = curve >= target[:, None]
  return np.where(reached.any(axis=1), steps[reached.argmax(axis=1)], steps[-1]).astype(float)


def draw(accuracies: Accuracies, folder: Path) -> None:
  """The figures of the paper, and the convergence curves."""
  measured, examples = accuracies.measured, accuracies.measured["examples"]
  title = f"Adversarial examples of the baseline on {measured['dataset']}: class → prediction"
  pair, every = ([examples[norm] for norm in norms] for norms in (("l2", "l1"), ROBUST))
  studies.adversarial_rows(pair, folder / "figure1_examples", title)
  studies.adversarial_rows(every, folder / "figure3_collection", f"A sample of A. {title}")
  panels = [[_panel(accuracies, attack, norm) for norm in NORMS] for attack in ATTACKS]
  studies.accuracy_against_radius(panels, folder / "figure2_accuracy_against_radius")
  curves: dict[str, dict[str, Any]] = {}
  for net in NAMES:
    steps, values = accuracies.curve(net)
    interval = accuracy_interval(values, measured["test_total"])
    curves[net] = {"steps": steps, "interval": interval}
  worst = min(curve["interval"].mean[-1] for curve in curves.values())
  studies.convergence(curves, folder / "convergence", lowest=max(0.0, 1 - 5 * (1 - worst)))


def _panel(accuracies: Accuracies, attack: str, norm: str) -> dict[str, Any]:
  """One panel of figure 2."""
  curves = {}
  for net in NAMES:
    sweep = accuracies.sweep(net, attack, norm)
    interval = accuracy_interval(accuracies.against_radius(net, attack, norm), sweep["total"])
    curves[net] = {"radii": sweep["radii"], "interval": interval}
  total = accuracies.sweep("baseline", attack, norm)["total"]
  title = f"{ATTACKS[attack]}, {total:,} test examples"
  radius = accuracies.measured["radii"][norm]
  return {"title": title, "norm": norm, "radius": radius, "curves": curves}


def _points(test: PairedTest) -> str:
  return f"{_signed(test, 100.0, '.2f')} points"


def _signed(test: PairedTest, scale: float, form: str) -> str:
  """'+0.12 ± 0.05 (t = 5.1, p = 0.007)'."""
  difference = f"{scale * test.difference:+z{form}}"
  if test.n == 1:
    return f"{difference} (one seed: no test)"
  width = f"{scale * test.half_width:{form}}"
  return f"{difference} ± {width} (t = {test.t:.2f}, p = {test.p:.2g})"
