"""Soft labels: label smoothing, and examples that are mixed with another one of their batch.

  labels = smoothed(labels, num_classes=10, smoothing=0.1)     # [B] -> [B, C]
  images, labels = mixup(keys, images, labels)                 # images [B, H, W, C]

Soft labels are probabilities of the classes, [B, C], which `losses.cross_entropy` takes. The
partner of an example is the next one of its batch, a random one where the data are shuffled; how
much it contributes depends on the example's key only.
"""

import jax
import jax.numpy as jnp

from robust_opt.arrays import expand_like
from robust_opt.data.augmentation import square
from robust_opt.types import Array


def smoothed(labels: Array, num_classes: int, smoothing: float) -> Array:
  """(1 - smoothing) onehot(y) + smoothing / C, [B, C] float32, of classes [B].

  Source: Szegedy et al. 2016 (arXiv 1512.00567), section 7.
  """
  return (1 - smoothing) * jax.nn.one_hot(labels, num_classes) + smoothing / num_classes


def mixup(keys: Array, images: Array, labels: Array) -> tuple[Array, Array]:
  """Convex combinations of two examples, with a weight that is uniform in [0, 1].

  Source: Zhang et al. 2018 (arXiv 1710.09412), with alpha = 1.
  """
  share = jax.vmap(jax.random.uniform)(keys)
  return blended(share, images), blended(share, labels)


def cutmix(keys: Array, images: Array, labels: Array) -> tuple[Array, Array]:
  """A square of another example in each; the weight of a label is the share of its pixels.

  The square is sqrt(1 - s) times as high and wide as the image, s uniform in [0, 1], around a
  random pixel, and is cut at the borders. Source: Yun et al. 2019 (arXiv 1905.04899).
  """
  height, width = images.shape[1:3]
  side = jnp.sqrt(1.0 - jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys))

  def pasted(key: Array, side: Array) -> Array:
    return square(key, (height, width), jnp.round(side * min(height, width)))

  mask = jax.vmap(pasted)(keys, side)
  own = 1.0 - jnp.mean(mask, axis=(1, 2))
  return jnp.where(mask[..., None], partner(images), images), blended(own, labels)


def blended(share: Array, values: Array) -> Array:
  """share v + (1 - share) v of the partner, for shares [B] and values [B, ...]."""
  share = expand_like(share, values)
  return share * values + (1 - share) * partner(values)


def partner(values: Array) -> Array:
  """Of every example of a batch [B, ...] the next one."""
  return jnp.roll(values, -1, axis=0)
