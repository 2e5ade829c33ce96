"""What the minimal-norm attacks share: the best so far, gradients, steps onto hyperplanes.

w, gap = closest_hyperplane(u, logits_fn, points, y, rivals)
step = to_hyperplanes(u, w, gap, bounds)           # the shortest in u's norm, within the box
"""

import dataclasses
import functools
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import losses
from robust_opt.arrays import expand_like, where_examples
from robust_opt.attacks.types import AttackResult
from robust_opt.errors import InputError
from robust_opt.sets import L0, L1, Ball, LInf, Radius, projections
from robust_opt.sets.base import box_bounds, cube_bounds
from robust_opt.types import Array, LogitsFn, LossFn

T = TypeVar("T", bound=Ball | L0)


class Smallest(NamedTuple):
  """The smallest misclassified perturbations so far: delta [B, *S], norm [B], inf where none."""

  delta: Array
  norm: Array


def none_yet(x: Array, misclassified: Array) -> Smallest:
  """The state before an attack: delta 0, of norm 0 where the clean example is misclassified [B]."""
  return Smallest(jnp.zeros_like(x), jnp.where(misclassified, 0.0, jnp.inf).astype(x.dtype))


def smaller(smallest: Smallest, delta: Array, norm: Array, fooled: Array) -> Smallest:
  """Takes delta [B, *S], of this norm [B], where it fools [B] and is smaller."""
  better = fooled & (norm < smallest.norm)
  return Smallest(
    where_examples(better, delta, smallest.delta), jnp.where(better, norm, smallest.norm)
  )


def first_smallest(
  u: Ball | L0, logits_fn: LogitsFn, x: Array, y: Array, start: Array | None
) -> Smallest:
  """The clean example where it is misclassified, else the perturbation to start from, if it fools.

  Args:
    u: for its norm and its bounds.
    logits_fn, x, y: as for an attack.
    start: [B, *S], within the bounds of u, or None for none.
  """
  smallest = none_yet(x, misclassified(logits_fn, x, y))
  if start is None:
    return smallest
  delta = jax.lax.stop_gradient(jnp.clip(start.astype(x.dtype), *bounds_of(u, x)))
  return smaller(smallest, delta, jax.vmap(u.norm)(delta), misclassified(logits_fn, x + delta, y))


def within(u: Ball | L0, smallest: Smallest) -> AttackResult:
  """The result of a minimal-norm attack: perturbations no longer than the radius of u."""
  largest = u.k if isinstance(u, L0) else u.radius
  fooled = (smallest.norm < jnp.inf) & (smallest.norm <= largest)
  return AttackResult(jnp.where(expand_like(fooled, smallest.delta), smallest.delta, 0.0), fooled)


def of_size(u: T, size: Radius) -> T:
  """The ball of another radius, or the l_0 set of another number of entries, [] or [B]."""
  return dataclasses.replace(u, **{"k" if isinstance(u, L0) else "radius": size})


def bounds_of(u: Ball | L0, x: Array) -> projections.Bounds:
  """The bounds of delta [B, *S] that keep x + delta in the box, which is required (support.py).

  Over l_0 no entry exceeds the magnitude either.
  """
  assert u.box is not None
  if isinstance(u, L0):
    magnitude = jnp.broadcast_to(jnp.asarray(u.magnitude, x.dtype), x.shape[:1])
    return cube_bounds(expand_like(magnitude, x), u.box, x)
  return box_bounds(u.box, x)


def gradient(
  loss: LossFn, logits_fn: LogitsFn, points: Array, y: Array
) -> tuple[Array, Array, Array]:
  """The gradient of a loss at points [B, *S], its value [B], and whether they are misclassified."""

  def total(points: Array) -> tuple[Array, tuple[Array, Array]]:
    logits = logits_fn(points)
    value = loss(logits, y)
    return jnp.sum(value), (value, ~losses.correct(logits, y))

  g, (value, fooled) = jax.grad(total, has_aux=True)(points)
  return jax.lax.stop_gradient((g, value, fooled))


def cosine(ends: tuple[float, float], progress: Array) -> Array:
  """From the first end to the last along half a cosine, progress in [0, 1]."""
  first, last = ends
  return last + (first - last) * (1 + jnp.cos(jnp.pi * progress)) / 2


def closest_hyperplane(
  u: Ball, logits_fn: LogitsFn, points: Array, y: Array, rivals: Array
) -> tuple[Array, Array]:
  """The linearized decision boundary that is closest to each point: w [B, *S] and gap [B].

    step onto the boundary with class j:  <w, step> = gap,  w = grad(z_j - z_y),  gap = z_y - z_j
    closest: the smallest |gap| / |w|_q over the rivals j, q the dual norm

  w = 0 and gap = 0 where no rival has a finite nonzero gradient. The gradients are computed for one
  rival at a time and only the closest is kept, so memory does not grow with the number of classes.
  The points are [B, *S], the labels y [B] and the classes to consider, rivals, [K, B].
  """
  logits, pullback = jax.vjp(logits_fn, points)
  labels = jax.nn.one_hot(y, logits.shape[-1], dtype=logits.dtype)

  def consider(
    closest: tuple[Array, Array, Array], rival: Array
  ) -> tuple[tuple[Array, Array, Array], None]:
    rival_one_hot = jax.nn.one_hot(rival, logits.shape[-1], dtype=logits.dtype)
    (w,) = jax.lax.stop_gradient(pullback(rival_one_hot - labels))
    gap = jax.lax.stop_gradient(-losses.targeted_margin(logits, y, rival))
    steepness = jax.vmap(u.dual_norm)(w)
    usable = (steepness > 0) & (steepness < jnp.inf)
    distance = jnp.where(usable, jnp.abs(gap) / jnp.where(usable, steepness, 1.0), jnp.inf)
    closer = distance < closest[0]
    closest = (
      jnp.where(closer, distance, closest[0]),
      where_examples(closer, w, closest[1]),
      jnp.where(closer, gap, closest[2]),
    )
    return closest, None

  nowhere = jnp.full(points.shape[:1], jnp.inf, logits.dtype)
  start = (nowhere, jnp.zeros_like(points), jnp.zeros_like(nowhere))
  (_, w, gap), _ = jax.lax.scan(consider, start, rivals)
  return w, gap


def to_hyperplane(u: Ball, w: Array, gap: Array, bounds: projections.Bounds) -> Array:
  """The shortest step onto a hyperplane within bounds, of ONE example.

    argmin |step|_p   such that   <w, step> = gap,   lower <= step <= upper

  Where the bounds make that impossible, it is the step within them that comes closest (unique, with
  0 in the entries where w is 0). It is exact up to rounding. Source: Croce and Hein 2020 (arXiv
  1907.02044), the projection of their algorithm 1. With r the distance of each entry to
  its bound in the direction of w, the solution is

    l_inf:  min(t, r)  in every entry, t such that the constraint holds
    l_2:    min(t |w|, r)
    l_1:    r in the entries of largest |w|, as many as needed

  The paper sorts the entries to find t; here it is found by Newton's method: sum |w| min(t s, r) is
  concave and piecewise linear in t, so the iterates reach the root after finitely many steps.

  Args:
    u: whose norm p is minimized.
    w: [*S], finite. 0 gives the step 0.
    gap: [], of either sign.
    bounds: (lower [*S] <= 0, upper [*S] >= 0), finite.
  """
  w = jnp.where(gap < 0, -w, w)
  size = projections.linf_norm(w)
  size = jnp.where(size > 0, size, 1.0)
  room = projections.room(w, bounds)
  # In units of the largest entry of w, so that no square underflows.
  weight, needed = jnp.abs(w) / size, jnp.abs(gap) / size
  lengths = _knapsack if isinstance(u, L1) else functools.partial(_fill, even=isinstance(u, LInf))
  return jnp.sign(w) * lengths(weight, needed, room)


def _fill(weight: Array, needed: Array, room: Array, even: bool) -> Array:
  """min(t s, room) with sum weight min(t s, room) = needed; s is 1 if even, else the weight."""
  slope = jnp.ones_like(weight) if even else weight

  def level(full: Array) -> Array:
    """The t at which the constraint holds if these entries are full and no other one is."""
    left = needed - jnp.sum(jnp.where(full, weight * room, 0.0))
    rate = jnp.sum(jnp.where(full, 0.0, weight * slope))
    return jnp.where(rate > 0, jnp.maximum(left, 0.0) / jnp.where(rate > 0, rate, 1.0), 0.0)

  def fill_up(carry: tuple[Array, Array]) -> tuple[Array, Array]:
    full, _ = carry
    more = full | (level(full) * slope > room)
    return more, jnp.any(more != full)

  start = (weight == 0, jnp.array(True))
  full, _ = jax.lax.while_loop(lambda carry: carry[1], fill_up, start)
  return jnp.where(full, room, jnp.minimum(level(full) * slope, room))


def _knapsack(weight: Array, needed: Array, room: Array) -> Array:
  """Fills the entries of largest weight until sum weight * length = needed."""
  weights, rooms = weight.reshape(-1), room.reshape(-1)
  order = jnp.argsort(-weights)
  weights, rooms = weights[order], rooms[order]
  before = jnp.cumsum(jnp.roll(weights * rooms, 1).at[0].set(0.0))
  lengths = (needed - before) / jnp.where(weights > 0, weights, 1.0)
  lengths = jnp.where(weights > 0, jnp.clip(lengths, 0.0, rooms), 0.0)
  return jnp.zeros_like(lengths).at[order].set(lengths).reshape(weight.shape)


def to_hyperplanes(u: Ball, w: Array, gap: Array, bounds: projections.Bounds) -> Array:
  """`to_hyperplane` of every example: w [B, *S], gap [B], bounds of [B, *S] -> [B, *S]."""
  return jax.vmap(functools.partial(to_hyperplane, u))(w, gap, bounds)


def rivals_by_rank(logits: Array, y: Array) -> Array:
  """The wrong classes of each example, the largest logit first: [B, C], [B] -> [C - 1, B]."""
  losses.check_classes(logits)
  is_label = jnp.arange(logits.shape[-1]) == y[:, None]
  order = jnp.argsort(jnp.where(is_label, jnp.inf, -logits), axis=-1)  # the label comes last
  return order[:, :-1].T


def rival_of_rank(logits: Array, y: Array, rank: int | Array) -> Array:
  """The wrong class of the given rank, 0 for the largest logit: [B, C], [B] -> [B].

  The rank is [], or [B] with one for every example.

  Raises:
    InputError: the logits have no such rank. A traced rank cannot be checked and is clipped.
  """
  rivals = rivals_by_rank(logits, y)
  if not isinstance(rank, jax.core.Tracer) and not np.all(
    (np.asarray(rank) >= 0) & (np.asarray(rank) < len(rivals))
  ):
    raise InputError(
      f"target_rank must be from 0 to {len(rivals) - 1} for logits of "
      f"{logits.shape[-1]} classes, but was {rank}."
    )
  ranks = jnp.clip(jnp.broadcast_to(jnp.asarray(rank), y.shape), 0, len(rivals) - 1)
  return jnp.take_along_axis(rivals, ranks[None], axis=0)[0]


def misclassified(logits_fn: LogitsFn, points: Array, y: Array) -> Array:
  """Whether each of the points [B, *S] is misclassified, [B] bool."""
  return ~losses.correct(jax.lax.stop_gradient(logits_fn(points)), y)


def check_counts(**counts: int) -> None:
  """InputError unless every count is at least 1."""
  for name, count in counts.items():
    if count < 1:
      raise InputError(f"{name} must be at least 1, but was {count}.")
