"""Pre-activation ResNets (He et al. 2016, https://arxiv.org/abs/1603.05027) for images of 32 x 32.

  net = models.PreActResNet(num_classes=10)               # PreActResNet-18
  net = models.DMPreActResNet(activation="silu")          # as in Rebuffi et al. 2021

Residual nets have no list of layers (models.affine), which is for sequential nets.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

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


class PreActResNet(nn.Module):
  """Four stages of pre-activation blocks: images [B, H, W, C] in [0, 1] -> [B, num_classes].

  The PreActResNet of most adversarial training since Rice et al. 2020, and PreActBlockV2 with
  bn_before_fc in RobustBench. Its PreActBlock is shortcut_of="input" with final_norm=False.
  """

  num_classes: int = 10
  mean: float | Sequence[float] = 0.0
  std: float | Sequence[float] = 1.0
  stage_sizes: Sequence[int] = (2, 2, 2, 2)  # blocks of every stage
  final_norm: bool = True  # batch normalization and activation before the last layer
  shortcut_of: str = "activated"  # or "input": what the shortcut's convolution is applied to
  shortcut_kernel: int = 1  # its size
  padding: Padding = 1  # of the 3 x 3 convolutions
  activation: str = "relu"
  width: float = 1.0  # factor of the features of every layer
  dtype: Any = jnp.float32  # of the computation; parameters, statistics and logits are float32
  axis_name: str | None = None  # under pmap and shard_map, to share batch statistics over

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """`train`: batch statistics, or running statistics."""
    if self.shortcut_of not in ("activated", "input"):
      raise InputError(f"shortcut_of must be activated or input, not {self.shortcut_of!r}.")
    norm = functools.partial(batch_norm, train, self.dtype, self.axis_name)
    act = activation_of(self.activation)
    conv = functools.partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)

    def block(x: Array, features: int, stride: int, name: str) -> Array:
      y, strides = act(norm(name=f"{name}_bn1")(x)), (stride, stride)
      source = y if self.shortcut_of == "activated" else x
      if stride > 1 or x.shape[-1] != features:
        size = self.shortcut_kernel
        padding = self.padding if size > 1 else 0
        x = conv(features, (size, size), padding, strides=strides, name=f"{name}_shortcut")(source)
      y = conv(features, (3, 3), self.padding, strides=strides, name=f"{name}_conv1")(y)
      return x + conv(features, (3, 3), 1, name=f"{name}_conv2")(act(norm(name=f"{name}_bn2")(y)))

    x = Standardize(self.mean, self.std)(x)
    x = conv(int(64 * self.width), (3, 3), 1, name="conv1")(x)
    for stage, size in enumerate(self.stage_sizes):
      for i in range(size):
        stride = 2 if stage > 0 and i == 0 else 1
        x = block(x, int(64 * self.width) * 2**stage, stride, f"layer{stage + 1}_{i}")
    if self.final_norm:
      x = act(norm(name="bn")(x))
    x = nn.Dense(self.num_classes, dtype=self.dtype, name="linear")(global_average_pool(x))
    return x.astype(jnp.float32)

  def torch_name(self, name: str) -> str:
    """The PyTorch module of one of ours."""
    name = name.replace("shortcut", "shortcut.0")
    return re.sub(r"(layer\d)_(\d+)_", r"\1.\2.", name)


class DMPreActResNet(PreActResNet):
  """DeepMind's variant of Rebuffi et al. 2021 (https://arxiv.org/abs/2103.01946)."""

  shortcut_of: str = "input"
  shortcut_kernel: int = 3
  padding: Padding = "SAME"

  def torch_name(self, name: str) -> str:  # noqa: D102
    block = re.fullmatch(r"layer(\d)_(\d+)_(\w+)", name)
    if block is None:
      return {"conv1": "conv_2d", "bn": "batchnorm", "linear": "logits"}[name]
    stage, i, part = block.groups()
    parts = {"bn1": "batchnorm_0", "bn2": "batchnorm_1"}
    part = parts.get(part) or part.replace("conv", "conv_2d_")
    return f"layer_{int(stage) - 1}.{i}.{part}"
