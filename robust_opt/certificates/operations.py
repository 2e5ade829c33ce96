"""The operations of a network as bounds see them: affine, or one of four nonlinear ones.

Every operation takes arrays of ONE example and is bounded by two rules:

  interval(lower, upper) -> (lower, upper)      the values, from those of its input
  pull_back(a, lower, upper) -> (a', Estimate)  <a, f(z)> <= <a', z> + value + slack on the interval

Both include the rounding of f itself. `tracing` translates the primitives of a jaxpr into them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from robust_opt.certificates.rounding import Estimate, gamma, inner, largest
from robust_opt.types import Array

Interval = tuple[Array, Array]


class Affine(NamedTuple):
  """z -> linear(*z) + bias, a primitive with all but its x-dependent inputs fixed.

  Attributes:
    linear: the linear part.
    magnitude: the same with the absolute value of every entry of its matrix.
    bias: of the shape of the output, or None.
    terms: the largest number of products in an output; 0 if values are moved alone.
    fan: the largest number of outputs that an input enters; 0 or 1: no sum is pulled back.
    mixes: whether outputs are sums over inputs, so that intervals lose their dependence.
  """

  linear: Callable[..., Array]
  magnitude: Callable[..., Array]
  bias: Array | None = None
  terms: int = 0
  fan: int = 0
  mixes: bool = False

  def roundings(self, uses: int) -> int:
    """Of a value, and of what is pulled back from it to an input of so many uses; 0 if none.

    Eight more allow for constants, as those of batch normalization, that another program rounds
    differently, and for products of errors.
    """
    count = sum(n for n in (self.fan, uses) if n > 1) + self.terms
    return count + 8 if count else 0


class Nonlinear(Protocol):
  """An operation of one input, which a linear function bounds from either side."""

  def interval(self, lower: Array, upper: Array) -> Interval:
    """Bounds of the values."""

  def pull_back(
    self, a: Array, lower: Array, upper: Array, slopes: Array | None = None
  ) -> tuple[Array, Estimate]:
    """(a', estimate), <a, f(z)> <= <a', z> + value + slack; slopes as for `Piecewise`."""


class Lines(NamedTuple):
  """Bounds of an entrywise function: below <= f(z) <= above on the interval, up to `lost`."""

  above: tuple[Array, Array]  # slope and intercept
  below: tuple[Array, Array]
  lost: Array

  def pull_back(self, a: Array) -> tuple[Array, Estimate]:
    """The line from above where a > 0, else that from below."""
    positive = a > 0
    slope, intercept = (jnp.where(positive, *pair) for pair in zip(self.above, self.below))
    return a * slope, inner(a, intercept, self.lost)


class Piecewise(NamedTuple):
  """`right` z where z >= 0, `left` z elsewhere: ReLU (0, 1), leaky ReLU, the absolute value."""

  left: Array | float
  right: Array | float

  def __call__(self, z: Array) -> Array:  # noqa: D102
    return z * jnp.where(z >= 0, self.right, self.left)

  def interval(self, lower: Array, upper: Array) -> Interval:
    """The values at the ends, and 0 between ends of different signs."""
    ends = self(lower), self(upper)
    crosses = (lower < 0) & (upper > 0)
    least, most = jnp.minimum(*ends), jnp.maximum(*ends)
    least = jnp.where(crosses, jnp.minimum(least, 0.0), least)
    most = jnp.where(crosses, jnp.maximum(most, 0.0), most)
    once = gamma(2, lower.dtype)
    return least - once * jnp.abs(least), most + once * jnp.abs(most)

  def pull_back(
    self, a: Array, lower: Array, upper: Array, slopes: Array | None = None
  ) -> tuple[Array, Estimate]:
    """The chord on one side, a line through 0 on the other (Zhang et al. 2018, 1811.00866).

    `slopes` in [0, 1] choose that line between `left` and `right`, as in alpha-CROWN (Xu et al.
    2021, arXiv 2011.13824); by default it is the one of the smaller area, as in CROWN-Ada.
    """
    return self.lines(lower, upper, slopes).pull_back(a)

  def lines(self, lower: Array, upper: Array, slopes: Array | None = None) -> Lines:
    """The chord and the line through 0."""
    left, right = (jnp.broadcast_to(jnp.asarray(s, lower.dtype), lower.shape) for s in self)
    positive, negative = lower >= 0, upper <= 0
    settled = positive | negative
    width = jnp.where(settled, 1.0, upper - lower)
    chord = (right * upper - left * lower) / width
    chord = jnp.where(positive, right, jnp.where(negative, left, chord))
    # The chord passes through both ends: -(right - left) l u / (u - l).
    height = jnp.where(settled, 0.0, (left - right) * (upper / width) * lower)
    if slopes is None:
      slopes = self.adaptive(lower, upper)
    through = jnp.where(settled, chord, left + slopes * (right - left))
    convex = right >= left
    zero = jnp.zeros_like(height)
    above = jnp.where(convex, chord, through), jnp.where(convex, height, zero)
    below = jnp.where(convex, through, chord), jnp.where(convex, zero, height)
    steepest = jnp.maximum(jnp.abs(left), jnp.abs(right))
    exact = settled & ((chord == 0) | (chord == 1))
    lost = jnp.where(exact, 0.0, 2 * gamma(8, lower.dtype) * steepest * largest(lower, upper))
    return Lines(above, below, lost)

  @staticmethod
  def adaptive(lower: Array, upper: Array) -> Array:
    """The slopes of CROWN-Ada: 1 where the positive part of the interval is the larger one."""
    return jnp.where(upper > -lower, 1.0, 0.0)


class SShaped(NamedTuple):
  """An increasing function that is convex below 0, concave above, with f(-z) = 2 f(0) - f(z)."""

  function: Callable[[Array], Array]
  derivative: Callable[[Array], Array]

  def interval(self, lower: Array, upper: Array) -> Interval:
    """The values at the ends; implementations are right to a few units in the last place."""
    lost = 32 * float(jnp.finfo(lower.dtype).eps)
    return self.function(lower) - lost, self.function(upper) + lost

  def pull_back(
    self, a: Array, lower: Array, upper: Array, slopes: Array | None = None
  ) -> tuple[Array, Estimate]:
    """A tangent or the chord on either side; `slopes` has no effect."""
    slope, intercept = self._above(lower, upper)
    # f(z) = 2 f(0) - f(-z) >= 2 f(0) - (line above f on the mirrored interval).
    mirrored, height = self._above(-upper, -lower)
    center = 2 * self.function(jnp.zeros_like(lower))
    steepest = jnp.maximum(jnp.abs(slope), jnp.abs(mirrored))
    lost = 64 * jnp.finfo(lower.dtype).eps * (1 + steepest * largest(lower, upper))
    return Lines((slope, intercept), (mirrored, center - height), lost).pull_back(a)

  def _above(self, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Slope and intercept of a line above the function.

    The tangent at the least d >= 0 that is not below the function at `lower`; the chord, if there
    is none up to `upper`. Where the whole interval is positive, the tangent in its middle.
    """
    f_lower, f_upper = self.function(lower), self.function(upper)

    def covers(d: Array) -> Array:
      return self.function(d) + self.derivative(d) * (lower - d) >= f_lower

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
      low, high = ends
      middle = (low + high) / 2
      good = covers(middle)
      return jnp.where(good, low, middle), jnp.where(good, middle, high)

    start = jnp.maximum(lower, 0.0), jnp.maximum(upper, 0.0)
    d = jax.lax.fori_loop(0, 24, halve, start)[1]
    d = jnp.where(lower >= 0, (lower + upper) / 2, d)
    # Not covers(d): at the least d it is a tie, and rounding would choose a chord that is too low.
    tangent = (upper > 0) & ((lower >= 0) | covers(start[1]))
    width = jnp.maximum(upper - lower, jnp.finfo(lower.dtype).tiny)
    chord = jnp.where(upper > lower, (f_upper - f_lower) / width, self.derivative(upper))
    slope = jnp.where(tangent, self.derivative(d), chord)
    return slope, jnp.where(tangent, self.function(d) - slope * d, f_upper - slope * upper)


class Maximum(NamedTuple):
  """The maximum over the last axis: [*S, n] -> [*S]."""

  def interval(self, lower: Array, upper: Array) -> Interval:
    """Exact, since the maximum is monotone."""
    return jnp.max(lower, axis=-1), jnp.max(upper, axis=-1)

  def pull_back(
    self, a: Array, lower: Array, upper: Array, slopes: Array | None = None
  ) -> tuple[Array, Estimate]:
    """Bounds the maximum by one entry: from above where a > 0, else from below.

      max_i z_i >= z_m                               for m of the largest lower bound
      max_i z_i <= max(z_k, t) = t + relu(z_k - t)   for k of the largest upper bound, t that of
                                                     the others; the ReLU lies below its chord

    Both are exact where z_k is always the largest, and neither is looser than the interval.
    """
    entries = upper.shape[-1]
    is_k = jax.nn.one_hot(jnp.argmax(upper, axis=-1), entries, dtype=bool)
    is_m = jax.nn.one_hot(jnp.argmax(lower, axis=-1), entries, dtype=bool)
    low_k = jnp.sum(jnp.where(is_k, lower, 0.0), axis=-1)
    high_k = jnp.max(upper, axis=-1)
    t = jnp.max(jnp.where(is_k, -jnp.inf, upper), axis=-1)
    dominant = low_k >= t
    slope = jnp.where(dominant, 1.0, (high_k - t) / jnp.where(dominant, 1.0, high_k - low_k))
    height = jnp.where(dominant, 0.0, t - slope * low_k)
    size = jnp.where(dominant, 0.0, jnp.abs(t) + 2 * slope * largest(low_k, high_k))
    above, below = (a * slope)[..., None] * is_k, a[..., None] * is_m
    pulled = jnp.where(a[..., None] > 0, above, below)
    return pulled, inner(jnp.maximum(a, 0.0), height, gamma(10, lower.dtype) * size)


def _sigmoid_slope(z: Array) -> Array:
  return jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)


RELU = Piecewise(0.0, 1.0)
ABS = Piecewise(-1.0, 1.0)
SIGMOID = SShaped(jax.nn.sigmoid, _sigmoid_slope)
TANH = SShaped(jnp.tanh, lambda z: 4 * _sigmoid_slope(2 * z))
Operation = Affine | Piecewise | SShaped | Maximum
Value = Any  # of a jaxpr: an array
