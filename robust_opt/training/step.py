"""The training step and the scan over many of them: pure functions, placed by the caller.

  step = ro.make_train_step(apply, optimizer, ro.robust(), ro.steepest(ro.L2(0.5)))
  state, metrics = jax.jit(step, donate_argnums=0)(state, batch, key)     # one device, or a mesh
  state, metrics = jax.pmap(step_with_axis_name, "data", in_axes=(None, 0, None))(...)

The same step runs under jit, jit over a mesh, pmap and shard_map: nothing in it knows where its
arrays lie, except that under pmap and shard_map it must be told the axis to average over.

Randomness is a function of (key, step) and of each example's id, its place in the data set, never
of state that is carried, so that a run can be stopped and resumed to the same bits.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from robust_opt.errors import InputError
from robust_opt.maximizers import Attack, ScheduledAttack
from robust_opt.maximizers.base import check_attack, check_examples
from robust_opt.objectives import RobustObjective
from robust_opt.training.optimizers import AverageState
from robust_opt.training.penalties import Penalty
from robust_opt.types import ApplyFn, Array, Batch, Forward, ModelState, Params, PyTree


@flax.struct.dataclass
class TrainState:
  """All that a checkpoint needs: no keys, no functions.

  Attributes:
    step: [], int32, updates made so far.
    params: what is learnt.
    model_state: what the model keeps beside it (batch statistics), or {}.
    opt_state: the optimiser's.
    memory: what a step hands to the next beside (one_pass.py), or ().
  """

  step: Array
  params: Params
  model_state: ModelState
  opt_state: optax.OptState
  memory: PyTree = ()


class TrainMetrics(NamedTuple):
  """What a step reports; the scan stacks it.

  Attributes:
    loss: [], the mean loss at the perturbed batch.
    zero_gradients: [], int32, examples whose first input gradient was exactly zero, so that the
      ascent left them where they were.
  """

  loss: Array
  zero_gradients: Array


TrainStep = Callable[[TrainState, Batch, Array], tuple[TrainState, TrainMetrics]]


def init_state(
  params: Params,
  model_state: ModelState,
  optimizer: optax.GradientTransformation,
  memory: PyTree = (),
) -> TrainState:
  """The state before the first update."""
  step = jnp.zeros((), jnp.int32)
  return TrainState(step, params, model_state, optimizer.init(params), memory)


class Streams(NamedTuple):
  """The keys of a run, one for each use of its seed.

  Attributes:
    net: of the parameters at first.
    training: of the order, the augmentation and the steps.
    evaluation: of the attacks that measure.
    memory: of what the first update finds in TrainState.memory.
  """

  net: Array
  training: Array
  evaluation: Array
  memory: Array


def streams(key: Array) -> Streams:
  """The keys of the run whose seed's key this is; under vmap, of many."""
  return Streams(*jax.random.split(key, 4))


def evaluated_params(state: TrainState) -> Params:
  """What a net is judged by: the average of its weights where the optimiser keeps one."""
  # By its type: an optimiser's moments have the names of parameters, which may be "average" too.
  kept = jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, AverageState))
  averages = [node.average for node in kept if isinstance(node, AverageState)]
  return averages[-1] if averages else state.params


def make_train_step(
  apply: ApplyFn,
  optimizer: optax.GradientTransformation,
  objective: RobustObjective,
  attack: Attack | ScheduledAttack,
  *,
  ascent_apply: ApplyFn | None = None,
  ascent_in_train_mode: bool = False,
  perturb_weights: Callable[[Params, Params], Params] | None = None,
  penalty: Penalty | None = None,
  axis_name: str | None = None,
) -> TrainStep:
  """One update of Algorithm 1 (Shaham et al. 2015): ascend in x, then descend in theta there.

  The ascent sees frozen parameters, so that it computes no gradient in them, and by default the
  model in evaluation mode: every example then has a loss, and an adversary, of its own. In train
  mode batch normalisation ties the examples of a batch together and dropout masks vary between the
  ascent and the descent; that is what the authors' code did, and `ascent_in_train_mode` does it.
  Either way the running statistics are updated by the descent alone.

  Args:
    apply: the model.
    optimizer: what descends.
    objective: what the adversary ascends and the learner descends.
    attack: how the adversary ascends, always or at each step.
    ascent_apply: the model as the ascent sees it, with the same parameters: in an arithmetic of
      fewer bits, say. None: as it is.
    ascent_in_train_mode: see above.
    perturb_weights: (params, gradient) -> what is added to the params before the gradient of the
      descent is taken, and taken away again after it: `optimizers.adversarial_weights`. One forward
      and one backward pass more.
    penalty: what the learner pays beside the objective, at the clean batch; the loss that is
      reported contains it.
    axis_name: under pmap and shard_map, the axis that the batch is split over. Dropout masks are
      then drawn per device. Of the model's state the mean over the devices is kept, of integers and
      flags the maximum, and of keys each its own.

  Returns:
    step(state, batch, key) -> (state, metrics); the key is folded with nothing, so give every step
    one of its own.

  Raises:
    InputError: attack has another type; from the step: the examples are not one array of floats, y
      or ids have no entry for each of them, or the loss has not one value for each.
  """
  check_attack(attack, scheduled=True)

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, TrainMetrics]:
    check_batch(batch)
    start_key, ascent_key, descent_key, penalty_key = jax.random.split(key, 4)
    if axis_name is not None:
      place = jax.lax.axis_index(axis_name)
      ascent_key, descent_key = (jax.random.fold_in(k, place) for k in (ascent_key, descent_key))

    def forward(model: ApplyFn, params: Params, train: bool, key: Array) -> Forward:
      return lambda x: model(params, state.model_state, x, train=train, key=key)

    frozen = forward(
      ascent_apply or apply,
      jax.lax.stop_gradient(state.params),
      ascent_in_train_mode,
      ascent_key,
    )
    value_fn = objective.inner(frozen, batch.x, batch.y)
    perturb = attack.at(state.step) if isinstance(attack, ScheduledAttack) else attack
    delta, info = perturb(value_fn, keys_of(start_key, batch.ids), batch.x)
    x_adv = batch.x + delta

    def mean_loss(params: Params) -> tuple[Array, ModelState]:
      trained = forward(apply, params, True, descent_key)
      loss, model_state = objective.outer(trained, batch.x, x_adv, batch.y)
      check_losses(loss, batch)
      if penalty is not None:
        loss += penalty(params, state.model_state, batch, keys_of(penalty_key, batch.ids))
      return jnp.mean(loss), model_state

    def averaged(tree: PyTree) -> PyTree:
      return tree if axis_name is None else jax.tree.map(mean_over_devices, tree)

    def mean_over_devices(leaf: Array) -> Array:
      # Of counters and flags there is no mean; a counter of examples is the model's own to psum.
      if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
      floating = jnp.issubdtype(leaf.dtype, jnp.inexact)
      return jax.lax.pmean(leaf, axis_name) if floating else jax.lax.pmax(leaf, axis_name)

    at = state.params
    if perturb_weights is not None:
      ascent, _ = jax.grad(mean_loss, has_aux=True)(_varying(at, axis_name))
      at = optax.apply_updates(at, perturb_weights(at, averaged(ascent)))
    (loss, model_state), grads = jax.value_and_grad(mean_loss, has_aux=True)(
      _varying(at, axis_name)
    )
    zeros = jnp.sum(jnp.any(info.zero_gradient[:1], axis=0), dtype=jnp.int32)
    loss, grads, model_state = averaged((loss, grads, model_state))
    if axis_name is not None:
      zeros = jax.lax.psum(zeros, axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    after = TrainState(state.step + 1, params, model_state, opt_state, state.memory)
    return after, TrainMetrics(loss, zeros)

  return step


def _varying(params: Params, axis_name: str | None) -> Params:
  """Parameters that each device differentiates for itself.

  Under shard_map with check_vma the gradient of replicated parameters would be summed over the
  devices before the step averages it, and so come out larger by their number; elsewhere nothing
  changes.
  """
  if axis_name is None:
    return params
  return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axis_name, to="varying"), params)


def check_batch(batch: Batch) -> None:
  """InputError unless x is one array of floats, and y and ids have an entry for each example."""
  check_examples("The examples (x of the batch)", batch.x)
  count = batch.x.shape[0]
  if jnp.shape(batch.y)[:1] != (count,) or jnp.shape(batch.ids) != (count,):
    raise InputError(
      f"A batch of {count} examples must have y [{count}, ...] and ids [{count}], but they have "
      f"the shapes {jnp.shape(batch.y)} and {jnp.shape(batch.ids)}."
    )


def check_losses(loss: Array, batch: Batch) -> None:
  """InputError unless there is one loss for every example."""
  count = batch.x.shape[0]
  if loss.shape != (count,):
    raise InputError(
      f"The loss must return one value for each of the {count} examples, [{count}], but it has the "
      f"shape {loss.shape} for y of the shape {jnp.shape(batch.y)}."
    )


def keys_of(key: Array, ids: Array) -> Array:
  """A key for every example, [B], that depends on its id alone."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)


class ArrayData(NamedTuple):
  """A data set at rest on the device: images [N, *S] uint8 or float32 in [0, 1], labels [N, ...].

  Labels are classes [N], or whatever the loss takes.
  """

  images: Array | np.ndarray
  labels: Array | np.ndarray


def take(data: ArrayData, ids: Array) -> Batch:
  """The examples of these ids [B], images as float32 pixels in [0, 1]."""
  images = jnp.asarray(data.images)[ids]
  if images.dtype == jnp.uint8:
    images = images.astype(jnp.float32) / 255.0
  return Batch(images, jnp.asarray(data.labels)[ids], ids)


class EpochPlan(NamedTuple):
  """How an epoch walks through the data.

  Attributes:
    num_examples: N.
    batch_size: B. Only whole batches are made: when N is no multiple of B, what is left over waits
      for another epoch's order, or, without shuffling, is never seen.
    shuffle: whether every epoch has an order of its own.
  """

  num_examples: int
  batch_size: int
  shuffle: bool = True

  @property
  def num_steps(self) -> int:
    """Updates an epoch; an InputError if it has no whole batch."""
    if not 1 <= self.batch_size <= self.num_examples:
      raise InputError(
        f"batch_size must be 1 to {self.num_examples}, the number of examples, but was "
        f"{self.batch_size}."
      )
    return self.num_examples // self.batch_size


def make_scan(
  step: TrainStep,
  plan: EpochPlan,
  *,
  augment: Callable[[Array, Array], Array] | None = None,
  place_batch: Callable[[Batch], Batch] = lambda batch: batch,
) -> Callable[..., tuple[TrainState, TrainMetrics]]:
  """Many training steps as one lax.scan over data that lies on the device.

  The order of an epoch derives from (key, epoch), the noise of a step from (key, step), so that
  any part of any epoch can be run again to the same bits.

  Args:
    step: from make_train_step.
    plan: the walk through the data.
    augment: (keys [B], images [B, *S]) -> images, applied to the clean batch.
    place_batch: constrains where a batch lies (sharding.py).

  Returns:
    run(state, data, key, num_steps) -> (state, metrics [num_steps]): the next num_steps (static)
    updates from state.step on, across the ends of epochs as they come.

  Raises:
    InputError: an epoch of this plan has no whole batch.
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

    most_epochs = 1 + -(-num_steps // steps_per_epoch)  # that so many steps can touch
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
