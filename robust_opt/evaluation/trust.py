"""Checks of an evaluation itself: a high robust accuracy can also be a failure of the attacks.

  u = ro.LInf(0.3, box=(0.0, 1.0))
  checks = report(logits_fn, x, y, u)     # x [N, *S] in [0, 1], N about 200
  print(to_markdown(checks))
  any(check.failed for check in checks)
  json.dumps([check._asdict() for check in checks])

A sound evaluation has properties that can be tested without knowing the true robust accuracy: an
unbounded adversary breaks everything, larger sets and more steps break more, gradients find more
than noise and than a search without them (Athalye, Carlini and Wagner 2018, arXiv 1802.00420,
section 3.1; Carlini et al. 2019, arXiv 1902.06705, section 5). A failed check names the most
likely fault. Passing all of them does not prove robustness, only that none of these faults was
found. A check that these images cannot decide is "not measurable": it neither passes nor fails.
`preliminary` makes those that need no attack, for any set.
"""

from collections.abc import Callable

import numpy as np

from robust_opt import layout
from robust_opt.errors import InputError
from robust_opt.evaluation import gradient_checks, network, trust_checks
from robust_opt.evaluation.autoattack import Verdict
from robust_opt.evaluation.batches import plain_logits, predictions
from robust_opt.evaluation.inputs import check_examples, check_set
from robust_opt.evaluation.probes import Probe, apgd_attack, largest_radius
from robust_opt.evaluation.trust_checks import Check
from robust_opt.layout import ChannelAxis
from robust_opt.sets import Ball, UncertaintySet, check_ball
from robust_opt.sets.base import Box
from robust_opt.sets.examples import for_examples
from robust_opt.sets.radii import box_of, check_extent
from robust_opt.types import Array, LogitsFn

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the radius, in the check of radii
NUM_RESTARTS = 5
OUTCOMES = {True: "yes", False: "NO", None: "not measurable"}  # of a check, in tables
PARTS = ("the net", "attacks at other radii", "restarts, steps and noise", "black box")


def report(
  logits_fn: LogitsFn,
  x: np.ndarray | Array,
  y: np.ndarray | Array,
  u: Ball,
  *,
  seed: int = 0,
  batch_size: int = 100,
  num_steps: int = 40,
  num_queries: int = 1000,
  channel_axis: ChannelAxis = layout.AUTO,
  examples: int | None = None,
  verdict: Verdict | None = None,
  clean: list[Check] | None = None,
  progress: Callable[[str], None] = lambda part: None,
) -> list[Check]:
  """Runs all checks on a sample of the examples; the same seed gives the same report.

  The white-box attack is APGD on the cross-entropy, then on the DLR loss where that failed; the
  black-box attack is Square.

  A net is random if two calls of logits_fn differ. Noise from a fixed key, or frozen by the
  caller's jit, counts as part of a deterministic net, as in the attacks.

  Args:
    logits_fn, x, y: as for `robust_opt.autoattack`; a few hundred examples are enough. The net must
      be differentiable.
    u: LInf, L2 or L1 with a finite box, in pixels of [0, 1], as in the evaluation.
    seed: of all random numbers.
    batch_size: affects speed and memory.
    num_steps: of the white-box attack, >= 1.
    num_queries: of the black-box attack, >= 1.
    channel_axis: of one example, for the black-box attack; as for `robust_opt.autoattack`.
    examples: the size of the sample, >= 1, drawn by the seed; None: all N.
    verdict: of the evaluation of these N examples, used if its last attack was Square, after
      others, and skipped nothing: for the check of restarts, and in place of the black-box attack.
    clean: the checks of `preliminary`, of the same examples; None: they are made here.
    progress: called before each of PARTS.

  Raises:
    InputError: as `autoattack`, except for probabilities, which are a check that fails; num_steps,
      num_queries or examples below 1; a verdict of another number of examples or of another net.
  """
  counts = {"num_steps": num_steps, "num_queries": num_queries, "examples": examples}
  for name, count in counts.items():
    if count is not None and count < 1:
      raise InputError(f"{name} must be an integer >= 1, but was {count}.")
  check_ball(u, "The trust report", box=True)
  check_set(u)
  x, y = check_examples(logits_fn, x, y, u, batch_size, allow_probabilities=True)
  check_extent(u, x.shape[1:])
  axis = layout.resolve(channel_axis, x.shape[1:])
  if verdict is not None and len(verdict.broken_by) != len(x):
    raise InputError(
      f"The verdict must be of the same {len(x)} examples, but has {len(verdict.broken_by)}."
    )
  complete = verdict is not None and verdict.ration is None
  if verdict is not None and not (
    complete and verdict.names[1:-1] and verdict.names[-1] == "square"
  ):
    verdict = None
  ids = _sample(len(x), examples, seed)
  x, y = np.asarray(x[ids]), np.asarray(y[ids])
  u = check_ball(for_examples(u, ids, x.ndim), "The trust report")
  probe = Probe(network.as_argument(logits_fn, x), x, y, u, seed, min(batch_size, len(x)), axis)
  progress(PARTS[0])
  prediction = predictions(probe.net, x, probe.size)
  if verdict is not None:
    trust_checks.check_verdict(verdict, prediction, ids)
  right = np.flatnonzero(prediction == y)
  checks = clean or _clean_checks(logits_fn, x, y, probe.size, seed, box_of(u))
  progress(PARTS[1])
  sweep = probe.sweep(right, apgd_attack(num_steps), FACTORS)
  progress(PARTS[2])
  after_starts = [sweep[largest_radius(u)]]
  for run in range(1, NUM_RESTARTS):
    after_starts.append(probe.white_box(after_starts[-1], apgd_attack(num_steps), run))
  broken_by = None if verdict is None else verdict.broken_by[ids]
  checks = [
    *checks,
    trust_checks.unbounded(sweep, right),
    trust_checks.radii(sweep, right),
    trust_checks.steps(probe, right, after_starts[0], num_steps),
    trust_checks.restarts(right, after_starts, broken_by),
    trust_checks.noise(probe, right, after_starts[0]),
  ]
  progress(PARTS[3])
  if verdict is not None:
    return [*checks, trust_checks.black_box_of_verdict(verdict)]
  guess = layout.describe_guess(channel_axis, x.shape[1:])
  return [*checks, trust_checks.black_box(probe, right, after_starts, num_queries, guess)]


def preliminary(
  logits_fn: LogitsFn,
  x: np.ndarray | Array,
  y: np.ndarray | Array,
  u: UncertaintySet,
  *,
  seed: int = 0,
  batch_size: int = 100,
  examples: int | None = None,
) -> list[Check]:
  """The checks of `report` that need no attack, in seconds, on the same sample.

  Args: as for `report`, but u is any set, of which only the box matters.
  """
  x, y = check_examples(logits_fn, x, y, u, batch_size, allow_probabilities=True)
  ids = _sample(len(x), examples, seed)
  x, y = np.asarray(x[ids]), np.asarray(y[ids])
  return _clean_checks(logits_fn, x, y, min(batch_size, len(x)), seed, box_of(u))


def _sample(count: int, examples: int | None, seed: int) -> np.ndarray:
  """The indices of so many examples, in order; random, since a data set may be sorted by class."""
  return np.sort(np.random.default_rng(seed).permutation(count)[:examples])


def _clean_checks(
  logits_fn: LogitsFn, x: np.ndarray, y: np.ndarray, size: int, seed: int, box: Box
) -> list[Check]:
  """The checks that need no attack."""
  net = network.as_argument(logits_fn, x)
  logits, prediction = plain_logits(logits_fn, x, size), predictions(net, x, size)
  repeatable = trust_checks.repeatable(logits, plain_logits(logits_fn, x, size))
  if repeatable.passed:
    network.check_compiled(net, x, logits[:size])
  gradients = gradient_checks.measure(net, x, y, size, box)
  return [
    trust_checks.clean_accuracy(prediction, y, seed),
    trust_checks.are_logits(logits),
    trust_checks.levels(logits),
    repeatable,
    trust_checks.batches(logits, logits_fn, x, size, seed),
    gradient_checks.zeros(gradients, np.flatnonzero(prediction == y)),
    gradient_checks.finite(gradients),
    gradient_checks.slope(gradients),
    gradient_checks.pixels(net, x, gradients, size, seed, box),
  ]


def to_markdown(checks: list[Check]) -> str:
  """The report as a table: the outcome of each check, its counts, and what a failure means."""
  rows = [["check", "passed", "measured", "a failure means"], ["---"] * 4]
  rows += [[check.name, OUTCOMES[check.passed], check.measured, check.meaning] for check in checks]
  return "".join(f"| {' | '.join(row)} |\n" for row in rows)
