"""What training carries (TrainState), what a step reports (TrainMetrics), and the keys of a run."""

from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from robust_opt.training.optimizers import AverageState
from robust_opt.types import Array, Batch, ModelState, Params, PyTree


@flax.struct.dataclass
class TrainState:
  """All that a checkpoint needs: no keys, no functions.

  Attributes:
    step: [], int32, updates made so far.
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
    net: for the initial parameters.
    training: for the order, the augmentation and the steps.
    evaluation: for the attacks of evaluations.
    memory: for the initial TrainState.memory.
  """

  net: Array
  training: Array
  evaluation: Array
  memory: Array


def streams(key: Array) -> Streams:
  """The keys of the run whose seed's key this is; under vmap, of many."""
  return Streams(*jax.random.split(key, 4))


def evaluated_params(state: TrainState) -> Params:
  """The parameters to evaluate: the average of the weights if the optimizer keeps one."""
  # Found by type: a parameter may be named "average" too.
  kept = jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, AverageState))
  averages = [node.average for node in kept if isinstance(node, AverageState)]
  return averages[-1] if averages else state.params
