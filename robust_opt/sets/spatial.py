"""Small rotations and translations of images, to sample from or to search by `ro.grid_search`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import ndimage

from robust_opt import keys, layout, precision
from robust_opt.errors import InputError
from robust_opt.layout import ChannelAxis
from robust_opt.sets.base import Box, UncertaintySet, set_dataclass, static
from robust_opt.types import Array


@set_dataclass
class Transforms(UncertaintySet):
  """{transform(x) - x} for rotations and translations up to a maximum; not convex.

  It has only samples, of uniform angle and shift. Source: Engstrom et al. 2019 (arXiv 1712.02779).
  """

  max_rotation: float  # in degrees, >= 0
  max_translation: float  # in pixels of either axis, >= 0
  channel_axis: ChannelAxis = static(default=layout.AUTO)  # as for `transform`

  def __post_init__(self) -> None:
    for name in ("max_rotation", "max_translation"):
      limit = getattr(self, name)
      if not isinstance(limit, jax.core.Tracer) and not 0 <= limit < np.inf:
        raise InputError(f"{name} must be >= 0 and finite, but was {limit}.")

  @property
  def box(self) -> Box:
    """Where x + delta stays if x is there."""
    return (0.0, 1.0)

  def sample(self, key: Array, x: Array) -> Array:  # noqa: D102
    def of_one(key: Array, x: Array) -> Array:
      angle, *shift = jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
      moves = self.max_rotation * angle, self.max_translation * jnp.stack(shift)
      return transform(x[None], *moves, self.channel_axis)[0] - x

    return jax.vmap(of_one)(keys.per_example(key, x.shape[0]), x)


def transform(
  x: Array,
  degrees: float | Array,
  shift: tuple[float, float] | Array,
  channel_axis: ChannelAxis = layout.AUTO,
) -> Array:
  """Rotates images about their center, then moves them: [B, *S] -> [B, *S].

  Bilinear, with 0 beyond the border. No value leaves the range of its image extended by 0.

  Args:
    x: floating point images, of two axes besides batch and channels.
    degrees: [], counterclockwise in the displayed image (rows downward).
    shift: [2], in pixels, down and to the right.
    channel_axis: of one image, 0 for [C, H, W]: see `robust_opt.layout.resolve`.
  """
  axis = layout.resolve(channel_axis, x.shape[1:])
  shape, x = x.shape, layout.to_last(x, axis)
  if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
    raise InputError(
      f"x must be floating point images with two axes besides batch and channels (axis {axis}), "
      f"but is {x.dtype} of the shape {shape}."
    )
  height, width = x.shape[1:3]
  dtype, x = x.dtype, x.astype(precision.wide(x.dtype))
  angle = jnp.deg2rad(jnp.asarray(degrees, x.dtype))
  shift = jnp.asarray(shift, x.dtype)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
  row = jnp.arange(height, dtype=x.dtype)[:, None] - middle_row - shift[0]
  column = jnp.arange(width, dtype=x.dtype)[None, :] - middle_column - shift[1]
  # Where each pixel of the result comes from: the inverse of the rotation.
  source = [cos * row + sin * column + middle_row, cos * column - sin * row + middle_column]

  def plane(image: Array) -> Array:
    return ndimage.map_coordinates(image, source, order=1, mode="constant", cval=0.0)

  moved = jax.vmap(jax.vmap(plane, in_axes=-1, out_axes=-1))(x)
  # The weights sum to 1 only up to rounding.
  low = jnp.minimum(jnp.min(x, axis=(1, 2), keepdims=True), 0.0)
  high = jnp.maximum(jnp.max(x, axis=(1, 2), keepdims=True), 0.0)
  return layout.from_last(jnp.clip(moved, low, high).astype(dtype), axis)
