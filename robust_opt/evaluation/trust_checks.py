"""The individual checks of a trust report (trust.py), their thresholds and what a failure means."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from robust_opt.errors import InputError
from robust_opt.evaluation import network, probes
from robust_opt.evaluation.autoattack import Verdict
from robust_opt.evaluation.batches import MakeAttack, plain_logits
from robust_opt.evaluation.inputs import are_probabilities
from robust_opt.evaluation.outcome import ROBUST
from robust_opt.evaluation.probes import Probe
from robust_opt.types import LogitsFn

FEWER_STEPS = (5, 20)  # besides one and num_steps

# Distinct values, of all outputs: fewer are levels that the outputs were rounded to.
LEVELS = 0.1
# Of the images: at the diameter of the box the true count is 0, but where all units are dead a
# single ascent is stuck.
UNBOUNDED = 0.01
# How often a sound attack fails by chance, per correct image, where another attack, in a smaller
# set, with fewer steps, from a fifth start or without gradients, succeeds. Measured on the 360 test
# digits, on 28 pairs of a healthy net (trained without an adversary, by one step or by PGD) and a
# set (l_inf, l_2, l_1), 9,744 correct images in all: radii and steps 0, the fifth start at most 1
# of 350, Square after five starts 9 in all and at most 4 of 350.
MISSES = 0.003
# The same for Square, or five more starts, after the standard ensemble. On the same pairs Square
# breaks 1 of 9,744, and five more starts (21 of the pairs) 2 of 7,238.
ENSEMBLE_MISSES = 0.0005
# AutoAttack's `check_square_sr` warns if Square breaks this fraction after the other attacks.
FLAGGED = 0.002
# The fraction of images whose prediction may depend on rounding in another batch size.
TIES = 0.01
# Quantile of the binomial that counts are compared to: a healthy net fails a check by chance on one
# data set in a thousand, whatever its size.
CONFIDENCE = 0.999
NUM_SHUFFLES = 10_000  # in the check of clean accuracy
# A healthy net is right on this fraction of the images outside of its most frequent class: an
# accuracy that could be chance fails only if it is too low for that.
RECALL = 0.7

MEANINGS = {
  "clean accuracy": "The net does not get the images that it was trained on: other units or "
  "preprocessing, another order of the labels, or no training; or its prediction is the same for "
  "all images.",
  "logits": "The outputs are probabilities: the softmax rounds the gradient of a confident "
  "prediction to 0, and the attacks, which expect logits, are weaker than they seem.",
  "levels": "The outputs are rounded, so that losses are constant between steps: attacks that "
  "compare losses, as APGD and Square do, see no progress.",
  "repeatable": "The net is random, so that an attack on one output says little about the next: "
  'attack the average over fresh draws, by `ro.Randomized` and the version "rand".',
  "batches": "Logits depend on the other images of the batch, as with batch normalization in "
  "training mode: the measurement is one of the batches, not of the net.",
  "gradients": "The loss is flat, saturated in float32 or behind a step function such as rounding, "
  "so that attacks that ascend it do not move and report robustness.",
  "finite gradients": "A gradient of inf or NaN ends an ascent where it begins, as behind a square "
  "root at 0 or a logarithm of 0.",
  "slope": "The gradients do not point to where the loss increases, as of a step function with "
  "another derivative of its own, or of a ripple finer than any perturbation.",
  "pixels": "A part of the image changes the prediction but has no gradient, as behind "
  "stop_gradient or rounding: attacks that follow gradients leave it as it is.",
  "unbounded radius": "An adversary who may use any image breaks every net, so the gradient is "
  "masked, or the attack is broken.",
  "radii": "A larger set contains the smaller one, so the attack in the larger one has not "
  "converged, or its gradients are misleading.",
  "steps": "More steps do not increase the loss: gradients are useful for one step at most, as "
  "with a masked loss, or the attack's step sizes do not fit.",
  "restarts": "The loss surface is rugged and one start finds too little: the attack has not "
  "converged, and the reported accuracy is too high.",
  "noise": "Random directions do as well as gradients, so the gradients carry no information, or "
  "the attack does not follow them.",
  "black box": "A search without gradients finds what gradients miss: they are masked, and the "
  "accuracy under white-box attacks is too high.",
}


class Check(NamedTuple):
  """One property of a sound evaluation."""

  name: str  # unique in a report
  passed: bool | None  # up to sampling noise; None if these images cannot decide
  measured: str  # the counts; if passed is None, the reason comes first
  meaning: str  # what a failure means, one sentence

  @property
  def failed(self) -> bool:
    """False also if the check cannot decide."""
    return self.passed is not None and not self.passed


def check_of(name: str, holds: bool, measured: str, unclear: str = "") -> Check:
  """A check; a nonempty `unclear` is the reason why these images cannot decide it."""
  if unclear:
    return Check(name, None, f"{unclear}: {measured}", MEANINGS[name])
  return Check(name, bool(holds), measured, MEANINGS[name])


def at_most(
  allowed: int, name: str, count: int, num_right: int, measured: str, unclear: str = ""
) -> Check:
  """The check that a count of correctly classified images does not exceed the allowed one."""
  return check_of(name, count <= allowed, measured, unclear or _too_few(num_right, allowed))


def check_verdict(verdict: Verdict, prediction: np.ndarray, ids: np.ndarray) -> None:
  """InputError if the verdict is of another network: only predictions at ties may differ."""
  others = int(np.sum(verdict.prediction[ids] != prediction))
  if others > max(1, TIES * len(ids)):
    raise InputError(
      f"The verdict must be of this network, but its predictions differ on {others} of {len(ids)} "
      f"clean images."
    )


# Clean logits.


def clean_accuracy(prediction: np.ndarray, y: np.ndarray, seed: int) -> Check:
  """The balanced accuracy is above chance."""
  # Balanced over the classes, since a constant prediction can be right on most of a skewed set. The
  # permutation test compares with the same predictions shuffled among the images.
  counts = np.bincount(y)
  classes = np.count_nonzero(counts)
  weights = 1 / (classes * counts[y])
  right = prediction == y
  rng = np.random.default_rng(seed)
  shuffled = [weights @ (rng.permutation(prediction) == y) for _ in range(NUM_SHUFFLES)]
  by_chance = np.quantile(shuffled, CONFIDENCE, method="higher")
  beyond = bool(weights @ right > by_chance + 1e-9)  # a constant net scores by_chance, but rounded
  others = y != stats.mode(prediction).mode
  too_low = stats.binom.cdf(np.sum(right & others), np.sum(others), RECALL) < 1 - CONFIDENCE
  unclear = "" if beyond or too_low else "too few images of several classes"
  measured = (
    f"{np.sum(right)} of {len(y)} are classified correctly; the mean over {classes} classes is "
    f"{weights @ right:.1%}, and up to {by_chance:.1%} can be chance"
  )
  if classes == 1:
    unclear = "all images are of one class"
  return check_of("clean accuracy", beyond, measured, unclear)


def are_logits(logits: np.ndarray) -> Check:
  """The outputs [N, C] are not probabilities."""
  furthest = np.abs(logits.astype(np.float64).sum(axis=1) - 1).max()
  measured = (
    f"outputs in [{logits.min():.4g}, {logits.max():.4g}], whose sum is at most {furthest:.2g} "
    f"from 1"
  )
  return check_of("logits", not are_probabilities(logits), measured)


def levels(logits: np.ndarray) -> Check:
  """The outputs [N, C] are not rounded to few levels."""
  distinct, allowed = len(np.unique(logits)), int(LEVELS * logits.size)
  measured = (
    f"{distinct} distinct values among {logits.size} outputs of {logits.dtype}; a tenth are enough"
  )
  unclear = "too few images" if logits.size < 100 else ""
  return check_of("levels", distinct > allowed, measured, unclear)


def repeatable(logits: np.ndarray, again: np.ndarray) -> Check:
  """Two calls on the same images give the same logits."""
  same, measured = network.compared(logits, again)
  return check_of("repeatable", same, f"the same images twice: {measured}")


def batches(logits: np.ndarray, logits_fn: LogitsFn, x: np.ndarray, size: int, seed: int) -> Check:
  """Another order and batch size give the same logits [N, C] of x, `size` at a time."""
  order = np.random.default_rng(seed).permutation(len(x))
  # Another size too: if all examples form one batch, another order alone does not change it.
  other = max(1, size // 3) if size > 1 else 2
  shuffled = plain_logits(logits_fn, x[order], other)
  same, difference = network.compared(logits, shuffled[np.argsort(order)])
  measured = f"in order, {size} at a time, and shuffled, {other} at a time: {difference}"
  return check_of("batches", same, measured, "there is only one image" if len(x) == 1 else "")


# Attacks.


def unbounded(sweep: dict[float, np.ndarray], right: np.ndarray) -> Check:
  """If any image is allowed, almost none remains correct."""
  diameter, robust = max(sweep.items(), key=lambda item: item[0])
  allowed = max(1, int(UNBOUNDED * len(right)))
  measured = (
    f"{len(robust)} of {len(right)} remain correct at the radius {diameter:.4g}, within which lie "
    f"all images; allowed are {allowed}"
  )
  return at_most(allowed, "unbounded radius", len(robust), len(right), measured)


def radii(sweep: dict[float, np.ndarray], right: np.ndarray) -> Check:
  """Larger sets break more."""
  counts = {0.0: len(right)} | {radius: len(sweep[radius]) for radius in sorted(sweep)}
  points = ", ".join(f"{radius:.4g}: {count}" for radius, count in counts.items())
  left = np.array(list(counts.values()))
  rise, allowed = int(np.max(left - np.minimum.accumulate(left))), _allowed(len(right), MISSES)
  measured = (
    f"correct at radius {points}; the counts rise by {rise}, and up to {allowed} can be chance"
  )
  return at_most(allowed, "radii", rise, len(right), measured)


def steps(probe: Probe, right: np.ndarray, once: np.ndarray, num_steps: int) -> Check:
  """More steps break more."""
  attacks: dict[str, MakeAttack] = {"1 (FGSM)": probes.fgsm_attack}
  attacks |= {str(fewer): probes.apgd_attack(fewer) for fewer in FEWER_STEPS if fewer < num_steps}
  counts = {name: len(probe.white_box(right, attack)) for name, attack in attacks.items()}
  counts[str(num_steps)] = len(once)
  # Only the last count is compared: over l_1, five steps of APGD break fewer images than FGSM.
  rise, allowed = len(once) - min(counts.values()), _allowed(len(right), MISSES)
  points = ", ".join(f"{name}: {count}" for name, count in counts.items())
  measured = (
    f"correct of {len(right)} after steps {points}; in the end {rise} more than at the minimum, "
    f"and up to {allowed} can be chance"
  )
  unclear = "the attack has only one step" if num_steps == 1 else ""
  return at_most(allowed, "steps", rise, len(right), measured, unclear)


def restarts(
  right: np.ndarray, after_starts: list[np.ndarray], broken_by: np.ndarray | None
) -> Check:
  """More starts break almost no image that the evaluation, or the earlier starts, did not."""
  *_, before_last, unbroken = after_starts
  if broken_by is None:
    more, allowed = len(before_last) - len(unbroken), _allowed(len(right), MISSES)
    left = ", ".join(str(len(ids)) for ids in after_starts)
    measured = f"of {len(right)}, the starts one by one leave {left}: the last breaks {more}"
  else:
    robust = right[broken_by[right] == ROBUST]
    more = len(np.setdiff1d(robust, unbroken))
    allowed = _allowed_after_ensemble(len(right), len(broken_by))
    measured = (
      f"{len(after_starts)} more starts break {more} of the {len(robust)} that the evaluation does "
      f"not break, of {len(right)}"
    )
  measured += f"; up to {allowed} can be chance"
  return at_most(allowed, "restarts", more, len(right), measured)


def noise(probe: Probe, right: np.ndarray, once: np.ndarray) -> Check:
  """Gradients break more than random directions."""
  by_noise = len(right) - len(probe.robust(right, probes.noise_attack))
  by_attack = len(right) - len(once)
  # If the attack breaks nearly everything, noise may too.
  few = _allowed(len(right), MISSES)
  holds = by_noise < by_attack or by_noise <= few or len(once) <= few
  draws = probes.num_draws(probe.x[0].size)
  measured = (
    f"of {len(right)}, noise on the boundary of the set ({draws} draws) breaks {by_noise}, the "
    f"attack {by_attack}"
  )
  unclear = _too_few(len(right), few)
  if max(by_noise, by_attack) <= few:
    unclear = unclear or f"neither breaks more than {few}, which can be chance"
  return check_of("noise", holds, measured, unclear)


def black_box(
  probe: Probe, right: np.ndarray, after_starts: list[np.ndarray], num_queries: int, guess: str
) -> Check:
  """Square finds little more than gradients on the sample; `guess` describes the channel axis."""
  unbroken = after_starts[-1]
  more = len(unbroken) - len(probe.robust(unbroken, probes.square_attack(num_queries)))
  allowed = _allowed(len(right), MISSES)
  measured = (
    f"{num_queries} queries without gradients break {more} of the {len(unbroken)} that gradients "
    f"with {len(after_starts)} starts do not break, of {len(right)}{guess and f'; {guess}'}; up to "
    f"{allowed} are not flagged"
  )
  return at_most(allowed, "black box", more, len(right), measured)


def black_box_of_verdict(verdict: Verdict) -> Check:
  """The same for an evaluation of all examples whose last attack was Square."""
  more = int(np.sum(verdict.broken_by == len(verdict.names) - 1))
  remaining = more + int(np.sum(verdict.broken_by == ROBUST))
  num_right = int(np.sum(verdict.broken_by != 0))
  allowed = _allowed_after_ensemble(num_right, len(verdict.broken_by))
  measured = (
    f"in the evaluation Square breaks {more} of the {remaining} that gradients do not break, of "
    f"{num_right}; up to {allowed} are not flagged"
  )
  return at_most(allowed, "black box", more, num_right, measured)


def _allowed_after_ensemble(num_right: int, num_examples: int) -> int:
  """The number of images that one more attack may break after the evaluation."""
  below_flag = math.ceil(FLAGGED * num_examples) - 1
  return max(_allowed(num_right, ENSEMBLE_MISSES), below_flag)


def _too_few(num_right: int, allowed: int) -> str:
  """Why no count can exceed the allowed one; empty if one can."""
  if num_right == 0:
    return "no image is classified correctly"
  return "too few images are classified correctly" if num_right <= allowed else ""


def _allowed(count: int, rate: float) -> int:
  """The number of `count` independent events of this rate that chance can explain."""
  return int(stats.binom.ppf(CONFIDENCE, count, rate)) if count else 0
