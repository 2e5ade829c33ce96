"""What attacks on linearised classifiers share: the nearest decision hyperplane, and steps onto it.

w, gap = closest_hyperplane("l2", logits_fn, points, y, rivals)
step = to_hyperplanes("l2", w, gap, bounds)           # the shortest, within the box
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.errors import InputError
from robust_opt.sets import Box, balls, projections
from robust_opt.types import Array, LogitsFn

# One example: delta [*S] -> [].
NORMS: dict[str, Callable[[Array], Array]] = {
  "linf": projections.linf_norm,
  "l2": projections.l2_norm,
  "l1": projections.l1_norm,
}
DUAL_NORMS = {"linf": NORMS["l1"], "l2": NORMS["l2"], "l1": NORMS["linf"]}
SETS = {"linf": balls.LInf, "l2": balls.L2, "l1": balls.L1}


class Smallest(NamedTuple):
  """The smallest misclassified perturbations so far: delta [B, *S], norm [B], inf where none."""

  delta: Array
  norm: Array


def none_found(x: Array, clean_fooled: Array) -> Smallest:
  """Before an attack: 0 for what is misclassified already, which nothing undercuts."""
  return Smallest(jnp.zeros_like(x), jnp.where(clean_fooled, 0.0, jnp.inf).astype(x.dtype))


def smaller(smallest: Smallest, delta: Array, norm: Array, fooled: Array) -> Smallest:
  """Takes delta [B, *S], of this norm [B], where it is misclassified and smaller."""
  better = fooled & (norm < smallest.norm)
  return Smallest(
    jnp.where(over(better, delta), delta, smallest.delta), jnp.where(better, norm, smallest.norm)
  )


def closest_hyperplane(
  norm: str, logits_fn: LogitsFn, points: Array, y: Array, rivals: Array
) -> tuple[Array, Array]:
  """The linearised decision boundary that is closest to each point: w [B, *S] and gap [B].

    step onto the boundary with class j:  <w, step> = gap,  w = grad(z_j - z_y),  gap = z_y - z_j
    closest: the smallest |gap| / |w|_q over the rivals j, q the dual norm

  w = 0 and gap = 0 where no rival has a finite gradient other than 0. The gradients are taken one
  rival after the other and only the closest is kept, so that memory does not grow with the classes.

  Args:
    norm: "linf", "l2" or "l1".
    logits_fn: x [B, *S] -> [B, C].
    points: [B, *S].
    y: labels [B].
    rivals: [K, B], the classes to look at.
  """
  logits, pullback = jax.vjp(logits_fn, points)
  labels = jax.nn.one_hot(y, logits.shape[-1], dtype=logits.dtype)

  def look_at(
    closest: tuple[Array, Array, Array], rival: Array
  ) -> tuple[tuple[Array, Array, Array], None]:
    rival_one_hot = jax.nn.one_hot(rival, logits.shape[-1], dtype=logits.dtype)
    (w,) = jax.lax.stop_gradient(pullback(rival_one_hot - labels))
    gap = jax.lax.stop_gradient(-losses.targeted_margin(logits, y, rival))
    steepness = jax.vmap(DUAL_NORMS[norm])(w)
    usable = (steepness > 0) & (steepness < jnp.inf)
    distance = jnp.where(usable, jnp.abs(gap) / jnp.where(usable, steepness, 1.0), jnp.inf)
    closer = distance < closest[0]
    chosen = (
      jnp.where(closer, distance, closest[0]),
      jnp.where(over(closer, w), w, closest[1]),
      jnp.where(closer, gap, closest[2]),
    )
    return chosen, None

  nowhere = jnp.full(points.shape[:1], jnp.inf, logits.dtype)
  start = (nowhere, jnp.zeros_like(points), jnp.zeros_like(nowhere))
  (_, w, gap), _ = jax.lax.scan(look_at, start, rivals)
  return w, gap


def to_hyperplane(norm: str, w: Array, gap: Array, bounds: projections.Bounds) -> Array:
  """The shortest step onto a hyperplane within bounds, of ONE example.

    argmin |step|_p   such that   <w, step> = gap,   lower <= step <= upper

  and where the bounds keep it from getting there, the step within them that comes closest (of
  which there is one, entries with w = 0 staying at 0). It is exact up to rounding. Source: Croce
  and Hein 2020 (arXiv 1907.02044), the projection of their algorithm 1. With r the room of each
  entry in the direction of w, the solution is

    l_inf:  min(t, r)  in every entry, t such that the constraint holds
    l_2:    min(t |w|, r)
    l_1:    r in the entries of largest |w|, as many as it takes

  Where the paper sorts the entries to find t, Newton's method does here: sum |w| min(t s, r) is
  concave and piecewise linear in t, so that it rises to the root and ends there.

  Args:
    norm: "linf", "l2" or "l1".
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
  lengths = _knapsack if norm == "l1" else functools.partial(_fill, even=norm == "linf")
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


def to_hyperplanes(norm: str, w: Array, gap: Array, bounds: projections.Bounds) -> Array:
  """`to_hyperplane` of every example: w [B, *S], gap [B], bounds of [B, *S] -> [B, *S]."""
  return jax.vmap(functools.partial(to_hyperplane, norm))(w, gap, bounds)


def rivals_by_rank(logits: Array, y: Array) -> Array:
  """The wrong classes of each example, the largest logit first: [B, C], [B] -> [C - 1, B]."""
  losses.check_classes(logits)
  is_label = jnp.arange(logits.shape[-1]) == y[:, None]
  order = jnp.argsort(jnp.where(is_label, jnp.inf, -logits), axis=-1)  # the label comes last
  return order[:, :-1].T


def rival_of_rank(logits: Array, y: Array, rank: int | Array) -> Array:
  """The wrong class of each example that has a rank, 0 the largest logit: [B, C], [B] -> [B].

  Raises:
    InputError: the logits have no such rank. A traced rank cannot be checked, and is cut to those
      that there are.
  """
  rivals = rivals_by_rank(logits, y)
  if not isinstance(rank, jax.core.Tracer) and not 0 <= rank < len(rivals):
    raise InputError(
      f"The rank of a target must be from 0 to {len(rivals) - 1} for logits of "
      f"{logits.shape[-1]} classes, but was {rank}."
    )
  return jax.lax.dynamic_index_in_dim(rivals, rank, axis=0, keepdims=False)


def misclassified(logits_fn: LogitsFn, points: Array, y: Array) -> Array:
  """Whether each of the points [B, *S] is misclassified, [B] bool."""
  return ~losses.correct(jax.lax.stop_gradient(logits_fn(points)), y)


def over(per_example: Array, like: Array) -> Array:
  """[B] -> [B, 1, ..., 1], to go with arrays [B, *S]."""
  return per_example.reshape(per_example.shape + (1,) * (like.ndim - 1))


def check(norm: str, box: Box, **counts: int) -> None:
  """Raises InputError unless the norm is known, the box finite, and the counts at least 1."""
  if norm not in NORMS:
    raise InputError(f'norm must be one of {", ".join(NORMS)}, but was "{norm}".')
  if box is None or not -math.inf < box[0] < box[1] < math.inf:
    raise InputError(f"box must be (low, high) with low < high, both finite, but was {box}.")
  for name, count in counts.items():
    if count < 1:
      raise InputError(f"{name} must be at least 1, but was {count}.")
