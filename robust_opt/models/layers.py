"""Convolution and pooling: native on GPU and TPU, as matrix products of patches on CPU.

On CPU, XLA runs a convolution inside lax.scan many times slower than outside, and the gradients of
reduce_window and of a reshaped maximum are slow too (benchmarks/README.md). Both formulations take
the same parameters and give the same outputs and gradients, so checkpoints can move between
machines. Tied entries of a maximum share the gradient equally, on every backend.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from robust_opt import precision
from robust_opt.errors import InputError
from robust_opt.types import Array

Initializer = Callable[..., Array]
Padding = str | int  # 'VALID', 'SAME', or zeros on every side

# 'matmul' or 'native' overrides the backend's default in functions traced afterwards.
formulation: str | None = None


def use_matmul() -> bool:
  """Whether convolutions are computed as matrix products; evaluated when a function is traced."""
  if formulation not in (None, "matmul", "native"):
    raise ValueError(f"formulation must be 'matmul', 'native' or None, not {formulation!r}.")
  return jax.default_backend() == "cpu" if formulation is None else formulation == "matmul"


def convolve(
  x: Array,
  kernel: Array,
  padding: Padding = "VALID",
  strides: tuple[int, int] = (1, 1),
  dilation: tuple[int, int] = (1, 1),
  groups: int = 1,
) -> Array:
  """Cross-correlation: x [B, H, W, C], kernel [h, w, C / groups, D] -> [B, H', W', D].

  Args:
    x: images.
    kernel: the weights; group g of the outputs sees group g of the channels alone.
    padding: 'VALID', 'SAME' as in XLA (H' is H / stride, rounded up), or a number of zeros on every
      side, as in PyTorch.
    strides: between the windows, along H and W.
    dilation: between the entries of a window, along H and W.
    groups: of channels.
  """
  x = _pad(x, kernel, padding, strides, dilation)
  if use_matmul():
    return _products(x, kernel, strides, dilation, groups)
  return jax.lax.conv_general_dilated(
    x, kernel, strides, "VALID", rhs_dilation=dilation, feature_group_count=groups,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )  # fmt: skip


def _products(
  x: Array, kernel: Array, strides: tuple[int, int], dilation: tuple[int, int], groups: int
) -> Array:
  """The convolution as products of patches with the kernel, without padding."""
  (height, width), features = kernel.shape[:2], kernel.shape[-1]
  if strides == (height, width) and dilation == (1, 1):
    patches = _tiles(x, height, width)
  elif x.shape[-1] < 8 and groups == 1:
    # With few channels, two stages make fewer and longer copies.
    patches = _patches(x, (1, width), (1, strides[1]), (1, dilation[1]))
    patches = _patches(patches, (height, 1), (strides[0], 1), (dilation[0], 1))
  else:
    patches = _patches(x, (height, width), strides, dilation)
  if groups == 1:
    return patches @ kernel.reshape(-1, features)
  patches = patches.reshape(*patches.shape[:3], height * width, groups, -1)
  kernel = kernel.reshape(height * width, -1, groups, features // groups)
  product = jnp.einsum("bijkgc,kcgd->bijgd", patches, kernel)
  return product.reshape(*product.shape[:3], features)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def max_pool(x: Array, size: int) -> Array:
  """Maximum over whole windows of size x size: [B, H, W, C] -> [B, H // size, W // size, C]."""
  return windows(x, size).max(axis=(2, 4))


@max_pool.defjvp
def _max_pool_jvp(size: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
  """The rule of jnp.max without its reduction that counts ties, which is slow on CPU."""
  (x,), (x_dot,) = primals, tangents
  y = max_pool(x, size)
  x, x_dot = windows(x, size), windows(x_dot, size)
  ties = sum((x[:, :, i, :, j] == y).astype(y.dtype) for i in range(size) for j in range(size))
  attains = x == y[:, :, None, :, None]
  return y, jnp.where(attains, x_dot, 0).sum(axis=(2, 4)) / ties


def convolve_max_pool(x: Array, kernel: Array, size: int, padding: Padding = "VALID") -> Array:
  """max_pool(convolve(x, kernel, padding), size) without computing outputs that the pool drops."""
  x = _pad(x, kernel, padding)
  (h, w), (height, width) = kernel.shape[:2], x.shape[1:3]
  rows, columns = (height - h + 1) // size * size, (width - w + 1) // size * size
  return max_pool(convolve(x[:, : rows + h - 1, : columns + w - 1], kernel), size)


def average_pool(x: Array, size: int) -> Array:
  """Mean over whole windows of size x size: [B, H, W, C] -> [B, H // size, W // size, C]."""
  return windows(x, size).mean(axis=(2, 4))


def global_average_pool(x: Array) -> Array:
  """Mean over all pixels: [B, H, W, C] -> [B, C]."""
  return x.mean(axis=(1, 2))


def overlapping_max_pool(x: Array, size: int, stride: int, padding: int = 0) -> Array:
  """Maximum over windows of size x size at every stride-th pixel, within the image.

  Args:
    x: [B, H, W, C].
    size: of a window.
    stride: between windows.
    padding: by how many pixels windows may leave the image, at most size / 2.

  Returns:
    [B, H', W', C], H' = (H + 2 padding - size) // stride + 1.
  """
  around = (padding, padding)
  x = jnp.pad(x, ((0, 0), around, around, (0, 0)), constant_values=-jnp.inf)
  shifts = _shifts(x, (size, size), (stride, stride), (1, 1))
  return jnp.max(jnp.stack(shifts), axis=0)


def _pad(
  x: Array,
  kernel: Array,
  padding: Padding,
  strides: tuple[int, int] = (1, 1),
  dilation: tuple[int, int] = (1, 1),
) -> Array:
  """x [B, H, W, C] with zeros around it, so that a 'VALID' convolution has the given padding."""
  if padding == "VALID":
    return x
  if isinstance(padding, int):
    around = [(padding, padding)] * 2
  elif padding == "SAME":
    around = [
      _same(size, (k - 1) * d + 1, stride)
      for size, k, stride, d in zip(x.shape[1:3], kernel.shape[:2], strides, dilation, strict=True)
    ]
  else:
    raise ValueError(f"padding must be 'SAME', 'VALID' or an integer, not {padding!r}.")
  return jnp.pad(x, ((0, 0), *around, (0, 0)))


def _same(size: int, window: int, stride: int) -> tuple[int, int]:
  """Zeros before and after an axis, so that it has a window for each stride that it begins."""
  total = max((-(-size // stride) - 1) * stride + window - size, 0)
  return total // 2, total - total // 2


def _shifts(
  x: Array, window: tuple[int, int], strides: tuple[int, int], dilation: tuple[int, int]
) -> list[Array]:
  """For every entry of a window, its values at all positions: h w arrays [B, H', W', C]."""
  (h, w), (down, right) = window, dilation
  rows, columns = (
    x.shape[1 + axis] - (window[axis] - 1) * dilation[axis] for axis in (0, 1)
  )  # positions of the first entry
  return [
    x[:, i : i + rows : strides[0], j : j + columns : strides[1]]
    for i in range(0, h * down, down)
    for j in range(0, w * right, right)
  ]


def _patches(
  x: Array, window: tuple[int, int], strides: tuple[int, int], dilation: tuple[int, int]
) -> Array:
  """The h x w patch at each position: [B, H, W, C] -> [B, H', W', h*w*C]."""
  return jnp.concatenate(_shifts(x, window, strides, dilation), axis=-1)


def _tiles(x: Array, height: int, width: int) -> Array:
  """The patches that lie side by side: [B, H, W, C] -> [B, H // h, W // w, h*w*C]."""
  rows, columns = x.shape[1] // height, x.shape[2] // width
  x = x[:, : rows * height, : columns * width]
  x = x.reshape(x.shape[0], rows, height, columns, width, x.shape[-1])
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], rows, columns, -1)


def windows(x: Array, size: int) -> Array:
  """[B, H, W, C] -> [B, H // size, size, W // size, size, C]; incomplete windows are dropped."""
  rows, columns = x.shape[1] // size, x.shape[2] // size
  x = x[:, : rows * size, : columns * size]
  return x.reshape(x.shape[0], rows, size, columns, size, x.shape[-1])


def full(x: Array) -> Array:
  """In float32 if it has fewer bits."""
  return x.astype(precision.wide(x.dtype))


he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
  """Convolution as `convolve`: [B, H, W, C] -> [B, H', W', features].

  Parameters: kernel [*kernel_size, C / groups, features] and bias [features], as in nn.Conv; always
  float32.
  """

  features: int
  kernel_size: tuple[int, int]
  padding: Padding = "SAME"
  kernel_init: Initializer = nn.initializers.lecun_normal()
  bias_init: Initializer = nn.initializers.zeros
  dtype: Any = None  # of the computation; None: float32
  strides: tuple[int, int] = (1, 1)
  dilation: tuple[int, int] = (1, 1)
  groups: int = 1
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:  # noqa: D102
    dtype = self.dtype or jnp.float32
    shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
    kernel = self.param("kernel", self.kernel_init, shape)
    y = self.linear(x.astype(dtype), kernel.astype(dtype))
    if not self.use_bias:
      return y
    return y + self.param("bias", self.bias_init, (self.features,)).astype(dtype)

  def linear(self, x: Array, kernel: Array) -> Array:
    """The layer without its bias."""
    return convolve(x, kernel, self.padding, self.strides, self.dilation, self.groups)


class ConvPool(Conv):
  """Conv and max_pool in one: [B, H, W, C] -> [B, H' // pool_size, W' // pool_size, features].

  Bias and ReLU commute with the maximum: apply the ReLU after this layer, to fewer elements.
  """

  pool_size: int = 2

  def linear(self, x: Array, kernel: Array) -> Array:  # noqa: D102
    return convolve_max_pool(x, kernel, self.pool_size, self.padding)  # with stride 1


def activation_of(name: str) -> Callable[[Array], Array]:
  """The activation function of that name, which an attribute of a net names."""
  known = {"relu": nn.relu, "silu": nn.silu, "gelu": nn.gelu}
  if name not in known:
    raise InputError(f"The activation must be one of {', '.join(known)}, but was {name!r}.")
  return known[name]


def batch_norm(
  train: bool, dtype: Any, axis_name: str | None, name: str | None = None
) -> nn.Module:
  """Batch normalization with PyTorch's constants: by statistics of the batch, or running ones.

  `axis_name` as in nn.BatchNorm. The running variance follows that of the batch over all of its n
  entries; PyTorch's is larger by n / (n - 1).
  """
  return nn.BatchNorm(
    use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype,
    axis_name=axis_name if train else None, name=name,
  )  # fmt: skip


class Standardize(nn.Module):
  """(x - mean) / std for x [B, H, W, C]; mean and std are a number or one number per channel."""

  mean: float | Sequence[float]
  std: float | Sequence[float]

  @nn.compact
  def __call__(self, x: Array) -> Array:  # noqa: D102
    return (x - jnp.asarray(self.mean, x.dtype)) / jnp.asarray(self.std, x.dtype)
