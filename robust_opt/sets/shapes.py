"""Ellipsoids, few entries, and directions: one shape a function."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import precision
from robust_opt.errors import InputError
from robust_opt.sets import projections
from robust_opt.sets.balls import Box, Radius, UncertaintySet, l2
from robust_opt.sets.per_example import check_box, cube, make_set, ratio, uniform_l2
from robust_opt.types import Array

BasisOf = Callable[[Array], Array]  # x [B, *S] -> the basis [B, d, *S] of a plane at every x


def ellipsoid(radius: Radius, scale: np.ndarray | Array) -> UncertaintySet:
  """{|delta / scale|_2 <= radius}: entry j alone may go as far as radius * scale_j.

  Its steepest ascent is radius * scale^2 g / |scale g|_2. The projection is delta_j scale_j^2 /
  (scale_j^2 + m) for the multiplier m >= 0 that keeps the norm, found by bisection over the
  floating point numbers to an ulp (32 halvings). No derivative flows through m. Uniform samples.

  Args:
    radius: [] or [B], >= 0, without a unit; scale has that of x.
    scale: [*S], > 0 and finite, the same for all examples; in the units of x (pixels in [0, 1]).

  Raises:
    InputError: the radius is negative or NaN, or an entry of scale is not > 0 and finite; from the
      set's functions: scale has not the shape of an example, and as for `uncertainty.linf`.
  """
  if not isinstance(scale, jax.core.Tracer):
    values = np.asarray(scale)
    if not (np.all(values > 0) and np.all(np.isfinite(values))):
      raise InputError("Every entry of scale must be > 0 and finite, but some are not.")

  def relative(x: Array) -> tuple[Array, Array]:
    """scale / its largest entry, [*S] in (0, 1], and that entry, [], in the type of the radii."""
    if jnp.shape(scale) != x.shape:
      raise InputError(
        f"scale must have the shape {x.shape} of an example, but has {jnp.shape(scale)}."
      )
    values = jnp.asarray(scale, precision.wide(x.dtype))
    return values / jnp.max(values), jnp.max(values)

  def furthest(g: Array, radii: tuple[Array, ...], x: Array) -> Array:
    w, largest_scale = relative(x)
    largest = projections.linf_norm(g)
    scaled = g / jnp.where(largest > 0, largest, 1.0)  # so that w * g cannot underflow to 0
    return w * projections.furthest_l2(w * scaled, radii[0] * largest_scale)

  def project(delta: Array, radii: tuple[Array, ...], x: Array) -> Array:
    w, largest_scale = relative(x)
    radius = radii[0] * largest_scale  # {|delta / w|_2 <= radius}
    at = _ellipsoid_multiplier(delta, radius, w)
    nearest = delta * (w**2 / (w**2 + at))
    norm = projections.l2_norm(nearest / w)
    nearest = nearest * jnp.where(norm > radius, radius / jnp.where(norm > 0, norm, 1.0), 1.0)
    nearest = jnp.where((radius > 0) | jnp.isnan(delta), nearest, 0.0)
    return jnp.where(projections.l2_norm(delta / w) <= radius, delta, nearest)

  def sample(key: Array, radii: tuple[Array, ...], x: Array) -> Array:
    w, largest_scale = relative(x)
    return w * uniform_l2(key, radii[0] * largest_scale, jnp.ones_like(x))

  def gauge(delta: Array, radii: tuple[Array, ...], x: Array) -> Array:
    w, largest_scale = relative(x)
    return ratio(projections.l2_norm(delta / w), radii[0] * largest_scale)

  return make_set({"radius": radius}, furthest, project, sample, gauge)


def l0(k: int, magnitude: Radius, box: Box | None = None) -> UncertaintySet:
  """{at most k entries differ from 0, each by at most magnitude}; it is not convex.

  Steepest ascent: the k entries of largest |g_j| times how far entry j may go, each as far as it
  may; without a box those are the k largest |g_j|. Projection: every entry is clipped, and kept
  where that takes the most off the squared distance, the k largest of p_j (2 delta_j - p_j) for p =
  clip(delta). That is exact, a nearest point of maybe several. The k largest |delta_j| would be the
  same without a box, and wrong with one: a large entry that may hardly move takes little off. Ties
  go to the first entry. Both to the rounding of those products.

  As the set is not convex, `frank_wolfe` of more than one step leaves it; use `pgd`. Samples: a
  uniform choice of k entries, each uniform in [-magnitude, magnitude], cut by the box. The gauge is
  inf for more than k non-zero entries. An entry is one number, a channel of a pixel.

  Args:
    k: how many entries, >= 0 and static; more than there are means all of them.
    magnitude: [] or [B], >= 0, in the units of x (pixels in [0, 1]).
    box: (low, high) that x + delta must stay in; x itself must lie in it.

  Raises:
    InputError: k is negative or not an integer, and as for `uncertainty.linf`.
  """
  if not isinstance(k, int | np.integer) or k < 0:
    raise InputError(f"k must be an integer >= 0, but was {k!r}.")
  check_box(box)

  def limits(radii: tuple[Array, ...], x: Array) -> projections.Bounds:
    return cube(radii[0], box, x)

  def keep(first: Array, second: Array) -> Array:
    """[*S] bool: the k largest of `first`, by `second` where they are equal."""
    order = jnp.lexsort((-second.reshape(-1), -first.reshape(-1)))[:k]
    return jnp.zeros(first.size, bool).at[order].set(True).reshape(first.shape)

  def furthest(g: Array, radii: tuple[Array, ...], x: Array) -> Array:
    reach = projections.room(g, limits(radii, x))
    movable = jnp.where(reach > 0, jnp.abs(g), 0.0)
    largest = projections.linf_norm(movable)
    gain = movable / jnp.where(largest > 0, largest, 1.0) * reach
    step = jnp.where(keep(gain, movable) & (movable > 0), jnp.sign(g) * reach, 0.0)
    return jnp.where(jnp.isnan(g), g, step)

  def project(delta: Array, radii: tuple[Array, ...], x: Array) -> Array:
    clipped = jnp.clip(delta, *limits(radii, x))
    largest = projections.linf_norm(delta)
    safe = jnp.where(largest > 0, largest, 1.0)
    reduction = clipped * (delta / safe + (delta - clipped) / safe)
    # Where the reduction underflows the size of the entry decides.
    kept = jnp.where(keep(reduction, jnp.abs(clipped)), clipped, 0.0)
    return jnp.where(jnp.isnan(delta), delta, kept)

  def sample(key: Array, radii: tuple[Array, ...], x: Array) -> Array:
    choice_key, value_key = jax.random.split(key)
    dtype = radii[0].dtype
    chosen = keep(jax.random.uniform(choice_key, x.shape, dtype), jnp.zeros_like(x))
    values = radii[0] * jax.random.uniform(value_key, x.shape, dtype, -1.0, 1.0)
    return jnp.where(chosen, jnp.clip(values, *limits(radii, x)), 0.0)

  def gauge(delta: Array, radii: tuple[Array, ...], x: Array) -> Array:
    within = ratio(jnp.abs(delta), projections.room(delta, limits(radii, x)))
    return jnp.where(
      jnp.sum(delta != 0) <= k, within, jnp.where(jnp.isnan(within), within, jnp.inf)
    )

  return make_set({"magnitude": magnitude}, furthest, project, sample, gauge)


def tangent(radius: Radius, basis: np.ndarray | Array, per_example: bool = False) -> UncertaintySet:
  """{|delta|_2 <= radius, delta in the span of basis}: changes along a manifold's tangents only.

  Its steepest ascent is the radius along the orthogonal projection of the gradient on the span, and
  0 where that projection is 0: what is below sqrt(n) rounding units of an entry of the gradient,
  with n entries, is rounding, and no direction. Samples are uniform in the ball of the span. The
  gauge is inf where more than 1e-5 of delta's length, or eps of x's type if that is more, lies
  outside the span. Source: Shaham et al. (2015), on the manifold tangent classifier of Rifai et al.
  (2011).

  Args:
    radius: [] or [B], >= 0, in the units of x (pixels in [0, 1]).
    basis: [d, *S], the same for all examples, or [B, d, *S]; of any scale, dependent rows and rows
      of 0 are allowed. Made orthonormal here, once, when the set is built.
    per_example: whether basis is [B, d, *S].

  Raises:
    InputError: the radius is negative or NaN; from the set's functions: basis has not the shape of
      the examples, and as for `uncertainty.linf`.
  """
  lead = 2 if per_example else 1
  basis = jnp.asarray(basis)
  if basis.ndim < lead + 1 or not jnp.issubdtype(basis.dtype, jnp.floating):
    raise InputError(
      f"basis must be floating point [{'B, ' * per_example}d, *S], but is {basis.dtype} of the "
      f"shape {basis.shape}."
    )
  flat = basis.reshape(*basis.shape[:lead], -1).astype(precision.wide(basis.dtype))
  q = jax.vmap(_orthonormal)(flat) if per_example else _orthonormal(flat)  # [(B,) rank, n]
  live = jnp.any(q != 0, axis=-1)  # rows that dependent rows of basis left without a direction

  def draw(key: Array, radii: tuple[Array, ...], live: Array) -> Array:
    return uniform_l2(key, radii[0], live)

  # The ball in the coordinates [B, d] of the span.
  coordinates = make_set(
    {"radius": radius},
    lambda c, radii, _: projections.furthest_l2(c, radii[0]),
    lambda c, radii, _: projections.l2(c, radii[0]),
    draw,
    lambda c, radii, _: ratio(projections.l2_norm(c), radii[0]),
  )
  product = "bdn,bn->bd" if per_example else "dn,bn->bd"
  combine = "bdn,bd->bn" if per_example else "dn,bd->bn"
  exact = jax.lax.Precision.HIGHEST

  def down(v: Array, x: Array) -> Array:
    """The coordinates [B, rank] of v [B, *S], of type `precision.wide` as all that is computed."""
    chex.assert_equal_shape((v, x))
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise InputError(f"x must be floating point, pixels in [0, 1], but was {x.dtype}.")
    if basis.shape[lead:] != x.shape[1:] or (per_example and len(basis) != len(x)):
      raise InputError(f"basis has the shape {basis.shape}, which does not suit x of {x.shape}.")
    dtype = precision.wide(x.dtype)
    entries = v.reshape(len(v), -1).astype(dtype)
    return jnp.einsum(product, q.astype(dtype), entries, precision=exact)

  def up(c: Array, x: Array) -> Array:
    of_entries = jnp.einsum(combine, q.astype(c.dtype), c, precision=exact)
    return of_entries.reshape(x.shape).astype(x.dtype)

  def steepest_ascent(g: Array, x: Array) -> Array:
    c = down(g, x)
    entries = g.reshape(len(g), -1).astype(c.dtype)
    # Of the sums here, and of the entries of g.
    of_sums = float(jnp.finfo(c.dtype).eps) * entries.shape[1] ** 0.5
    rounding = max(of_sums, float(jnp.finfo(g.dtype).eps))
    least = rounding * jax.vmap(projections.l2_norm)(entries)
    c = jnp.where((jax.vmap(projections.l2_norm)(c) <= least)[:, None], 0.0, c)
    return up(coordinates.steepest_ascent(c, c), x)

  def project(delta: Array, x: Array) -> Array:
    c = down(delta, x)
    return up(coordinates.project(c, c), x)

  def sample(key: Array, x: Array) -> Array:
    c = down(x, x)
    ones = jnp.broadcast_to(live, c.shape).astype(c.dtype)
    return up(coordinates.sample(key, ones), x)

  def gauge(delta: Array, x: Array) -> Array:
    c = down(delta, x)
    delta = delta.astype(c.dtype)
    left_over = jax.vmap(projections.l2_norm)(delta - up(c, delta))
    rounding = max(1e-5, float(jnp.finfo(x.dtype).eps))
    outside = left_over > rounding * jax.vmap(projections.l2_norm)(delta)
    return jnp.where(outside, jnp.inf, coordinates.gauge(c, c)).astype(x.dtype)

  return UncertaintySet(steepest_ascent, project, sample, gauge)


def tangent_at(radius: Radius, basis_of: BasisOf) -> UncertaintySet:
  """`tangent` with the basis that basis_of gives at every x: the tangent planes of a manifold.

    {|delta|_2 <= radius, delta in the span of basis_of(x)}

  Every function of the set asks for the basis at its x and makes it orthonormal anew: one step pays
  for that once, an attack of k steps k times or more. No derivative flows into the basis.

  Args:
    radius: [] or [B], >= 0, in the units of x (pixels in [0, 1]).
    basis_of: x [B, *S] -> [B, d, *S], of any scale, such as `tangents.fit` gives.

  Raises:
    InputError: the radius is negative or NaN; from the set's functions: as for `tangent`.
  """
  l2(radius)  # refuses a bad radius now, before there is an x

  def at(x: Array) -> UncertaintySet:
    return tangent(radius, jax.lax.stop_gradient(basis_of(x)), per_example=True)

  return UncertaintySet(
    steepest_ascent=lambda g, x: at(x).steepest_ascent(g, x),
    project=lambda delta, x: at(x).project(delta, x),
    sample=lambda key, x: at(x).sample(key, x),
    gauge=lambda delta, x: at(x).gauge(delta, x),
  )


def _ellipsoid_multiplier(delta: Array, radius: Array, w: Array) -> Array:
  """The m >= 0 at which delta w^2 / (w^2 + m) lies on {|delta / w|_2 = radius}, [].

  For delta outside. The norm decreases in m, and is at most |delta w|_2 / m. Bisection over the
  bits of floating point numbers, which are ordered as they are, is accurate at any scale of m.
  """
  bits = jnp.dtype(f"int{8 * delta.dtype.itemsize}")
  highest = projections.l2_norm(delta * w) / jnp.where(radius > 0, radius, 1.0)
  # Rounded up a little, and finite, since inf is no number to halve to.
  highest = jnp.minimum(1.001 * highest, jnp.finfo(delta.dtype).max)

  def halve(_: int, interval: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = interval
    middle = low + (high - low) // 2
    m = jax.lax.bitcast_convert_type(middle, delta.dtype)
    outside = projections.l2_norm(delta * (w / (w**2 + m))) > radius
    return jnp.where(outside, middle, low), jnp.where(outside, high, middle)

  high = jax.lax.bitcast_convert_type(highest, bits)
  _, high = jax.lax.fori_loop(0, bits.itemsize * 8, halve, (jnp.zeros_like(high), high))
  return jax.lax.stop_gradient(jax.lax.bitcast_convert_type(high, delta.dtype))


def _orthonormal(rows: Array) -> Array:
  """An orthonormal basis of the span of rows [d, n]: [min(d, n), n], rows of 0 past its rank.

  QR alone does not tell the span of dependent rows: the direction that it makes up for a dependent
  row takes a part of the rows after it. The singular vectors of its small factor do.
  """
  largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
  scaled = rows / jnp.where(largest > 0, largest, 1.0)
  exact = jax.lax.Precision.HIGHEST
  q, _ = jnp.linalg.qr(scaled.T)
  # The small factor again, from Q: that of the QR itself would be decomposed while Q is assembled,
  # and two batched LAPACK calls that each wait for XLA's two threads wait for ever (jaxlib 0.10).
  small = jnp.matmul(q.T, scaled.T, precision=exact)
  u, size, _ = jnp.linalg.svd(small, full_matrices=False)
  least = max(rows.shape) * jnp.finfo(rows.dtype).eps * jnp.max(size)
  rotated = jnp.matmul(q, u, precision=exact)
  return jnp.where(size <= least, 0.0, rotated).T  # a NaN is not <=, and stays
