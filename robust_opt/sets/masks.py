"""Sets in which only some entries may change: a region of an image, some features of a table.

u = sets.Masked(ro.LInf(8 / 255, box=(0.0, 1.0)), mask)     # mask [*S] or [B, *S], bool
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from robust_opt.errors import InputError
from robust_opt.sets.base import UncertaintySet, set_dataclass
from robust_opt.types import Array


@set_dataclass
class Masked(UncertaintySet):
  """{delta in U(x): delta = 0 where the mask is False}; exactly 0 there, random starts included.

  U must contain every delta in U with some of its entries set to 0, as the balls, groups,
  ellipsoids, l0, their intersections and products do; a `Tangent` plane does not. Then

    steepest ascent(grad) = U's steepest ascent(m grad),   project(delta) = U's project(m delta),

  with the mask m as 0 and 1, are exact where those of U are. The gauge is U's where
  delta is 0 outside of the mask, else inf.

  A sample is a sample of U with the entries outside of the mask set to 0: for `LInf` uniform in the
  masked set, for the other balls the marginal of U's distribution. Over `L2` and `L1` that is
  shorter than a uniform sample of the masked set, the more so the smaller the mask. NaN in grad or
  delta stays NaN everywhere.

  Give the step of `ro.pgd` the same mask; otherwise a step of `L2` or `L1` is spent on entries that
  are then reset: `ro.pgd(Masked(u, mask), step=Masked(ro.L2(0.1), mask))`.

  Attributes:
    u: the set U.
    mask: bool, True where an entry may change: [*S], the same for all examples, or [B, *S]; an axis
      may be 1, [H, W, 1] for all channels.

  Raises:
    InputError: the mask is not bool; from the methods: it does not fit x, and as for U.
  """

  u: UncertaintySet
  mask: np.ndarray | Array

  def __post_init__(self) -> None:
    mask = self.mask
    if not isinstance(mask, np.ndarray | jax.Array) or mask.dtype != bool:
      what = mask.dtype if isinstance(mask, np.ndarray | jax.Array) else type(mask).__name__
      raise InputError(
        f"mask must be an array of bool, True where an entry may change, but was {what}."
      )

  def _outside(self, x: Array) -> Array:
    """[B, *S] bool, the entries that may not change."""
    mask = self.mask
    shape = mask.shape if mask.ndim == x.ndim else (1, *mask.shape)
    if len(shape) != x.ndim or any(m not in (1, n) for m, n in zip(shape, x.shape)):
      raise InputError(
        f"mask must have the shape {x.shape[1:]} of an example or {x.shape} of the batch (an axis "
        f"may be 1), but has {mask.shape}."
      )
    return jnp.broadcast_to(~jnp.asarray(mask).reshape(shape), x.shape)

  def _cut(self, v: Array, x: Array) -> Array:
    chex.assert_equal_shape((v, x))
    return jnp.where(self._outside(x) & ~jnp.isnan(v), 0.0, v)

  def steepest_ascent(self, grad: Array, x: Array) -> Array:  # noqa: D102
    return self._cut(self.u.steepest_ascent(self._cut(grad, x), x), x)

  def project(self, delta: Array, x: Array) -> Array:  # noqa: D102
    return self._cut(self.u.project(self._cut(delta, x), x), x)

  def sample(self, key: Array, x: Array) -> Array:  # noqa: D102
    return self._cut(self.u.sample(key, x), x)

  def gauge(self, delta: Array, x: Array) -> Array:  # noqa: D102
    moved = jnp.any(self._outside(x) & (delta != 0), axis=range(1, x.ndim))
    return self.u.gauge(self._cut(delta, x), x) + jnp.where(moved, jnp.inf, 0.0)
