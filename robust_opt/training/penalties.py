"""Regularizers that are added to the training loss.

  layers_of = functools.partial(affine.layers_of, net)     # params -> the layers of the net
  penalty = penalties.weighted(1e-3, penalties.operator_norm(layers_of))
  step = ro.make_train_step(apply, optimizer, objective, attack, penalty=penalty)

|  penalty             |  term added to the loss                                       |
|  operator_norm       |  sum over layers of |W_l|^2, largest singular values          |
|  layer_jacobian      |  sum over layers of |d h_l / d h_(l - 1)|_F^2, per example    |
|  gradient_alignment  |  1 - cos(grad_x J(x), grad_x J(x + eta)), per example         |

The first two limit how much a perturbation grows from layer to layer, and need the net as a list of
layers. The last prevents catastrophic overfitting of single-step training, and takes any model.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.errors import InputError
from robust_opt.models.affine import AffineLayer, Conv, Dense, Layer, apply, stages
from robust_opt.sets import UncertaintySet
from robust_opt.types import ApplyFn, Array, Batch, LossFn, ModelState, Params

# Available to configs.
__all__ = ["gradient_alignment", "layer_jacobian", "operator_norm"]

# (params, model_state, batch, keys [B]) -> [B], or [] if it is the same for every example
Penalty = Callable[[Params, ModelState, Batch, Array], Array]
LayersOf = Callable[[Params], Sequence[Layer]]


def weighted(weight: float, penalty: Penalty) -> Penalty:
  """weight * penalty; an InputError if the weight is negative or not finite."""
  if not 0 <= weight < float("inf"):
    raise InputError(f"weight must be a finite number >= 0, but was {weight}.")
  return lambda *args: weight * penalty(*args)


def operator_norm(layers_of: LayersOf, iterations: int = 8) -> Penalty:
  """Sum of the squared operator norms of the dense and convolutional layers, [].

  The product of the norms bounds the growth of an l_2 perturbation from the image to the logits,
  since ReLU and maxima do not increase distances. Source: Szegedy et al. 2014 (arXiv 1312.6199),
  section 4.3. The norm of a convolution is that of the linear map of images, not of its kernel.
  Power iteration on L^T L from a fixed start approaches it from below.
  """

  def penalty(params: Params, model_state: ModelState, batch: Batch, keys: Array) -> Array:
    total, x = jnp.zeros(()), jax.ShapeDtypeStruct((1, *batch.x.shape[1:]), jnp.float32)
    for layer in layers_of(params):
      if isinstance(layer, Dense | Conv):
        total += largest_singular_value(layer, x.shape[1:], iterations) ** 2
      x = jax.eval_shape(layer, x)
    return total

  return penalty


def largest_singular_value(layer: AffineLayer, shape: Sequence[int], iterations: int = 8) -> Array:
  """The operator norm of the linear part of a layer, [], differentiable: d|L| = <u, dL v>.

  By the power method: a lower bound, tighter with more iterations. `shape` is that of one input.
  """
  frozen = jax.lax.stop_gradient(layer)
  v = jax.random.normal(jax.random.key(0), (1, *shape))
  transposed = jax.linear_transpose(frozen.linear, v)

  def iterate(v: Array, _: None) -> tuple[Array, None]:
    return transposed(frozen.linear(_unit(v)))[0], None

  v, _ = jax.lax.scan(iterate, v, length=iterations)
  image = layer.linear(_unit(v))
  # <u, L v> with the unit vector u, so that the gradient is 0 and not NaN where L v = 0.
  return jnp.sum(jax.lax.stop_gradient(_unit(image)) * image)


def layer_jacobian(layers_of: LayersOf) -> Penalty:
  """An estimate of the sum of the squared Frobenius norms of the layers' Jacobians, [B].

    sum over l of |d h_l / d h_(l - 1)|_F^2

  where h_l is the output of the l-th ReLU and h_0 the image in pixels: the layer-wise contractive
  penalty of Gu and Rigazio 2015 (arXiv 1412.5068), equation 4. |J|_F^2 is the mean of |J^T v|^2 for
  standard normal v, estimated by one v per example and layer. No gradient flows through the inputs
  h_(l - 1), on which the Jacobian of a piecewise linear layer does not depend almost everywhere.
  """

  def penalty(params: Params, model_state: ModelState, batch: Batch, keys: Array) -> Array:
    h, total = batch.x, jnp.zeros(batch.x.shape[:1])
    for index, stage in enumerate(stages(layers_of(params))):
      after, pull_back = jax.vjp(lambda h, stage=stage: apply(stage, h), jax.lax.stop_gradient(h))
      layer_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)
      v = jax.vmap(lambda key, shape=after.shape[1:]: jax.random.normal(key, shape))(layer_keys)
      (pulled,) = pull_back(v)
      total += jnp.sum(pulled**2, axis=range(1, pulled.ndim))
      h = after
    return total

  return penalty


def gradient_alignment(
  model: ApplyFn, u: UncertaintySet, loss: LossFn = losses.cross_entropy
) -> Penalty:
  """1 - cos(grad_x J(x), grad_x J(x + eta)) for a random eta of U, [B].

  Where the direction of the gradient changes within U, the loss is far from linear and one ascent
  step far from the maximum. Source: Andriushchenko and Flammarion 2020 (arXiv 2007.02617),
  equation 3; here the net is in evaluation mode. Where a gradient is 0 the penalty is 1, with
  gradient 0.
  """

  def penalty(params: Params, model_state: ModelState, batch: Batch, keys: Array) -> Array:
    def total(x: Array) -> Array:
      logits, _ = model(params, model_state, x, train=False, key=None)
      return jnp.sum(loss(logits, batch.y))

    here = jax.grad(total)(batch.x)
    there = jax.grad(total)(batch.x + u.sample(keys, batch.x))
    return 1.0 - jax.vmap(lambda a, b: jnp.sum(_unit(a) * _unit(b)))(here, there)

  return penalty


def _unit(v: Array) -> Array:
  """v / |v|_2 at any scale of v; 0 where v is 0, with gradient 0 there."""
  largest = jax.lax.stop_gradient(jnp.max(jnp.abs(v)))
  scaled = v / jnp.where(largest > 0, largest, 1.0)
  square = jnp.sum(scaled**2)
  return jnp.where(largest > 0, scaled / jnp.sqrt(jnp.where(largest > 0, square, 1.0)), 0.0)
