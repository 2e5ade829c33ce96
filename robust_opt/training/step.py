"""The training step: a pure function for jit, pmap or shard_map.

  step = ro.make_train_step(apply, optimizer, ro.robust(), ro.steepest(ro.L2(0.5)))
  state, metrics = jax.jit(step, donate_argnums=0)(state, batch, key)     # one device, or a mesh
  state, metrics = jax.pmap(step_with_axis_name, "data", in_axes=(None, 0, None))(...)

For pmap and shard_map it needs the name of the axis to average over.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from robust_opt.checks import check_callable, check_optimizer, described
from robust_opt.errors import InputError
from robust_opt.keys import keys_of
from robust_opt.maximizers import Attack, ScheduledAttack
from robust_opt.maximizers.base import check_attack, check_examples
from robust_opt.objectives import RobustObjective, ScheduledObjective
from robust_opt.training.penalties import Penalty
from robust_opt.training.state import TrainMetrics, TrainState, TrainStep, updated
from robust_opt.types import ApplyFn, Array, Batch, Forward, ModelState, Params, PyTree

_APPLY = "(params, model_state, x, *, train, key) -> (logits, model_state)"


def make_train_step(
  apply: ApplyFn,
  optimizer: optax.GradientTransformation,
  objective: RobustObjective | ScheduledObjective,
  attack: Attack | ScheduledAttack,
  *,
  ascent_apply: ApplyFn | None = None,
  ascent_in_train_mode: bool = False,
  perturb_weights: Callable[[Params, Params], Params] | None = None,
  penalty: Penalty | None = None,
  axis_name: str | None = None,
) -> TrainStep:
  """One update of Algorithm 1 (Shaham et al. 2015): ascend in x, then descend in theta there.

  The ascent uses frozen parameters, so that it computes no gradient in them, and by default the
  model in evaluation mode, so that the examples are independent. In train mode batch normalization
  couples the examples of a batch and dropout masks differ between ascent and descent, as in the
  authors' code (`ascent_in_train_mode`). Either way only the descent updates running statistics.

  Args:
    apply, optimizer, objective, attack: the model and what it is trained by.
    ascent_apply: the model for the ascent, for example in bfloat16; None: `apply`.
    ascent_in_train_mode: see above.
    perturb_weights: (params, gradient) -> a perturbation of the params to take the gradient of the
      descent at: `optimizers.adversarial_weights`. One more forward and backward pass.
    penalty: added to the objective, at the clean batch, and to the reported loss.
    axis_name: under pmap and shard_map, the axis that the batch is split over. Dropout masks are
      then drawn per device. The model's state is averaged over the devices, except for integers and
      flags (maximum) and keys (kept per device).

  Returns:
    step(state, batch, key) -> (state, metrics); `key` is used as is: pass a fresh one per step.

  Raises:
    InputError: an argument has another type; from the step: the examples are not one array of
      floats, y, ids or the loss do not have one entry per example, or apply returns no pair.
  """
  _check_parts(apply, optimizer, objective)
  check_attack(attack, scheduled=True)

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, TrainMetrics]:
    check_batch(batch)
    start_key, ascent_key, descent_key, penalty_key = jax.random.split(key, 4)
    if axis_name is not None:
      device = jax.lax.axis_index(axis_name)
      ascent_key, descent_key = (jax.random.fold_in(k, device) for k in (ascent_key, descent_key))

    def forward(model: ApplyFn, params: Params, train: bool, key: Array) -> Forward:
      return lambda x, train=train: _pair(model(params, state.model_state, x, train=train, key=key))

    params = jax.lax.stop_gradient(state.params)
    frozen = forward(ascent_apply or apply, params, ascent_in_train_mode, ascent_key)
    played = objective.at(state.step) if isinstance(objective, ScheduledObjective) else objective
    value_fn = played.inner(frozen, batch.x, batch.y)
    perturb = attack.at(state.step) if isinstance(attack, ScheduledAttack) else attack
    check_attack(perturb)
    delta, info = perturb(value_fn, keys_of(start_key, batch.ids), batch.x)

    def mean_loss(params: Params) -> tuple[Array, ModelState]:
      trained = forward(apply, params, True, descent_key)
      loss, model_state = played.outer(trained, batch.x, batch.x + delta, batch.y)
      check_losses(loss, batch)
      if penalty is not None:
        loss += penalty(params, state.model_state, batch, keys_of(penalty_key, batch.ids))
      return jnp.mean(loss), model_state

    def averaged(tree: PyTree) -> PyTree:
      return tree if axis_name is None else jax.tree.map(mean_over_devices, tree)

    def mean_over_devices(leaf: Array) -> Array:
      # Counters and flags have no mean; a model must psum its own counters of examples.
      if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
      floating = jnp.issubdtype(leaf.dtype, jnp.inexact)
      return jax.lax.pmean(leaf, axis_name) if floating else jax.lax.pmax(leaf, axis_name)

    gradients, at = jax.value_and_grad(mean_loss, has_aux=True), state.params
    if perturb_weights is not None:
      _, ascent = gradients(_varying(at, axis_name))
      at = optax.apply_updates(at, perturb_weights(at, averaged(ascent)))
    (loss, model_state), grads = gradients(_varying(at, axis_name))
    zeros = jnp.sum(jnp.any(info.zero_gradient[:1], axis=0), dtype=jnp.int32)
    loss, grads, model_state = averaged((loss, grads, model_state))
    if axis_name is not None:
      zeros = jax.lax.psum(zeros, axis_name)
    after = updated(state, optimizer, grads, model_state, state.memory)
    return after, TrainMetrics(loss, zeros)

  return step


def _varying(params: Params, axis_name: str | None) -> Params:
  """Parameters that each device differentiates for itself, for the step to average the gradients.

  Under shard_map with check_vma the gradient of replicated parameters would be a sum over devices.
  """
  if axis_name is None:
    return params
  return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axis_name, to="varying"), params)


def _check_parts(apply: object, optimizer: object, objective: object) -> None:
  check_callable("apply", apply, _APPLY, None, None, None, train=None, key=None)
  check_optimizer(optimizer)
  if not isinstance(objective, RobustObjective | ScheduledObjective):
    raise InputError(
      f"objective must be a RobustObjective, as from ro.robust() or ro.robust(loss), but was "
      f"{described(objective)}."
    )


def _pair(outputs: tuple[Array, ModelState]) -> tuple[Array, ModelState]:
  if not (isinstance(outputs, tuple | list) and len(outputs) == 2):
    raise InputError(
      f"apply must return (logits, model_state), with {{}} for a model without state, but returned "
      f"{described(outputs)}."
    )
  return outputs


def check_batch(batch: Batch) -> None:
  """InputError unless x is one array of floats, and y and ids have an entry for each example."""
  if not all(hasattr(batch, name) for name in ("x", "y", "ids")):
    raise InputError(f"A batch must be ro.Batch(x, y, ids), but was {described(batch)}.")
  check_examples("The examples (x of the batch)", batch.x)
  count, y, ids = batch.x.shape[0], jnp.shape(batch.y), jnp.shape(batch.ids)
  if y[:1] != (count,) or ids != (count,):
    raise InputError(
      f"A batch of {count} examples must have y [{count}, ...] and ids [{count}], but they have "
      f"the shapes {y} and {ids}."
    )


def check_losses(loss: Array, batch: Batch) -> None:
  """InputError unless there is one loss for every example."""
  count = batch.x.shape[0]
  if loss.shape != (count,):
    raise InputError(
      f"The loss must return one value for each of the {count} examples, [{count}], but it has the "
      f"shape {loss.shape} for y of the shape {jnp.shape(batch.y)}."
    )
