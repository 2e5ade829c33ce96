"""Random flips and crops, one example at a time: (keys [B], images [B, H, W, C]) -> images.

They are jitted with the training scan; an example's draw depends on its key alone.
"""

import jax
import jax.numpy as jnp

from robust_opt.types import Array


def flip(keys: Array, images: Array) -> Array:
  """Mirrors each image left to right with probability 1/2."""
  mirrored = jax.vmap(jax.random.bernoulli)(keys)
  return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def crop(keys: Array, images: Array, padding: int = 4) -> Array:
  """Pads each image by `padding` black pixels a side and cuts its size out again at random."""

  def one(key: Array, image: Array) -> Array:
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)

  return jax.vmap(one)(keys, images)
