"""The CIFAR-10 network of Shaham et al. 2015: Zagoruyko's "92.45 % on CIFAR-10 in Torch" (2015)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from robust_opt.models.layers import Conv, Standardize, he_fan_out, max_pool
from robust_opt.types import Array

# Every block ends in a 2x2 pool; a convolution is (features, rate of the following dropout).
_BLOCKS = (
  ((64, 0.3), (64, 0.0)),
  ((128, 0.4), (128, 0.0)),
  ((256, 0.4), (256, 0.4), (256, 0.0)),
  ((512, 0.4), (512, 0.4), (512, 0.0)),
  ((512, 0.4), (512, 0.4), (512, 0.0)),
)


class VGG(nn.Module):
  """VGG with batch normalization and dropout: [B, 32, 32, C] in [0, 1] -> [B, num_classes]."""

  num_classes: int = 10
  mean: float | Sequence[float] = 0.0
  std: float | Sequence[float] = 1.0
  dropout: bool = True  # at the authors' rates
  width: float = 1.0  # factor of the features of every layer
  dtype: Any = jnp.float32  # of the computation; parameters, statistics and logits are float32
  axis_name: str | None = None  # under pmap and shard_map, to share batch statistics over

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """`train`: batch statistics and dropout, or running statistics and none."""

    def norm_relu(x: Array) -> Array:
      norm = nn.BatchNorm(
        use_running_average=not train, epsilon=1e-3, momentum=0.9, dtype=self.dtype,
        axis_name=self.axis_name if train else None,
      )  # fmt: skip
      return nn.relu(norm(x))

    def drop(x: Array, rate: float) -> Array:
      return nn.Dropout(rate if self.dropout else 0.0, deterministic=not train)(x)

    x = Standardize(self.mean, self.std)(x).astype(self.dtype)
    for block in _BLOCKS:
      for features, rate in block:
        x = Conv(int(features * self.width), (3, 3), kernel_init=he_fan_out, dtype=self.dtype)(x)
        x = drop(norm_relu(x), rate)
      x = max_pool(x, 2)
    x = drop(x.reshape(x.shape[0], -1), 0.5)
    x = norm_relu(nn.Dense(int(512 * self.width), kernel_init=he_fan_out, dtype=self.dtype)(x))
    x = nn.Dense(self.num_classes, dtype=self.dtype)(drop(x, 0.5))
    return x.astype(jnp.float32)
