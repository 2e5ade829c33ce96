"""Checks of an evaluation itself, so that a robust accuracy is not believed because it is high.

  checks = report(logits_fn, x, y, norm="linf", radius=0.3)     # x [N, *S] in [0, 1], N some 200
  print(to_markdown(checks))
  any(check.failed for check in checks)
  json.dumps([check._asdict() for check in checks])

A sound evaluation has properties that can be tested without knowing the true robust accuracy: an
unbounded adversary breaks everything, larger sets and more steps break more, gradients find more
than noise and than a search that has none (Athalye, Carlini and Wagner 2018, arXiv 1802.00420,
section 3.1; Carlini et al. 2019, arXiv 1902.06705, section 5). A check that fails names the
likeliest fault. All of them passed is no proof of robustness: it says that none of these faults was
found. A check that these images cannot decide is "not measurable": it neither passes nor fails.

|  fault of the net or its use                      |  checks that are meant for it            |
|  other units, preprocessing, order of labels      |  clean accuracy                          |
|  one answer to all images                         |  clean accuracy, unbounded radius        |
|  probabilities for logits                         |  logits                                  |
|  answers at random                                |  repeatable                              |
|  batch norm in train mode                         |  batches                                 |
|  saturated cross-entropy, quantised input         |  gradients, unbounded radius             |
|  gradients that point nowhere                     |  black box, noise, restarts, radii       |
|  an attack that does not climb                    |  steps, noise, unbounded radius          |
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from robust_opt import layout
from robust_opt.errors import InputError
from robust_opt.evaluation import network
from robust_opt.evaluation.autoattack import STANDS, Verdict, checked, sum_rounding
from robust_opt.evaluation.probes import (
  Trial,
  answers,
  apgd_attack,
  fgsm_attack,
  noise_attack,
  num_draws,
  square_attack,
)
from robust_opt.layout import ChannelAxis
from robust_opt.types import Array, LogitsFn

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the radius, in the check of radii
FEWER_STEPS = (5, 20)  # besides one and num_steps
NUM_RESTARTS = 5

# A trained net has next to no gradient of exactly 0: float32 keeps it up to margins of some 80.
FLAT = 0.1
# At the diameter of the box any image is allowed, so the truth is 0 and has no sampling noise; a
# few examples may lie where all units are dead, from which no single ascent climbs.
UNBOUNDED = 0.01
# How often a sound attack misses by bad luck alone, per correct image. MISSES: a run that fails
# where another, in a smaller set, with fewer steps, from a fifth start or without gradients,
# succeeds. Measured on the 360 test digits, on 28 pairs of a healthy net (trained without an
# adversary, by one step or by PGD) and a set (l_inf, l_2, l_1), 9,744 correct images in all: radii
# and steps 0, the fifth start 1 of 350 at most, Square after five starts 9 in all and 4 of 350 at
# most.
MISSES = 0.003
# An image that the standard ensemble leaves to Square, or to five more starts. On the same pairs
# Square breaks 1 of 9,744, and five more starts (21 of the pairs) 2 of 7,238.
ENSEMBLE_MISSES = 0.0005
# AutoAttack warns where Square breaks this share of all images after the other attacks
# (`check_square_sr` in its checks.py).
FLAGGED = 0.002
# Of images, those whose prediction may depend on the rounding of another batch size.
TIES = 0.01
# Counts are held against this quantile of the binomial, so that a healthy net fails a check by
# chance in one set of a thousand, whatever the size of the set.
CONFIDENCE = 0.999
# Of answers among images, in the check of clean accuracy.
NUM_SHUFFLES = 10_000
# The share of the images of other classes than its commonest answer that a healthy net is at least
# right on. An accuracy that could be chance fails only if it is too low for that.
RECALL = 0.7


class Check(NamedTuple):
  """One property that a sound evaluation has.

  Attributes:
    name: unique in a report.
    passed: whether the property holds, up to the noise of a small set; None where these images
      cannot tell.
    measured: what was counted, and where passed is None, first why it decides nothing.
    meaning: one sentence, what a failure means.
  """

  name: str
  passed: bool | None
  measured: str
  meaning: str

  @property
  def failed(self) -> bool:
    """False also where the check cannot decide."""
    return self.passed is not None and not self.passed


# What a report looks at, one after the other.
PARTS = ("the net", "attacks at other radii", "restarts, steps and noise", "black box")


def report(
  logits_fn: LogitsFn,
  x: np.ndarray | Array,
  y: np.ndarray | Array,
  *,
  norm: str,
  radius: float | Array,
  seed: int = 0,
  batch_size: int = 100,
  num_steps: int = 40,
  num_queries: int = 1000,
  channel_axis: ChannelAxis = layout.AUTO,
  examples: int | None = None,
  verdict: Verdict | None = None,
  progress: Callable[[str], None] = lambda words: None,
) -> list[Check]:
  """Runs every check, on a sample of the examples; the same seed gives the same report.

  The white-box attack is APGD on the cross-entropy, then on the DLR loss where that failed; the
  black-box one is Square. All radii share one compilation. Where the net is right on nothing, the
  checks of attacks have nothing to count and are not measurable.

  A net that answers at random is seen if two calls of logits_fn differ: one that draws noise in
  Python, or by a callback. A function that closes over a fixed key gives the same answer twice, and
  so does one that the caller jitted while its noise was drawn in Python: their noise is part of a
  deterministic net here, as it is in the attacks.

  Args:
    logits_fn: x [B, *S] -> logits [B, C], differentiable, in evaluation mode; a
      `jax.tree_util.Partial` hands its weights over as arguments, so that nets of one architecture
      share their compilations.
    x: [N, *S], float pixels in [0, 1]; a few hundred are enough.
    y: [N], integer labels in [0, C).
    norm: "linf", "l2" or "l1".
    radius: > 0, in pixels: that of the evaluation.
    seed: of all random numbers.
    batch_size: examples at a time.
    num_steps: of the white-box attack, >= 1.
    num_queries: of the black-box attack, >= 1.
    channel_axis: of one example, for the black-box attack; as for `robust_opt.autoattack`.
    examples: the size of the sample that is attacked, >= 1, drawn by the seed; None: all N.
    verdict: of the evaluation of these N examples. It counts if its last attack was Square, after
      others: restarts are then held against the images that it calls robust, and the black-box
      check counts what Square broke of all N examples instead of running one on the sample.
    progress: is told what is looked at next, one of PARTS, each once.

  Raises:
    InputError: as `autoattack.checked`, except for probabilities, which are a check that fails;
      num_steps, num_queries or examples below 1; a verdict of another number of examples;
      channel_axis is not an axis of an example.
  """
  counts = {"num_steps": num_steps, "num_queries": num_queries, "examples": examples}
  for name, count in counts.items():
    if count is not None and count < 1:
      raise InputError(f"{name} must be an integer >= 1, but was {count}.")
  x, y = checked(logits_fn, x, y, norm, radius, batch_size, allow_probabilities=True)
  layout.resolve(channel_axis, x.shape[1:])  # refuses a wrong one before the work
  if verdict is not None and len(verdict.broken_by) != len(x):
    raise InputError(
      f"The verdict must be of the same {len(x)} examples, but has {len(verdict.broken_by)}."
    )
  if verdict is not None and not (verdict.names[1:-1] and verdict.names[-1] == "square"):
    verdict = None
  ids = np.arange(len(x))
  if examples is not None and examples < len(x):
    # Not the first: a set may be sorted by class.
    ids = np.sort(np.random.default_rng(seed).permutation(len(x))[:examples])
  x, y = x[ids], y[ids]
  size = min(batch_size, len(x))
  trial = Trial(network.as_argument(logits_fn, x), x, y, norm, float(radius), seed, size)
  progress(PARTS[0])
  logits = answers(logits_fn, x, size)
  prediction = trial.predictions()
  if verdict is not None:
    _check_verdict(verdict, prediction, ids)
  right = np.flatnonzero(prediction == y)
  repeatable = _repeatable(logits, answers(logits_fn, x, size))
  if repeatable.passed:
    network.check_compiled(trial.net, x, logits[:size])
  of_net = [
    _clean_accuracy(prediction, y, seed),
    _are_logits(logits),
    repeatable,
    _batches(logits, logits_fn, trial),
    _gradients(trial, right),
  ]
  progress(PARTS[1])
  attack = apgd_attack(num_steps)
  sweep = trial.sweep(right, attack, FACTORS)
  once = sweep[trial.radius]
  progress(PARTS[2])
  after_starts = [once]
  for run in range(1, NUM_RESTARTS):
    after_starts.append(trial.white_box(after_starts[-1], attack, run))
  of_attacks = [
    _unbounded(sweep, right),
    _radii(sweep, right),
    _steps(trial, right, once, num_steps),
    _restarts(right, after_starts, None if verdict is None else verdict.broken_by[ids]),
    _noise(trial, right, once),
  ]
  progress(PARTS[3])
  if verdict is None:
    black_box = _black_box(trial, right, after_starts[-1], num_queries, channel_axis)
  else:
    black_box = _black_box_of_verdict(verdict)
  return [*of_net, *of_attacks, black_box]


def to_markdown(checks: list[Check]) -> str:
  """The report as a table: of every check the outcome, the counts, and what a failure means."""
  outcomes = {True: "yes", False: "NO", None: "not measurable"}
  rows = [["check", "passed", "measured", "a failure means"], ["---"] * 4]
  rows += [[check.name, outcomes[check.passed], check.measured, check.meaning] for check in checks]
  return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _check(name: str, holds: bool, measured: str, meaning: str, unclear: str = "") -> Check:
  """A check; `unclear` says why these images cannot decide it, and is empty where they can."""
  if unclear:
    return Check(name, None, f"{unclear}: {measured}", meaning)
  return Check(name, bool(holds), measured, meaning)


def _check_verdict(verdict: Verdict, prediction: np.ndarray, ids: np.ndarray) -> None:
  """InputError if the verdict is of another network: ties alone may be decided otherwise."""
  others = int(np.sum(verdict.prediction[ids] != prediction))
  if others > max(1, TIES * len(ids)):
    raise InputError(
      f"The verdict must be of this network, but its predictions differ on {others} of {len(ids)} "
      f"clean images."
    )


# --- What the net answers, without an attack ---


def _clean_accuracy(prediction: np.ndarray, y: np.ndarray, seed: int) -> Check:
  # Balanced over the classes: one answer to all images can be right on most of a skewed set. The
  # permutation test compares with the same answers shuffled among the images.
  counts = np.bincount(y)
  classes = np.count_nonzero(counts)
  weights = 1 / (classes * counts[y])
  right = prediction == y
  rng = np.random.default_rng(seed)
  shuffled = [weights @ (rng.permutation(prediction) == y) for _ in range(NUM_SHUFFLES)]
  by_chance = np.quantile(shuffled, CONFIDENCE, method="higher")
  # A constant net scores by_chance exactly; the sums may differ in their order.
  beyond = bool(weights @ right > by_chance + 1e-9)
  others = y != stats.mode(prediction).mode
  too_low = stats.binom.cdf(np.sum(right & others), np.sum(others), RECALL) < 1 - CONFIDENCE
  unclear = ""
  if classes == 1:
    unclear = "all images are of one class"
  elif not beyond and not too_low:
    unclear = "too few images of several classes"
  return _check(
    "clean accuracy",
    beyond,
    f"{np.sum(right)} of {len(y)} are classified correctly; the mean over {classes} classes is "
    f"{weights @ right:.1%}, and up to {by_chance:.1%} can be chance",
    "The net does not see the images as it was trained to: other units or preprocessing, another "
    "order of the labels, or no training; or it gives one answer to all images.",
    unclear,
  )


def _are_logits(logits: np.ndarray) -> Check:
  allowed = sum_rounding(logits.dtype)
  logits = logits.astype(np.float64)
  sums = np.abs(logits.sum(axis=1) - 1)
  probabilities = bool(np.all(logits >= 0) and np.all(sums <= allowed))
  return _check(
    "logits",
    not probabilities,
    f"outputs in [{logits.min():.4g}, {logits.max():.4g}], whose sum is at most {sums.max():.2g} "
    f"from 1",
    "The outputs are probabilities: the softmax rounds away the gradient of a confident answer, "
    "and the attacks, which expect logits, are weaker than they seem.",
  )


def _repeatable(logits: np.ndarray, again: np.ndarray) -> Check:
  same, measured = network.compared(logits, again)
  return _check(
    "repeatable",
    same,
    f"the same images twice: {measured}",
    "The net answers at random, so that an attack on one answer says little about the next: attack "
    'the averaged answers of fresh draws, by `nets.Randomized` and the version "rand".',
  )


def _batches(logits: np.ndarray, logits_fn: LogitsFn, trial: Trial) -> Check:
  size, order = trial.size, np.random.default_rng(trial.seed).permutation(len(trial.x))
  # Of another size too: if all examples are one batch, another order alone leaves it as it is.
  other = max(1, size // 3) if size > 1 else 2
  shuffled = answers(logits_fn, trial.x[order], other)
  same, measured = network.compared(logits, shuffled[np.argsort(order)])
  return _check(
    "batches",
    same,
    f"in order, {size} at a time, and shuffled, {other} at a time: {measured}",
    "An answer depends on the images beside it, as that of batch normalisation in train mode does: "
    "what is measured belongs to the batches, not to the net.",
    "there is only one image" if len(trial.x) == 1 else "",
  )


# --- What attacks make of it ---


def _gradients(trial: Trial, right: np.ndarray) -> Check:
  flat, allowed = trial.flat(right), max(1, int(FLAT * len(right)))
  return _check(
    "gradients",
    flat <= allowed,
    f"the gradient of the cross-entropy is exactly 0 at {flat} of the {len(right)} images that are "
    f"classified correctly; allowed are {allowed}",
    "The loss is flat, being saturated in float32 or behind a step such as rounding, so that "
    "attacks that climb it stand still and report robustness.",
    _too_few(len(right), allowed),
  )


def _unbounded(sweep: dict[float, np.ndarray], right: np.ndarray) -> Check:
  diameter, standing = max(sweep.items(), key=lambda item: item[0])
  allowed = max(1, int(UNBOUNDED * len(right)))
  return _check(
    "unbounded radius",
    len(standing) <= allowed,
    f"{len(standing)} of {len(right)} stand at the radius {diameter:.4g}, within which lie all "
    f"images; allowed are {allowed}",
    "An adversary who may show any image breaks every net, so what stands hides its gradient, or "
    "the attack is broken.",
    _too_few(len(right), allowed),
  )


def _radii(sweep: dict[float, np.ndarray], right: np.ndarray) -> Check:
  counts = [len(right), *(len(standing) for _, standing in sorted(sweep.items()))]
  points = [f"{radius:.4g}: {count}" for radius, count in zip([0.0, *sorted(sweep)], counts)]
  allowed = _allowed(len(right), MISSES)
  return _check(
    "radii",
    _rise(counts) <= allowed,
    f"standing at radius {', '.join(points)}; they rise by {_rise(counts)}, and up to {allowed} "
    f"can be chance",
    "A larger set holds the smaller one, so the attack in the larger one has not converged, or its "
    "gradients lead it astray.",
    _too_few(len(right), allowed),
  )


def _steps(trial: Trial, right: np.ndarray, once: np.ndarray, num_steps: int) -> Check:
  fewer = [steps for steps in FEWER_STEPS if steps < num_steps]
  attacks = [fgsm_attack, *map(apgd_attack, fewer)]
  counts = [*(len(trial.white_box(right, attack)) for attack in attacks), len(once)]
  names = ["1 (FGSM)", *map(str, fewer), str(num_steps)]
  points = [f"{name}: {count}" for name, count in zip(names, counts)]
  # Against the last alone: over l_1 a healthy net stands five steps of APGD more often than FGSM.
  rise, allowed = len(once) - min(counts), _allowed(len(right), MISSES)
  return _check(
    "steps",
    rise <= allowed,
    f"standing of {len(right)} after steps {', '.join(points)}; in the end {rise} more than at "
    f"best, and up to {allowed} can be chance",
    "The steps do not climb: gradients are good for one step at most, as those of a masked loss "
    "are, or the attack's step sizes do not fit.",
    "the attack has only one step" if num_steps == 1 else _too_few(len(right), allowed),
  )


def _restarts(
  right: np.ndarray, after_starts: list[np.ndarray], broken_by: np.ndarray | None
) -> Check:
  *_, before_last, unbroken = after_starts
  if broken_by is None:
    more, allowed = len(before_last) - len(unbroken), _allowed(len(right), MISSES)
    left = ", ".join(str(len(ids)) for ids in after_starts)
    measured = f"of {len(right)}, the starts one by one leave {left}: the last breaks {more}"
  else:
    robust = right[broken_by[right] == STANDS]
    more = len(np.setdiff1d(robust, unbroken))
    allowed = _allowed_after_ensemble(len(right), len(broken_by))
    measured = (
      f"{len(after_starts)} more starts break {more} of the {len(robust)} that the evaluation does "
      f"not break, of {len(right)}"
    )
  return _check(
    "restarts",
    more <= allowed,
    f"{measured}; up to {allowed} can be chance",
    "The loss is rugged and one start finds too little: the attack has not converged, and the "
    "accuracy that it reports is too high.",
    _too_few(len(right), allowed),
  )


def _noise(trial: Trial, right: np.ndarray, once: np.ndarray) -> Check:
  by_noise = len(right) - len(trial.standing(right, noise_attack))
  by_attack = len(right) - len(once)
  # Where the attack breaks nearly everything, noise may too.
  few = _allowed(len(right), MISSES)
  unclear = _too_few(len(right), few)
  if max(by_noise, by_attack) <= few:
    unclear = unclear or f"neither breaks more than {few}, which can be chance"
  return _check(
    "noise",
    by_noise < by_attack or by_noise <= few or len(once) <= few,
    f"of {len(right)}, noise on the edge of the set ({num_draws(trial.x[0].size)} draws) breaks "
    f"{by_noise}, the attack {by_attack}",
    "Directions drawn at random do as well as gradients, so the gradients tell the attack nothing, "
    "or it does not follow them.",
    unclear,
  )


def _black_box(
  trial: Trial,
  right: np.ndarray,
  unbroken: np.ndarray,
  num_queries: int,
  channel_axis: ChannelAxis,
) -> Check:
  """Of the sample."""
  attack = square_attack(num_queries, layout.resolve(channel_axis, trial.x.shape[1:]))
  more = len(unbroken) - len(trial.standing(unbroken, attack))
  allowed = _allowed(len(right), MISSES)
  guess = layout.guess_in_words(channel_axis, trial.x.shape[1:])
  measured = (
    f"{num_queries} queries without gradients break {more} of the {len(unbroken)} that gradients "
    f"with {NUM_RESTARTS} starts do not break, of {len(right)}{guess and f'; {guess}'}"
  )
  return _black_box_check(more, allowed, len(right), measured)


def _black_box_of_verdict(verdict: Verdict) -> Check:
  """Of all examples of the evaluation, whose last attack was Square."""
  more = int(np.sum(verdict.broken_by == len(verdict.names) - 1))
  remaining = more + int(np.sum(verdict.broken_by == STANDS))
  num_right = int(np.sum(verdict.broken_by != 0))
  allowed = _allowed_after_ensemble(num_right, len(verdict.broken_by))
  measured = (
    f"in the evaluation Square breaks {more} of the {remaining} that gradients do not break, of "
    f"{num_right}"
  )
  return _black_box_check(more, allowed, num_right, measured)


def _black_box_check(more: int, allowed: int, num_right: int, measured: str) -> Check:
  return _check(
    "black box",
    more <= allowed,
    f"{measured}; up to {allowed} are not flagged",
    "A search that sees no gradient finds what gradients miss: they are masked, and the accuracy "
    "under white-box attacks is too high.",
    _too_few(num_right, allowed),
  )


def _allowed_after_ensemble(num_right: int, num_examples: int) -> int:
  """How many images of the evaluation one more attack may break."""
  below_flag = math.ceil(FLAGGED * num_examples) - 1
  return max(_allowed(num_right, ENSEMBLE_MISSES), below_flag)


def _too_few(num_right: int, allowed: int) -> str:
  """Why no count could exceed the allowed one; empty where one could."""
  if num_right == 0:
    return "no image is classified correctly"
  return "too few images are classified correctly" if num_right <= allowed else ""


def _allowed(count: int, rate: float) -> int:
  """How many of so many independent cases of this rate may happen before it is no chance."""
  return int(stats.binom.ppf(CONFIDENCE, count, rate)) if count else 0


def _rise(counts: list[int]) -> int:
  """How far a sequence that should fall rises above an earlier value; 0 if it never does."""
  return max(count - min(counts[: place + 1]) for place, count in enumerate(counts))
