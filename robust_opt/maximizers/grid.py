"""Small rotations and translations of images, searched on a grid.

  attack = spatial.grid_search(30.0, 3.0, num_rotations=31, num_translations=5)
  delta, info = attack(value_fn, None, x)      # x [B, H, W, C], [B, C, H, W] or [B, H, W]

The set is not a ball, and its loss has many local maxima that gradients do not leave: a grid of a
few hundred transforms is the stronger attack (Engstrom et al. 2019, arXiv 1712.02779, section 5).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import ndimage

from robust_opt import layout, precision
from robust_opt.errors import InputError
from robust_opt.layout import ChannelAxis
from robust_opt.maximizers.base import AscentInfo, Attack, Candidates, at_step, better, per_example
from robust_opt.types import Array, Scored, Stochastic, ValueFn


def transform(
  x: Array,
  degrees: float | Array,
  shift: tuple[float, float] | Array,
  channel_axis: ChannelAxis = layout.AUTO,
) -> Array:
  """Rotates images about their centre, then moves them: [B, *S] -> [B, *S].

  Bilinear; what comes from beyond the border is 0. No value leaves the range of its image with 0.

  Args:
    x: images [B, H, W, C], or of another layout.
    degrees: [], counter-clockwise as the image is seen (rows downwards).
    shift: by how many pixels, down and to the right, [2].
    channel_axis: of one image, 0 for [C, H, W]; None for [H, W]; "auto" guesses it from the shape
      (`robust_opt.layout.resolve`).

  Raises:
    InputError: x is not floating point, or has not two axes beside those of batch and channels.
  """
  axis = layout.resolve(channel_axis, x.shape[1:])
  given, x = x, layout.to_last(x, axis)
  if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
    raise InputError(
      f"x must be floating point images with two axes beside those of batch and channels, but is "
      f"{given.dtype} of the shape {given.shape}, with the channel axis {axis} of an image."
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
  # Weights that sum to 1 but for rounding.
  low = jnp.minimum(jnp.min(x, axis=(1, 2), keepdims=True), 0.0)
  high = jnp.maximum(jnp.max(x, axis=(1, 2), keepdims=True), 0.0)
  return layout.from_last(jnp.clip(moved, low, high).astype(dtype), axis)


def grid_search(
  max_rotation: float,
  max_translation: float,
  num_rotations: int,
  num_translations: int,
  channel_axis: ChannelAxis = layout.AUTO,
) -> Attack:
  """The worst of a grid of rotations and translations, for every example by itself.

  The candidates are the clean example, first, and the num_rotations x num_translations^2 transforms
  at even distances from minus to plus the maximum (one of a kind is 0). They are run one after the
  other, a forward pass each, so that memory does not grow with the grid. delta [B, *S] is
  transform(x) - x; its score is never below the clean one, and a score of NaN is the highest.
  AscentInfo lies candidate after candidate, value [1 + num_rotations * num_translations^2, B] (one
  less if the grid holds the identity); zero_gradient is False, since no gradient is taken.

  The field's grid has 31 rotations and 5 translations an axis, up to 30 degrees and a tenth of the
  width (Engstrom et al. 2019, arXiv 1712.02779, section 5). The key is not used.

  Args:
    max_rotation: in degrees, >= 0.
    max_translation: in pixels of either axis, >= 0.
    num_rotations: how many angles, >= 1.
    num_translations: how many shifts along each axis, >= 1.
    channel_axis: as for `transform`.

  Raises:
    InputError: a maximum is negative or not finite, or a number is < 1; from the attack: x is not
      images, as for `transform`, or the loss has one value for the whole batch.
  """
  angles = _evenly("max_rotation", max_rotation, "num_rotations", num_rotations)
  shifts = _evenly("max_translation", max_translation, "num_translations", num_translations)
  grid = np.stack(np.meshgrid(angles, shifts, shifts, indexing="ij"), axis=-1).reshape(-1, 3)
  grid = grid[np.any(grid != 0, axis=1)]  # the clean example stands for the identity

  def attack(
    value_fn: ValueFn | Stochastic, key: Array | None, x: Array
  ) -> tuple[Array, AscentInfo]:
    del key

    def judge(delta: Array) -> AscentInfo:
      out = at_step(value_fn, 0)(x + delta)
      scored = out if isinstance(out, Scored) else Scored(out, out)
      per_example(scored.score, x)
      return AscentInfo(scored.value, jnp.zeros(x.shape[:1], bool), scored.score)

    def body(best: Candidates, candidate: Array) -> tuple[Candidates, AscentInfo]:
      delta = transform(x, candidate[0], candidate[1:], channel_axis) - x
      info = judge(delta)
      return better(best, (delta, info.score)), info

    clean = judge(jnp.zeros_like(x))
    start = (jnp.zeros_like(x), clean.score)
    (delta, _), info = jax.lax.scan(body, start, jnp.asarray(grid, precision.wide(x.dtype)))
    stacked = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), clean, info)
    return jax.lax.stop_gradient(delta), stacked

  return attack


def _evenly(limit_name: str, limit: float, num_name: str, num: int) -> np.ndarray:
  if not 0 <= limit < np.inf:
    raise InputError(f"{limit_name} must be >= 0 and finite, but was {limit}.")
  if num < 1:
    raise InputError(f"{num_name} must be at least 1, but was {num}.")
  # Symmetric to the bit, so that the middle of an odd number is 0.
  return limit * (2 * np.arange(num) - (num - 1)) / max(num - 1, 1)
