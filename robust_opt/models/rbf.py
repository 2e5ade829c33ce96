"""Radial basis function networks (Goodfellow, Shlens and Szegedy 2015, section 7).

  net = models.ShallowRBF(num_classes=10)
  log_p, _ = models.from_linen(net)(params, {}, x, train=False, key=None)   # [B, C], all <= 0
  loss = losses.independent(log_p, labels)                                  # [B]
  p = losses.probabilities(log_p, "rbf")                                    # [B, C], in [0, 1]

The probability of a class falls to 0 with the distance from the template of the class: far from all
data no class is present. The outputs are log-probabilities instead of logits, without a softmax:
the probabilities need not sum to 1. Paper: https://arxiv.org/abs/1412.6572
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import constant, normal

from robust_opt.models.layers import Standardize, full
from robust_opt.types import Array


class ShallowRBF(nn.Module):
  """One template per class: images [B, *S] in [0, 1] -> log p(class is present | x) [B, C].

    log p_k(x) = -(x - mu_k)^T diag(beta_k) (x - mu_k),   beta_k = exp(log_beta_k) > 0

  for the standardized x. Parameters of the layer 'output': mu and log_beta [n, num_classes].
  """

  num_classes: int = 10
  mean: float | Sequence[float] = 0.0
  std: float | Sequence[float] = 1.0
  dtype: Any = None  # of distances to the templates of classes; None: that of x

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """`train` has no effect."""
    x = Standardize(self.mean, self.std)(x)
    return _Quadratic(self.num_classes, self.dtype, name="output")(x.reshape(x.shape[0], -1))


class DeepRBF(nn.Module):
  """ShallowRBF on a hidden layer of RBF units: images [B, *S] in [0, 1] -> log p [B, num_classes].

    h_j(x) = exp(-beta_j |x - mu_j|^2),   log p_k(h) as in ShallowRBF

  for the standardized x. The paper found such nets hard to train. Parameters: mu [n, width] and
  log_beta [width], and those of the layer 'output'.
  """

  num_classes: int = 10
  width: int = 200  # hidden units
  mean: float | Sequence[float] = 0.0
  std: float | Sequence[float] = 1.0
  dtype: Any = None  # of distances to the templates of classes; None: that of x

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """`train` has no effect."""
    x = Standardize(self.mean, self.std)(x).reshape(x.shape[0], -1)
    # Squared distances of about n then give exponents of -1/2 to -3, neither flat nor all 1.
    mu = self.param("mu", normal(0.5), (x.shape[-1], self.width))
    log_beta = self.param("log_beta", constant(math.log(2.0 / x.shape[-1])), (self.width,))
    h = jnp.exp(-jnp.exp(log_beta) * squared_distances(x, mu))
    return _Quadratic(self.num_classes, self.dtype, name="output")(h)


class _Quadratic(nn.Module):
  """-(x - mu_k)^T diag(beta_k) (x - mu_k) for every k: [B, n] -> [B, features], <= 0."""

  features: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (x.shape[-1], self.features)
    mu = self.param("mu", normal(0.1), shape)
    # Mean squares of 0.1 (pixels) to 1 (standardized) per entry give exponents of -1 to -10.
    log_beta = self.param("log_beta", constant(math.log(10.0 / x.shape[-1])), shape)
    # Not expanded, which would cancel near mu and could give a probability above 1.
    x, mu, log_beta = (array.astype(self.dtype or array.dtype) for array in (x, mu, log_beta))
    return -jnp.sum(full(jnp.exp(log_beta) * (x[:, :, None] - mu) ** 2), axis=1)


def squared_distances(x: Array, mu: Array) -> Array:
  """|x_i - mu_j|^2 up to 1e-6 of |x_i|^2 + |mu_j|^2: x [B, n], mu [n, m] -> [B, m], >= 0."""
  products = jnp.matmul(x, mu, precision=jax.lax.Precision.HIGHEST)
  squares = jnp.sum(x**2, axis=1, keepdims=True) + jnp.sum(mu**2, axis=0)
  return jnp.maximum(squares - 2 * products, 0.0)
