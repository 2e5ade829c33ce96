"""ConvNets with strides and no pools, such as CNN-A of neural network verification.

  net = models.ConvNet(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))      # CNN-A

Source: Dathathri et al. 2020 (https://arxiv.org/abs/2010.11645).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from robust_opt.models import affine
from robust_opt.models.layers import Conv, Standardize
from robust_opt.types import Array, Params


class ConvNet(nn.Module):
  """Convolutions with a stride, then dense layers: [B, H, W, C] in [0, 1] -> [B, num_classes]."""

  num_classes: int = 10
  mean: float | Sequence[float] = 0.0
  std: float | Sequence[float] = 1.0
  features: Sequence[int] = (16, 32)  # of every convolution
  kernel_size: int = 4
  stride: int = 2
  padding: int = 1  # zeros on every side
  hidden: Sequence[int] = (100,)  # units of the hidden dense layers
  dtype: Any = jnp.float32  # of the computation; parameters and logits are float32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """`train` has no effect."""
    x, size, strides = (
      Standardize(self.mean, self.std)(x),
      (self.kernel_size,) * 2,
      (self.stride,) * 2,
    )
    for i, features in enumerate(self.features):
      conv = Conv(features, size, self.padding, strides=strides, dtype=self.dtype, name=f"conv{i}")
      x = nn.relu(conv(x))
    x = x.reshape(x.shape[0], -1)
    for i, units in enumerate(self.hidden):
      x = nn.relu(nn.Dense(units, dtype=self.dtype, name=f"dense{i}")(x))
    last = nn.Dense(self.num_classes, dtype=self.dtype, name=f"dense{len(self.hidden)}")
    return last(x).astype(jnp.float32)

  def layer_list(self, params: Params) -> list[affine.Layer]:
    """The same net as a list of layers, for penalties."""
    layers: list[affine.Layer] = [affine.standardization(self.mean, self.std)]
    for i in range(len(self.features)):
      conv = affine.Conv(
        **params[f"conv{i}"], strides=(self.stride, self.stride), padding=self.padding
      )
      layers += [conv, affine.ReLU()]
    dense = [params[f"dense{i}"] for i in range(len(self.hidden) + 1)]
    return [*layers, *affine.perceptron(*dense)]

  def torch_name(self, name: str) -> str:
    """The index in a Sequential of layers, ReLUs and one Flatten."""
    if name.startswith("conv"):
      return str(2 * int(name.removeprefix("conv")))
    return str(2 * (len(self.features) + int(name.removeprefix("dense"))) + 1)

  def torch_flattened(self) -> Mapping[str, int]:
    """Dense layers whose inputs are flattened images -> the channels of those."""
    return {"dense0": self.features[-1]}
