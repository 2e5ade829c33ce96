"""A small ConvNet for the 8x8 digits that scikit-learn bundles."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from robust_opt.models import affine
from robust_opt.models.layers import ConvPool, Standardize
from robust_opt.types import Array, Params


class DigitsCNN(nn.Module):
  """Two 3x3 convolutions with 2x2 pools, one hidden layer: [B, 8, 8, 1] -> [B, num_classes]."""

  num_classes: int = 10
  mean: float | Sequence[float] = 0.0
  std: float | Sequence[float] = 1.0
  dtype: Any = jnp.float32  # of the computation; parameters and logits are float32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """`train` has no effect."""
    x = Standardize(self.mean, self.std)(x)
    for features in (32, 64):
      x = nn.relu(ConvPool(features, (3, 3), pool_size=2, padding="SAME", dtype=self.dtype)(x))
    x = nn.relu(nn.Dense(128, dtype=self.dtype)(x.reshape(x.shape[0], -1)))
    return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)

  def layer_list(self, params: Params) -> list[affine.Layer]:
    """The same net as a list of layers, for penalties."""
    return [
      affine.standardization(self.mean, self.std),
      *affine.conv_pool_relu(params["ConvPool_0"], 2, "SAME"),
      *affine.conv_pool_relu(params["ConvPool_1"], 2, "SAME"),
      *affine.perceptron(params["Dense_0"], params["Dense_1"]),
    ]
