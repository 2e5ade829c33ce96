"""Wide ResNets (Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146) for CIFAR.

  net = models.WideResNet(depth=34, width=10)                       # WideResNet-34-10 of TRADES
  net = models.DMWideResNet(depth=70, width=16, activation="silu")  # as in Gowal et al. 2020

Residual nets have no list of layers (models.affine), which is for sequential nets.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from robust_opt.errors import InputError
from robust_opt.models.layers import (
  Conv,
  Padding,
  Standardize,
  activation_of,
  batch_norm,
  global_average_pool,
  he_fan_out,
)
from robust_opt.types import Array


class WideResNet(nn.Module):
  """Three stages of wide pre-activation blocks: [B, H, W, C] in [0, 1] -> [B, num_classes].

  The WideResNet of TRADES (Zhang et al. 2019) and of RobustBench.
  """

  num_classes: int = 10
  mean: float | Sequence[float] = 0.0
  std: float | Sequence[float] = 1.0
  depth: int = 28  # 6 n + 4: stages of n blocks
  width: float = 10  # the stages have 16, 32 and 64 times as many features
  activation: str = "relu"
  padding: Padding = 1  # of the convolution with the stride
  dtype: Any = jnp.float32  # of the computation; parameters, statistics and logits are float32
  axis_name: str | None = None  # under pmap and shard_map, to share batch statistics over

  # What TRADES' class has beside its layers, and does not use.
  torch_unused: ClassVar[str] = r"sub_block1\."

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """`train`: batch statistics, or running statistics."""
    if self.depth < 10 or self.depth % 6 != 4:
      raise InputError(f"The depth of a WideResNet must be 10, 16, 22, ..., not {self.depth}.")
    norm = functools.partial(batch_norm, train, self.dtype, self.axis_name)
    act = activation_of(self.activation)
    conv = functools.partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)

    def block(x: Array, features: int, stride: int, name: str) -> Array:
      y, strides = act(norm(name=f"{name}_bn1")(x)), (stride, stride)
      if x.shape[-1] != features:
        x = conv(features, (1, 1), 0, strides=strides, name=f"{name}_shortcut")(y)
      y = conv(features, (3, 3), self.padding, strides=strides, name=f"{name}_conv1")(y)
      return x + conv(features, (3, 3), 1, name=f"{name}_conv2")(act(norm(name=f"{name}_bn2")(y)))

    x = conv(16, (3, 3), 1, name="conv")(Standardize(self.mean, self.std)(x))
    for stage in range(3):
      for i in range((self.depth - 4) // 6):
        stride = 2 if stage > 0 and i == 0 else 1
        x = block(x, int(16 * self.width) * 2**stage, stride, f"stage{stage}_block{i}")
    x = global_average_pool(act(norm(name="bn")(x)))
    return nn.Dense(self.num_classes, dtype=self.dtype, name="dense")(x).astype(jnp.float32)

  def torch_name(self, name: str) -> str:
    """The PyTorch module of one of ours."""
    block = re.fullmatch(r"stage(\d)_block(\d+)_(\w+)", name)
    if block is None:
      return {"conv": "conv1", "bn": "bn1", "dense": "fc"}[name]
    stage, i, part = block.groups()
    return f"block{int(stage) + 1}.layer.{i}.{part.replace('shortcut', 'convShortcut')}"


class DMWideResNet(WideResNet):
  """DeepMind's variant (Gowal et al. 2020, https://arxiv.org/abs/2010.03593), as in RobustBench.

  It pads as TensorFlow does. The nets of Gowal et al. and of Rebuffi et al. 2021 have "silu".
  """

  activation: str = "silu"
  padding: Padding = "SAME"

  torch_unused: ClassVar[str] = ""

  def torch_name(self, name: str) -> str:  # noqa: D102
    block = re.fullmatch(r"stage(\d)_block(\d+)_(\w+)", name)
    if block is None:
      return {"conv": "init_conv", "bn": "batchnorm", "dense": "logits"}[name]
    stage, i, part = block.groups()
    parts = {"bn1": "batchnorm_0", "conv1": "conv_0", "bn2": "batchnorm_1", "conv2": "conv_1"}
    return f"layer.{stage}.block.{i}.{parts.get(part, part)}"
