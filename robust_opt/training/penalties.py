"""What the learner pays beside its loss: for steep layers, or for a gradient that turns.

  penalty = penalties.operator_norm(layers_of)         # layers_of: params -> the layers of the net
  step = ro.make_train_step(apply, optimizer, objective, attack,
                            penalty=penalties.weighted(1e-3, penalty))

|  penalty             |  what is added to the loss                                    |
|  operator_norm       |  sum over layers of |W_l|^2, largest singular values          |
|  layer_jacobian      |  sum over layers of |d h_l / d h_(l - 1)|_F^2, per example    |
|  gradient_alignment  |  1 - cos(grad_x J(x), grad_x J(x + eta)), per example         |

The first two bound how far a perturbation can travel, layer by layer, and need the net as a list of
layers (`certify.layers.in_float32`); the last keeps single-step training from catastrophic
overfitting and takes any model. They need no adversary, and go with any.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.errors import InputError
from robust_opt.models.affine import AffineLayer, Conv, Dense, Layer, apply, stages
from robust_opt.sets import UncertaintySet
from robust_opt.types import ApplyFn, Array, Batch, LossFn, ModelState, Params

# What a config may name.
__all__ = ["gradient_alignment", "layer_jacobian", "operator_norm"]

# (params, model_state, batch, keys [B]) -> [B], or [] where it is the same for every example
Penalty = Callable[[Params, ModelState, Batch, Array], Array]
LayersOf = Callable[[Params], Sequence[Layer]]


def weighted(weight: float, penalty: Penalty) -> Penalty:
  """weight * penalty.

  Raises:
    InputError: the weight is negative or not finite.
  """
  if not 0 <= weight < float("inf"):
    raise InputError(f"weight must be a finite number >= 0, but was {weight}.")
  return lambda *args: weight * penalty(*args)


def operator_norm(layers_of: LayersOf, iterations: int = 8) -> Penalty:
  """Sum over the dense and convolutional layers of the square of their operator norm, [].

  The product of the norms bounds how much of an l_2 perturbation arrives at the logits, since ReLU
  and maxima never lengthen one. Source: Szegedy et al. 2014 (arXiv 1312.6199), section 4.3. The
  norm of a convolution is that of the whole map, images to images, not of its kernel: power
  iteration on L^T L from a fixed start, which approaches it from below.

  Args:
    layers_of: params -> layers.
    iterations: of the power method at every update, each a forward and a backward pass of one
      image through one layer.
  """

  def penalty(params: Params, model_state: ModelState, batch: Batch, keys: Array) -> Array:
    del model_state, keys
    layers = layers_of(params)
    shapes = _input_shapes(layers, batch.x.shape[1:])
    return sum(
      (
        largest_singular_value(layer, shape, iterations) ** 2
        for layer, shape in zip(layers, shapes)
        if isinstance(layer, Dense | Conv)
      ),
      start=jnp.zeros(()),
    )

  return penalty


def largest_singular_value(layer: AffineLayer, shape: Sequence[int], iterations: int = 8) -> Array:
  """Of the linear part of a layer, [], with its gradient in the weights: d|L| = <u, dL v>.

  A lower bound that `iterations` of the power method make tight.

  Args:
    layer: z -> L z + bias.
    shape: *in, of one input.
    iterations: of the power method.
  """
  frozen = jax.lax.stop_gradient(layer)
  v = jax.random.normal(jax.random.key(0), (1, *shape))
  transposed = jax.linear_transpose(frozen.linear, v)

  def iterate(v: Array, _: None) -> tuple[Array, None]:
    return transposed(frozen.linear(_unit(v)))[0], None

  v, _ = jax.lax.scan(iterate, v, length=iterations)
  image = layer.linear(_unit(v))
  # By the unit vector u of the image, so that an image of 0 has the gradient 0 and not NaN.
  return jnp.sum(jax.lax.stop_gradient(_unit(image)) * image)


def layer_jacobian(layers_of: LayersOf) -> Penalty:
  """Sum over the layers of the squared Frobenius norm of their Jacobians, [B], estimated.

    sum over l of |d h_l / d h_(l - 1)|_F^2

  where h_l follows the ReLU, and h_0 is the image in pixels: the layer-wise contractive penalty of
  Gu and Rigazio 2015 (arXiv 1412.5068), equation 4. |J|_F^2 is the mean of |J^T v|^2 over standard
  normal v, of which one is drawn for each example and layer: unbiased, at the cost of a backward
  pass. The inputs h_(l - 1) are taken as they are, as through piecewise linear layers they change a
  Jacobian nowhere.

  Args:
    layers_of: params -> layers.
  """

  def penalty(params: Params, model_state: ModelState, batch: Batch, keys: Array) -> Array:
    del model_state
    h, total = batch.x, jnp.zeros(batch.x.shape[:1])
    for place, stage in enumerate(stages(layers_of(params))):
      after, pull_back = jax.vjp(lambda h, stage=stage: apply(stage, h), jax.lax.stop_gradient(h))
      layer_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, place)
      v = jax.vmap(lambda key, shape=after.shape[1:]: jax.random.normal(key, shape))(layer_keys)
      (pulled,) = pull_back(v)
      total += jnp.sum(pulled**2, axis=range(1, pulled.ndim))
      h = after
    return total

  return penalty


def gradient_alignment(
  model: ApplyFn, uncertainty: UncertaintySet, loss: LossFn = losses.cross_entropy
) -> Penalty:
  """1 - cos(grad_x J(x), grad_x J(x + eta)) for a random eta of U, [B].

  A loss whose gradient turns within U is no longer near to linear there, and one step of ascent no
  longer an adversary. Source: Andriushchenko and Flammarion 2020 (arXiv 2007.02617), equation 3;
  the net is in evaluation mode here. Where a gradient is zero the penalty is 1 and has none.

  Args:
    model: whose gradients.
    uncertainty: U.
    loss: J.
  """

  def penalty(params: Params, model_state: ModelState, batch: Batch, keys: Array) -> Array:
    def total(x: Array) -> Array:
      logits, _ = model(params, model_state, x, train=False, key=None)
      return jnp.sum(loss(logits, batch.y))

    here = jax.grad(total)(batch.x)
    there = jax.grad(total)(batch.x + uncertainty.sample(keys, batch.x))
    return 1.0 - jax.vmap(_cosine)(here, there)

  return penalty


def _cosine(a: Array, b: Array) -> Array:
  """Of the angle between a and b [*S], []; 0 where one of them is 0."""
  return jnp.sum(_unit(a) * _unit(b))


def _unit(v: Array) -> Array:
  """v / |v|_2, and 0 where v is 0, with the gradient 0 there; of any scale."""
  largest = jax.lax.stop_gradient(jnp.max(jnp.abs(v)))
  scaled = v / jnp.where(largest > 0, largest, 1.0)
  square = jnp.sum(scaled**2)
  return jnp.where(largest > 0, scaled / jnp.sqrt(jnp.where(largest > 0, square, 1.0)), 0.0)


def _input_shapes(layers: Sequence[Layer], shape: Sequence[int]) -> list[tuple[int, ...]]:
  """The shape of one input of every layer, for examples of `shape`."""
  found: list[tuple[int, ...]] = []
  at = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  for layer in layers:
    found.append(at.shape[1:])
    at = jax.eval_shape(lambda x, layer=layer: layer(x), at)
  return found
