"""An adversary in every layer, as the one adversary of Algorithm 1: by lifting the example.

A net is a sequence of stages, h_l = stage_l(h_{l-1}) with h_0 = x. The lifted example is

    z = (x, 0, ..., 0)                        a block of zeros for the input of every later stage,
    h_0 = z_0,  h_l = stage_l(h_{l-1}) + z_l  and the lifted net adds the l-th block there.

A perturbation delta of z perturbs every layer, and its set is a product of sets, one a block. One
step of steepest ascent over the product moves every layer by the steepest ascent of its own
gradient, all at once, from one backward pass. So every set, maximiser and objective, and
`ro.make_train_step`, serve as they are:

  shapes = hidden.shapes(net, image_shape)                         # [(28, 28, 1), (9, 9, 32), ...]
  u = hidden.layerwise(net, image_shape, ro.LInf(0.1, (0.0, 1.0)), hidden_radius=0.05)
  apply = hidden.lifted_apply(net, image_shape)
  step = ro.make_train_step(apply, optimizer, ro.robust(), ro.steepest(u))
  step = hidden.lifted_step(step, shapes)                          # takes batches of images
  state = ro.init_state(*models.init(net, key, image_shape), optimizer)
  state, metrics = jax.jit(step)(state, batch, key)

The parameters are the net's own: evaluate them with models.from_linen(net), as ever.

|  what                                    |  first          |  hidden_radius  |
|  ordinary adversarial training           |  any set        |  0              |
|  hidden layers only (Goodfellow et al.)  |  radius 0       |  > 0            |
|  every layer                             |  any set        |  > 0            |

Sources: Nokland 2015 (arXiv 1510.04189), an adversarial gradient within back-propagation, of the
input alone: the first row, with l_inf. Goodfellow et al. 2015 (arXiv 1412.6572), section 6, compare
the input with hidden layers. Sankaranarayanan et al. 2018 (arXiv 1705.07819) perturb hidden
activations by gradients kept from the mini-batch before; here they are the batch's own, which costs
the backward pass that theirs saves.

A radius in a hidden layer has the units of that layer's activations, which the net itself sets: a
net of ReLU units may answer by larger activations, so that the same radius means less as training
goes on (Goodfellow et al. 2015 report it).
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from robust_opt import models, sets
from robust_opt.errors import InputError
from robust_opt.models import affine
from robust_opt.sets import LInf, Radius, UncertaintySet
from robust_opt.sets.products import split
from robust_opt.training.state import TrainMetrics, TrainState, TrainStep
from robust_opt.types import ApplyFn, Array, Batch, ModelState, Params

Shape = tuple[int, ...]


def stages(net: nn.Module, params: Params) -> list[list[affine.Layer]]:
  """The layers of a net, cut before every Dense and Conv but the first.

  What is not weighted goes with the weighted layer before it, and the standardisation with the
  first; so the input of a later stage is what its weights multiply, after ReLU, pooling and
  flattening. SoftmaxRegression is one stage, DigitsCNN and MnistCNN are four.

  Args:
    net: SoftmaxRegression, MLP, DigitsCNN, or MnistCNN without batch normalisation.
    params: its parameters, as from models.init.

  Raises:
    InputError: of any other net, from affine.layers_of.
  """
  return affine.stages(affine.layers_of(net, params))


def shapes(net: nn.Module, image_shape: Sequence[int]) -> list[Shape]:
  """The shapes of the stages' inputs in one example: the image's, then those of the later stages.

  Nothing is computed. Arguments and errors as for `lifted_apply`.
  """

  def inputs(key: Array) -> list[Array]:
    params, _ = models.init(net, key, image_shape)
    found = [jnp.zeros((1, *image_shape))]
    for stage in stages(net, params)[:-1]:
      found.append(affine.apply(stage, found[-1]))
    return found

  return [h.shape[1:] for h in jax.eval_shape(inputs, jax.random.key(0))]


def lift(x: Array, shapes: Sequence[Shape]) -> Array:
  """Images x [B, *S] -> (x, 0, ..., 0), flattened: [B, n], n the sum of the sizes of the shapes.

  Args:
    x: [B, *S], S the first of the shapes.
    shapes: from `shapes`.

  Raises:
    InputError: the images have another shape.
  """
  if x.shape[1:] != tuple(shapes[0]):
    raise InputError(
      f"The images must have the shape {tuple(shapes[0])} of the first block, but x has {x.shape}."
    )
  later = sum(math.prod(shape) for shape in shapes[1:])
  return jnp.pad(x.reshape(x.shape[0], -1), ((0, 0), (0, later)))


def unlift(z: Array, shapes: Sequence[Shape]) -> list[Array]:
  """[B, n] -> the blocks, each [B, *shape]: of a lifted example, a gradient in it, or a delta.

  Raises:
    InputError: n is not the sum of the sizes of the shapes.
  """
  return split(z, shapes)


def lifted_apply(net: nn.Module, image_shape: Sequence[int]) -> ApplyFn:
  """The net as a function of lifted examples: its x is z [B, n], its logits are [B, C].

  At lift(x) it is the net at x, to rounding; in float32, whatever the net's dtype. `train` and
  `key` change nothing: none of the nets has a mode, or a state.

  Args:
    net: SoftmaxRegression, MLP, DigitsCNN, or MnistCNN without batch normalisation.
    image_shape: [H, W, C], of one image.

  Raises:
    InputError: of any other net; from the function: its x is not [B, n].
  """
  block_shapes = shapes(net, image_shape)

  def apply(
    params: Params, model_state: ModelState, x: Array, *, train: bool, key: Array | None
  ) -> tuple[Array, ModelState]:
    del train, key
    first, *later = unlift(x, block_shapes)
    stage, *rest = stages(net, params)
    h = affine.apply(stage, first)
    for stage, block in zip(rest, later, strict=True):
      h = affine.apply(stage, h + block)
    return h, model_state

  return apply


def layerwise(
  net: nn.Module, image_shape: Sequence[int], first: UncertaintySet, hidden_radius: Radius
) -> UncertaintySet:
  """U of a lifted example: `first` for the image, l_inf balls for the inputs of the later stages.

  For other hidden sets, or a radius for each layer, call `sets.Product` with `shapes`.

  Args:
    net: as for `lifted_apply`.
    image_shape: [H, W, C], of one image.
    first: the set of the image, in pixels; it may have a box.
    hidden_radius: [] or [B], >= 0, of every later stage's input, in the units of its activations;
      without a box. It may be traced.

  Raises:
    InputError: the net is another, or the radius is negative or NaN.
  """
  image, *later = shapes(net, image_shape)
  blocks = (first, *(LInf(hidden_radius) for _ in later))
  return sets.Product(blocks, (image, *later))


def lifted_step(step: TrainStep, shapes: Sequence[Shape]) -> TrainStep:
  """A step on lifted batches as a step on batches of images, x [B, *S]; for `ro.make_scan` too.

  Args:
    step: made of `lifted_apply`.
    shapes: from `shapes`.

  Raises:
    InputError: from the step: the images have another shape.
  """

  def lifted(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, TrainMetrics]:
    return step(state, batch._replace(x=lift(batch.x, shapes)), key)

  return lifted
