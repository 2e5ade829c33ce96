"""A feed-forward net as a list of layers, for certified bounds and layer-wise penalties.

  layers = [Affine(1 / std, -mean / std), Flatten(), Dense(W1, b1), ReLU(), Dense(W2, b2)]
  layers = layers_of(models.MLP(widths=(50,)), params)     # the same from a net
  logits = apply(layers, x)                                # x [B, *S] in pixels -> [B, C]

A model, also a user's own, defines its list in a method layer_list(params). Layers are pytrees of
their parameters. Their bounds hold for layer(z) as computed in floating point, rounding included,
for any order of its sums: a sum of n products is within gamma_n = n u / (1 - n u) times the sum of
their absolute values, u the unit roundoff of the dtype (Higham 2002, "Accuracy and Stability of
Numerical Algorithms", section 3.1).
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

  def interval(self, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Bounds [B, *in] of the inputs -> bounds [B, *out] of the outputs."""

  def pull_back(self, a: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    """a [B, *out] -> (a' [B, *in], c [B]) with <a, layer(z)> <= <a', z> + c on lower <= z <= upper.

    An equality up to rounding for affine layers, a linear relaxation for ReLU and MaxPool.
    """


def apply(layers: Sequence[Layer], x: Array) -> Array:
  """x [B, *S] -> the output of the last layer, for a net the logits [B, C]."""
  for layer in layers:
    x = layer(x)
  return x


def inner_up(a: Array, b: Array, lost: Array | float = 0.0) -> Array:
  """<a, b> + <|a|, lost> + gamma_n <|a|, |b| + lost>, [B], for a [B, *S] of n entries each.

  An upper bound of <a, b'> for every b' with |b' - b| <= lost, where b and lost may broadcast to a.
  """
  relative = gamma(a[0].size + 6, a.dtype)
  return _sum(a * b) + _sum(jnp.abs(a) * (relative * jnp.abs(b) + (1 + relative) * lost))


def _sum(x: Array) -> Array:
  return jnp.sum(x, axis=range(1, x.ndim))


def gamma(roundings: int, dtype: jnp.dtype) -> float:
  """gamma_k / (1 - gamma_k) = k u / (1 - 2 k u) for k roundings; inf where k u >= 1/2."""
  relative = roundings * float(jnp.finfo(dtype).eps) / 2
  return relative / (1 - 2 * relative) if relative < 0.5 else float("inf")


def largest(lower: Array, upper: Array) -> Array:
  """The largest |z| in each interval."""
  return jnp.maximum(jnp.abs(lower), jnp.abs(upper))


class AffineLayer(abc.ABC):
  """Base of the layers z -> L z + bias; a subclass, a flax.struct.dataclass, defines L."""

  bias: Array | float = 0.0

  @abc.abstractmethod
  def linear(self, x: Array) -> Array:
    """L x, [B, *in] -> [B, *out]."""

  @abc.abstractmethod
  def fan(self) -> tuple[int, int]:
    """The largest numbers of inputs per output, and of outputs per input."""

  def magnitude(self, x: Array) -> Array:
    """|L| x, with the absolute value of every entry of L: [B, *in] -> [B, *out].

    To be overridden where the fields other than `bias` are not the entries of L.
    """
    return jax.tree.map(jnp.abs, self).linear(x)

  def __call__(self, x: Array) -> Array:
    """L x + bias."""
    return self.linear(x) + self.bias

  def interval(self, lower: Array, upper: Array) -> tuple[Array, Array]:
    """L c + bias -+ |L| r for the interval c -+ r; exact up to rounding for every output."""
    center, spread = self((lower + upper) / 2), self.magnitude((upper - lower) / 2)
    # The rounding of the layer itself, and that of the center and the spread.
    spread += gamma(2 * self.fan()[0] + 8, lower.dtype) * self._size(lower, upper)
    return center - spread, center + spread

  def pull_back(self, a: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    """<a, L z + bias> = <L^T a, z> + <a, bias>."""
    (pulled,) = jax.linear_transpose(self.linear, lower)(a)
    # The rounding of the layer's own sums, and that of L^T a.
    lost = gamma(sum(self.fan()) + 8, lower.dtype) * self._size(lower, upper)
    return pulled, inner_up(a, jnp.asarray(self.bias), lost)

  def _size(self, lower: Array, upper: Array) -> Array:
    """|L| |z| + |bias|, the sum of the absolute values of the terms of an output: [B, *out]."""
    limits = jnp.finfo(lower.dtype)
    underflow = 2 * limits.tiny / limits.eps  # times u the smallest normal number
    return self.magnitude(largest(lower, upper)) + jnp.abs(self.bias) + underflow


@flax.struct.dataclass
class Dense(AffineLayer):
  """x @ kernel + bias: [B, n] -> [B, m]."""

  kernel: Array  # [n, m]
  bias: Array | float = 0.0  # [m]

  def linear(self, x: Array) -> Array:  # noqa: D102
    return x @ self.kernel

  def fan(self) -> tuple[int, int]:  # noqa: D102
    return self.kernel.shape[0], self.kernel.shape[1]


@flax.struct.dataclass
class Conv(AffineLayer):
  """Cross-correlation of images as in `layers.convolve`: [B, H, W, C] -> [B, H', W', D]."""

  kernel: Array  # [h, w, C, D]
  bias: Array | float = 0.0  # [D]
  strides: tuple[int, int] = flax.struct.field(pytree_node=False, default=(1, 1))
  padding: Padding = flax.struct.field(pytree_node=False, default="VALID")

  def linear(self, x: Array) -> Array:  # noqa: D102
    return convolve(x, self.kernel, self.padding, self.strides)  # fast on this backend

  def fan(self) -> tuple[int, int]:  # noqa: D102
    height, width, channels, features = self.kernel.shape
    return height * width * channels, height * width * features


class _Entrywise(AffineLayer):
  """A layer with at most one input per output and one output per input."""

  def fan(self) -> tuple[int, int]:
    return 1, 1


@flax.struct.dataclass
class Affine(_Entrywise):
  """x * scale + bias, each a number or one number per channel."""

  scale: Array | float = 1.0
  bias: Array | float = 0.0

  def linear(self, x: Array) -> Array:  # noqa: D102
    return x * self.scale


@flax.struct.dataclass
class Pad(_Entrywise):
  """A border of zeros, `width` pixels on every side: [B, H, W, C] -> [B, H + 2w, W + 2w, C]."""

  width: int = flax.struct.field(pytree_node=False)

  def linear(self, x: Array) -> Array:  # noqa: D102
    around = (self.width, self.width)
    return jnp.pad(x, ((0, 0), around, around, (0, 0)))


@flax.struct.dataclass
class Flatten(_Entrywise):
  """[B, *S] -> [B, n]."""

  def linear(self, x: Array) -> Array:  # noqa: D102
    return x.reshape(x.shape[0], -1)


@flax.struct.dataclass
class ReLU:
  """max(z, 0) of every entry."""

  def __call__(self, x: Array) -> Array:  # noqa: D102
    return jax.nn.relu(x)

  def interval(self, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Exact, since ReLU is monotone."""
    return self(lower), self(upper)

  def pull_back(self, a: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Where a > 0 the chord from above, else a line of slope 0 or 1 from below.

    Of these the one with the smaller area: Zhang et al. 2018 (arXiv 1811.00866), CROWN-Ada.
    """
    stable = (lower >= 0) | (upper <= 0)
    chord = upper / jnp.where(stable, 1.0, upper - lower)
    above = jnp.where(lower >= 0, 1.0, jnp.where(upper <= 0, 0.0, chord))
    height = jnp.where(stable, 0.0, -above * lower)
    below = jnp.where(upper > -lower, 1.0, 0.0)
    # Neither |above z| nor the height exceeds `upper`.
    lost = gamma(8, lower.dtype) * jnp.where(stable, 0.0, 2 * upper)
    return a * jnp.where(a > 0, above, below), inner_up(jnp.maximum(a, 0.0), height, lost)


@flax.struct.dataclass
class MaxPool:
  """Maximum over windows of size x size with stride size; incomplete windows are dropped."""

  size: int = flax.struct.field(pytree_node=False)

  def __call__(self, x: Array) -> Array:
    """[B, H, W, C] -> [B, H // size, W // size, C]."""
    return jnp.max(self._windows(x), axis=-1)

  def interval(self, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Exact, since the maximum is monotone."""
    return self(lower), self(upper)

  def pull_back(self, a: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Bounds the maximum by one entry of the window: from above where a > 0, else from below.

      max_i z_i >= z_m                               for m of the largest lower bound
      max_i z_i <= max(z_k, t) = t + relu(z_k - t)   for k of the largest upper bound, t that of
                                                     the others; the ReLU lies below its chord

    Both are exact where z_k is always the largest, and neither is looser than the interval.
    """
    low, high = self._windows(lower), self._windows(upper)
    entries = high.shape[-1]
    is_k = jax.nn.one_hot(jnp.argmax(high, axis=-1), entries, dtype=bool)
    is_m = jax.nn.one_hot(jnp.argmax(low, axis=-1), entries, dtype=bool)
    low_k = jnp.sum(jnp.where(is_k, low, 0.0), axis=-1)
    high_k = jnp.max(high, axis=-1)
    t = jnp.max(jnp.where(is_k, -jnp.inf, high), axis=-1)
    dominant = low_k >= t
    slope = jnp.where(dominant, 1.0, (high_k - t) / jnp.where(dominant, 1.0, high_k - low_k))
    height = jnp.where(dominant, 0.0, t - slope * low_k)
    above, below = (a * slope)[..., None] * is_k, a[..., None] * is_m
    spread = jnp.where(a[..., None] > 0, above, below)
    (pulled,) = jax.linear_transpose(self._windows, lower)(spread)
    size = jnp.where(dominant, 0.0, jnp.abs(t) + 2 * slope * largest(low_k, high_k))
    return pulled, inner_up(jnp.maximum(a, 0.0), height, gamma(10, lower.dtype) * size)

  def _windows(self, x: Array) -> Array:
    """[B, H, W, C] -> [B, H // size, W // size, C, size * size]."""
    x = windows(x, self.size).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(*x.shape[:4], -1)


def layers_of(net: Any, params: Params) -> list[Layer]:
  """The layers of a net, beginning with the standardization of x in pixels of [0, 1].

  `net` has a method layer_list(params) -> [Layer, ...]: SoftmaxRegression, MLP, DigitsCNN, MnistCNN
  without input_batch_norm, or a user's own. The layers compute in float32 for any dtype of the net;
  for proofs about the net as computed, use `certify.from_params`.

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
