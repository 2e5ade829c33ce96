"""What the structured sets share: the geometry of one example, mapped over a batch."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import keys
from robust_opt.errors import InputError
from robust_opt.sets import projections
from robust_opt.sets.balls import Box, OfOne, Radius, UncertaintySet, bounds_within, over_batch
from robust_opt.types import Array


def make_set(
  radii: dict[str, Radius], furthest: OfOne, project: OfOne, sample: OfOne, gauge: OfOne
) -> UncertaintySet:
  """The set of the geometry of one example, mapped over the batch."""
  for name, radius in radii.items():
    if not isinstance(radius, jax.core.Tracer) and not np.all(np.asarray(radius) >= 0):
      raise InputError(f"{name} must be >= 0 (0 means the clean example), but was {radius}.")

  def same_shape(one: OfOne) -> Callable[[Array, Array], Array]:
    def checked(delta: Array, x: Array) -> Array:
      chex.assert_equal_shape((delta, x))
      return over_batch(radii, one)(delta, x)

    return checked

  def keyed(key: Array, x: Array) -> Array:
    return over_batch(radii, sample)(keys.per_example(key, x.shape[0]), x)

  return UncertaintySet(same_shape(furthest), same_shape(project), keyed, same_shape(gauge))


def ratio(a: Array, b: Array) -> Array:
  """The largest a / b: 0 / 0 is inside, anything else / 0 infinitely far outside."""
  return jnp.max(jnp.where(a == 0, 0.0, jnp.where(b > 0, a / b, jnp.inf + a)))


def like(values: Array, x: Array) -> Array:
  """[B] -> [B, 1, ...], to multiply x [B, *S] with."""
  return values.reshape(-1, *(1,) * (x.ndim - 1))


def uniform_l2(key: Array, radius: Array, live: Array) -> Array:
  """A uniform point of the l_2 ball of the entries where live [*S] is 1; 0 where it is 0."""
  # Barthe, Guedon, Mendelson and Naor (2005), theorem 1, for p = 2.
  normal_key, exponential_key = jax.random.split(key)
  z = live * jax.random.normal(normal_key, live.shape, radius.dtype)
  e = jax.random.exponential(exponential_key, (), radius.dtype)
  return radius * z / jnp.sqrt(jnp.sum(z**2) + 2.0 * e)


def check_box(box: Box | None) -> None:
  """InputError for a box that is no interval."""
  if box is not None and not box[0] < box[1]:
    raise InputError(f"box must be (low, high) with low < high, but was {box}.")


def cube(radius: Array, box: Box | None, x: Array) -> projections.Bounds:
  """The bounds of delta [*S] within the l_inf ball and the box."""
  lower, upper = jnp.broadcast_to(-radius, x.shape), jnp.broadcast_to(radius, x.shape)
  if box is None:
    return lower, upper
  least, most = bounds_within(box, x)
  return jnp.maximum(lower, least), jnp.minimum(upper, most)
