"""Sets in which only some entries may change: a region of an image, some features of a table.

u = structured.masked(ro.linf(8 / 255, box=(0.0, 1.0)), mask)     # mask [*S] or [B, *S], bool
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from robust_opt.errors import InputError
from robust_opt.sets.balls import UncertaintySet
from robust_opt.types import Array


def masked(uncertainty: UncertaintySet, mask: np.ndarray | Array) -> UncertaintySet:
  """{delta in U(x): delta = 0 where the mask is False}; exactly 0 there, random starts included.

  U must contain every delta in U with some of its entries set to 0, as the balls, groups,
  ellipsoids, l0, their intersections and products do; a `tangent` plane does not. Then

    steepest ascent(g) = U's steepest ascent(m g),   project(delta) = U's project(m delta),

  m the mask as 0 and 1, are exact where those of U are, cut to the mask. The gauge is U's where
  delta is 0 outside of the mask, else inf.

  A sample is a sample of U with the entries outside of the mask set to 0: for `linf` uniform in the
  masked set, for the other balls the marginal of U's distribution. Over `l2` and `l1` that is
  shorter than a uniform sample of the masked set would be, the more so the smaller the mask. A NaN
  in g or delta stays NaN wherever it is.

  Give the step of `ro.pgd` the same mask, or a step of `l2` or `l1` is spent on entries that are
  then reset: `ro.pgd(masked(u, mask), step=masked(ro.l2(0.1), mask))`.

  Args:
    uncertainty: U.
    mask: bool, True where an entry may change: [*S], the same for all examples, or [B, *S]; an axis
      may be 1, [H, W, 1] for all channels.

  Raises:
    InputError: the mask is not bool; from the set's functions: it does not fit x, and as for U.
  """
  if not isinstance(mask, np.ndarray | jax.Array) or mask.dtype != bool:
    given = mask.dtype if isinstance(mask, np.ndarray | jax.Array) else type(mask).__name__
    raise InputError(
      f"mask must be an array of bool, True where an entry may change, but was {given}."
    )

  def outside(x: Array) -> Array:
    """[B, *S] bool, the entries that may not change."""
    shape = mask.shape if mask.ndim == x.ndim else (1, *mask.shape)
    if len(shape) != x.ndim or any(m not in (1, n) for m, n in zip(shape, x.shape)):
      raise InputError(
        f"mask must have the shape {x.shape[1:]} of an example or {x.shape} of the batch (an axis "
        f"may be 1), but has {mask.shape}."
      )
    return jnp.broadcast_to(~jnp.asarray(mask).reshape(shape), x.shape)

  def cut(v: Array, x: Array) -> Array:
    chex.assert_equal_shape((v, x))
    return jnp.where(outside(x) & ~jnp.isnan(v), 0.0, v)

  def within(operation: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda v, x: cut(operation(cut(v, x), x), x)

  def gauge(delta: Array, x: Array) -> Array:
    moved = jnp.any(outside(x) & (delta != 0), axis=range(1, x.ndim))
    return uncertainty.gauge(cut(delta, x), x) + jnp.where(moved, jnp.inf, 0.0)

  return UncertaintySet(
    steepest_ascent=within(uncertainty.steepest_ascent),
    project=within(uncertainty.project),
    sample=lambda key, x: cut(uncertainty.sample(key, x), x),
    gauge=gauge,
  )
