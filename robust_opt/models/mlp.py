"""A multilayer perceptron with ReLU units."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from robust_opt.models import affine
from robust_opt.models.layers import Standardize
from robust_opt.types import Array, Params


class MLP(nn.Module):
  """Dense layers of the given widths: images [B, *S] in [0, 1] -> logits [B, num_classes]."""

  num_classes: int = 10
  widths: Sequence[int] = (200, 200)
  mean: float | Sequence[float] = 0.0
  std: float | Sequence[float] = 1.0
  dtype: Any = jnp.float32  # of the computation; parameters and logits are float32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """`train` has no effect."""
    x = Standardize(self.mean, self.std)(x)
    x = x.reshape(x.shape[0], -1)
    for width in self.widths:
      x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
    return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)

  def layer_list(self, params: Params) -> list[affine.Layer]:
    """The same net as a list of layers, for penalties."""
    dense = [params[f"Dense_{i}"] for i in range(len(self.widths) + 1)]
    return [affine.standardization(self.mean, self.std), *affine.perceptron(*dense)]
