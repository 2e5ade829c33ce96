"""Small networks of images, [B, *S] -> [B, 10], and images for them."""

import flax.linen as nn
import jax.numpy as jnp
from rounding import widest

from robust_opt import ArrayData
from robust_opt.data.datasets import load
from robust_opt.training import take


class PlainNet(nn.Module):
  """Dense layers and ReLU."""

  widths: tuple[int, ...] = (16,)

  @nn.compact
  def __call__(self, x, train=False):
    x = x.reshape(x.shape[0], -1)
    for width in self.widths:
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(10)(x)


class BatchNormNet(nn.Module):
  """Dense, batch normalization, dropout, dense: all that a mode can change."""

  rate: float = 0.0
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Dense(24)(x.reshape(x.shape[0], -1))
    axis_name = self.axis_name if train else None
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=axis_name)(x)
    x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(x))
    return nn.Dense(10)(x)


def digits_batch(size=12, start=0):
  """Some of the training digits, in the widest type."""
  data = load("digits", "train")
  ids = jnp.arange(start, start + size, dtype=jnp.int32)
  return take(ArrayData(widest(data.images / 255), data.labels), ids)
