"""The version "adaptive" of AutoAttack: the costly attacks only where they may still break enough.

  verdict = ro.autoattack(logits_fn, x, y, u, version="adaptive", share=0.02)
  verdict.robust_accuracy       # an upper bound, as of any attack
  verdict.ration.bound          # the standard version would break at most so many more, 95 %

Every example meets a core: APGD on the cross-entropy, and short runs of targeted APGD and of
Square. What is left of the standard version is run on the survivors that came nearest to an error,
and on an audit, a random sample of all others. Every survivor that came at least as near as some
audited one that breaks is attacked in full as well. From there on each attack goes on by itself,
sixteenth by sixteenth, while it breaks more than a twelfth of the last one; the rest is skipped.
Random numbers are those of the standard version, so an example that is attacked in full is broken
if it is broken there, and otherwise only by one of the short runs.

**The bound.** Let A of M survivors be audited, uniformly at random, and let K(r) be the number of
survivors beyond rank r that the attacks after the core would break: not random, and smaller for
larger r. Let R be the largest r with K(r) > D. If more than D are missed, what is not attacked in
full begins at or before R, so that none of K(R) >= D + 1 examples was audited (wherever it begins:
not before an audited one that breaks), of which the probability is at most
C(M - D - 1, A) / C(M, A) (hypergeometric). A is the smallest number that makes this at most 5 % for
D = share N. It is one test: the ranks are tried in a fixed order, the safest first.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from robust_opt.errors import InputError
from robust_opt.evaluation.outcome import ROBUST

VERSION = "adaptive"
CORE = 3  # so many phases of the version are run on every example
# The order in which phases get their random numbers: those of the standard version as there.
STREAMS = (0, 3, 4, 5, 1, 2)
SHARE = 0.02  # of the examples
_NEAREST = 32  # one in so many survivors, the nearest, is always attacked in full
_STEP = 16  # one in so many survivors is the next part of an attack,
_RICH = 12  # if it breaks more than one in so many of the last part
_FALSE = 20  # one bound in so many may be false


class Ration(NamedTuple):
  """Which examples the attacks after the core ran on, of the S that the core left.

  Attributes:
    order: [S] int32, their indices in the data set, those nearest to an error first.
    audit: [A] int32, the indices of the random sample that was attacked in full.
    reached: [P] int32, the first so many of `order` met each of the P attacks after the core, too.
    share: of the data set, that the skipped attacks may break.
    bound: the standard version would break at most so many of `skipped` that nothing broke, with a
      confidence of 95 %.
  """

  order: np.ndarray
  audit: np.ndarray
  reached: np.ndarray
  share: float
  bound: int

  @property
  def skipped(self) -> np.ndarray:
    """The indices of the examples that did not meet all attacks, [*] int32."""
    rest = self.order[np.min(self.reached) :]
    return rest[~np.isin(rest, self.audit)]

  def count_left(self, broken_by: np.ndarray) -> int:
    """The number of those that nothing broke."""
    return int(np.sum(broken_by[self.skipped] == ROBUST))


def check(share: float | None, version: object, target: object) -> float:
  """The share, or its default.

  Raises:
    InputError: it is not in [0, 1), or given for another version; a target for this version.
  """
  if version == VERSION and target is not None:
    raise InputError(
      f'version="adaptive" has no target, but it was {target!r}; "standard" takes one.'
    )
  if share is None:
    return SHARE
  if version != VERSION:
    raise InputError(f'share is for version="adaptive" (--version=adaptive), but was {share:g}.')
  if not 0 <= share < 1:
    raise InputError(f"share must be in [0, 1), but was {share:g}.")
  return share


def num_nearest(survivors: int) -> int:
  """The number of survivors that are attacked in full, whatever the audit says."""
  return -(-survivors // _NEAREST)


@functools.lru_cache
def most_unseen(population: int, sample: int) -> int:
  """D such that a sample without an error proves, at 95 %, at most D errors in the population.

  The smallest D at which a uniform sample misses all of D + 1 errors with a probability of at most
  5 %, C(population - D - 1, sample) / C(population, sample), in exact arithmetic.
  """
  return _smallest(lambda most: _misses(population, sample, most + 1), population - sample)


@functools.lru_cache
def sample_size(population: int, most: int) -> int:
  """The smallest sample that, without an error, proves at most `most` errors, at 95 %.

  All of the population for `most` = 0.
  """
  if most <= 0:
    return population
  return _smallest(lambda sample: _misses(population, sample, most + 1), population - most)


def _misses(population: int, sample: int, errors: int) -> bool:
  """Whether a sample misses all of the errors with a probability of at most 1 / _FALSE."""
  missing = math.comb(population - errors, sample) if errors <= population else 0
  return _FALSE * missing <= math.comb(population, sample)


def _smallest(holds: Callable[[int], bool], high: int) -> int:
  """The smallest integer from 0 to high, where it holds, of a monotone property."""
  low, high = 0, max(0, high)
  while low < high:
    middle = (low + high) // 2
    low, high = (low, middle) if holds(middle) else (middle + 1, high)
  return high


def audit_of(order: np.ndarray, total: int, share: float, seed: int) -> np.ndarray:
  """The indices of the sample, of all but the nearest of `order`; increasing.

  Drawn by SHA-256 of seed and index: the same for every version of NumPy.
  """
  far = sorted(order[num_nearest(len(order)) :].tolist(), key=lambda index: _draw(seed, index))
  size = sample_size(len(far), math.floor(share * total + 1e-9))
  return np.array(sorted(far[:size]), np.int32)


def _draw(seed: int, index: int) -> bytes:
  return hashlib.sha256(f"{seed} {index}".encode()).digest()


def reached(order: np.ndarray, audit: np.ndarray, broken_by: np.ndarray) -> np.ndarray:
  """How many of `order` each attack after the core is run on, [P], as the outcome so far tells.

  The nearest, and all up to the last audited error; then a step further, while the attack breaks
  more than one in _RICH of the last step. broken_by: [N], as in `Verdict`.
  """
  step, causes = -(-len(order) // _STEP), broken_by[order]
  errors = np.flatnonzero(np.isin(order, audit) & (causes > CORE))
  in_full = max(num_nearest(len(order)), int(errors[-1]) + 1 if len(errors) else 0)
  counts = []
  for cause in range(CORE + 1, len(STREAMS) + 1):
    count = in_full
    while count < len(order) and _rate(causes[:count][-step:], cause) > 1 / _RICH:
      count = min(count + step, len(order))
    counts.append(count)
  return np.array(counts, np.int32)


def _rate(causes: np.ndarray, cause: int) -> float:
  return float(np.mean(causes == cause))


def ration(order: np.ndarray, audit: np.ndarray, broken_by: np.ndarray, share: float) -> Ration:
  """What the audit asks for, and what it proves; arguments as of `reached`."""
  found = Ration(order, audit, reached(order, audit, broken_by), share, 0)
  unseen = most_unseen(len(order) - num_nearest(len(order)), len(audit))
  return found._replace(bound=min(found.count_left(broken_by), unseen))


def attack(
  run: Callable[[int, np.ndarray, int], None],
  broken_by: np.ndarray,
  scores: np.ndarray,
  share: float,
  seed: int,
) -> Ration:
  """Runs the phases, each on a part of the examples.

  Args:
    run: (index of a phase, mask [N] of examples, number of the run) attacks those of them that
      remain; it changes `broken_by` and, in the core, `scores`.
    broken_by: [N], as in `Verdict`.
    scores: [N], the largest margin that an attack has reached on each example.
    share, seed: see `Ration` and `audit_of`.
  """
  everything = np.ones(len(broken_by), bool)
  for index in range(CORE):
    run(index, everything, index)
  left = np.flatnonzero(broken_by == ROBUST).astype(np.int32)
  order = left[np.argsort(-scores[left], kind="stable")]
  audit = audit_of(order, len(broken_by), share, seed)
  done = np.full(len(STREAMS) - CORE, num_nearest(len(order)))
  parts, number = [np.append(order[:count], audit) for count in done], CORE
  while any(map(len, parts)):
    for index, part in enumerate(parts, start=CORE):
      if len(part):
        run(index, _mask(broken_by, part), number)
        number += 1
    further = np.maximum(done, reached(order, audit, broken_by))
    parts, done = [order[a:b] for a, b in zip(done, further)], further
  return ration(order, audit, broken_by, share)


def span(number: int) -> tuple[float, float]:
  """The completed fraction of the work before and after that run, of which the total is unknown."""
  before, after = (1 - 0.85**runs for runs in (number, number + 1))
  return before, after


def _mask(examples: np.ndarray, indices: np.ndarray) -> np.ndarray:
  mask = np.zeros(len(examples), bool)
  mask[indices] = True
  return mask


def problems(found: Ration, broken_by: np.ndarray, seed: int) -> Iterator[str]:
  """What does not follow from the order of the survivors and their outcome, one sentence each."""
  order, total = found.order, len(broken_by)
  left = np.flatnonzero((broken_by == ROBUST) | (broken_by > CORE))
  if not np.array_equal(np.sort(order), left):
    yield "Its order is not one of the examples that the first attacks left."
    return
  if not 0 <= found.share < 1:
    yield f"It states a share of {found.share:g}, which is not in [0, 1)."
    return
  if not np.array_equal(found.audit, audit_of(order, total, found.share, seed)):
    yield "Its audit is not the random sample of its seed and share."
    return
  expected, by_rank = ration(order, found.audit, broken_by, found.share), broken_by[order]
  ranks = np.where(np.isin(order, found.audit), -1, np.arange(len(order)))
  met = [ranks[by_rank == cause] < count for cause, count in enumerate(found.reached, CORE + 1)]
  if not np.array_equal(found.reached, expected.reached):
    yield f"Its attacks reached the {found.reached} nearest examples, not {expected.reached}."
  elif not np.all(np.concatenate(met)):
    yield "It states that attacks broke examples that they skipped."
  elif found.bound != expected.bound:
    yield f"It states that at most {found.bound} could still fall, not {expected.bound}."


def to_arrays(found: Ration) -> dict[str, np.ndarray]:
  """For a file; `of_arrays` reads them."""
  return {name: np.asarray(value) for name, value in found._asdict().items()}


def of_arrays(arrays: Mapping[str, np.ndarray]) -> Ration | None:
  """The ration of a file; None if it has none."""
  if "order" not in arrays:
    return None
  for name, ndim in (("order", 1), ("audit", 1), ("reached", 1), ("bound", 0)):
    if arrays[name].ndim != ndim or not np.issubdtype(arrays[name].dtype, np.integer):
      raise InputError(
        f"{name} of a verdict must be integers of {ndim} axes, not {arrays[name].dtype} "
        f"{arrays[name].shape}."
      )
  order, audit, counts = (arrays[name].astype(np.int32) for name in ("order", "audit", "reached"))
  return Ration(order, audit, counts, float(arrays["share"]), int(arrays["bound"]))
