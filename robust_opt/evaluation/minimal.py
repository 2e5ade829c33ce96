"""The smallest perturbation of every image that a suite of minimal-norm attacks finds.

  found = ro.minimal(logits_fn, x, y, norm="l2")     # x [N, *S], pixels in [0, 1]; 2,000 calls
  found.distance                                     # [N], 0 if misclassified, inf if not found
  found.curve(np.linspace(0, 3, 50))                 # accuracy against radius
  found.names[found.found_by[0]]                     # the attack that found the first one

Where AutoAttack says whether an image is robust at one radius, this gives an upper bound of the
distance to the decision boundary, and so the accuracy at every radius. The attacks run one after
the other within one budget of calls of the net, each from the best perturbation so far if it can
start there. Images, norms and predictions are checked at the end, on the stored float32 images.

|  norm  |  attacks, in this order                  |
|  linf  |  fast_minimum_norm, fab, refine          |
|  l2    |  ddn, fab, fast_minimum_norm, refine     |
|  l1    |  pdpgd, fab, fast_minimum_norm, refine   |
|  l0    |  sigma_zero, and again from its result   |

fab goes toward each of the three most likely wrong classes. refine is fast_minimum_norm in small
steps from the best perturbation so far. deepfool and carlini_wagner can be chosen too
(`shares`): within the same budget they improved no result that was measured (docs/evaluation.md).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt.arrays import expand_like, pad_to
from robust_opt.attacks import minimal as attacks
from robust_opt.attacks.fab import fab_minimal
from robust_opt.attacks.hyperplanes import Smallest, bounds_of, smaller
from robust_opt.attacks.penalized import carlini_wagner, pdpgd
from robust_opt.attacks.sigma_zero import sigma_zero
from robust_opt.attacks.types import AttackResult, MinimalAttack
from robust_opt.errors import InputError
from robust_opt.evaluation import batches, network
from robust_opt.evaluation.autoattack import Verdict
from robust_opt.evaluation.inputs import check_examples
from robust_opt.evaluation.outcome import CLEAN, ROBUST
from robust_opt.keys import keys_of
from robust_opt.sets import BALLS, L0, Ball, lengths
from robust_opt.types import Array, LogitsFn

_BOX = (0.0, 1.0)
_NUM_TARGETS = 3  # of fab
# Perturbations overshoot the boundary by this fraction of their length, so that they stay
# misclassified when the logits are rounded differently.
_PAST_BOUNDARY = 5e-4
_SMALL = {"step_size": (0.1, 1e-4), "radius_change": (0.02, 1e-4)}  # of refine
Plan = tuple[tuple[str, int], ...]  # attacks with their numbers of steps

# Attack -> its share of the budget, for each norm.
SUITES: dict[str, dict[str, float]] = {
  "linf": {"fast_minimum_norm": 0.3, "fab": 0.5, "refine": 0.2},
  "l2": {"ddn": 0.3, "fab": 0.3, "fast_minimum_norm": 0.2, "refine": 0.2},
  "l1": {"pdpgd": 0.3, "fab": 0.3, "fast_minimum_norm": 0.2, "refine": 0.2},
  "l0": {"sigma_zero": 0.6, "sigma_zero/2": 0.4},
}


class Distances(NamedTuple):
  """The outcome for every example of a data set of N.

  Attributes:
    norm: "linf", "l2", "l1" or "l0".
    names: of the attacks; the first is "clean".
    prediction: [N] int32, the class of the clean example.
    distance: [N] float64, the norm of the smallest perturbation found; 0 where the clean example is
      misclassified, inf where none was found. An upper bound of the distance to the boundary.
    found_by: [N] int32, an index into `names`, or -1 where none was found.
    x_adv: [N, *S] float32, the image at that distance; the clean one where there is none.
    num_calls: forward and backward passes per image, at most the budget.
  """

  norm: str
  names: tuple[str, ...]
  prediction: np.ndarray
  distance: np.ndarray
  found_by: np.ndarray
  x_adv: np.ndarray
  num_calls: int

  def curve(self, radii: np.ndarray | list[float] | float) -> np.ndarray:
    """The accuracy at every radius [R] or []: the fraction with no perturbation found up to it."""
    return np.mean(self.distance > np.asarray(radii)[..., None], axis=-1)

  def area(self, max_radius: float = np.inf) -> float:
    """The area under the curve up to a radius: the mean of the distances, cut there."""
    return float(np.mean(np.minimum(self.distance, max_radius)))

  def verdict(self, x: np.ndarray, radius: float) -> Verdict:
    """The outcome at one radius, to save and verify (`evaluation.verdict`); x [N, *S] are clean."""
    inside = self.distance <= radius
    images = np.where(expand_like(inside, x), self.x_adv, np.asarray(x, np.float32))
    broken_by = np.where(inside, self.found_by, ROBUST).astype(np.int32)
    return Verdict(self.names, self.prediction, broken_by, images)


def optimality(distance: np.ndarray, best: np.ndarray) -> float:
  """How close an attack comes to the best known distances [N], 1 for equal; of the same images.

    1 - (area - best area) / (clean accuracy * r - best area)

  with areas under the curves of accuracy against radius, up to the largest best distance r, so that
  an attack that finds nothing has 0. Source: AttackBench, Cina et al. 2025 (arXiv 2404.19460). The
  steps of the curves are integrated exactly here.
  """
  largest = np.max(best[np.isfinite(best)], initial=0.0)
  area, best_area = (np.mean(np.minimum(d, largest)) for d in (distance, best))
  worst = np.mean(best > 0) * largest
  return float(1 - (area - best_area) / (worst - best_area)) if worst > best_area else 1.0


def minimal(
  logits_fn: LogitsFn,
  x: np.ndarray | Array,
  y: np.ndarray | Array,
  norm: str = "l2",
  *,
  num_calls: int = 2000,
  shares: Mapping[str, float] | None = None,
  seed: int = 0,
  batch_size: int | None = None,
) -> Distances:
  """The smallest perturbation of every image within [0, 1] that a suite of attacks finds.

  Args:
    logits_fn: x [B, *S] -> logits [B, C], as for `ro.autoattack`.
    x: [N, *S], float pixels in [0, 1].
    y: [N], integer labels in [0, C).
    norm: "linf", "l2", "l1", or "l0", the number of entries that change.
    num_calls: the budget of forward and backward passes for an image, each counted as one; 2,000 is
      that of AttackBench.
    shares: attack -> its share of the budget, in their order; None: `SUITES[norm]`. A number after
      a slash runs an attack again, "sigma_zero/2".
    seed: of all random numbers; the attacks of the suites have none.
    batch_size: affects speed and memory; None: `batches.default_batch_size`, 100 on a CPU.

  Raises:
    InputError: an unknown norm, an attack that does not take it, shares that are not positive or
      exceed 1, a budget too small for one step of each; see also `inputs.check_examples`.
  """
  u: Any = _everywhere(norm)
  plan_shares = dict(SUITES[norm] if shares is None else shares)
  x, y = check_examples(logits_fn, x, y, u, 1 if batch_size is None else batch_size)
  if batch_size is None:
    batch_size = batches.default_batch_size(logits_fn, x)
  net = network.as_argument(logits_fn, x)
  reference = network.checked_logits(logits_fn, net, x)
  plan = _plan(plan_shares, num_calls, reference.shape[-1])
  predict = functools.partial(batches.predictions, net, batch_size=batch_size)
  prediction = predict(x)
  found_by = np.where(prediction == y, ROBUST, 0).astype(np.int32)
  distance = np.where(prediction == y, np.inf, 0.0)
  x_adv, key = x.copy(), jax.random.key(seed)
  attacked = np.flatnonzero(prediction == y)
  for start in range(0, len(attacked), batch_size):
    ids = attacked[start : start + batch_size]
    padded = pad_to(ids, min(batch_size, len(attacked)))
    deltas = _run(plan, net, u, key, padded, x[padded], y[padded])
    for index, delta in enumerate(np.asarray(deltas)[:, : len(ids)], start=1):
      images = x[ids] + delta
      norms = lengths(type(u), images.astype(np.float64) - x[ids])
      better = (norms < distance[ids]) & (predict(images) != y[ids])
      chosen = ids[better]
      distance[chosen], found_by[chosen], x_adv[chosen] = norms[better], index, images[better]
  network.check_unchanged(logits_fn, x, reference)
  names = (CLEAN, *(name for name, _ in plan))
  calls = _num_calls(plan, reference.shape[-1])
  return Distances(norm, names, prediction, distance, found_by, x_adv, calls)


class _Part(NamedTuple):
  """How the suite runs an attack.

  Attributes:
    make: (set, number of steps) -> attack.
    per_step: number of classes -> calls of each step.
    overhead: further calls.
  """

  make: Callable[[Any, int], MinimalAttack]
  per_step: Callable[[int], int] = lambda num_classes: 2
  overhead: int = 3


def _fab(u: Ball, num_steps: int) -> MinimalAttack:
  """FAB toward each of the most likely wrong classes."""

  def attack(
    keys: Array, logits_fn: LogitsFn, x: Array, y: Array, start: Array | None = None
  ) -> AttackResult:
    del start
    num_classes = jax.eval_shape(logits_fn, x).shape[-1]

    def toward(smallest: Smallest, rank: Array) -> tuple[Smallest, None]:
      run = fab_minimal(u, num_steps=num_steps, target_rank=rank)
      delta, fooled = run(keys, logits_fn, x, y)
      return smaller(smallest, delta, jax.vmap(u.norm)(delta), fooled), None

    nothing = Smallest(jnp.zeros_like(x), jnp.full(x.shape[:1], jnp.inf, x.dtype))
    ranks = jnp.arange(min(_NUM_TARGETS, num_classes - 1))
    smallest, _ = jax.lax.scan(toward, nothing, ranks)
    return AttackResult(smallest.delta, smallest.norm < jnp.inf)

  return attack


def _from_clean(make: Callable[[Any, int], Callable[..., AttackResult]], u: Any, n: int) -> Any:
  """An attack that starts from the clean example."""
  attack = make(u, n)
  return lambda keys, logits_fn, x, y, start=None: attack(keys, logits_fn, x, y)


_PARTS: dict[str, _Part] = {
  "ddn": _Part(attacks.ddn),
  "fast_minimum_norm": _Part(functools.partial(_from_clean, attacks.fast_minimum_norm)),
  "refine": _Part(lambda u, n: attacks.fast_minimum_norm(u, n, **_SMALL)),
  # A step has a gradient and a check of the new point.
  "fab": _Part(_fab, lambda c: 3 * min(_NUM_TARGETS, c - 1), 8 * _NUM_TARGETS),
  # A gradient for each wrong class, and a check.
  "deepfool": _Part(functools.partial(_from_clean, attacks.deepfool), lambda c: c + 1, 1),
  "carlini_wagner": _Part(carlini_wagner, lambda c: 2 * 9, 2),  # a step for each of nine constants
  "pdpgd": _Part(functools.partial(_from_clean, pdpgd)),
  "sigma_zero": _Part(sigma_zero),
}


def _everywhere(norm: str) -> Ball | L0:
  """The set of all perturbations within [0, 1], with the norm."""
  if norm not in SUITES:
    raise InputError(f"norm must be one of {', '.join(SUITES)}, but was {norm!r}.")
  return L0(2**24, box=_BOX) if norm == "l0" else BALLS[norm](np.inf, _BOX)


def _plan(shares: Mapping[str, float], num_calls: int, num_classes: int) -> Plan:
  """The steps that fit into the budget, after a call for the clean prediction and each check."""
  unknown = [name for name in shares if name.partition("/")[0] not in _PARTS]
  if unknown or not shares:
    raise InputError(f"shares must be of the attacks {', '.join(_PARTS)}, but were {dict(shares)}.")
  if min(shares.values()) <= 0 or sum(shares.values()) > 1 + 1e-6:
    raise InputError(f"shares must be > 0 and their sum at most 1, but were {dict(shares)}.")
  left = num_calls - 1 - len(shares)
  plan = []
  for name, share in shares.items():
    part = _PARTS[name.partition("/")[0]]
    plan.append((name, (int(share * left) - part.overhead) // part.per_step(num_classes)))
  if min(steps for _, steps in plan) < 1:
    raise InputError(f"num_calls must allow a step of each of {', '.join(shares)}: {num_calls}.")
  return tuple(plan)


def _num_calls(plan: Plan, num_classes: int) -> int:
  parts = [(_PARTS[name.partition("/")[0]], steps) for name, steps in plan]
  of_attacks = sum(part.overhead + steps * part.per_step(num_classes) for part, steps in parts)
  return 1 + len(plan) + of_attacks


@functools.partial(jax.jit, static_argnums=0)
def _run(
  plan: Plan, net: LogitsFn, u: Ball | L0, key: Array, ids: Array, x: Array, y: Array
) -> Array:
  """The perturbation that each attack found, [K, B, *S]; 0 where none."""
  keys, deltas = keys_of(key, ids), []
  best = Smallest(jnp.zeros_like(x), jnp.full(x.shape[:1], jnp.inf, x.dtype))
  for name, num_steps in plan:
    attack = _PARTS[name.partition("/")[0]].make(u, num_steps)
    delta, fooled = attack(keys, net, x, y, start=best.delta)
    best = smaller(best, delta, jax.vmap(u.norm)(delta), fooled)
    further = jnp.clip((1 + _PAST_BOUNDARY) * delta, *bounds_of(u, x))
    deltas.append(delta if isinstance(u, L0) else further)
  return jnp.stack(deltas)
