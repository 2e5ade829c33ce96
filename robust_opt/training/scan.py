"""Many training steps as one scan over data on the device.

  plan = EpochPlan(num_examples=60_000, batch_size=100)
  scan = jax.jit(make_scan(step, plan), static_argnums=3, donate_argnums=0)
  state, metrics = scan(state, ArrayData(images, labels), key, 600)         # the next 600 updates

Randomness is a function of (key, step) and of each example's id, its index in the data set, never
of carried state, so that a resumed run is bit-identical.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt.errors import InputError
from robust_opt.keys import keys_of
from robust_opt.training.state import TrainMetrics, TrainState, TrainStep
from robust_opt.types import Array, Batch


class ArrayData(NamedTuple):
  """A data set: images [N, *S] uint8 or float32 in [0, 1], labels [N], or [N, ...] for the loss."""

  images: Array | np.ndarray
  labels: Array | np.ndarray


def take(data: ArrayData, ids: Array) -> Batch:
  """The examples of these ids [B], images as float32 pixels in [0, 1]."""
  images = jnp.asarray(data.images)[ids]
  if images.dtype == jnp.uint8:
    images = images.astype(jnp.float32) / 255.0
  return Batch(images, jnp.asarray(data.labels)[ids], ids)


class EpochPlan(NamedTuple):
  """The batches of an epoch.

  Attributes:
    num_examples: N.
    batch_size: B. The last N mod B examples of an epoch's order are dropped; without shuffling
      they are never used.
    shuffle: whether every epoch has its own random order.
  """

  num_examples: int
  batch_size: int
  shuffle: bool = True

  @property
  def num_steps(self) -> int:
    """Updates per epoch; an InputError if there is no whole batch."""
    count, size = self.num_examples, self.batch_size
    if not 1 <= size <= count:
      raise InputError(f"batch_size must be 1 to {count}, the number of examples, but was {size}.")
    return count // size


def make_scan(
  step: TrainStep,
  plan: EpochPlan,
  *,
  augment: Callable[[Array, Array], Array] | None = None,
  place_batch: Callable[[Batch], Batch] = lambda batch: batch,
) -> Callable[..., tuple[TrainState, TrainMetrics]]:
  """Many training steps as one lax.scan over data on the device.

  The order of an epoch derives from (key, epoch), the noise of a step from (key, step), so that
  any part of any epoch can be reproduced bit for bit.

  Args:
    step, plan: the step, and the batches of an epoch; an InputError if there is no whole batch.
    augment: (keys [B], images [B, *S]) -> images, applied to the clean batch.
    place_batch: applies a sharding constraint to a batch (sharding.py).

  Returns:
    run(state, data, key, num_steps) -> (state, metrics [num_steps]): the next num_steps (static)
    updates from state.step on, across ends of epochs.
  """
  steps_per_epoch = plan.num_steps

  def run(
    state: TrainState, data: ArrayData, key: Array, num_steps: int
  ) -> tuple[TrainState, TrainMetrics]:
    order_key, noise_key = (jax.random.fold_in(key, stream) for stream in (0, 1))
    epoch, position = jnp.divmod(state.step, steps_per_epoch)

    def order_of(epoch: Array) -> Array:
      order = jnp.arange(plan.num_examples, dtype=jnp.int32)
      if plan.shuffle:
        order = jax.random.permutation(jax.random.fold_in(order_key, epoch), order)
      return order[: steps_per_epoch * plan.batch_size]

    most_epochs = 1 + -(-num_steps // steps_per_epoch)  # that num_steps can overlap
    orders = jax.vmap(order_of)(epoch + jnp.arange(most_epochs)).reshape(-1)
    start = position * plan.batch_size
    ids = jax.lax.dynamic_slice(orders, (start,), (num_steps * plan.batch_size,))

    def body(state: TrainState, ids: Array) -> tuple[TrainState, TrainMetrics]:
      batch = place_batch(take(data, ids))
      augment_key, step_key = jax.random.split(jax.random.fold_in(noise_key, state.step))
      if augment is not None:
        batch = batch._replace(x=augment(keys_of(augment_key, batch.ids), batch.x))
      return step(state, batch, step_key)

    return jax.lax.scan(body, state, ids.reshape(num_steps, plan.batch_size))

  return run
