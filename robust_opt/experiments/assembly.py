"""From a config to the functions of a run, of one seed or of several: `assemble`.

  experiment = assemble(config)
  state, metrics = experiment.compile(100)(experiment.state)          # the first 100 updates
  experiment.evaluate(state, experiment.test, ro.L2(0.5), attack).robust_correct.mean()

Several seeds are one Experiment whose state is stacked (seeds.py); its functions then return arrays
with a first axis of seeds.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from robust_opt import models, training
from robust_opt.data import datasets, pipeline
from robust_opt.errors import InputError
from robust_opt.evaluation.accuracy import Evaluation, make_evaluate
from robust_opt.experiments import build, extra, seeds, streaming
from robust_opt.experiments import config as config_lib
from robust_opt.experiments.attacks import ONE_PASS, AttackOn, TrainingAttack, not_trained_on
from robust_opt.objectives import robust
from robust_opt.sets import UncertaintySet
from robust_opt.training import ArrayData, EpochPlan, TrainMetrics, TrainState, sharding
from robust_opt.types import ApplyFn, Array, Batch, ModelState, Params

Scan = Callable[[TrainState], tuple[TrainState, TrainMetrics]]


class InitialRun(NamedTuple):
  """A run before its first update: what its checkpoints are restored into."""

  plan: EpochPlan
  net: models.Net
  optimizer: optax.GradientTransformation
  state: TrainState  # of several seeds stacked
  keys: training.Streams


class Experiment(NamedTuple):
  """A config's data on the devices, the state before its first update, and compiled functions."""

  config: ConfigDict
  splits: build.Splits  # the data on the host
  heldout: ArrayData  # chooses checkpoints; on the host if it is too large for the devices
  test: ArrayData  # is reported on; likewise
  apply: ApplyFn
  plan: EpochPlan
  state: TrainState  # before the first update; a scan takes its buffers, so start from it once
  compile: Callable[[int], Scan]  # of so many updates
  max_steps: int  # that one compiled scan may take
  set: UncertaintySet
  attack: TrainingAttack
  other_attack: AttackOn  # that is not trained on
  watched: ArrayData | None  # the first held-out examples, on which both are compared, if they are
  # What becomes of every example. One program for all radii of a kind of set.
  evaluate: Callable[[TrainState, ArrayData, UncertaintySet, AttackOn], Evaluation]


def initial_run(
  config: ConfigDict, train: datasets.Dataset, seed_keys: Array | None = None
) -> InitialRun:
  """The network that learns from this data, but nothing that trains it; its weights are random.

  The states of several seeds are stacked, one for each of seed_keys [S]; None: config.seed alone.
  """
  if config.init_from and seed_keys is not None:
    raise InputError(
      f"--config.init_from={config.init_from} is for robust_opt.main: seeds that are trained "
      f"together start at random."
    )
  plan = EpochPlan(len(train.labels), config.training.batch_size, config.training.shuffle)
  net = build.model(config, train)
  optimizer = build.optimizer(config, plan.num_steps)
  init: Callable[..., tuple[Params, ModelState]]
  if seed_keys is None:
    keys, init = training.streams(jax.random.key(config.seed)), models.init
  else:
    keys, init = jax.vmap(training.streams)(seed_keys), seeds.initialize
  initialize = functools.partial(init, net, keys.net, train.images.shape[1:])
  params, model_state = _init(config, initialize, train.images.shape[1:])
  if seed_keys is None:
    state = training.init_state(params, model_state, optimizer, build.memory(config, train))
  elif config.attack.name in ONE_PASS:
    raise InputError(
      f"--config.attack.name={config.attack.name} trains one seed at a time, not several together."
    )
  else:
    state = seeds.stacked_state(params, model_state, optimizer)
  return InitialRun(plan, net, optimizer, state, keys)


def assemble(
  config: ConfigDict,
  splits: build.Splits | None = None,
  seed_keys: Array | None = None,
  vmapped: bool = False,
) -> Experiment:
  """Builds every part and places the data on the devices.

  Args:
    config: checked by config.validate.
    splits: the data; None: as the config says.
    seed_keys: as in `initial_run`.
    vmapped: whether several seeds run in one program rather than in turn.

  Raises:
    InputError: parts of the config do not fit together, its data or the devices.
  """
  place = _placement(stacked=seed_keys is not None)
  _check_batches(config, place.devices)
  splits = splits or build.splits(config)
  run = initial_run(config, splits.train, seed_keys)
  apply, attack = models.apply_of(run.net), build.attack(config)
  u, shape = build.own_set(config, splits.train.images), splits.train.images.shape[1:]
  build.check_extents(config, u, shape)
  step = build.update(config, run.net, run.optimizer, u, shape, run.plan.num_steps)
  plan = extra.mixed(config, run.plan, splits.extra_train)
  learned = extra.appended(splits.train, splits.extra_train)
  limit = streaming.device_limit(config.data.max_device_bytes)
  train = streaming.source_of(config, learned, plan, run.keys.training, limit, place.put)
  classes, smoothing = splits.train.num_classes, config.training.label_smoothing
  scan = training.make_scan(
    step,
    plan,
    augment=pipeline.augment(config.training.augment),
    mix=pipeline.mix(config.training.augment, classes, smoothing),
    place_batch=place.place_batch,
    streamed=isinstance(train, streaming.Stream),
  )
  heldout, test = (
    streaming.placed(split, limit, place.put) for split in (splits.heldout, splits.test)
  )
  count = config.training.watch_examples if config_lib.trains_robustly(config) else 0
  first = splits.heldout._replace(images=splits.heldout.images[:count])
  watched = streaming.placed(first, math.inf, place.put) if count else None
  state, train_key, evaluation_key = place.put((run.state, run.keys.training, run.keys.evaluation))
  if seed_keys is None:
    compile_scan = _compiled(scan, state, train, train_key, place.sharding)
    jit: functools.partial[Any] = functools.partial(jax.jit, out_shardings=place.sharding)
  else:
    compile_scan = seeds.compiled(scan, streaming.resident(train), train_key, vmapped)
    jit = functools.partial(seeds.over_seeds, in_axes=(0, 0, None, None, 0), vmapped=vmapped)
  return Experiment(
    config=config,
    splits=splits,
    heldout=heldout,
    test=test,
    apply=apply,
    plan=plan,
    state=state,
    compile=compile_scan,
    max_steps=min(config.training.steps_per_scan, train.max_steps),
    set=u,
    attack=attack,
    other_attack=functools.partial(not_trained_on, attack),
    watched=watched,
    evaluate=_evaluator(config, apply, evaluation_key, place, jit, limit),
  )


class _Placement(NamedTuple):
  """Where the arrays of a run are."""

  devices: int  # that a batch is split over
  put: Callable[[Any], Any]  # pytree -> the same on the devices
  place_batch: Callable[[Batch], Batch]
  sharding: jax.sharding.Sharding | None  # of results; None: as they come


def _placement(stacked: bool) -> _Placement:
  """Several seeds on one device; batches of one seed are split over all."""
  if stacked:
    return _Placement(1, jax.device_put, lambda batch: batch, None)
  mesh = sharding.data_mesh()
  put, whole = functools.partial(sharding.replicate, mesh=mesh), sharding.replicated(mesh)
  return _Placement(jax.device_count(), put, sharding.batch_placer(mesh), whole)


def _evaluator(
  config: ConfigDict,
  apply: ApplyFn,
  key: Array,
  place: _Placement,
  jit: Callable[..., Callable[..., Evaluation]],
  limit: float,
) -> Callable[[TrainState, ArrayData, UncertaintySet, AttackOn], Evaluation]:
  """Experiment.evaluate: the worst case of the cross-entropy, whatever the run trains by."""

  @functools.cache
  def program(attack: AttackOn, batch_size: int) -> Callable[..., Evaluation]:
    return jit(make_evaluate(apply, robust(), attack, batch_size, place_batch=place.place_batch))

  def traced(leaf: Any) -> Any:
    """A number as an array, so that every radius is one program."""
    return np.float32(leaf) if isinstance(leaf, float | int) else leaf

  def evaluate(
    state: TrainState, data: ArrayData, u: UncertaintySet, attack: AttackOn
  ) -> Evaluation:
    size = min(config.evaluation.batch_size, len(data.labels))
    size = -(-size // place.devices) * place.devices
    weights, u = training.evaluated(state), jax.tree.map(traced, u)
    outs = [
      program(attack, size)(*weights, part, place.put(u), key)
      for part in streaming.parts(data, size, limit, place.put)
    ]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=-1), *outs)

  return evaluate


def _compiled(
  scan: Callable[..., tuple[TrainState, TrainMetrics]],
  state: TrainState,
  train: streaming.Source,
  key: Array,
  placed: jax.sharding.Sharding | None,
) -> Callable[[int], Scan]:
  """Ahead of time, so that the clock sees updates alone."""
  jitted = jax.jit(scan, static_argnums=3, donate_argnums=0, out_shardings=placed)

  @functools.cache
  def compile_scan(num_steps: int) -> Scan:
    compiled = jitted.lower(state, train.shapes(num_steps), key, num_steps).compile()
    return lambda state: compiled(state, train.take(int(state.step), num_steps), key)

  return compile_scan


def _check_batches(config: ConfigDict, devices: int) -> None:
  if config.training.batch_size % devices:
    raise InputError(
      f"--config.training.batch_size must be a multiple of the {devices} devices, "
      f"but was {config.training.batch_size}."
    )
  watched = config.training.watch_examples and config_lib.trains_robustly(config)
  if config.training.on_overfitting == "stop" and not watched:
    raise InputError(
      "--config.training.on_overfitting=stop needs --config.training.watch_examples > 0 and an "
      "adversary."
    )


def _init(
  config: ConfigDict, initialize: Callable[[], tuple[Params, ModelState]], shape: tuple[int, ...]
) -> tuple[Params, ModelState]:
  """Parameters and batch statistics, if the network can take images of this shape."""
  try:
    params, model_state = initialize()
    if any(leaf.size == 0 for leaf in jax.tree.leaves(params)):
      raise ZeroDivisionError  # as an initializer of Flax at no inputs
  except Exception as error:  # Flax and JAX raise almost anything
    reason = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, ZeroDivisionError):
      reason = "a layer would have no input"
    raise InputError(
      f"--config.model.name={config.model.name} cannot take the images of {config.data.name}, "
      f"{' x '.join(map(str, shape))} ({reason}); choose another model, or another data set."
    ) from error
  return params, model_state
