"""ResNet-2B, a small residual net of neural network verification (VNN-COMP 2021).

  net = models.ResNet2B(mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616))

It has no batch normalization. Residual nets have no list of layers (models.affine), which is for
sequential nets.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from robust_opt.models.layers import Conv, Standardize
from robust_opt.types import Array


class ResNet2B(nn.Module):
  """A convolution, two residual blocks, two dense layers: [B, 32, 32, C] -> [B, num_classes]."""

  num_classes: int = 10
  mean: float | Sequence[float] = 0.0
  std: float | Sequence[float] = 1.0
  width: float = 1.0  # factor of the features of the convolutions
  dtype: Any = jnp.float32  # of the computation; parameters and logits are float32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """`train` has no effect."""
    conv = functools.partial(Conv, dtype=self.dtype)
    features = int(16 * self.width)

    def block(x: Array, stride: int, name: str) -> Array:
      strides = (stride, stride)
      y = nn.relu(conv(features, (3, 3), 1, strides=strides, name=f"{name}_conv1")(x))
      y = conv(features, (3, 3), 1, name=f"{name}_conv2")(y)
      if stride > 1:
        x = conv(features, (1, 1), 0, strides=strides, name=f"{name}_shortcut")(x)
      return nn.relu(x + y)

    x = Standardize(self.mean, self.std)(x)
    x = nn.relu(conv(features // 2, (3, 3), 1, strides=(2, 2), name="conv1")(x))
    x = block(block(x, 2, "layer1_0"), 1, "layer1_1")
    x = nn.relu(nn.Dense(100, dtype=self.dtype, name="linear1")(x.reshape(x.shape[0], -1)))
    return nn.Dense(self.num_classes, dtype=self.dtype, name="linear2")(x).astype(jnp.float32)

  def torch_name(self, name: str) -> str:
    """The PyTorch module of one of ours."""
    return re.sub(r"(layer\d)_(\d+)_", r"\1.\2.", name.replace("shortcut", "shortcut.0"))

  def torch_flattened(self) -> Mapping[str, int]:
    """Dense layers whose inputs are flattened images -> the channels of those."""
    return {"linear1": int(16 * self.width)}
