"""The state and the metrics of training, and the keys of a run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from robust_opt.training.optimizers import AveragesState, AverageState
from robust_opt.types import Array, Batch, ModelState, Params, PyTree


@flax.struct.dataclass
class TrainState:
  """The training state, as stored in checkpoints: no keys, no functions.

  Attributes:
    step: [], int32, the number of updates so far.
    params: of the model.
    model_state: the state of the model, such as batch statistics, or {}.
    opt_state: of the optimizer.
    memory: carried by the steps of free.py, or ().
  """

  step: Array
  params: Params
  model_state: ModelState
  opt_state: optax.OptState
  memory: PyTree = ()


class TrainMetrics(NamedTuple):
  """The metrics of a step; the scan stacks them.

  Attributes:
    loss: [], the mean loss at the perturbed batch.
    zero_gradients: [], int32, the number of examples whose first input gradient was exactly zero.
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
  step, opt_state = jnp.zeros((), jnp.int32), optimizer.init(params)
  if jax.tree.leaves(model_state):
    opt_state = jax.tree.map(
      lambda node: _with_statistics(node, model_state), opt_state, is_leaf=_is_average
    )
  return TrainState(step, params, model_state, opt_state, memory)


def _is_average(node: Any) -> bool:
  # By type, since a parameter may also be named "average".
  return isinstance(node, AverageState | AveragesState)


def _with_statistics(node: Any, model_state: ModelState) -> Any:
  """An average that begins with these batch statistics; other states of optimizers as they are."""
  if not _is_average(node):
    return node
  return AveragesState(node.step, node.average, jax.tree.map(jnp.copy, model_state))


def updated(
  state: TrainState,
  optimizer: optax.GradientTransformation,
  gradient: Params,
  model_state: ModelState,
  memory: PyTree,
) -> TrainState:
  """The state after one update of the parameters."""
  optimizer = optax.with_extra_args_support(optimizer)
  updates, opt_state = optimizer.update(
    gradient, state.opt_state, state.params, model_state=model_state
  )
  params = optax.apply_updates(state.params, updates)
  return TrainState(state.step + 1, params, model_state, opt_state, memory)


class Streams(NamedTuple):
  """The keys of a run, one for each use of its seed."""

  net: Array  # for the initial parameters
  training: Array  # for the order, the augmentation and the steps
  evaluation: Array  # for the attacks of evaluations
  memory: Array  # for the initial TrainState.memory


def streams(key: Array) -> Streams:
  """The keys of a run from the key of its seed; under vmap, of several runs."""
  return Streams(*jax.random.split(key, 4))


def evaluated(state: TrainState) -> tuple[Params, ModelState]:
  """The parameters and the model's state to evaluate; their averages if the optimizer keeps any."""
  kept = jax.tree.leaves(state.opt_state, is_leaf=_is_average)
  averages = [node for node in kept if _is_average(node)]
  if not averages:
    return state.params, state.model_state
  return averages[-1].average, getattr(averages[-1], "model_state", state.model_state)
