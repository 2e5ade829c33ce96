"""Upper bounds of rounding errors: what makes the certificates hold in floating point.

A sum of n products, in any order, is within gamma_n = n u / (1 - n u) times the sum of their
absolute values, u the unit roundoff of the dtype (Higham 2002, "Accuracy and Stability of Numerical
Algorithms", section 3.1).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from robust_opt.types import Array

_FEW = 64  # terms of the sums whose order is left to XLA


class Estimate(NamedTuple):
  """A computed number and a bound of its error, [...] each."""

  value: Array
  slack: Array

  def __add__(self, other: "Estimate") -> "Estimate":  # type: ignore[override]
    """The sum; the roundings of a few such additions are within those of the parts' slacks."""
    return Estimate(self.value + other.value, self.slack + other.slack)


def unit_roundoff(dtype: Any) -> float:
  """u; 0 in its place gives bounds of a network in exact arithmetic."""
  return float(jnp.finfo(dtype).eps) / 2


def gamma(roundings: int, dtype: Any) -> float:
  """gamma_k / (1 - gamma_k) = k u / (1 - 2 k u) for k roundings; inf where k u >= 1/2."""
  relative = roundings * unit_roundoff(dtype)
  return relative / (1 - 2 * relative) if relative < 0.5 else float("inf")


def largest(lower: Array, upper: Array) -> Array:
  """The largest |z| in each interval."""
  return jnp.maximum(jnp.abs(lower), jnp.abs(upper))


def total(x: Array) -> Array:
  """The sum of all entries, by halves, so that few roundings meet: `depth` of them."""
  x = x.reshape(-1)
  while x.size > _FEW:
    if x.size % 2:
      x = jnp.pad(x, (0, 1))
    x = x[: x.size // 2] + x[x.size // 2 :]
  return jnp.sum(x)


def depth(size: int) -> int:
  """The number of roundings of any entry in `total` of so many entries."""
  halvings = 0
  while size > _FEW:
    halvings, size = halvings + 1, (size + 1) // 2
  return halvings + size


def inner(a: Array, b: Array, lost: Array | float = 0.0) -> Estimate:
  """<a, b>, and what any <a, b'> with |b' - b| <= lost may differ from it; one shape."""
  relative = gamma(depth(a.size) + 16, a.dtype)
  return Estimate(total(a * b), total(jnp.abs(a) * (relative * jnp.abs(b) + (1 + relative) * lost)))
