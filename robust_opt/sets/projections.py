"""Exact Euclidean projections of ONE perturbation onto norm balls, alone or within bounds.

  projections.l2(delta, radius)                    # nearest point of the ball
  projections.l2(delta, radius, (-x, 1 - x))       # nearest point of the ball within the pixel box

Every function takes delta [*S], a radius [] >= 0 (it may be traced), and optional bounds
(lower [*S] <= 0, upper [*S] >= 0), and returns [*S] in delta's type. Projecting onto the ball and
then onto the bounds is not the projection onto their intersection; these are. bfloat16 and float16
are rounded once, at the end: the result may leave the ball by eps / 2 of the radius, and never
leaves a representable bound.

|  input                  |  result                            |
|  radius 0               |  0                                 |
|  radius inf             |  delta, clipped to the bounds      |
|  delta inside           |  delta, bit for bit                |
|  delta huge, no bounds  |  exact to an ulp of its entries    |
|  NaN in delta           |  NaN                               |
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from robust_opt.precision import computed_wide
from robust_opt.types import Array

Bounds = tuple[Array, Array]


@computed_wide
def linf(delta: Array, radius: Array, bounds: Bounds | None = None) -> Array:
  """Projects onto {|delta|_inf <= radius} and the bounds."""
  ball = optax.projections.projection_linf_ball(delta, radius)
  return ball if bounds is None else jnp.clip(ball, *bounds)


@computed_wide
def l2(delta: Array, radius: Array, bounds: Bounds | None = None) -> Array:
  """Projects onto {|delta|_2 <= radius} and the bounds.

  By the KKT conditions it is clip(s * delta, lower, upper) for the largest s <= 1 that keeps the
  norm. Outside the ball that is the point of the set furthest along delta.
  """
  inside = delta if bounds is None else jnp.clip(delta, *bounds)
  return jnp.where(l2_norm(inside) <= radius, inside, furthest_l2(delta, radius, bounds))


@computed_wide
def l1(delta: Array, radius: Array, bounds: Bounds | None = None) -> Array:
  """Projects onto {|delta|_1 <= radius} and the bounds.

  By the KKT conditions it is clip(soft_threshold(delta, t), lower, upper) for the smallest t >= 0
  that keeps the norm.
  """
  inside = delta if bounds is None else jnp.clip(delta, *bounds)
  cap = jnp.full_like(delta, jnp.inf) if bounds is None else room(delta, bounds)
  outside = _soft_threshold(delta, radius, cap)
  # The rounding of long sums may leave it outside.
  norm = l1_norm(outside)
  outside = outside * jnp.where(norm > radius, radius / jnp.where(norm > 0, norm, 1.0), 1.0)
  return jnp.where(l1_norm(inside) <= radius, inside, outside)


@computed_wide
def furthest_l2(v: Array, radius: Array, bounds: Bounds | None = None) -> Array:
  """argmax of <v, delta> over {|delta|_2 <= radius} and the bounds; 0 where v is 0.

  Without bounds this is radius * v / |v|_2, with length radius for any non-zero finite v, however
  small or large. With bounds it is clip(s * v, lower, upper) for the smallest s that attains the
  radius: entries are saturated until none exceeds its bound.
  """
  if bounds is None:
    return radius * _unit(v)
  scale = jnp.where(radius > 0, radius, 1.0)
  cap = room(v, bounds) / scale  # in units of the radius, so that no square under- or overflows

  def fill(magnitude: Array, cap: Array, saturated: Array) -> Array:
    left = jnp.maximum(1.0 - jnp.sum(jnp.where(saturated, cap, 0.0) ** 2), 0.0)
    return _sqrt(left) * _unit(jnp.where(saturated, 0.0, magnitude))

  def saturate(carry: tuple[Array, Array]) -> tuple[Array, Array]:
    saturated, _ = carry
    more = saturated | (fill(frozen_v, frozen_cap, saturated) > frozen_cap)
    return more, jnp.any(more != saturated)

  # Which entries are saturated is locally constant, so the loop needs no derivative, and the
  # function has a reverse-mode derivative despite it.
  frozen_v, frozen_cap = jax.lax.stop_gradient((jnp.abs(v), cap))
  start = frozen_v == 0
  saturated, _ = jax.lax.while_loop(lambda carry: carry[1], saturate, (start, jnp.any(v != 0)))
  full = jnp.where(radius > 0, room(v, bounds), 0.0)
  free = jnp.minimum(radius * fill(jnp.abs(v), cap, saturated), full)
  return jnp.sign(v) * jnp.where(saturated, full, free)


@computed_wide
def furthest_l1(v: Array, radius: Array, bounds: Bounds | None = None) -> Array:
  """argmax of <v, delta> over {|delta|_1 <= radius} and the bounds; 0 where v is 0.

  The whole radius goes to the largest |v_j|. With bounds, the part that exceeds its bound goes to
  the next largest, and so on (a fractional knapsack). Ties go to the first entry.
  """
  flat = v.reshape(-1)
  if bounds is None:
    largest = jnp.argmax(jnp.abs(flat))
    return jnp.zeros_like(flat).at[largest].set(radius * jnp.sign(flat[largest])).reshape(v.shape)
  cap = room(v, bounds).reshape(-1)
  order = jnp.argsort(-jnp.abs(flat))
  cap_in_order = cap[order]
  spent = jnp.cumsum(jnp.roll(cap_in_order, 1).at[0].set(0.0))  # on the entries before
  taken = jnp.clip(radius - spent, 0.0, cap_in_order)
  return (jnp.sign(flat) * jnp.zeros_like(flat).at[order].set(taken)).reshape(v.shape)


def room(v: Array, bounds: Bounds) -> Array:
  """The distance of each entry to its bound in the direction of v; 0 where v is 0."""
  lower, upper = bounds
  return jnp.where(v > 0, upper, jnp.where(v < 0, -lower, jnp.where(v == 0, 0.0, jnp.nan)))


def linf_norm(delta: Array) -> Array:
  """Largest absolute entry: [*S] -> []."""
  return jnp.max(jnp.abs(delta))


@computed_wide
def l2_norm(delta: Array) -> Array:
  """Euclidean norm, [*S] -> [], scaled so that no square under- or overflows."""
  largest = linf_norm(delta)
  safe = jnp.where(largest > 0, largest, 1.0)
  return jnp.where(largest == jnp.inf, jnp.inf, safe * jnp.sqrt(jnp.sum((delta / safe) ** 2)))


@computed_wide
def l1_norm(delta: Array) -> Array:
  """Sum of absolute entries: [*S] -> []."""
  return jnp.sum(jnp.abs(delta))


def over_largest(v: Array, axis: int | tuple[int, ...] | None = None) -> Array:
  """v divided by its largest absolute entry along the axes; 0 where all entries are 0."""
  largest = jnp.max(jnp.abs(v), axis=axis, keepdims=axis is not None)
  return v / jnp.where(largest > 0, largest, 1.0)


def _unit(v: Array) -> Array:
  """v / |v|_2; 0 where v is 0. Scaled first, since the square of 1e-30 is 0 in float32."""
  scaled = over_largest(v)
  norm = _sqrt(jnp.sum(scaled**2))
  return scaled / jnp.where(norm > 0, norm, 1.0)


def _sqrt(a: Array) -> Array:
  """The square root of a >= 0, with derivative 0 rather than inf at 0."""
  return jnp.where(a == 0, 0.0, jnp.sqrt(jnp.where(a == 0, 1.0, a)))


def _soft_threshold(delta: Array, radius: Array, cap: Array) -> Array:
  """sign(delta) * clip(|delta| - t, 0, cap), delta outside, for the t of l_1 norm radius."""
  magnitude = jnp.abs(delta)
  frozen_magnitude, frozen_cap, frozen_radius = jax.lax.stop_gradient((magnitude, cap, radius))

  def outside(t: Array) -> Array:
    return jnp.sum(jnp.clip(frozen_magnitude - t, 0.0, frozen_cap)) > frozen_radius

  low, high = bisect(outside, linf_norm(frozen_magnitude))
  # Between the two the norm is linear in t. Solving for t there gives the derivative; as a distance
  # below the largest free entry it loses no digits when entries are huge.
  full = magnitude - high >= cap
  free = (magnitude > low) & ~full
  below = jnp.max(jnp.where(free, magnitude, 0.0)) - magnitude
  spent = jnp.sum(jnp.where(full, cap, 0.0)) - jnp.sum(jnp.where(free, below, 0.0))
  height = (radius - spent) / jnp.maximum(jnp.sum(free), 1)
  value = jnp.where(full, cap, jnp.where(free, jnp.clip(height - below, 0.0, cap), 0.0))
  return jnp.sign(delta) * value


def bisect(above: Callable[[Array], Array], highest: Array) -> tuple[Array, Array]:
  """The neighbors low < high in [0, highest] of which `above` holds for low and not for high.

  Bisection over the bit patterns of positive floating point numbers, which have the same order, is
  accurate at any scale.
  """
  dtype = highest.dtype
  bits = jnp.dtype(f"int{8 * dtype.itemsize}")

  def halve(_: int, interval: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = interval
    middle = low + (high - low) // 2
    higher = above(jax.lax.bitcast_convert_type(middle, dtype))
    return jnp.where(higher, middle, low), jnp.where(higher, high, middle)

  top = jax.lax.bitcast_convert_type(highest, bits)
  low, high = jax.lax.fori_loop(0, bits.itemsize * 8, halve, (jnp.zeros_like(top), top))
  return jax.lax.bitcast_convert_type(low, dtype), jax.lax.bitcast_convert_type(high, dtype)
