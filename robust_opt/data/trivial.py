"""TrivialAugment: one random operation of random strength for each example.

  images = trivial_augment(keys, images)      # [B, H, W, C], pixels in [0, 1]

Mueller and Hutter 2021 (arXiv 2103.10158), with the wide ranges of its table 1. The operations and
strengths are those of torchvision's TrivialAugmentWide; here shears, translations and rotations
interpolate linearly. All operations are computed for every example, and one is kept: compared to
an update of a network this costs little.
"""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from robust_opt import layout
from robust_opt.layout import ChannelAxis
from robust_opt.types import Array

_BINS = 31  # strengths
_SHEAR, _PIXELS, _DEGREES, _FACTOR = 0.99, 32.0, 135.0, 0.99  # the strongest of each
_GRAY = (0.299, 0.587, 0.114)


def trivial_augment(keys: Array, images: Array, channel_axis: ChannelAxis = layout.AUTO) -> Array:
  """One of fourteen operations, equally likely, of a strength that is uniform over 31 levels."""
  axis = layout.resolve(channel_axis, images.shape[1:])
  return layout.from_last(jax.vmap(_augment)(keys, layout.to_last(images, axis)), axis)


def _augment(key: Array, image: Array) -> Array:
  which, strength, sign = jax.random.split(key, 3)
  level = jax.random.randint(strength, (), 0, _BINS) / (_BINS - 1)
  signed = jnp.where(jax.random.bernoulli(sign), level, -level)
  kind = jax.random.randint(which, (), 0, len(OPERATIONS))
  branches = [lambda of=of: of(image, level, signed) for of in OPERATIONS.values()]
  return jnp.clip(jax.lax.switch(kind, branches), 0.0, 1.0)


def _gray(image: Array) -> Array:
  """[H, W, 1]; of other than three channels their mean."""
  if image.shape[-1] != 3:
    return image.mean(axis=-1, keepdims=True)
  return (image @ jnp.array(_GRAY, image.dtype))[..., None]


def _away_from(blank: Array | float, image: Array, signed: Array) -> Array:
  """The image at 1 + 0.99 s of the way from a degenerate version of it."""
  return blank + (1.0 + _FACTOR * signed) * (image - blank)


def _smooth(image: Array) -> Array:
  """Each pixel by 5 / 13 with its eight neighbors by 1 / 13; the borders as they are."""
  (height, width), inner = image.shape[:2], slice(1, -1)
  shifts = [image[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)]
  mean = (sum(shifts, start=jnp.zeros_like(shifts[0])) + 4 * image[inner, inner]) / 13
  return image.at[inner, inner].set(mean)


def _levels(image: Array) -> Array:
  """In 8 bits, [0, 255]."""
  return jnp.round(255.0 * image)


def _posterize(image: Array, level: Array) -> Array:
  """Keeps the highest 8 to 2 bits."""
  step = 2.0 ** jnp.round(6 * level)
  return jnp.floor(_levels(image) / step) * step / 255.0


def _autocontrast(image: Array) -> Array:
  """Stretches each channel to [0, 1]; one that is constant as it is."""
  low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
  constant = high <= low
  return jnp.where(constant, image, (image - low) / jnp.where(constant, 1.0, high - low))


def _equalize(image: Array) -> Array:
  """A histogram of each channel that is as flat as 256 levels allow."""

  def channel(values: Array) -> Array:
    ordered = jnp.sort(values)
    step = jnp.searchsorted(ordered, ordered[-1], method="sort") // 255  # of those below the most
    below = jnp.searchsorted(ordered, values, method="sort")
    flat = (below + step // 2) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.minimum(flat, 255), values)

  values = _levels(image).reshape(-1, image.shape[-1])
  return jax.vmap(channel, 1, 1)(values).reshape(image.shape) / 255.0


def _warp(image: Array, matrix: Array, shift: Array | float = 0.0) -> Array:
  """The image at matrix (p - center) + center + shift for every pixel p = (row, column)."""
  height, width = image.shape[:2]
  center = jnp.array([(height - 1) / 2, (width - 1) / 2])
  grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), axis=-1)
  places = (grid - center) @ matrix.T + center + shift
  rows_columns = [places[..., 0], places[..., 1]]
  sample = lambda channel: map_coordinates(channel, rows_columns, order=1, cval=0.0)  # noqa: E731
  return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def _rotation(signed: Array) -> Array:
  angle = jnp.deg2rad(_DEGREES * signed)
  return jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])


def _one(row: int, column: int, value: Array) -> Array:
  """The unit matrix with another entry."""
  return jnp.eye(2).at[row, column].set(value)


# (image [H, W, C], strength in [0, 1], the same with a random sign) -> image
OPERATIONS = {
  "identity": lambda x, level, signed: x,
  "shear_x": lambda x, level, signed: _warp(x, _one(1, 0, _SHEAR * signed)),
  "shear_y": lambda x, level, signed: _warp(x, _one(0, 1, _SHEAR * signed)),
  "translate_x": lambda x, level, signed: _warp(x, jnp.eye(2), jnp.array([0, _PIXELS]) * signed),
  "translate_y": lambda x, level, signed: _warp(x, jnp.eye(2), jnp.array([_PIXELS, 0]) * signed),
  "rotate": lambda x, level, signed: _warp(x, _rotation(signed)),
  "brightness": lambda x, level, signed: _away_from(0.0, x, signed),
  "color": lambda x, level, signed: _away_from(_gray(x), x, signed),
  "contrast": lambda x, level, signed: _away_from(_gray(x).mean(), x, signed),
  "sharpness": lambda x, level, signed: _away_from(_smooth(x), x, signed),
  "posterize": lambda x, level, signed: _posterize(x, level),
  "solarize": lambda x, level, signed: jnp.where(x >= 1.0 - level, 1.0 - x, x),
  "autocontrast": lambda x, level, signed: _autocontrast(x),
  "equalize": lambda x, level, signed: _equalize(x),
}
