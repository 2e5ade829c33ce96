"""Many training steps as one scan over data on the device.

  plan = EpochPlan(num_examples=60_000, batch_size=100)
  scan = jax.jit(make_scan(step, plan), static_argnums=3, donate_argnums=0)
  state, metrics = scan(state, ArrayData(images, labels), key, 600)         # the next 600 updates

Randomness is a function of (key, step) and of each example's id, its index in the data set, never
of carried state, so that a resumed run is bit-identical.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt.checks import check_callable, described
from robust_opt.errors import InputError
from robust_opt.keys import keys_of
from robust_opt.training.state import TrainMetrics, TrainState, TrainStep
from robust_opt.types import Array, Batch


class ArrayData(NamedTuple):
  """A data set on the device, or a part of one.

  Attributes:
    images: [N, *S], uint8 or float32 in [0, 1].
    labels: [N, ...], classes [N], or any labels that the loss takes.
    ids: [N] int32, the indices in the data set that this is a part of; None: 0 to N - 1.
  """

  images: Array | np.ndarray
  labels: Array | np.ndarray
  ids: Array | np.ndarray | None = None


def take(data: ArrayData, index: Array) -> Batch:
  """The examples at these positions [B], images as float32 pixels in [0, 1]."""
  images = jnp.asarray(data.images)[index]
  if images.dtype == jnp.uint8:
    images = images.astype(jnp.float32) / 255.0
  ids = index if data.ids is None else jnp.asarray(data.ids)[index]
  return Batch(images, jnp.asarray(data.labels)[index], ids)


class EpochPlan(NamedTuple):
  """The batches of an epoch.

  Attributes:
    num_examples: N.
    batch_size: B. The last N mod B examples of an epoch's order are dropped; without shuffling
      they are never used.
    shuffle: whether every epoch has its own random order.
    num_extra: M, further examples such as synthetic images, of the ids N to N + M - 1.
    extra_per_batch: E, how many of those are at the end of every batch. The N and the M examples
      then have passes of their own, by B - E and by E; an epoch is still N // B updates.
  """

  num_examples: int
  batch_size: int
  shuffle: bool = True
  num_extra: int = 0
  extra_per_batch: int = 0

  @property
  def num_steps(self) -> int:
    """Updates per epoch; an InputError if there is no whole batch."""
    self.check()
    return self.num_examples // self.batch_size

  def check(self) -> None:
    """Raises an InputError if there is no whole batch."""
    count, size = self.num_examples, self.batch_size
    if not 1 <= size <= count:
      raise InputError(f"batch_size must be 1 to {count}, the number of examples, but was {size}.")
    extra, most = self.extra_per_batch, min(self.num_extra, size - 1)
    if not 0 <= extra <= most:
      raise InputError(
        f"extra_per_batch must be 0 to {most}, for {self.num_extra} extra examples and batches of "
        f"{size}, but was {extra}."
      )


def ids_of_steps(plan: EpochPlan, key: Array, step: Array, num_steps: int) -> Array:
  """The examples [num_steps, B] of the next num_steps (static) updates from `step` on.

  The order of an epoch derives from (key, epoch), across ends of epochs.
  """
  order_key = jax.random.fold_in(key, 0)
  if not plan.extra_per_batch:
    return _ids_in_passes(plan, order_key, step, num_steps)
  own = EpochPlan(plan.num_examples, plan.batch_size - plan.extra_per_batch, plan.shuffle)
  extra = EpochPlan(plan.num_extra, plan.extra_per_batch, plan.shuffle)
  extra_ids = _ids_in_passes(extra, jax.random.fold_in(key, 2), step, num_steps)
  own_ids = _ids_in_passes(own, order_key, step, num_steps)
  return jnp.concatenate([own_ids, plan.num_examples + extra_ids], axis=1)


def _ids_in_passes(plan: EpochPlan, order_key: Array, step: Array, num_steps: int) -> Array:
  """The same where every epoch is a pass, whose order derives from (order_key, epoch)."""
  steps_per_epoch = plan.num_steps
  epoch, position = jnp.divmod(step, steps_per_epoch)

  def order_of(epoch: Array) -> Array:
    order = jnp.arange(plan.num_examples, dtype=jnp.int32)
    if plan.shuffle:
      order = jax.random.permutation(jax.random.fold_in(order_key, epoch), order)
    return order[: steps_per_epoch * plan.batch_size]

  most_epochs = 1 + -(-num_steps // steps_per_epoch)  # that num_steps can overlap
  orders = jax.vmap(order_of)(epoch + jnp.arange(most_epochs)).reshape(-1)
  ids = jax.lax.dynamic_slice(orders, (position * plan.batch_size,), (num_steps * plan.batch_size,))
  return ids.reshape(num_steps, plan.batch_size)


def make_scan(
  step: TrainStep,
  plan: EpochPlan,
  *,
  augment: Callable[[Array, Array], Array] | None = None,
  mix: Callable[[Array, Array, Array], tuple[Array, Array]] | None = None,
  place_batch: Callable[[Batch], Batch] = lambda batch: batch,
  streamed: bool = False,
) -> Callable[..., tuple[TrainState, TrainMetrics]]:
  """Many training steps as one lax.scan over data on the device.

  The noise of a step derives from (key, step) and its examples from `ids_of_steps`, so that any
  part of any epoch can be reproduced bit for bit.

  Args:
    step, plan: the step, and the batches of an epoch; an InputError if there is no whole batch.
    augment: (keys [B], images [B, *S]) -> images, applied to the clean batch.
    mix: (keys [B], images [B, *S], labels [B]) -> (images, labels), applied after it: what changes
      the labels too.
    place_batch: applies a sharding constraint to a batch (sharding.py).
    streamed: whether the data of a call are not the whole data set, but the examples of its steps,
      images [num_steps, B, *S], with their ids (`experiments.streaming`).

  Returns:
    run(state, data, key, num_steps) -> (state, metrics [num_steps]): the next num_steps (static)
    updates from state.step on, across ends of epochs.
  """
  check_callable("step", step, "as from ro.make_train_step")
  if not isinstance(plan, EpochPlan):
    raise InputError(
      f"plan must be a plan, as in ro.EpochPlan(num_examples, batch_size), but was "
      f"{described(plan)}."
    )
  plan.check()

  def run(
    state: TrainState, data: ArrayData, key: Array, num_steps: int
  ) -> tuple[TrainState, TrainMetrics]:
    noise_key = jax.random.fold_in(key, 1)
    whole = jnp.arange(plan.batch_size)

    def body(state: TrainState, of_step: Any) -> tuple[TrainState, TrainMetrics]:
      batch = place_batch(take(of_step, whole) if streamed else take(data, of_step))
      augment_key, step_key = jax.random.split(jax.random.fold_in(noise_key, state.step))
      keys = keys_of(augment_key, batch.ids)
      if augment is not None:
        batch = batch._replace(x=augment(keys, batch.x))
      if mix is not None:
        images, labels = mix(keys, batch.x, batch.y)
        batch = batch._replace(x=images, y=labels)
      return step(state, batch, step_key)

    ids = ids_of_steps(plan, key, state.step, num_steps)
    return jax.lax.scan(body, state, data if streamed else ids)

  return run
