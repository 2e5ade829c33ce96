"""Uncertainty sets U(x): what the adversary may add to an example.

  u = ro.l2(0.5)                        # the ball |delta|_2 <= 0.5, in pixels of [0, 1]
  u = ro.linf(8 / 255, box=(0.0, 1.0))  # ... of perturbed images that are images
  u = ro.l1(radii)                      # radii [B]: a radius of its own for every example

The four functions of a set take a batch, delta or g [B, *S] and x [B, *S]. The radius is [] or
[B] and may be traced, so that a sweep over radii compiles once: build the set inside the traced
function. The geometry of one example is in projections.py; `over_batch` maps it over the batch.

Every function returns the type of x. Types of fewer bits than float32 are computed in float32 and
rounded once: delta may leave the ball by eps / 2 of the radius (2^-8 of it in bfloat16, 2^-11 in
float16), and x + delta stays in the box.

|  input                  |  steepest_ascent                                       |
|  g = 0                  |  0 (never a made-up direction, never NaN)              |
|  g of 1e-30 or 1e30     |  a step of the full radius                             |
|  NaN in g               |  NaN: the caller must see it                           |
|  radius 0               |  0                                                     |
|  radius inf             |  only with a box; without one, entries are inf or NaN  |
|  radius < 0 or NaN      |  InputError (when it is traced it cannot be checked)   |
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import keys, precision
from robust_opt.errors import InputError
from robust_opt.sets import projections
from robust_opt.types import Array

Box = tuple[float, float]
Radius = float | np.ndarray | Array
# (v [*S], radius [], bounds) -> [*S]
_Geometry = Callable[[Array, Array, projections.Bounds | None], Array]
# (v [*S] or key, radii, each [], x [*S]) -> what the set's function returns of one example
OfOne = Callable[[Array, tuple[Array, ...], Array], Array]


class UncertaintySet(NamedTuple):
  """The perturbations U(x) of each example of a batch, as four pure functions.

  Attributes:
    steepest_ascent: (g [B, *S], x [B, *S]) -> argmax over delta in U(x) of <g, delta>, [B, *S]; the
      ascent step of Algorithm 1 (Shaham et al. 2015, section 4). It is 0 where g is 0.
    project: (delta [B, *S], x [B, *S]) -> the nearest point of U(x) in the Euclidean sense.
    sample: (key, x [B, *S]) -> a random delta in U(x), uniform in the ball; with a box, that point
      cut by the box. One key, or a key for every example, [B].
    gauge: (delta [B, *S], x [B, *S]) -> [B], the smallest t with delta in t U(x); <= 1 inside.
  """

  steepest_ascent: Callable[[Array, Array], Array]
  project: Callable[[Array, Array], Array]
  sample: Callable[[Array, Array], Array]
  gauge: Callable[[Array, Array], Array]


def linf(radius: Radius, box: Box | None = None) -> UncertaintySet:
  """{|delta|_inf <= radius}; its steepest ascent is radius * sign(g) (FGSM).

  Args:
    radius: [] or [B], >= 0, in the units of x (pixels in [0, 1]).
    box: (low, high) that x + delta must stay in; x itself must lie in it.

  Raises:
    InputError: the radius is negative or NaN, or the box is not an interval; from the set's
      functions: x is not floating point, or the radius is neither [] nor [B].
  """

  def furthest(g: Array, radius: Array, bounds: projections.Bounds | None) -> Array:
    step = jnp.where(g == 0, 0.0, radius * jnp.sign(g))
    return step if bounds is None else jnp.clip(step, *bounds)

  def sample(key: Array, radius: Array, x: Array) -> Array:
    return radius * jax.random.uniform(key, x.shape, radius.dtype, -1.0, 1.0)

  return _ball(radius, box, furthest, projections.linf, sample, projections.linf_norm)


def l2(radius: Radius, box: Box | None = None) -> UncertaintySet:
  """{|delta|_2 <= radius}; its steepest ascent is radius * g / |g|_2. Arguments as for linf."""

  def sample(key: Array, radius: Array, x: Array) -> Array:
    # Barthe, Guedon, Mendelson and Naor (2005), theorem 1, for p = 2.
    normal_key, exponential_key = jax.random.split(key)
    z = jax.random.normal(normal_key, x.shape, radius.dtype)
    e = jax.random.exponential(exponential_key, (), radius.dtype)
    return radius * z / jnp.sqrt(jnp.sum(z**2) + 2.0 * e)

  return _ball(radius, box, projections.furthest_l2, projections.l2, sample, projections.l2_norm)


def l1(radius: Radius, box: Box | None = None) -> UncertaintySet:
  """{|delta|_1 <= radius}; its steepest ascent moves the one entry of largest |g_j| by radius.

  Arguments as for linf. With a box, what does not fit into that entry goes to the next.
  """

  def sample(key: Array, radius: Array, x: Array) -> Array:
    # Barthe, Guedon, Mendelson and Naor (2005), theorem 1, for p = 1.
    laplace_key, exponential_key = jax.random.split(key)
    z = jax.random.laplace(laplace_key, x.shape, radius.dtype)
    e = jax.random.exponential(exponential_key, (), radius.dtype)
    return radius * z / (jnp.sum(jnp.abs(z)) + e)

  return _ball(radius, box, projections.furthest_l1, projections.l1, sample, projections.l1_norm)


def _ball(
  radius: Radius,
  box: Box | None,
  furthest: _Geometry,
  project: _Geometry,
  sample: Callable[[Array, Array, Array], Array],
  norm: Callable[[Array], Array],
) -> UncertaintySet:
  """The set of a norm ball, from the geometry of one example."""
  _check(radius, box)

  def bounds(x: Array) -> projections.Bounds | None:
    return None if box is None else bounds_within(box, x)

  def inside_box(delta: Array, x: Array) -> Array:
    # Uniform in the ball, then cut by the box (which only shortens it).
    return delta if box is None else jnp.clip(delta, *bounds_within(box, x))

  def gauge(delta: Array, radius: Array, x: Array) -> Array:
    def ratio(a: Array, b: Array) -> Array:
      # 0 / 0 is inside, anything else / 0 is infinitely far outside (and -0 is a 0).
      return jnp.max(jnp.where(a == 0, 0.0, jnp.where(b > 0, a / b, jnp.inf)))

    of_ball, limits = ratio(norm(delta), radius), bounds(x)
    if limits is None:
      return of_ball
    return jnp.maximum(of_ball, ratio(jnp.abs(delta), projections.room(delta, limits)))

  def batched(one: Callable[[Array, Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return over_batch({"radius": radius}, lambda first, radii, x: one(first, radii[0], x))

  def same_shape(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    def checked(delta: Array, x: Array) -> Array:
      chex.assert_equal_shape((delta, x))
      return function(delta, x)

    return checked

  draw = batched(lambda key, radius, x: inside_box(sample(key, radius, x), x))

  def keyed(key: Array, x: Array) -> Array:
    return draw(keys.per_example(key, x.shape[0]), x)

  return UncertaintySet(
    steepest_ascent=same_shape(batched(lambda g, r, x: furthest(g, r, bounds(x)))),
    project=same_shape(batched(lambda delta, r, x: project(delta, r, bounds(x)))),
    sample=keyed,
    gauge=same_shape(batched(gauge)),
  )


def over_batch(radii: dict[str, Radius], one: OfOne) -> Callable[[Array, Array], Array]:
  """Maps the geometry of one example over a batch: (v [B, *S] or keys [B], x [B, *S]) -> result.

  `one` gets v and the radii in x's type, or float32 if that has fewer bits, and x as it is, whose
  rounding decides what stays in a box. The result is cast to x's type.

  Args:
    radii: the radii by the names of the set's arguments, each [] or [B].
    one: the geometry.

  Raises:
    InputError: from the result: x is not floating point, or a radius is neither [] nor [B].
  """

  def batched(first: Array, x: Array) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise InputError(f"x must be floating point, pixels in [0, 1], but was {x.dtype}.")
    for name, radius in radii.items():
      if jnp.shape(radius) not in ((), x.shape[:1]):
        raise InputError(
          f"{name} must be one number or one for each of the {x.shape[0]} examples, but has the "
          f"shape {jnp.shape(radius)}."
        )
    dtype = precision.wide(x.dtype)
    spread = tuple(
      jnp.broadcast_to(jnp.asarray(radius, dtype), x.shape[:1]) for radius in radii.values()
    )
    return jax.vmap(one)(precision.cast(first, dtype), spread, x).astype(x.dtype)

  return batched


def bounds_within(box: Box, x: Array) -> projections.Bounds:
  """The (lower, upper) [*S] of delta that keep x + delta, as it is rounded, in the box; x [*S]."""
  low, high = (jnp.asarray(end, x.dtype) for end in box)
  lower, upper = low - x, high - x

  def inward(bound: Array, outside: Array) -> Array:
    # In wide boxes high - x is rounded more coarsely than high is.
    frozen = jax.lax.stop_gradient(bound)  # nextafter has no derivative, and moves none
    ulp = jnp.nextafter(frozen, jnp.zeros_like(frozen)) - frozen
    return bound + jnp.where(outside, ulp, 0.0)

  return inward(lower, x + lower < low), inward(upper, x + upper > high)


def _check(radius: Radius, box: Box | None) -> None:
  if not isinstance(radius, jax.core.Tracer) and not np.all(np.asarray(radius) >= 0):
    raise InputError(f"radius must be >= 0 (0 means the clean example), but was {radius}.")
  if box is not None and not box[0] < box[1]:
    raise InputError(f"box must be (low, high) with low < high, but was {box}.")
