"""Random flips and crops of each example: (keys [B], images [B, H, W, C]) -> images.

They are jitted with the training scan; the draw of an example depends on its key only.
`channel_axis` is that of one image, 0 for [C, H, W]; "auto" guesses it (`robust_opt.layout`).
"""

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
