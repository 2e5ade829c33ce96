"""ResNets (He et al. 2016, https://arxiv.org/abs/1512.03385) for CIFAR and ImageNet.

  net = models.ResNet(num_classes=10)                                       # ResNet-18 for CIFAR
  net = models.ResNet(1000, stage_sizes=(3, 4, 6, 3), bottleneck=True, stem="imagenet")  # ResNet-50

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
  Standardize,
  batch_norm,
  global_average_pool,
  he_fan_out,
  overlapping_max_pool,
)
from robust_opt.types import Array


class ResNet(nn.Module):
  """Four stages of residual blocks: images [B, H, W, C] in [0, 1] -> [B, num_classes].

  Bottlenecks have their stride at the 3 x 3 convolution (ResNet v1.5), as torchvision's.
  """

  num_classes: int = 10
  mean: float | Sequence[float] = 0.0
  std: float | Sequence[float] = 1.0
  stage_sizes: Sequence[int] = (2, 2, 2, 2)  # blocks of every stage
  bottleneck: bool = False  # blocks of three convolutions, the last with 4 times the features
  stem: str = (
    "cifar"  # 3 x 3 with stride 1; or "imagenet": 7 x 7 and a max pool, both with stride 2
  )
  width: float = 1.0  # factor of the features of every layer
  dtype: Any = jnp.float32  # of the computation; parameters, statistics and logits are float32
  axis_name: str | None = None  # under pmap and shard_map, to share batch statistics over

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """`train`: batch statistics, or running statistics."""
    if self.stem not in ("cifar", "imagenet"):
      raise InputError(f"The stem of a ResNet must be cifar or imagenet, not {self.stem!r}.")
    norm = functools.partial(batch_norm, train, self.dtype, self.axis_name)
    conv = functools.partial(Conv, use_bias=False, kernel_init=he_fan_out, dtype=self.dtype)

    def block(x: Array, features: int, stride: int, name: str) -> Array:
      shapes = [(features, 3, stride), (features, 3, 1)]
      if self.bottleneck:
        shapes = [(features, 1, 1), (features, 3, stride), (4 * features, 1, 1)]
      y = x
      for i, (out, size, step) in enumerate(shapes, 1):
        y = nn.relu(y) if i > 1 else y
        y = conv(out, (size, size), size // 2, strides=(step, step), name=f"{name}_conv{i}")(y)
        y = norm(name=f"{name}_bn{i}")(y)
      if x.shape != y.shape:
        strides = (stride, stride)
        x = conv(y.shape[-1], (1, 1), 0, strides=strides, name=f"{name}_shortcut_conv")(x)
        x = norm(name=f"{name}_shortcut_bn")(x)
      return nn.relu(x + y)

    features, x = int(64 * self.width), Standardize(self.mean, self.std)(x)
    if self.stem == "imagenet":
      x = nn.relu(norm(name="bn1")(conv(features, (7, 7), 3, strides=(2, 2), name="conv1")(x)))
      x = overlapping_max_pool(x, 3, stride=2, padding=1)
    else:
      x = nn.relu(norm(name="bn1")(conv(features, (3, 3), 1, name="conv1")(x)))
    for stage, size in enumerate(self.stage_sizes):
      for i in range(size):
        stride = 2 if stage > 0 and i == 0 else 1
        x = block(x, features * 2**stage, stride, f"layer{stage + 1}_{i}")
    x = nn.Dense(self.num_classes, dtype=self.dtype, name="dense")(global_average_pool(x))
    return x.astype(jnp.float32)

  def torch_name(self, name: str) -> str:
    """The PyTorch module of one of ours: torchvision's for ImageNet, RobustBench's for CIFAR."""
    dense, shortcut = ("fc", "downsample") if self.stem == "imagenet" else ("linear", "shortcut")
    name = name.replace("dense", dense)
    name = name.replace("shortcut_conv", f"{shortcut}.0").replace("shortcut_bn", f"{shortcut}.1")
    return re.sub(r"(layer\d)_(\d+)_", r"\1.\2.", name)
