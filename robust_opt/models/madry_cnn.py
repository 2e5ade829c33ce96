"""The MNIST network of Madry et al. 2018 (https://arxiv.org/abs/1706.06083)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from robust_opt.models.layers import ConvPool, Standardize, full
from robust_opt.types import Array


class MadryCNN(nn.Module):
  """Two 5x5 convolutions with 2x2 pools, one hidden layer: [B, H, W, C] -> [B, num_classes]."""

  num_classes: int = 10
  mean: float | Sequence[float] = 0.0  # the authors do not standardize
  std: float | Sequence[float] = 1.0
  width: float = 1.0  # factor of the numbers of features and hidden units
  dtype: Any = None  # of the computation, None: of x; parameters and logits are float32 at least

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """`train` has no effect."""
    x = Standardize(self.mean, self.std)(x)
    for features in (32, 64):
      x = nn.relu(ConvPool(int(features * self.width), (5, 5), pool_size=2, dtype=self.dtype)(x))
    x = nn.relu(nn.Dense(int(1024 * self.width), dtype=self.dtype)(x.reshape(x.shape[0], -1)))
    return full(nn.Dense(self.num_classes, dtype=self.dtype)(x))
