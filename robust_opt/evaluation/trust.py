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
"""

from collections.abc import Callable

import numpy as np

from robust_opt import layout
from robust_opt.errors import InputError
from robust_opt.evaluation import network, trust_checks
from robust_opt.evaluation.autoattack import Verdict
from robust_opt.evaluation.batches import plain_logits, predictions
from robust_opt.evaluation.inputs import check_examples, check_set
from robust_opt.evaluation.probes import Probe, apgd_attack
from robust_opt.evaluation.trust_checks import Check
from robust_opt.layout import ChannelAxis
from robust_opt.sets import Ball, check_ball
from robust_opt.sets.radii import check_extent
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
  # Random, since a data set may be sorted by class.
  ids = np.sort(np.random.default_rng(seed).permutation(len(x))[:examples])
  x, y = x[ids], y[ids]
  probe = Probe(network.as_argument(logits_fn, x), x, y, u, seed, min(batch_size, len(x)), axis)
  progress(PARTS[0])
  prediction = predictions(probe.net, x, probe.size)
  if verdict is not None:
    trust_checks.check_verdict(verdict, prediction, ids)
  right = np.flatnonzero(prediction == y)
  checks = _clean_checks(logits_fn, probe, prediction, right)
  progress(PARTS[1])
  sweep = probe.sweep(right, apgd_attack(num_steps), FACTORS)
  progress(PARTS[2])
  after_starts = [sweep[float(u.radius)]]
  for run in range(1, NUM_RESTARTS):
    after_starts.append(probe.white_box(after_starts[-1], apgd_attack(num_steps), run))
  broken_by = None if verdict is None else verdict.broken_by[ids]
  checks += [
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


def _clean_checks(
  logits_fn: LogitsFn, probe: Probe, prediction: np.ndarray, right: np.ndarray
) -> list[Check]:
  """The checks that need no attack."""
  logits = plain_logits(logits_fn, probe.x, probe.size)
  repeatable = trust_checks.repeatable(logits, plain_logits(logits_fn, probe.x, probe.size))
  if repeatable.passed:
    network.check_compiled(probe.net, probe.x, logits[: probe.size])
  return [
    trust_checks.clean_accuracy(prediction, probe.y, probe.seed),
    trust_checks.are_logits(logits),
    repeatable,
    trust_checks.batches(logits, logits_fn, probe),
    trust_checks.gradients(probe, right),
  ]


def to_markdown(checks: list[Check]) -> str:
  """The report as a table: the outcome of each check, its counts, and what a failure means."""
  rows = [["check", "passed", "measured", "a failure means"], ["---"] * 4]
  rows += [[check.name, OUTCOMES[check.passed], check.measured, check.meaning] for check in checks]
  return "".join(f"| {' | '.join(row)} |\n" for row in rows)
