"""Random changes of each example: (keys [B], images [B, H, W, C]) -> images, pixels in [0, 1].

They are jitted with the training scan; the draw of an example depends on its key only.
`channel_axis` is that of one image, 0 for [C, H, W]; "auto" guesses it (`robust_opt.layout`). More
augmentations are in trivial.py and mixing.py, and all of them by name in pipeline.py.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from robust_opt import layout
from robust_opt.arrays import where_examples
from robust_opt.layout import ChannelAxis
from robust_opt.types import Array


def flip(keys: Array, images: Array, channel_axis: ChannelAxis = layout.AUTO) -> Array:
  """Mirrors each image left to right with probability 1/2."""
  axis = layout.resolve(channel_axis, images.shape[1:])
  mirrored = jax.vmap(jax.random.bernoulli)(keys)
  flipped = layout.from_last(layout.to_last(images, axis)[..., ::-1, :], axis)
  return where_examples(mirrored, flipped, images)


def crop(
  keys: Array, images: Array, padding: int = 4, channel_axis: ChannelAxis = layout.AUTO
) -> Array:
  """Pads each image by `padding` black pixels on every side and crops its size at random."""
  axis = layout.resolve(channel_axis, images.shape[1:])

  def one(key: Array, image: Array) -> Array:
    axes = image.ndim - 1
    padded = jnp.pad(image, (*((padding, padding),) * axes, (0, 0)))
    corner = jax.random.randint(key, (axes,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (*corner, 0), image.shape)

  return layout.from_last(jax.vmap(one)(keys, layout.to_last(images, axis)), axis)


def cutout(
  keys: Array, images: Array, size: int | None = None, channel_axis: ChannelAxis = layout.AUTO
) -> Array:
  """Makes a square of size x size pixels black; its part outside of the image is lost.

  Source: DeVries and Taylor 2017 (arXiv 1708.04552). `size` None is half of the image's lesser
  side, as theirs for CIFAR-10.
  """
  axis = layout.resolve(channel_axis, images.shape[1:])
  last = layout.to_last(images, axis)
  side = min(last.shape[1:-1]) // 2 if size is None else size
  mask = jax.vmap(lambda key: square(key, last.shape[1:-1], side))(keys)
  return layout.from_last(jnp.where(mask[..., None], 0.0, last), axis)


def square(key: Array, shape: Sequence[int], side: Array | float) -> Array:
  """A mask of pixels, [*shape] bool: a square around a random pixel, cut at the borders."""
  mask = jnp.ones(shape, bool)
  for axis, (length, key_of_axis) in enumerate(zip(shape, jax.random.split(key, len(shape)))):
    center = jax.random.randint(key_of_axis, (), 0, length)
    pixels = jnp.arange(length).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    start = center - side // 2
    mask &= (pixels >= start) & (pixels < start + side)
  return mask
