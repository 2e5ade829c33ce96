"""From a config to the compiled functions of a run: data on the devices, a scan, an evaluation.

parts = assemble(config)
state, metrics = parts.scan(100)(parts.state)          # the first 100 updates
parts.evaluate(state, "l2", parts.test, 0.5).robust_correct.mean()
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from robust_opt import models
from robust_opt.data import datasets
from robust_opt.errors import InputError
from robust_opt.evaluation.accuracy import Evaluation, make_evaluate
from robust_opt.experiments import build, updates
from robust_opt.experiments import config as config_lib
from robust_opt.maximizers import Attack
from robust_opt.objectives import robust
from robust_opt.training import (
  ArrayData,
  EpochPlan,
  TrainMetrics,
  TrainState,
  evaluated_params,
  init_state,
  make_scan,
  sharding,
  streams,
)
from robust_opt.types import ApplyFn, Array, ModelState, Params

MakeAttack = Callable[[str, Array], Attack]  # (norm, radius [])
# (state, norm, data, radius) -> what became of every example
Evaluate = Callable[[TrainState, str, ArrayData, float], Evaluation]


class Experiment(NamedTuple):
  """What a config stands for: data on the devices, the state before the first update, the parts.

  Attributes:
    splits: the data on the host.
    train: the data on the devices, to learn from.
    heldout: chooses checkpoints.
    test: is reported on.
    state: before the first update; scan takes its buffers, so start from it once.
    scan: num_steps -> a compiled function, state -> (state, metrics of every step).
    evaluate: accuracy under the attack of a norm.
    watch: state -> [n] bool, which of the first held-out examples stand the attack that is not the
      run's own: PGD where it trains against one step, one step where it trains against more. None
      where nothing is watched.
    apply: the model.
    steps_per_epoch: updates an epoch.
    steps_per_scan: updates a call of scan.
  """

  splits: build.Splits
  train: ArrayData
  heldout: ArrayData
  test: ArrayData
  state: TrainState
  scan: Callable[[int], Callable[[TrainState], tuple[TrainState, TrainMetrics]]]
  evaluate: Evaluate
  watch: Callable[[TrainState], np.ndarray] | None
  apply: ApplyFn
  steps_per_epoch: int
  steps_per_scan: int


class Beginning(NamedTuple):
  """A run before its first update: its net, and what its checkpoints are restored into.

  Attributes:
    plan: the batches of an epoch.
    net: the network.
    optimizer: what descends.
    state: before the first update.
  """

  plan: EpochPlan
  net: nn.Module
  optimizer: optax.GradientTransformation
  state: TrainState


def begin(config: ConfigDict, train: datasets.Dataset) -> Beginning:
  """The net that learns from this data, but nothing that trains it."""
  plan = EpochPlan(len(train.labels), config.training.batch_size, shuffle=config.training.shuffle)
  net = build.model(config, train)
  optimizer = build.optimizer(config, plan.num_steps)
  key = streams(jax.random.key(config.seed)).net
  params, model_state = _init(config, net, key, train.images.shape[1:])
  if config.optimizer.average and model_state:
    raise InputError(
      f"--config.optimizer.average={config.optimizer.average} averages weights alone, but "
      f"{config.model.name} keeps batch statistics, which would be those of other weights."
    )
  memory = updates.memory(config, train.images)
  return Beginning(plan, net, optimizer, init_state(params, model_state, optimizer, memory))


def assemble(config: ConfigDict) -> Experiment:
  """Builds every part and places the data on the devices.

  Raises:
    InputError: parts of the config do not fit together, its data or the devices.
  """
  if config.training.batch_size % jax.device_count():
    raise InputError(
      f"--config.training.batch_size must be a multiple of the {jax.device_count()} devices, "
      f"but was {config.training.batch_size}."
    )
  watched = config.training.watch_examples and config_lib.trains_robustly(config)
  if config.training.on_overfitting == "stop" and not watched:
    raise InputError(
      "--config.training.on_overfitting=stop needs --config.training.watch_examples > 0 and an "
      "adversary."
    )
  splits = build.splits(config)
  plan, net, optimizer, first = begin(config, splits.train)
  apply = models.from_linen(net)
  step = updates.make(config, net, optimizer, splits.train.images, plan.num_steps)
  mesh = sharding.data_mesh()
  keys = streams(jax.random.key(config.seed))
  state = sharding.replicate(first, mesh)
  train, heldout, test = (
    sharding.replicate(ArrayData(split.images, split.labels), mesh) for split in splits
  )
  train_key, evaluation_key = sharding.replicate((keys.training, keys.evaluation), mesh)

  scans = jax.jit(
    make_scan(step, plan, augment=build.augment(config), place_batch=sharding.batch_placer(mesh)),
    static_argnums=3,
    donate_argnums=0,
    out_shardings=sharding.replicated(mesh),
  )

  @functools.cache
  def scan(num_steps: int) -> Callable[[TrainState], tuple[TrainState, TrainMetrics]]:
    compiled = scans.lower(state, train, train_key, num_steps).compile()
    return lambda state: compiled(state, train, train_key)

  # A standard net is attacked by one step, as the robust nets of the paper are.
  steps = max(1, config.attack.num_steps)

  def own(norm: str, radius: Array) -> Attack:
    return build.evaluation_attack(config, norm, radius, steps)

  def other(norm: str, radius: Array) -> Attack:
    return build.watching_attack(config, norm, radius)

  @jax.jit(static_argnums=(3, 5, 6), out_shardings=sharding.replicated(mesh))
  def evaluate(
    params: Any,
    model_state: Any,
    data: ArrayData,
    norm: str,
    radius: Array,
    batch_size: int,
    make_attack: MakeAttack,
  ) -> Evaluation:
    # Whatever a net was trained by, what is measured is its cross-entropy's worst case.
    evaluator = make_evaluate(
      apply,
      robust(),
      lambda radius: make_attack(norm, radius),
      batch_size,
      place_batch=sharding.batch_placer(mesh),
    )
    return evaluator(params, model_state, data, radius, evaluation_key)

  def evaluate_norm(
    state: TrainState, norm: str, data: ArrayData, radius: float, make_attack: MakeAttack = own
  ) -> Evaluation:
    size = min(config.evaluation.batch_size, len(data.labels))
    size = -(-size // jax.device_count()) * jax.device_count()
    traced = sharding.replicate(np.float32(radius), mesh)
    params = evaluated_params(state)
    out = evaluate(params, state.model_state, data, norm, traced, size, make_attack)
    return jax.tree.map(np.asarray, out)

  count = min(config.training.watch_examples, len(splits.heldout.labels))
  watched = sharding.replicate(
    ArrayData(splits.heldout.images[:count], splits.heldout.labels[:count]), mesh
  )

  def watch(state: TrainState) -> np.ndarray:
    norm, radius = config.uncertainty.name, config.uncertainty.radius
    return np.asarray(evaluate_norm(state, norm, watched, radius, other).robust_correct)

  return Experiment(
    splits=splits,
    train=train,
    heldout=heldout,
    test=test,
    state=state,
    scan=scan,
    evaluate=evaluate_norm,
    watch=watch if count and config_lib.trains_robustly(config) else None,
    apply=apply,
    steps_per_epoch=plan.num_steps,
    steps_per_scan=scan_length(plan.num_steps, config.training.steps_per_scan),
  )


def _init(
  config: ConfigDict, net: nn.Module, key: Array, shape: tuple[int, ...]
) -> tuple[Params, ModelState]:
  """Parameters and batch statistics, if the network can take images of this shape."""
  try:
    params, model_state = models.init(net, key, shape)
    if any(leaf.size == 0 for leaf in jax.tree.leaves(params)):
      raise ZeroDivisionError
  except Exception as error:  # Flax and JAX raise almost anything
    size = " x ".join(map(str, shape))
    empty = isinstance(error, ZeroDivisionError)  # what an initialiser of Flax says to no inputs
    reason = (
      "a layer would have no input"
      if empty
      else (str(error) or type(error).__name__).splitlines()[0]
    )
    raise InputError(
      f"--config.model.name={config.model.name} cannot take the images of {config.dataset.name}, "
      f"{size} ({reason}); choose another model, or another data set."
    ) from error
  return params, model_state


def scan_length(steps_per_epoch: int, most: int) -> int:
  """Updates a scan: a divisor of the epoch where a large one exists, so that one shape compiles."""
  best = max(n for n in range(1, min(most, steps_per_epoch) + 1) if steps_per_epoch % n == 0)
  return best if 4 * best >= min(most, steps_per_epoch) else min(most, steps_per_epoch)
