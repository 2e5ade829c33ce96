"""Sets in which only some entries may change: a region of an image, some features of a table.

u = sets.Masked(ro.LInf(8 / 255, box=(0.0, 1.0)), mask)     # mask [*S], [H, W] or [B, *S], bool
"""

from collections.abc import Sequence

import chex
import jax.numpy as jnp
import numpy as np

from robust_opt.errors import InputError
from robust_opt.sets.base import Box, MappedSet, UncertaintySet, check_set, set_dataclass
from robust_opt.types import Array


@set_dataclass
class Masked(MappedSet):
  """{delta in U(x): delta = 0 where the mask is False}; exactly 0 there, random starts included.

  U must contain every delta in U with some of its entries set to 0, as the balls, groups,
  ellipsoids, l0, their intersections and products do; a `Tangent` plane does not. Then the steepest
  ascent of U along the masked gradient and U's projection of the masked delta are those of the
  masked set. The gauge is U's, or inf if delta is not 0 outside of the mask. NaN stays NaN.

  A sample is a sample of U with the entries outside of the mask set to 0: for `LInf` uniform in the
  masked set, for `L2` and `L1` shorter than a uniform sample, the more so the smaller the mask.

  Give the step of `ro.pgd` the same mask; otherwise a step of `L2` or `L1` is spent on entries that
  are then reset: `ro.pgd(Masked(u, mask), step=Masked(ro.L2(0.1), mask))`.
  """

  u: UncertaintySet
  # bool, True where an entry may change: [*S] for all examples, [H, W] for all channels of images,
  # or [B, *S]; an axis may be 1.
  mask: np.ndarray | Array

  def __post_init__(self) -> None:
    check_set("Masked", self.u)
    dtype = getattr(self.mask, "dtype", type(self.mask).__name__)
    if dtype != np.bool_:
      raise InputError(f"mask must be an array of bool, True where x may change, but was {dtype}.")

  @property
  def box(self) -> Box | None:
    """That of U."""
    return getattr(self.u, "box", None)

  def outside(self, x: Array) -> Array:
    """[B, *S] bool, the entries that may not change."""
    shape = broadcastable(self.mask.shape, x.shape)
    return jnp.broadcast_to(~jnp.asarray(self.mask).reshape(shape), x.shape)

  def _cut(self, v: Array, x: Array) -> Array:
    chex.assert_equal_shape((v, x))
    return jnp.where(self.outside(x) & ~jnp.isnan(v), 0.0, v)

  def _apply(self, operation: str, first: Array, x: Array) -> Array:
    if operation == "sample":
      return self._cut(self.u.sample(first, x), x)
    result = getattr(self.u, operation)(self._cut(first, x), x)
    if operation != "gauge":
      return self._cut(result, x)
    moved = jnp.any(self.outside(x) & (first != 0), axis=range(1, x.ndim))
    return result + jnp.where(moved, jnp.inf, 0.0)


def broadcastable(mask: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
  """The shape of a mask that broadcasts to examples [B, *S], or an InputError."""
  _, *example = shape
  if len(mask) == 2 and len(example) == 3:  # [H, W] of [H, W, C] or [C, H, W]
    mask = (*mask, 1) if tuple(mask) == tuple(example[:2]) else (1, *mask)
  whole = tuple(mask) if len(mask) == len(shape) else (1, *mask)
  if len(whole) != len(shape) or any(m not in (1, n) for m, n in zip(whole, shape)):
    raise InputError(
      f"mask must have the shape {tuple(example)} of an example, {tuple(shape)} of all of them (an "
      f"axis may be 1), or [H, W] of images, but has {tuple(mask)}."
    )
  return whole
