"""Checks of an evaluation itself, so that a robust accuracy is not believed because it is high.

  checks = report(logits_fn, x, y, norm="linf", radius=0.3)     # x [N, *S] in [0, 1], N some 200
  print(to_markdown(checks))
  all(check.passed for check in checks)
  json.dumps([check._asdict() for check in checks])

A sound evaluation has properties that can be tested without knowing the true robust accuracy: an
unbounded adversary breaks everything, larger sets and more steps break more, gradients find more
than noise and than a search that has none (Athalye, Carlini and Wagner 2018, arXiv 1802.00420,
section 3.1; Carlini et al. 2019, arXiv 1902.06705, section 5). A check that fails names the
likeliest fault. All of them passed is no proof of robustness: it says that none of these faults was
found.

|  fault of the net or its use                      |  checks that are meant for it            |
|  other units, preprocessing, order of labels      |  clean accuracy                          |
|  probabilities for logits                         |  logits                                  |
|  answers at random                                |  repeatable                              |
|  batch norm in train mode                         |  batches                                 |
|  saturated cross-entropy, quantised input         |  gradients, unbounded radius             |
|  gradients that point nowhere                     |  black box, noise, restarts, radii       |
|  an attack that does not climb                    |  steps, noise, unbounded radius          |
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from robust_opt import layout, nets
from robust_opt.ensemble import checked, sum_rounding
from robust_opt.errors import InputError
from robust_opt.layout import ChannelAxis
from robust_opt.precision import check_floating
from robust_opt.trust_trials import (
  Trial,
  answers,
  apgd_attack,
  fgsm_attack,
  noise_attack,
  num_draws,
  square_attack,
)
from robust_opt.types import Array, LogitsFn

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the radius, in the check of radii
FEWER_STEPS = (5, 20)  # besides one and num_steps
NUM_RESTARTS = 5

# Sums in another order differ by some 1e-6 of the largest logit; statistics of another batch by
# 1e-2 and more.
ROUNDING = 1e-4
# Of nets that answer in bfloat16 or float16, in units of eps: whether sums are rounded in between
# differs by the size of the batch.
LOW_PRECISION = 4
# A trained net has next to no gradient of exactly 0: float32 keeps it up to margins of some 80.
FLAT = 0.1
# At the diameter of the box any image is allowed, so the truth is 0 and has no sampling noise; a
# few examples may lie where all units are dead, from which no single ascent climbs.
UNBOUNDED = 0.01
# How often a sound attack misses by bad luck alone: upper estimates, per example. One run that
# fails where another, in a smaller set, with fewer steps or without gradients, succeeds; and one
# start that fails where four others succeed (adversarially trained nets: about 1 in 100).
MISSES = 0.01
RESTART_MISSES = 0.02
# Counts are held against this quantile of the binomial, so that a healthy net fails a check by
# chance in one set of a thousand, whatever the size of the set.
CONFIDENCE = 0.999


class Check(NamedTuple):
  """One property that a sound evaluation has.

  Attributes:
    name: unique in a report.
    passed: whether the property holds, up to the noise of a small set.
    measured: what was counted.
    meaning: one sentence, what a failure means.
  """

  name: str
  passed: bool
  measured: str
  meaning: str


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
  progress: Callable[[str], None] = lambda words: None,
) -> list[Check]:
  """Runs every check on the given examples; the same seed gives the same report.

  The white-box attack is APGD on the cross-entropy, then on the DLR loss where that failed; the
  black-box one is Square. All radii share one compilation. Where the net is right on nothing, the
  first check fails and those of attacks have nothing to count.

  A net that answers at random is seen if two calls of logits_fn differ: one that draws noise in
  Python, or by a callback. A function that closes over a fixed key gives the same answer twice, and
  so does one that the caller jitted while its noise was drawn in Python: their noise is part of a
  deterministic net here, as it is in the attacks.

  Args:
    logits_fn: x [B, *S] -> logits [B, C], differentiable, in evaluation mode; a
      `jax.tree_util.Partial` hands its weights over as arguments, so that nets of one architecture
      share their compilations.
    x: [N, *S], float pixels in [0, 1]; a few hundred tell enough, and some 20 are needed for an
      accuracy to be told from chance.
    y: [N], integer labels in [0, C).
    norm: "linf", "l2" or "l1".
    radius: > 0, in pixels: that of the evaluation.
    seed: of all random numbers.
    batch_size: examples at a time.
    num_steps: of the white-box attack, >= 1.
    num_queries: of the black-box attack, >= 1.
    channel_axis: of one example, for the black-box attack; as for `robust_opt.autoattack`.
    progress: is told what is looked at next, one of PARTS, each once.

  Raises:
    InputError: as `robust_opt.ensemble.checked`, except for probabilities, which are a check that
      fails; num_steps or num_queries below 1; channel_axis is not an axis of an example.
  """
  for name, count in (("num_steps", num_steps), ("num_queries", num_queries)):
    if count < 1:
      raise InputError(f"{name} must be an integer >= 1, but was {count}.")
  # The log of a softmax takes no probabilities for what they are: here they are to be reported.
  x, y = checked(lambda x: _log_softmax(logits_fn(x)), x, y, norm, radius, batch_size)
  layout.resolve(channel_axis, x.shape[1:])  # refuses a wrong one before the work
  size = min(batch_size, len(x))
  trial = Trial(nets.as_argument(logits_fn, x), x, y, norm, float(radius), seed, size)
  progress(PARTS[0])
  logits = answers(logits_fn, x, size)
  right = trial.right()
  of_net = [
    _clean_accuracy(len(right), y, logits.shape[1]),
    _are_logits(logits),
    _repeatable(logits, answers(logits_fn, x, size)),
    _batches(logits, logits_fn, trial),
    _gradients(trial, right),
  ]
  progress(PARTS[1])
  attack = apgd_attack(num_steps)
  sweep = trial.sweep(right, attack, FACTORS)
  once = sweep[trial.radius]
  progress(PARTS[2])
  after_restarts = once
  for run in range(1, NUM_RESTARTS):
    after_restarts = trial.white_box(after_restarts, attack, run)
  of_attacks = [
    _unbounded(sweep, len(x)),
    _radii(sweep, right),
    _steps(trial, right, once, num_steps),
    _restarts(right, once, after_restarts),
    _noise(trial, right, once),
  ]
  progress(PARTS[3])
  return [*of_net, *of_attacks, _black_box(trial, right, after_restarts, num_queries, channel_axis)]


def to_markdown(checks: list[Check]) -> str:
  """The report as a table; what a failure means is said where there is one."""
  failed = not all(check.passed for check in checks)
  rows = [["check", "passed", "measured", *["meaning"] * failed], ["---"] * (3 + failed)]
  for check in checks:
    meaning = ["" if check.passed else check.meaning] * failed
    rows.append([check.name, "yes" if check.passed else "NO", check.measured, *meaning])
  return "".join(f"| {' | '.join(row)} |\n" for row in rows)


# --- What the net answers, without an attack ---


def _log_softmax(logits: Array) -> Array:
  check_floating(logits, "The net's logits")
  return jax.nn.log_softmax(logits)


def _clean_accuracy(num_right: int, y: np.ndarray, num_classes: int) -> Check:
  # Without looking at the image one is right as often as the commonest label occurs.
  chance = max(1 / num_classes, np.bincount(y).max() / len(y))
  by_chance = _allowed(len(y), chance)
  return Check(
    "clean accuracy",
    num_right > by_chance,
    f"{num_right} of {len(y)} are classified correctly; up to {by_chance} could be by chance",
    "The net does not see the images as it was trained to: other units or preprocessing, another "
    "order of the labels, or no training.",
  )


def _are_logits(logits: np.ndarray) -> Check:
  allowed = sum_rounding(logits.dtype)
  logits = logits.astype(np.float64)
  sums = np.abs(logits.sum(axis=1) - 1)
  probabilities = bool(np.all(logits >= 0) and np.all(sums <= allowed))
  return Check(
    "logits",
    not probabilities,
    f"outputs in [{logits.min():.4g}, {logits.max():.4g}], whose sum is at most {sums.max():.2g} "
    f"from 1",
    "The outputs are probabilities: the softmax rounds away the gradient of a confident answer, "
    "and the attacks, which expect logits, are weaker than they seem.",
  )


def _repeatable(logits: np.ndarray, again: np.ndarray) -> Check:
  same, measured = _compared(logits, again)
  return Check(
    "repeatable",
    same,
    f"the same images twice: {measured}",
    "The net answers at random, so that an attack on one answer says little about the next: attack "
    'the averaged answers of fresh draws, by `nets.Randomized` and the version "rand".',
  )


def _batches(logits: np.ndarray, logits_fn: LogitsFn, trial: Trial) -> Check:
  size, order = trial.size, np.random.default_rng(trial.seed).permutation(len(trial.x))
  # Of another size too: if all examples are one batch, another order alone leaves it as it is.
  other = size // 3 if size >= 3 else size + 1
  shuffled = answers(logits_fn, trial.x[order], other)
  same, measured = _compared(logits, shuffled[np.argsort(order)])
  return Check(
    "batches",
    same,
    f"in order, {size} at a time, and shuffled, {other} at a time: {measured}",
    "An answer depends on the images beside it, as that of batch normalisation in train mode does: "
    "what is measured belongs to the batches, not to the net.",
  )


def _compared(a: np.ndarray, b: np.ndarray) -> tuple[bool, str]:
  """Whether two sets of logits [N, C] are the same up to rounding, and by how much they differ."""
  rounding = max(ROUNDING, LOW_PRECISION * float(jnp.finfo(a.dtype).eps))
  a, b = a.astype(np.float64), b.astype(np.float64)
  difference, largest = np.max(np.abs(a - b)), np.max(np.abs(a))
  changed = int(np.sum(np.argmax(a, axis=1) != np.argmax(b, axis=1)))
  same = bool(difference <= rounding * largest)  # so said, NaN is not the same
  return same, (
    f"{changed} of {len(a)} predictions change, and logits of up to {largest:.4g} by up to "
    f"{difference:.2g}"
  )


# --- What attacks make of it ---


def _gradients(trial: Trial, right: np.ndarray) -> Check:
  flat = trial.flat(right)
  return Check(
    "gradients",
    flat <= FLAT * len(right),
    f"the gradient of the cross-entropy is exactly 0 at {flat} of the {len(right)} images that are "
    f"classified correctly",
    "The loss is flat, being saturated in float32 or behind a step such as rounding, so that "
    "attacks that climb it stand still and report robustness.",
  )


def _unbounded(sweep: dict[float, np.ndarray], num_examples: int) -> Check:
  diameter, standing = max(sweep.items(), key=lambda item: item[0])
  return Check(
    "unbounded radius",
    len(standing) <= max(1, int(UNBOUNDED * num_examples)),
    f"{len(standing)} of {num_examples} stand at the radius {diameter:.4g}, within which lie all "
    f"images",
    "An adversary who may show any image breaks every net, so what stands hides its gradient, or "
    "the attack is broken.",
  )


def _radii(sweep: dict[float, np.ndarray], right: np.ndarray) -> Check:
  counts = [len(right), *(len(standing) for _, standing in sorted(sweep.items()))]
  points = [f"{radius:.4g}: {count}" for radius, count in zip([0.0, *sorted(sweep)], counts)]
  return Check(
    "radii",
    _rise(counts) <= _allowed(len(right), MISSES),
    f"standing at radius {', '.join(points)}; they rise by {_rise(counts)}",
    "A larger set holds the smaller one, so the attack in the larger one has not converged, or its "
    "gradients lead it astray.",
  )


def _steps(trial: Trial, right: np.ndarray, once: np.ndarray, num_steps: int) -> Check:
  fewer = [steps for steps in FEWER_STEPS if steps < num_steps]
  attacks = [fgsm_attack, *map(apgd_attack, fewer)]
  counts = [*(len(trial.white_box(right, attack)) for attack in attacks), len(once)]
  names = ["1 (FGSM)", *map(str, fewer), str(num_steps)]
  points = [f"{name}: {count}" for name, count in zip(names, counts)]
  return Check(
    "steps",
    _rise(counts) <= _allowed(len(right), MISSES),
    f"standing of {len(right)} after steps {', '.join(points)}; they rise by {_rise(counts)}",
    "The steps do not climb: gradients are good for one step at most, as those of a masked loss "
    "are, or the attack's step sizes do not fit.",
  )


def _restarts(right: np.ndarray, once: np.ndarray, after_all: np.ndarray) -> Check:
  gain = len(once) - len(after_all)
  return Check(
    "restarts",
    gain <= _allowed(len(right), RESTART_MISSES),
    f"{len(once)} of {len(right)} stand after one start and {len(after_all)} after {NUM_RESTARTS}",
    "The loss is rugged and one start finds too little: the attack has not converged, and the "
    "accuracy that it reports is too high.",
  )


def _noise(trial: Trial, right: np.ndarray, once: np.ndarray) -> Check:
  by_noise = len(right) - len(trial.standing(right, noise_attack))
  by_attack = len(right) - len(once)
  # Where the attack breaks everything, noise may; a few that any change breaks are no sign either.
  few = _allowed(len(right), MISSES)
  return Check(
    "noise",
    by_noise < by_attack or by_noise <= few or by_attack == len(right),
    f"of {len(right)}, noise on the edge of the set ({num_draws(trial.x[0].size)} draws) breaks "
    f"{by_noise}, the attack {by_attack}",
    "Directions drawn at random do as well as gradients, so the gradients tell the attack nothing, "
    "or it does not follow them.",
  )


def _black_box(
  trial: Trial,
  right: np.ndarray,
  unbroken: np.ndarray,
  num_queries: int,
  channel_axis: ChannelAxis,
) -> Check:
  attack = square_attack(num_queries, layout.resolve(channel_axis, trial.x.shape[1:]))
  more = len(unbroken) - len(trial.standing(unbroken, attack))
  guess = layout.guess_in_words(channel_axis, trial.x.shape[1:])
  return Check(
    "black box",
    more <= _allowed(len(right), MISSES),
    f"{num_queries} queries without gradients break {more} of the {len(unbroken)} that gradients "
    f"with {NUM_RESTARTS} starts do not break, of {len(right)}{guess and f'; {guess}'}",
    "A search that sees no gradient finds what gradients miss: they are masked, and the accuracy "
    "under white-box attacks is too high.",
  )


def _allowed(count: int, rate: float) -> int:
  """How many of so many independent cases of this rate may happen before it is no chance."""
  return int(stats.binom.ppf(CONFIDENCE, count, rate)) if count else 0


def _rise(counts: list[int]) -> int:
  """How far a sequence that should fall rises above an earlier value; 0 if it never does."""
  return max(count - min(counts[: place + 1]) for place, count in enumerate(counts))
