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
from robust_opt.types import Array

Initializer = Callable[..., Array]

# 'matmul' or 'native' overrides the backend's default in functions traced afterwards.
formulation: str | None = None


def use_matmul() -> bool:
  """Whether convolutions are computed as matrix products; evaluated when a function is traced."""
  if formulation not in (None, "matmul", "native"):
    raise ValueError(f"formulation must be 'matmul', 'native' or None, not {formulation!r}.")
  return jax.default_backend() == "cpu" if formulation is None else formulation == "matmul"


def convolve(x: Array, kernel: Array, padding: str = "VALID") -> Array:
  """Cross-correlation with stride 1: x [B, H, W, C], kernel [h, w, C, D] -> [B, H', W', D].

  H' = H - h + 1 for the padding 'VALID' and H' = H for 'SAME'.
  """
  x = _pad(x, kernel, padding)
  if use_matmul():
    height, width, channels, features = kernel.shape
    # With few channels, two stages make fewer and longer copies.
    two = channels < 8
    patches = _patches(_patches(x, 1, width), height, 1) if two else _patches(x, height, width)
    return patches @ kernel.reshape(-1, features)
  layout = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)


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


def convolve_max_pool(x: Array, kernel: Array, size: int, padding: str = "VALID") -> Array:
  """max_pool(convolve(x, kernel, padding), size) without computing outputs that the pool drops."""
  x = _pad(x, kernel, padding)
  (h, w), (height, width) = kernel.shape[:2], x.shape[1:3]
  rows, columns = (height - h + 1) // size * size, (width - w + 1) // size * size
  return max_pool(convolve(x[:, : rows + h - 1, : columns + w - 1], kernel), size)


def _pad(x: Array, kernel: Array, padding: str) -> Array:
  """x [B, H, W, C] with zeros around it, so that a 'VALID' convolution has the given padding."""
  if padding not in ("SAME", "VALID"):
    raise ValueError(f"padding must be 'SAME' or 'VALID', not {padding!r}.")
  if padding == "VALID":
    return x
  around = [((k - 1) // 2, k // 2) for k in kernel.shape[:2]]
  return jnp.pad(x, ((0, 0), *around, (0, 0)))


def _patches(x: Array, h: int, w: int) -> Array:
  """The h x w patch at each position: [B, H, W, C] -> [B, H-h+1, W-w+1, h*w*C]."""
  rows, columns = x.shape[1] - h + 1, x.shape[2] - w + 1
  shifts = [x[:, i : i + rows, j : j + columns] for i in range(h) for j in range(w)]
  return jnp.concatenate(shifts, axis=-1)


def windows(x: Array, size: int) -> Array:
  """[B, H, W, C] -> [B, H // size, size, W // size, size, C]; incomplete windows are dropped."""
  rows, columns = x.shape[1] // size, x.shape[2] // size
  x = x[:, : rows * size, : columns * size]
  return x.reshape(x.shape[0], rows, size, columns, size, x.shape[-1])


def full(x: Array) -> Array:
  """In float32 if it has fewer bits."""
  return x.astype(precision.wide(x.dtype))


class Conv(nn.Module):
  """Convolution with stride 1: [B, H, W, C] -> [B, H', W', features].

  Parameters: kernel [*kernel_size, C, features] and bias [features], as in nn.Conv; always float32.
  """

  features: int
  kernel_size: tuple[int, int]
  padding: str = "SAME"
  kernel_init: Initializer = nn.initializers.lecun_normal()
  bias_init: Initializer = nn.initializers.zeros
  dtype: Any = None  # of the computation; None: float32

  @nn.compact
  def __call__(self, x: Array) -> Array:  # noqa: D102
    shape = (*self.kernel_size, x.shape[-1], self.features)
    kernel = self.param("kernel", self.kernel_init, shape)
    bias = self.param("bias", self.bias_init, (self.features,))
    x, kernel, bias = (array.astype(self.dtype or jnp.float32) for array in (x, kernel, bias))
    return self.linear(x, kernel) + bias

  def linear(self, x: Array, kernel: Array) -> Array:
    """The layer without its bias."""
    return convolve(x, kernel, self.padding)


class ConvPool(Conv):
  """Conv and max_pool in one: [B, H, W, C] -> [B, H' // pool_size, W' // pool_size, features].

  Bias and ReLU commute with the maximum: apply the ReLU after this layer, to fewer elements.
  """

  pool_size: int = 2

  def linear(self, x: Array, kernel: Array) -> Array:  # noqa: D102
    return convolve_max_pool(x, kernel, self.pool_size, self.padding)


class Standardize(nn.Module):
  """(x - mean) / std for x [B, H, W, C]; mean and std are a number or one number per channel."""

  mean: float | Sequence[float]
  std: float | Sequence[float]

  @nn.compact
  def __call__(self, x: Array) -> Array:  # noqa: D102
    return (x - jnp.asarray(self.mean, x.dtype)) / jnp.asarray(self.std, x.dtype)
