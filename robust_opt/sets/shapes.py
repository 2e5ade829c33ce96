"""Ellipsoids, sparse perturbations and tangent planes."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import precision
from robust_opt.errors import InputError
from robust_opt.sets import projections
from robust_opt.sets.balls import L2
from robust_opt.sets.base import (
  Box,
  ExampleSet,
  Radius,
  UncertaintySet,
  check_radius,
  cube_bounds,
  ratio,
  set_dataclass,
  static,
  uniform_l2,
)
from robust_opt.types import Array

BasisOf = Callable[[Array], Array]  # x [B, *S] -> the basis [B, d, *S] of a plane at every x
_EXACT = jax.lax.Precision.HIGHEST


@set_dataclass
class Ellipsoid(ExampleSet):
  """{|delta / scale|_2 <= radius}: entry j changes by at most radius * scale_j.

  Its steepest ascent is radius * scale^2 grad / |scale grad|_2. The projection is delta_j scale_j^2
  / (scale_j^2 + m) for the multiplier m >= 0 that keeps the norm, found by bisection to an ulp; no
  derivative flows through m. Uniform samples.
  """

  radius: Radius  # [] or [B], >= 0, dimensionless
  scale: np.ndarray | Array  # [*S], > 0 and finite, of all examples; in the units of x (pixels)

  def __post_init__(self) -> None:
    super().__post_init__()
    if not isinstance(self.scale, jax.core.Tracer):
      values = np.asarray(self.scale)
      if not (np.all(values > 0) and np.all(np.isfinite(values))):
        raise InputError("Every entry of scale must be > 0 and finite, but some are not.")

  def _relative(self, x: Array) -> tuple[Array, Array]:
    """scale / its largest entry, [*S] in (0, 1], and radius * that entry, []."""
    if jnp.shape(self.scale) != x.shape:
      raise InputError(
        f"scale must have the shape {x.shape} of an example, but has {jnp.shape(self.scale)}."
      )
    values = jnp.asarray(self.scale, precision.wide(x.dtype))
    return values / jnp.max(values), self.radius * jnp.max(values)

  def _steepest_ascent(self, grad: Array, x: Array) -> Array:
    w, radius = self._relative(x)
    scaled = projections.over_largest(grad)  # so that w * grad cannot underflow to 0
    return w * projections.furthest_l2(w * scaled, radius)

  def _project(self, delta: Array, x: Array) -> Array:
    w, radius = self._relative(x)  # {|delta / w|_2 <= radius}
    # The norm decreases in m, and is at most |delta w|_2 / m. Rounded up a little, and finite.
    highest = projections.l2_norm(delta * w) / jnp.where(radius > 0, radius, 1.0)
    highest = jnp.minimum(1.001 * highest, jnp.finfo(delta.dtype).max)
    _, m = projections.bisect(
      lambda m: projections.l2_norm(delta * (w / (w**2 + m))) > radius, highest
    )
    nearest = delta * (w**2 / (w**2 + jax.lax.stop_gradient(m)))
    norm = projections.l2_norm(nearest / w)
    nearest = nearest * jnp.where(norm > radius, radius / jnp.where(norm > 0, norm, 1.0), 1.0)
    nearest = jnp.where((radius > 0) | jnp.isnan(delta), nearest, 0.0)
    return jnp.where(projections.l2_norm(delta / w) <= radius, delta, nearest)

  def _sample(self, key: Array, x: Array) -> Array:
    w, radius = self._relative(x)
    return w * uniform_l2(key, radius, jnp.ones_like(x))

  def _gauge(self, delta: Array, x: Array) -> Array:
    w, radius = self._relative(x)
    return ratio(projections.l2_norm(delta / w), radius)


@set_dataclass
class L0(ExampleSet):
  """{at most k entries, or pixels, differ from 0, each by at most magnitude}; it is not convex.

  Steepest ascent: the k entries of largest |grad_j| times the distance of entry j to its bound move
  to their bounds. Projection: of p = clip(delta) the k largest p_j (2 delta_j - p_j) are kept,
  which reduce the squared distance most; with a box these are not the k largest |delta_j|. It is a
  nearest point, maybe not the only one. Ties go to the first entry. Both are exact up to the
  rounding of those products.

  As the set is not convex, `frank_wolfe` of more than one step leaves it; use `pgd`. Samples: a
  uniform choice of k entries, each uniform in [-magnitude, magnitude], clipped to the box. The
  gauge is inf for more than k non-zero entries. An entry is one number, a channel of a pixel; with
  a channel_axis k counts pixels, whose gains and reductions are the sums over their channels.
  """

  k: Radius  # [] or [B], integers >= 0, the number of entries, or pixels, that may change
  magnitude: Radius = 1.0  # [] or [B], >= 0, in the units of x (pixels)
  box: Box | None = static(default=None)  # that x and x + delta lie in
  channel_axis: int | None = static(default=None)  # of one example, 0 for [C, H, W]; None: entries

  # As of a ball, for the attacks that count entries.
  name: ClassVar[str] = "l0"
  order: ClassVar[float] = 0
  _radii = ("k", "magnitude")

  def __post_init__(self) -> None:
    if not isinstance(self.k, jax.core.Tracer) and not _are_counts(self.k):
      raise InputError(f"k must be an integer >= 0, but was {self.k!r}.")
    super().__post_init__()

  def norm(self, delta: Array) -> Array:
    """The number of entries, or pixels, that are not 0, [*S] -> [], in delta's type."""
    return jnp.sum(self._by_pixel(delta != 0) > 0).astype(delta.dtype)

  def _by_pixel(self, values: Array) -> Array:
    """The sums over the channels, of length 1 then; the values themselves if entries count."""
    if self.channel_axis is None:
      return values
    if not -values.ndim <= self.channel_axis < values.ndim:
      raise InputError(
        f"channel_axis must be an axis of an example of shape {values.shape}, or None, but was "
        f"{self.channel_axis}."
      )
    return jnp.sum(values, axis=self.channel_axis, keepdims=True)

  def _limits(self, x: Array) -> projections.Bounds:
    return cube_bounds(self.magnitude, self.box, x)

  def _largest(self, first: Array, second: Array) -> Array:
    """[*S] bool: the k largest of `first`, by `second` where they are equal; of a pixel, all."""
    shape, first, second = first.shape, self._by_pixel(first), self._by_pixel(second)
    order = jnp.lexsort((-second.reshape(-1), -first.reshape(-1)))
    kept = jnp.arange(first.size) < self.k
    largest = jnp.zeros(first.size, bool).at[order].set(kept).reshape(first.shape)
    return jnp.broadcast_to(largest, shape)

  def _steepest_ascent(self, grad: Array, x: Array) -> Array:
    reach = projections.room(grad, self._limits(x))
    movable = jnp.where(reach > 0, jnp.abs(grad), 0.0)
    gain = projections.over_largest(movable) * reach
    kept = self._largest(gain, movable) & (movable > 0)
    return jnp.where(jnp.isnan(grad), grad, jnp.where(kept, jnp.sign(grad) * reach, 0.0))

  def _project(self, delta: Array, x: Array) -> Array:
    clipped = jnp.clip(delta, *self._limits(x))
    largest = projections.linf_norm(delta)
    safe = jnp.where(largest > 0, largest, 1.0)
    reduction = clipped * (delta / safe + (delta - clipped) / safe)
    # Where the reduction underflows, the size of the entry decides.
    kept = jnp.where(self._largest(reduction, jnp.abs(clipped)), clipped, 0.0)
    return jnp.where(jnp.isnan(delta), delta, kept)

  def _sample(self, key: Array, x: Array) -> Array:
    choice_key, value_key = jax.random.split(key)
    dtype = jnp.result_type(self.magnitude)
    kept = self._largest(jax.random.uniform(choice_key, x.shape, dtype), jnp.zeros_like(x))
    values = self.magnitude * jax.random.uniform(value_key, x.shape, dtype, -1.0, 1.0)
    return jnp.where(kept, jnp.clip(values, *self._limits(x)), 0.0)

  def _gauge(self, delta: Array, x: Array) -> Array:
    within = ratio(jnp.abs(delta), projections.room(delta, self._limits(x)))
    outside = (self.norm(delta) > self.k) & ~jnp.isnan(within)
    return jnp.where(outside, jnp.inf, within)


def _are_counts(k: Any) -> bool:
  """Whether k holds integers >= 0, in whatever type, as after a cast of all numbers of a set."""
  values = np.asarray(k)
  is_number = jnp.issubdtype(values.dtype, np.number)
  return is_number and bool(np.all((values >= 0) & (values == np.floor(values))))


class _Plane(UncertaintySet):
  """The l_2 ball of `radius` within the plane at x whose orthonormal rows are `_span(x)`."""

  radius: Radius

  def _span(self, x: Array) -> "_Span":
    raise NotImplementedError

  def steepest_ascent(self, grad: Array, x: Array) -> Array:
    span = self._span(x)
    c = span.coordinates(grad, x)
    entries = grad.reshape(len(grad), -1).astype(c.dtype)
    # The rounding of the sums here, and of the entries of grad.
    of_sums = float(jnp.finfo(c.dtype).eps) * entries.shape[1] ** 0.5
    rounding = max(of_sums, float(jnp.finfo(grad.dtype).eps))
    least = rounding * jax.vmap(projections.l2_norm)(entries)
    c = jnp.where((jax.vmap(projections.l2_norm)(c) <= least)[:, None], 0.0, c)
    return span.points(L2(self.radius).steepest_ascent(c, c), x)

  def project(self, delta: Array, x: Array) -> Array:
    span = self._span(x)
    c = span.coordinates(delta, x)
    return span.points(L2(self.radius).project(c, c), x)

  def sample(self, key: Array, x: Array) -> Array:
    span = self._span(x)
    c = span.coordinates(x, x)
    # Rows of 0, past the rank of the basis, stay 0.
    live = jnp.broadcast_to(jnp.any(span.q != 0, axis=-1), c.shape).astype(c.dtype)
    return span.points(_LiveL2(self.radius).sample(key, live), x)

  def gauge(self, delta: Array, x: Array) -> Array:
    span = self._span(x)
    c = span.coordinates(delta, x)
    delta = delta.astype(c.dtype)
    left_over = jax.vmap(projections.l2_norm)(delta - span.points(c, delta))
    rounding = max(1e-5, float(jnp.finfo(x.dtype).eps))
    outside = left_over > rounding * jax.vmap(projections.l2_norm)(delta)
    return jnp.where(outside, jnp.inf, L2(self.radius).gauge(c, c)).astype(x.dtype)


@set_dataclass
class Tangent(_Plane):
  """{|delta|_2 <= radius, delta in the span of basis}: changes along a manifold's tangents only.

  Its steepest ascent is the radius along the orthogonal projection of the gradient on the span, and
  0 where that projection is 0 up to the rounding of a sum of n entries, sqrt(n) eps of the
  gradient. Samples are uniform in the ball of the span. The gauge is inf where more than 1e-5 of
  delta's length, or eps of x's type if that is larger, is outside the span. Source: Shaham et al.
  (2015), on the manifold tangent classifier of Rifai et al. (2011).

  The basis may have any scale, dependent rows and rows of 0. The constructor makes it orthonormal,
  with at most as many rows as entries.
  """

  radius: Radius  # [] or [B], >= 0, in the units of x (pixels)
  basis: np.ndarray | Array  # floating point, [d, *S], the same for all examples, or [B, d, *S]
  per_example: bool = static(default=False)  # whether basis is [B, d, *S]

  def __post_init__(self) -> None:
    check_radius("radius", self.radius)
    basis, lead = jnp.asarray(self.basis), 2 if self.per_example else 1
    if basis.ndim < lead + 1 or not jnp.issubdtype(basis.dtype, jnp.floating):
      raise InputError(
        f"basis must be floating point [{'B, ' * self.per_example}d, *S], but is {basis.dtype} of "
        f"the shape {basis.shape}."
      )
    flat = basis.reshape(*basis.shape[:lead], -1).astype(precision.wide(basis.dtype))
    q = jax.vmap(_orthonormal)(flat) if self.per_example else _orthonormal(flat)
    object.__setattr__(self, "basis", q.reshape(*q.shape[:lead], *basis.shape[lead:]))

  def _span(self, x: Array) -> "_Span":
    precision.check_floating(x, "x")
    shape, lead = jnp.shape(self.basis), 2 if self.per_example else 1
    if shape[lead:] != x.shape[1:] or (self.per_example and shape[0] != len(x)):
      raise InputError(f"basis has the shape {shape}, which does not fit x of {x.shape}.")
    return _Span(jnp.reshape(jnp.asarray(self.basis), (*shape[:lead], -1)))


@set_dataclass
class TangentAt(_Plane):
  """`Tangent` with the basis that basis_of gives at every x: the tangent planes of a manifold.

  Every call computes the basis and orthonormalizes it: at least k times in an attack of k steps. No
  derivative flows into the basis.
  """

  radius: Radius  # [] or [B], >= 0, in the units of x (pixels)
  basis_of: BasisOf = static()  # such as the result of `tangents.fit`

  def __post_init__(self) -> None:
    check_radius("radius", self.radius)

  def _span(self, x: Array) -> "_Span":
    basis = jax.lax.stop_gradient(self.basis_of(jnp.asarray(x)))
    return Tangent(self.radius, basis, per_example=True)._span(x)


class _LiveL2(L2):
  """The l_2 ball over the coordinates where x is 1; for sampling only."""

  def _sample(self, key: Array, x: Array) -> Array:
    return uniform_l2(key, self.radius, x)


class _Span(NamedTuple):
  q: Array  # [rank, n] or [B, rank, n], orthonormal rows

  def coordinates(self, v: Array, x: Array) -> Array:
    """v [B, *S] -> [B, rank], in the type `precision.wide(x.dtype)` of all computations."""
    chex.assert_equal_shape((v, x))
    dtype = precision.wide(x.dtype)
    equation = "dn,bn->bd" if self.q.ndim == 2 else "bdn,bn->bd"
    entries = v.reshape(len(v), -1).astype(dtype)
    return jnp.einsum(equation, self.q.astype(dtype), entries, precision=_EXACT)

  def points(self, c: Array, x: Array) -> Array:
    """c [B, rank] -> [B, *S] in the type of x."""
    equation = "dn,bd->bn" if self.q.ndim == 2 else "bdn,bd->bn"
    entries = jnp.einsum(equation, self.q.astype(c.dtype), c, precision=_EXACT)
    return entries.reshape(x.shape).astype(x.dtype)


def _orthonormal(rows: Array) -> Array:
  """An orthonormal basis of the span of rows [d, n]: [min(d, n), n], rows of 0 past its rank.

  QR alone does not give the span of dependent rows: the arbitrary direction that it adds for a
  dependent row absorbs part of the later rows. The singular vectors of its small factor do.
  """
  scaled = projections.over_largest(rows, axis=1)
  q, _ = jnp.linalg.qr(scaled.T)
  # Recomputed from Q: the factor of the QR itself would be decomposed while Q is assembled, and two
  # batched LAPACK calls that each wait for XLA's two threads deadlock (jaxlib 0.10).
  small = jnp.matmul(q.T, scaled.T, precision=_EXACT)
  u, size, _ = jnp.linalg.svd(small, full_matrices=False)
  least = max(rows.shape) * jnp.finfo(rows.dtype).eps * jnp.max(size)
  return jnp.where(size <= least, 0.0, jnp.matmul(q, u, precision=_EXACT)).T  # NaN stays NaN
