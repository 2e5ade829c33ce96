"""Adversarial perturbations of every layer's input, by training on lifted examples.

A net is a sequence of stages, h_l = stage_l(h_{l-1}) with h_0 = x. The lifted example is

    z = (x, 0, ..., 0)                        a block of zeros for the input of every later stage,
    h_0 = z_0,  h_l = stage_l(h_{l-1}) + z_l  where the lifted net adds the l-th block.

A perturbation delta of z perturbs every layer, and its set is a product of one set per block. So
one steepest ascent step is one in every block, all from one backward pass:

  u = layerwise.layerwise(net, image_shape, ro.LInf(0.1, (0.0, 1.0)), hidden_radius=0.05)
  apply = layerwise.lifted_apply(net, image_shape)
  step = ro.make_train_step(apply, optimizer, ro.robust(), ro.steepest(u))
  step = layerwise.lifted_step(step, layerwise.shapes(net, image_shape))   # of batches of images

The parameters are the net's own. A hidden radius has the units of that layer's activations, which
training changes: a ReLU net can grow them, so that the same radius means less later in training.

Sources: Nokland 2015 (arXiv 1510.04189); Goodfellow et al. 2015 (arXiv 1412.6572), section 6, with
the image's radius 0; Sankaranarayanan et al. 2018 (arXiv 1705.07819), by the gradients of the
previous mini-batch instead of the same one.
"""

import math
from collections.abc import Sequence

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


def stages(net: models.Net, params: Params) -> list[list[affine.Layer]]:
  """The layers of a net, split before every Dense and Conv but the first; as affine.layers_of."""
  return affine.stages(affine.layers_of(net, params))


def shapes(net: models.Net, image_shape: Sequence[int]) -> list[Shape]:
  """The shapes of the stages' inputs for one example, beginning with the image."""

  def inputs(key: Array) -> list[Array]:
    params, _ = models.init(net, key, image_shape)
    h = [jnp.zeros((1, *image_shape))]
    for stage in stages(net, params)[:-1]:
      h.append(affine.apply(stage, h[-1]))
    return h

  return [h.shape[1:] for h in jax.eval_shape(inputs, jax.random.key(0))]


def lift(x: Array, shapes: Sequence[Shape]) -> Array:
  """Images x [B, *S] -> (x, 0, ..., 0) [B, n], n the total size of the shapes."""
  if x.shape[1:] != tuple(shapes[0]):
    raise InputError(
      f"The images must have the shape {tuple(shapes[0])} of the first block, but x has {x.shape}."
    )
  later = sum(math.prod(shape) for shape in shapes[1:])
  return jnp.pad(x.reshape(x.shape[0], -1), ((0, 0), (0, later)))


def lifted_apply(net: models.Net, image_shape: Sequence[int]) -> ApplyFn:
  """The net as a function of lifted examples, x = z [B, n] -> logits [B, C].

  At lift(x) it equals the net at x up to rounding, in float32 for any dtype of the net. `train` and
  `key` have no effect: nets with a list of layers have neither dropout nor a state.

  Raises:
    InputError: the net has no list of layers; from the function: x is not [B, n].
  """
  block_shapes = shapes(net, image_shape)

  def apply(
    params: Params, model_state: ModelState, x: Array, *, train: bool, key: Array | None
  ) -> tuple[Array, ModelState]:
    first, *later = split(x, block_shapes)
    stage, *rest = stages(net, params)
    h = affine.apply(stage, first)
    for stage, block in zip(rest, later, strict=True):
      h = affine.apply(stage, h + block)
    return h, model_state

  return apply


def layerwise(
  net: models.Net, image_shape: Sequence[int], first: UncertaintySet, hidden_radius: Radius
) -> UncertaintySet:
  """U of a lifted example: `first` for the image, l_inf balls for the inputs of the later stages.

  For other hidden sets, or a radius per layer, use `sets.Product` with `shapes`.

  Args:
    net: with a list of layers, as for affine.layers_of.
    image_shape: [H, W, C], of one image.
    first: the set of the image, in pixels; it may have a box.
    hidden_radius: [] or [B], >= 0, in the units of each stage's activations; it may be traced.

  Raises:
    InputError: the net has no list of layers, or the radius is negative or NaN.
  """
  image, *later = shapes(net, image_shape)
  blocks = (first, *(LInf(hidden_radius) for _ in later))
  return sets.Product(blocks, (image, *later))


def lifted_step(step: TrainStep, shapes: Sequence[Shape]) -> TrainStep:
  """Turns a train step of `lifted_apply` into a step on batches of images x [B, *S]."""

  def lifted(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, TrainMetrics]:
    return step(state, batch._replace(x=lift(batch.x, shapes)), key)

  return lifted
