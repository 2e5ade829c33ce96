"""Two sets at once: exactly for l_inf with l_2, approximately for any two."""

import jax
import jax.numpy as jnp

from robust_opt.errors import InputError
from robust_opt.sets import projections
from robust_opt.sets.balls import Box, Radius, UncertaintySet
from robust_opt.sets.per_example import check_box, cube, like, make_set, ratio, uniform_l2
from robust_opt.types import Array


def linf_l2(radius_inf: Radius, radius_2: Radius, box: Box | None = None) -> UncertaintySet:
  """{|delta|_inf <= radius_inf and |delta|_2 <= radius_2}, exact.

  The l_inf ball is a box about 0, so that this is the l_2 ball with bounds of projections.py: the
  steepest ascent is clip(s g, -radius_inf, radius_inf) for the smallest s that attains radius_2.
  Samples: uniform in the l_2 ball, then clipped.

  Args:
    radius_inf: [] or [B], >= 0, in the units of x (pixels in [0, 1]).
    radius_2: [] or [B], >= 0, in the units of x.
    box: (low, high) that x + delta must stay in; x itself must lie in it.

  Raises:
    InputError: as for `uncertainty.linf`.
  """
  check_box(box)

  def furthest(g: Array, radii: tuple[Array, ...], x: Array) -> Array:
    return projections.furthest_l2(g, radii[1], cube(radii[0], box, x))

  def project(delta: Array, radii: tuple[Array, ...], x: Array) -> Array:
    return projections.l2(delta, radii[1], cube(radii[0], box, x))

  def sample(key: Array, radii: tuple[Array, ...], x: Array) -> Array:
    drawn = uniform_l2(key, radii[1], jnp.ones_like(x))
    return jnp.clip(drawn, *cube(radii[0], box, x))

  def gauge(delta: Array, radii: tuple[Array, ...], x: Array) -> Array:
    of_cube = ratio(jnp.abs(delta), projections.room(delta, cube(radii[0], box, x)))
    return jnp.maximum(of_cube, ratio(projections.l2_norm(delta), radii[1]))

  radii = {"radius_inf": radius_inf, "radius_2": radius_2}
  return make_set(radii, furthest, project, sample, gauge)


def intersection(
  first: UncertaintySet, second: UncertaintySet, num_iterations: int = 50
) -> UncertaintySet:
  """The points of both of two convex sets, such as an l1 ball with an ellipsoid; APPROXIMATE.

  project: Dykstra's algorithm (Boyle and Dykstra 1986), which converges to the projection, stopped
  after num_iterations and then shrunk into the set. It is feasible always, and the nearest point
  only for points not far off, as those of PGD are. Measured for l_2 of radius r with l_inf of
  0.6 r, 6 entries and 50 iterations: 4e-5 r from the nearest point for points at 2 r from 0,
  0.08 r for 10 r (5e-4 r after 200 iterations), 0.4 r for 100 r.

  steepest_ascent: NOT the argmax in general, for which two sets known by their functions give no
  closed form. It is the best, by <g, delta>, of three feasible points: the steepest ascent of
  either set, shrunk into the other, and the projection of a point far along g (which tends to the
  argmax as that point goes to infinity). So <g, delta> >= 0; and where the steepest ascent of one
  set lies in the other it is exact. In the case above it reached 0.98 of the maximum or more. For
  l_inf with l_2 use `linf_l2`, which is exact always.

  sample: a sample of the first, projected; not uniform. gauge: the larger of the two, exact.

  Args:
    first: a convex set that holds 0; not l0.
    second: another. Let it be the thinner of the two, a `tangent`: points are shrunk along the ray
      from 0, which brings a point into a ball, but not into a plane.
    num_iterations: of Dykstra's algorithm, each with one projection on either set.

  Raises:
    InputError: num_iterations is < 1.
  """
  if num_iterations < 1:
    raise InputError(f"num_iterations must be at least 1, but was {num_iterations}.")

  def gauge(delta: Array, x: Array) -> Array:
    return jnp.maximum(first.gauge(delta, x), second.gauge(delta, x))

  def shrink(delta: Array, x: Array) -> Array:
    # A few ulps further than needed, so that a box is kept exactly.
    size = gauge(delta, x)
    within = 1.0 - 4.0 * float(jnp.finfo(delta.dtype).eps)
    return delta * like(jnp.where(size > 1.0, within / size, 1.0), delta)

  def project(delta: Array, x: Array) -> Array:
    def both(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
      point, of_first, of_second = carry
      middle = first.project(point + of_first, x)
      of_first = point + of_first - middle
      end = second.project(middle + of_second, x)
      return end, of_first, middle + of_second - end

    zero = jnp.zeros_like(delta)
    point, _, _ = jax.lax.fori_loop(0, num_iterations, both, (delta, zero, zero))
    return shrink(point, x)

  def steepest_ascent(g: Array, x: Array) -> Array:
    axes = tuple(range(1, g.ndim))
    largest = jnp.max(jnp.abs(g), axis=axes)
    unit = g / like(jnp.where(largest > 0, largest, 1.0), g)  # of unit l_inf norm
    ends = [shrink(u.steepest_ascent(g, x), x) for u in (first, second)]
    # Ten times as far as the shorter of the two, both of which lie inside.
    reach = [jax.vmap(projections.l2_norm)(end) for end in ends]
    length = jax.vmap(projections.l2_norm)(unit)
    far = 10.0 * jnp.maximum(*reach) / jnp.where(length > 0, length, 1.0)
    points = jnp.stack([*ends, project(like(far, unit) * unit, x)])
    # jnp.argmax takes a NaN for the largest, and so it stays to be seen.
    best = jnp.argmax(jnp.sum(unit * points, axis=tuple(a + 1 for a in axes)), axis=0)
    return jax.vmap(lambda of_one, i: of_one[i], in_axes=(1, 0))(points, best)

  def sample(key: Array, x: Array) -> Array:
    return project(first.sample(key, x), x)

  return UncertaintySet(steepest_ascent, project, sample, gauge)
