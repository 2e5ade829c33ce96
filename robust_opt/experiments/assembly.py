"""From a config to the functions of a run, of one seed or of several: `assemble`.

  experiment = assemble(config)
  state, metrics = experiment.compile(100)(experiment.state)          # the first 100 updates
  experiment.evaluate(state, experiment.test, ro.L2(0.5), attack).robust_correct.mean()

Several seeds are one Experiment whose state is stacked (seeds.py); its functions then return arrays
with a first axis of seeds.
"""

import functools
from collections.abc import Callable, Iterator
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
from robust_opt.experiments import build, seeds, streaming, updates
from robust_opt.experiments import config as config_lib
from robust_opt.experiments.attacks import ONE_PASS, AttackOn, TrainingAttack, not_trained_on
from robust_opt.objectives import robust
from robust_opt.sets import UncertaintySet
from robust_opt.training import (
  ArrayData,
  EpochPlan,
  Streams,
  TrainMetrics,
  TrainState,
  evaluated_params,
  init_state,
  make_scan,
  sharding,
  streams,
)
from robust_opt.types import ApplyFn, Array, Batch, ModelState, Params

Scan = Callable[[TrainState], tuple[TrainState, TrainMetrics]]


class InitialRun(NamedTuple):
  """A run before its first update: what its checkpoints are restored into.

  Attributes:
    plan: the batches of an epoch.
    net: the network.
    optimizer: of its parameters.
    state: before the first update; of several seeds stacked.
    keys: of the run.
  """

  plan: EpochPlan
  net: nn.Module
  optimizer: optax.GradientTransformation
  state: TrainState
  keys: Streams


class Experiment(NamedTuple):
  """A config's data on the devices, the state before its first update, and compiled functions.

  Attributes:
    config: that it was assembled from.
    splits: the data on the host.
    heldout: chooses checkpoints; on the devices, or on the host where it is too large for them.
    test: is reported on; likewise.
    apply: the model.
    plan: the batches of an epoch.
    state: before the first update. A compiled scan takes its buffers, so start from it once.
    compile: num_steps -> a compiled function, state -> (state, metrics of every step).
    max_steps: of one compiled function: more would not fit.
    set: that it is trained over.
    attack: of the training, and of measurements.
    other_attack: set -> an attack that is not trained on.
    watched: the first held-out examples, on which both are compared; None where they are not.
    evaluate: (state, data, set, set -> attack) -> what became of every example. One program for all
      radii of a kind of set.
  """

  config: ConfigDict
  splits: build.Splits
  heldout: ArrayData
  test: ArrayData
  apply: ApplyFn
  plan: EpochPlan
  state: TrainState
  compile: Callable[[int], Scan]
  max_steps: int
  set: UncertaintySet
  attack: TrainingAttack
  other_attack: AttackOn
  watched: ArrayData | None
  evaluate: Callable[[TrainState, ArrayData, UncertaintySet, AttackOn], Evaluation]


def initial_run(
  config: ConfigDict, train: datasets.Dataset, seed_keys: Array | None = None
) -> InitialRun:
  """The network that learns from this data, but nothing that trains it.

  Args:
    config: checked by config.validate.
    train: its training set.
    seed_keys: [S], one key a seed, to stack the states of several seeds; None: config.seed alone.
  """
  plan = EpochPlan(len(train.labels), config.training.batch_size, shuffle=config.training.shuffle)
  net = build.model(config, train)
  optimizer = build.optimizer(config, plan.num_steps)
  stacked = seed_keys is not None
  keys = streams(jax.random.key(config.seed)) if seed_keys is None else jax.vmap(streams)(seed_keys)
  initialize = seeds.initializer(net) if stacked else functools.partial(models.init, net)
  params, model_state = _init(config, initialize, keys.net, train.images.shape[1:])
  if config.weights.average and model_state:
    raise InputError(
      f"--config.weights.average={config.weights.average} averages weights alone, but "
      f"{config.model.name} keeps batch statistics, which would be those of other weights."
    )
  if stacked and config.attack.name in ONE_PASS:
    raise InputError(
      f"--config.attack.name={config.attack.name} trains one seed at a time, not several together."
    )
  if stacked:
    state = seeds.stacked_state(params, model_state, optimizer)
  else:
    memory = updates.memory(config, train.images)
    state = init_state(params, model_state, optimizer, memory)
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
    seed_keys: [S] as in `initial_run`.
    vmapped: whether several seeds run in one program rather than in turn.

  Raises:
    InputError: parts of the config do not fit together, its data or the devices.
  """
  stacked = seed_keys is not None
  placement = _one_device() if stacked else _all_devices()
  _check_batches(config, placement.devices)
  splits = splits or build.splits(config)
  run = initial_run(config, splits.train, seed_keys)
  apply, attack = models.from_linen(run.net), build.attack(config)
  u, shape = build.own_set(config, splits.train.images), splits.train.images.shape[1:]
  step = updates.make(config, run.net, run.optimizer, u, shape, run.plan.num_steps)
  put, limit = placement.put, streaming.device_limit(config.data.max_device_bytes)
  streamed = splits.train.images.nbytes > limit
  scan = make_scan(
    step,
    run.plan,
    augment=build.augment(config),
    place_batch=placement.place_batch,
    streamed=streamed,
  )
  heldout, test = (_placed(split, limit, put) for split in splits[1:])
  state, train_key, evaluation_key = put((run.state, run.keys.training, run.keys.evaluation))
  max_steps = config.training.steps_per_scan
  if streamed:
    if stacked:
      raise InputError(
        f"Several seeds train on data on the device, but the {splits.train.images.nbytes:,} bytes "
        f"of {config.data.name} exceed the limit of {limit:,.0f}: train one seed at a time."
      )
    stream = streaming.Stream(
      splits.train, run.plan, run.keys.training, config.data.workers, sharding.data_mesh()
    )
    compile_scan = _compiled(scan, state, stream.shapes, stream.take, train_key, placement.sharding)
    image_bytes = splits.train.images.nbytes // len(splits.train.labels)
    max_steps = min(max_steps, streaming.steps_within(limit, image_bytes, run.plan.batch_size))
  elif stacked:
    train = _placed(splits.train, limit, put)
    compile_scan = seeds.compiled(scan, train, train_key, vmapped)
    jit = functools.partial(
      seeds.over_seeds, in_axes=(0, 0, None, None, 0), vmapped=vmapped, static=_STATIC
    )
  else:
    train = _placed(splits.train, limit, put)
    compile_scan = _compiled(
      scan, state, lambda n: train, lambda step, n: train, train_key, placement.sharding
    )
  if not stacked:
    jit = functools.partial(jax.jit, static_argnames=_STATIC, out_shardings=placement.sharding)
  evaluate = _evaluator(config, apply, evaluation_key, placement, jit, limit)
  count = config.training.watch_examples if config_lib.trains_robustly(config) else 0
  first = ArrayData(np.asarray(splits.heldout.images[:count]), splits.heldout.labels[:count])
  return Experiment(
    config=config,
    splits=splits,
    heldout=heldout,
    test=test,
    apply=apply,
    plan=run.plan,
    state=state,
    compile=compile_scan,
    max_steps=max_steps,
    set=u,
    attack=attack,
    other_attack=functools.partial(not_trained_on, attack),
    watched=put(first) if count else None,
    evaluate=evaluate,
  )


class _Placement(NamedTuple):
  """Where the arrays of a run are.

  Attributes:
    devices: that a batch is split over.
    put: pytree -> the same on the devices.
    place_batch: of make_scan and make_evaluate.
    sharding: of results; None: as they come.
  """

  devices: int
  put: Callable[[Any], Any]
  place_batch: Callable[[Batch], Batch]
  sharding: jax.sharding.Sharding | None


def _one_device() -> _Placement:
  return _Placement(1, jax.device_put, lambda batch: batch, None)


def _all_devices() -> _Placement:
  mesh = sharding.data_mesh()
  put = functools.partial(sharding.replicate, mesh=mesh)
  batches, whole = sharding.batch_placer(mesh), sharding.replicated(mesh)
  return _Placement(jax.device_count(), put, batches, whole)


# Arguments of an evaluation that are compile-time constants.
_STATIC = ("attack", "batch_size")


def _evaluator(
  config: ConfigDict,
  apply: ApplyFn,
  key: Array,
  placement: _Placement,
  jit: Callable[..., Callable[..., Evaluation]],
  limit: float,
) -> Callable[[TrainState, ArrayData, UncertaintySet, AttackOn], Evaluation]:
  """Experiment.evaluate: the worst case of the cross-entropy, whatever the run trains by."""

  def evaluate(
    params: Params, model_state: ModelState, data: ArrayData, u: UncertaintySet, key: Array,
    *, attack: AttackOn, batch_size: int,
  ) -> Evaluation:  # fmt: skip
    make = make_evaluate(apply, robust(), attack, batch_size, place_batch=placement.place_batch)
    return make(params, model_state, data, u, key)

  jitted = jit(evaluate)

  def evaluate_state(
    state: TrainState, data: ArrayData, u: UncertaintySet, attack: AttackOn
  ) -> Evaluation:
    size = min(config.evaluation.batch_size, len(data.labels))
    size = -(-size // placement.devices) * placement.devices
    u = placement.put(jax.tree.map(_float32, u))
    weights = evaluated_params(state), state.model_state
    parts = [
      jitted(*weights, part, u, key, attack=attack, batch_size=size)
      for part in _parts(data, size, limit, placement.put)
    ]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=-1), *parts)

  return evaluate_state


def _placed(split: datasets.Dataset, limit: float, put: Callable[[Any], Any]) -> ArrayData:
  """A split on the devices, or on the host if it is larger than the limit."""
  if split.images.nbytes > limit:
    return ArrayData(split.images, split.labels)
  return put(ArrayData(np.asarray(split.images), split.labels))


def _parts(
  data: ArrayData, batch_size: int, limit: float, put: Callable[[Any], Any]
) -> Iterator[ArrayData]:
  """Data on the devices as they are; data on the host in whole batches within the limit."""
  if isinstance(data.images, jax.Array):
    yield data
    return
  count = len(data.labels)
  batches = int(limit * count // (data.images.nbytes * batch_size))
  size = max(1, batches) * batch_size
  for start in range(0, count, size):
    part = slice(start, start + size)
    ids = np.arange(count, dtype=np.int32)[part]
    yield put(ArrayData(np.asarray(data.images[part]), data.labels[part], ids))


def _compiled(
  scan: Callable[..., tuple[TrainState, TrainMetrics]],
  state: TrainState,
  shapes: Callable[[int], ArrayData],
  take: Callable[[int, int], ArrayData],
  key: Array,
  placed: jax.sharding.Sharding | None,
) -> Callable[[int], Scan]:
  """Ahead of time, so that the clock sees updates alone."""
  jitted = jax.jit(scan, static_argnums=3, donate_argnums=0, out_shardings=placed)

  @functools.cache
  def compile_scan(num_steps: int) -> Scan:
    compiled = jitted.lower(state, shapes(num_steps), key, num_steps).compile()
    return lambda state: compiled(state, take(int(state.step), num_steps), key)

  return compile_scan


def _float32(leaf: Any) -> Any:
  """A Python number as an array, so that it is traced and every radius is one program."""
  return np.float32(leaf) if isinstance(leaf, float | int) else leaf


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
  config: ConfigDict,
  initialize: Callable[[Array, tuple[int, ...]], tuple[Params, ModelState]],
  key: Array,
  shape: tuple[int, ...],
) -> tuple[Params, ModelState]:
  """Parameters and batch statistics, if the network can take images of this shape."""
  try:
    params, model_state = initialize(key, shape)
    if any(leaf.size == 0 for leaf in jax.tree.leaves(params)):
      raise ZeroDivisionError
  except Exception as error:  # Flax and JAX raise almost anything
    size = " x ".join(map(str, shape))
    empty = isinstance(error, ZeroDivisionError)  # what an initializer of Flax says to no inputs
    reason = (
      "a layer would have no input"
      if empty
      else (str(error) or type(error).__name__).splitlines()[0]
    )
    raise InputError(
      f"--config.model.name={config.model.name} cannot take the images of {config.data.name}, "
      f"{size} ({reason}); choose another model, or another data set."
    ) from error
  return params, model_state
