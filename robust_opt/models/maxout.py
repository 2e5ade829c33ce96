"""The maxout networks of Goodfellow, Shlens and Szegedy 2015 (https://arxiv.org/abs/1412.6572).

  net = models.Maxout(num_classes=10)                  # 2 x 240 units of 5 pieces, with dropout
  optimizer = optax.chain(optax.sgd(rate, momentum), optimizers.max_column_norm(1.9365))

The logits are for a softmax (losses.cross_entropy) or independent sigmoids (losses.one_vs_all),
the two output layers that the paper compares.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from robust_opt.models.layers import ConvPool, Standardize, full
from robust_opt.types import Array


def max_of_pieces(z: Array, pieces: int) -> Array:
  """The maximum over each unit's pieces: z [*R, pieces * width] -> [*R, width].

  Piece p of unit u is entry p * width + u; tied pieces share the gradient equally. Source:
  Goodfellow et al. 2013 (arXiv 1302.4389), section 3.
  """
  # Pieces before units: a maximum over a short last axis is several times slower on CPU.
  return jnp.max(z.reshape(*z.shape[:-1], pieces, -1), axis=-2)


class Maxout(nn.Module):
  """Maxout layers and a dense one: images [B, *S] in [0, 1] -> logits [B, num_classes]."""

  num_classes: int = 10
  widths: Sequence[int] = (240, 240)  # units of every hidden layer
  pieces: int = 5  # affine maps whose maximum a unit is
  input_dropout: float = 0.2  # rate of the standardized pixels
  hidden_dropout: float = 0.5
  init_scale: float = 0.005  # weights are initialized uniformly in +-init_scale, biases with 0
  mean: float | Sequence[float] = 0.0
  std: float | Sequence[float] = 1.0
  dtype: Any = None  # of the computation, None: of x; parameters and logits are float32 at least

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """`train`: dropout by the rng stream 'dropout', or none."""

    def drop(x: Array, rate: float) -> Array:
      return nn.Dropout(rate, deterministic=not train)(x)

    def kernel_init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
      return jax.random.uniform(key, shape, dtype, -self.init_scale, self.init_scale)

    x = Standardize(self.mean, self.std)(x)
    x = drop(x.reshape(x.shape[0], -1), self.input_dropout)
    for width in self.widths:
      z = nn.Dense(self.pieces * width, kernel_init=kernel_init, dtype=self.dtype)(x)
      x = drop(max_of_pieces(z, self.pieces), self.hidden_dropout)
    return full(nn.Dense(self.num_classes, kernel_init=kernel_init, dtype=self.dtype)(x))


class ConvMaxout(nn.Module):
  """Convolutional maxout layers and a dense one: images [B, H, W, C] -> logits [B, num_classes].

  Every layer is a 3 x 3 convolution, the maximum over pieces and a 2 x 2 max pool; the last is
  followed by dropout. The paper's net for CIFAR-10 (Goodfellow et al. 2013, arXiv 1302.4389) is of
  this kind, but larger.
  """

  num_classes: int = 10
  widths: Sequence[int] = (24, 48, 48)  # units of every convolution
  pieces: int = 2
  hidden_dropout: float = 0.2  # rate of the last layer's units
  mean: float | Sequence[float] = 0.0
  std: float | Sequence[float] = 1.0
  dtype: Any = None  # of the computation, None: of x; parameters and logits are float32 at least

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """`train`: dropout by the rng stream 'dropout', or none."""
    x = Standardize(self.mean, self.std)(x)
    for width in self.widths:
      # The maxima over pieces and over windows commute.
      z = ConvPool(self.pieces * width, (3, 3), pool_size=2, padding="SAME", dtype=self.dtype)(x)
      x = max_of_pieces(z, self.pieces)
    x = nn.Dropout(self.hidden_dropout, deterministic=not train)(x.reshape(x.shape[0], -1))
    return full(nn.Dense(self.num_classes, dtype=self.dtype)(x))
