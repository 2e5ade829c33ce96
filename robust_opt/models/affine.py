"""A feed-forward net as a list of layers, for penalties and perturbations of single layers.

  layers = [Affine(1 / std, -mean / std), Flatten(), Dense(W1, b1), ReLU(), Dense(W2, b2)]
  layers = layers_of(models.MLP(widths=(50,)), params)     # the same from a net
  logits = apply(layers, x)                                # x [B, *S] in pixels -> [B, C]

A model, also a user's own, defines its list in a method layer_list(params). Layers are pytrees of
their parameters.
"""

import abc
from collections.abc import Sequence
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from robust_opt.errors import InputError
from robust_opt.models.layers import Padding, convolve, windows
from robust_opt.types import Array, Params


class Layer(Protocol):
  """One layer of a net, a map of batches of independent examples."""

  def __call__(self, x: Array) -> Array:
    """[B, *in] -> [B, *out]."""


def apply(layers: Sequence[Layer], x: Array) -> Array:
  """x [B, *S] -> the output of the last layer, for a net the logits [B, C]."""
  for layer in layers:
    x = layer(x)
  return x


class AffineLayer(abc.ABC):
  """Base of the layers z -> L z + bias; a subclass, a flax.struct.dataclass, defines L."""

  bias: Array | float = 0.0

  @abc.abstractmethod
  def linear(self, x: Array) -> Array:
    """L x, [B, *in] -> [B, *out]."""

  def __call__(self, x: Array) -> Array:
    """L x + bias."""
    return self.linear(x) + self.bias


@flax.struct.dataclass
class Dense(AffineLayer):
  """x @ kernel + bias: [B, n] -> [B, m]."""

  kernel: Array  # [n, m]
  bias: Array | float = 0.0  # [m]

  def linear(self, x: Array) -> Array:  # noqa: D102
    return x @ self.kernel


@flax.struct.dataclass
class Conv(AffineLayer):
  """Cross-correlation of images as in `layers.convolve`: [B, H, W, C] -> [B, H', W', D]."""

  kernel: Array  # [h, w, C, D]
  bias: Array | float = 0.0  # [D]
  strides: tuple[int, int] = flax.struct.field(pytree_node=False, default=(1, 1))
  padding: Padding = flax.struct.field(pytree_node=False, default="VALID")

  def linear(self, x: Array) -> Array:  # noqa: D102
    return convolve(x, self.kernel, self.padding, self.strides)  # fast on this backend


@flax.struct.dataclass
class Affine(AffineLayer):
  """x * scale + bias, each a number or one number per channel."""

  scale: Array | float = 1.0
  bias: Array | float = 0.0

  def linear(self, x: Array) -> Array:  # noqa: D102
    return x * self.scale


@flax.struct.dataclass
class Pad(AffineLayer):
  """A border of zeros, `width` pixels on every side: [B, H, W, C] -> [B, H + 2w, W + 2w, C]."""

  width: int = flax.struct.field(pytree_node=False)

  def linear(self, x: Array) -> Array:  # noqa: D102
    around = (self.width, self.width)
    return jnp.pad(x, ((0, 0), around, around, (0, 0)))


@flax.struct.dataclass
class Flatten(AffineLayer):
  """[B, *S] -> [B, n]."""

  def linear(self, x: Array) -> Array:  # noqa: D102
    return x.reshape(x.shape[0], -1)


@flax.struct.dataclass
class ReLU:
  """max(z, 0) of every entry."""

  def __call__(self, x: Array) -> Array:  # noqa: D102
    return jax.nn.relu(x)


@flax.struct.dataclass
class MaxPool:
  """Maximum over windows of size x size with stride size; incomplete windows are dropped."""

  size: int = flax.struct.field(pytree_node=False)

  def __call__(self, x: Array) -> Array:
    """[B, H, W, C] -> [B, H // size, W // size, C]."""
    return jnp.max(windows(x, self.size), axis=(2, 4))


def layers_of(net: Any, params: Params) -> list[Layer]:
  """The layers of a net, beginning with the standardization of x in pixels of [0, 1].

  `net` has a method layer_list(params) -> [Layer, ...]: SoftmaxRegression, MLP, DigitsCNN, MnistCNN
  without input_batch_norm, or a user's own. The layers compute in float32 for any dtype of the net.

  Raises:
    InputError: the net has no such method, or no such list as configured.
  """
  if not hasattr(net, "layer_list"):
    raise InputError(
      f"{type(net).__name__} has no list of layers: give it a method layer_list(params), as "
      "robust_opt.models.MLP has."
    )
  return list(net.layer_list(params))


def standardization(mean: Any, std: Any) -> Affine:
  """(x - mean) / std as a layer; mean and std are a number or one number per channel."""
  mean, std = jnp.asarray(mean), jnp.asarray(std)
  return Affine(1 / std, -mean / std)


def conv_pool_relu(params: Params, size: int, padding: str) -> list[Layer]:
  """relu(ConvPool(x)) of models.layers, with parameters {kernel, bias}."""
  return [Conv(**params, padding=padding), MaxPool(size), ReLU()]


def perceptron(*params: Params) -> list[Layer]:
  """Flatten, then dense layers of parameters {kernel, bias} with ReLUs in between."""
  hidden = [layer for of_one in params[:-1] for layer in (Dense(**of_one), ReLU())]
  return [Flatten(), *hidden, Dense(**params[-1])]


def stages(layers: Sequence[Layer]) -> list[list[Layer]]:
  """The layers in groups that each begin at a Dense or Conv; the first includes all layers before.

  So the input of a later stage is the input of its weights: after ReLU, pooling and flattening.
  """
  groups: list[list[Layer]] = [[]]
  for layer in layers:
    has_weights = isinstance(layer, Dense | Conv)
    if has_weights and any(isinstance(other, Dense | Conv) for other in groups[-1]):
      groups.append([])
    groups[-1].append(layer)
  return groups
