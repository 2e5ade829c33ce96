"""Training steps whose ascent is free: one backward pass gives the gradients in theta and x.

  step = free.make_free_train_step(apply, optimizer, u, u, num_replays=4)
  step = free.make_recall_train_step(apply, optimizer, u)

Both start from what an earlier backward pass left in `TrainState.memory`: in free training that of
the previous replay, in recalled training that of the same example, an epoch ago. Both run under
jit, on one device or over a mesh; the gradients are those of the model in train mode.
"""

import dataclasses
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from robust_opt import losses
from robust_opt.sets import UncertaintySet
from robust_opt.training.state import TrainMetrics, TrainState, TrainStep, updated
from robust_opt.training.step import check_batch, check_losses
from robust_opt.types import ApplyFn, Array, Batch, LossFn, ModelState, Params


def make_free_train_step(
  apply: ApplyFn,
  optimizer: optax.GradientTransformation,
  uncertainty: UncertaintySet,
  ascent: UncertaintySet,
  num_replays: int,
  loss: LossFn = losses.cross_entropy,
) -> TrainStep:
  """ "Free" adversarial training: Shafahi et al. 2019 (arXiv 1904.12843), algorithm 1.

  Every batch is used num_replays times in a row, with one update and one step of delta each. delta
  is carried over between batches in state.memory, [B, *S]; pass zeros to `init_state`.

  Args:
    apply, loss: the model and J; the reported loss is the mean over the replays.
    optimizer: of the parameters, with num_replays updates per step: a schedule counts replays.
    uncertainty: the set that delta stays in.
    ascent: the set of one step of delta; as large as `uncertainty` in the paper.
    num_replays: m of the paper, >= 1.
  """

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, TrainMetrics]:
    chex.assert_equal_shape((state.memory, batch.x))

    def replay(state: TrainState, key: Array) -> tuple[TrainState, tuple[Array, Array]]:
      delta = state.memory
      (value, model_state), (grads, g) = _both_gradients(apply, loss, state, batch, delta, key)
      delta = uncertainty.project(delta + ascent.steepest_ascent(g, batch.x + delta), batch.x)
      zeros = jnp.sum(jnp.all(g == 0, axis=range(1, g.ndim)), dtype=jnp.int32)
      return updated(state, optimizer, grads, model_state, delta), (value, zeros)

    # The delta of the last batch may lie outside of the set around this one.
    start = dataclasses.replace(state, memory=uncertainty.project(state.memory, batch.x))
    after, (values, zeros) = jax.lax.scan(replay, start, jax.random.split(key, num_replays))
    after = dataclasses.replace(after, step=state.step + 1)
    return after, TrainMetrics(jnp.mean(values), zeros[0])

  return step


def make_recall_train_step(
  apply: ApplyFn,
  optimizer: optax.GradientTransformation,
  uncertainty: UncertaintySet,
  loss: LossFn = losses.cross_entropy,
) -> TrainStep:
  """Algorithm 1 with ascent directions from the previous epoch, stored as one bit per pixel.

  The backward pass of the descent, at x + delta, also gives the gradient in x. Its signs are kept
  in state.memory, and give the direction of steepest ascent for the same example an epoch later:

    delta = argmax over U of <s, delta>,  s = sign of grad_x J at the old theta and x + delta

  So an update costs one forward and one backward pass. A pixel of gradient 0 counts as negative.
  Not for l_1, where signs do not identify the largest entry. state.memory is [N, ceil(n / 8)] uint8
  for n pixels, from `unknown_directions`, and batch.ids are indices into it.
  """

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, TrainMetrics]:
    shape = batch.x.shape
    remembered = state.memory[batch.ids]
    bits = jnp.unpackbits(remembered, axis=-1, count=int(np.prod(shape[1:])))
    signs = 2.0 * bits.reshape(shape).astype(batch.x.dtype) - 1.0
    delta = uncertainty.steepest_ascent(signs, batch.x)

    (value, model_state), (grads, g) = _both_gradients(apply, loss, state, batch, delta, key)
    g = g.reshape(len(g), -1)
    zero = jnp.all(g == 0, axis=-1)
    seen = jnp.where(zero[:, None], remembered, jnp.packbits(g > 0, axis=-1))
    memory = state.memory.at[batch.ids].set(seen)
    after = updated(state, optimizer, grads, model_state, memory)
    return after, TrainMetrics(value, jnp.sum(zero, dtype=jnp.int32))

  return step


def unknown_directions(key: Array, num_examples: int, image_shape: Sequence[int]) -> Array:
  """Random signs, [N, ceil(n / 8)] uint8, for examples that have not been seen."""
  size = -(-int(np.prod(image_shape)) // 8)
  return jax.random.bits(key, (num_examples, size), jnp.uint8)


def _both_gradients(
  apply: ApplyFn, loss: LossFn, state: TrainState, batch: Batch, delta: Array, key: Array
) -> tuple[tuple[Array, ModelState], tuple[Params, Array]]:
  """((mean loss at x + delta, model_state), its gradients in theta and in delta)."""

  def mean_loss(params: Params, delta: Array) -> tuple[Array, ModelState]:
    logits, model_state = apply(params, state.model_state, batch.x + delta, train=True, key=key)
    values = loss(logits, batch.y)
    check_losses(values, batch)
    return jnp.mean(values), model_state

  check_batch(batch)
  return jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True)(state.params, delta)
