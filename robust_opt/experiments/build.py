"""From a config to its data, and to the objects and the update that its sections describe.

splits = build.splits(config)
u, net = build.own_set(config, splits.train.images), build.model(config, splits.train)
optimizer = build.optimizer(config, steps_per_epoch)
state = init_state(params, model_state, optimizer, build.memory(config, splits.train))
step = build.update(config, net, optimizer, u, image_shape, steps_per_epoch)
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from robust_opt import maximizers, models, precision, training
from robust_opt.data import archives, constructed, datasets, mixing
from robust_opt.errors import InputError
from robust_opt.experiments import attacks, combinations, extra, sections
from robust_opt.maximizers import Attack, ScheduledAttack
from robust_opt.models import affine
from robust_opt.objectives import RobustObjective, ScheduledObjective
from robust_opt.sets import BALLS, Ball, UncertaintySet, tangents
from robust_opt.sets.build import import_object
from robust_opt.sets.radii import check_extent
from robust_opt.sets.scaling import ramp
from robust_opt.training import free, layerwise, liet, optimizers, penalties
from robust_opt.types import ApplyFn, Array, Batch, LossFn, PyTree

_SAMPLE = 10_000  # images of a large data set that determine its mean and standard deviation


class Splits(NamedTuple):
  """The data of a run."""

  train: datasets.Dataset  # to learn from
  heldout: datasets.Dataset  # to choose a checkpoint by
  test: datasets.Dataset  # to report on
  extra_train: datasets.Dataset | None = None  # to learn from too, a fraction of every batch


def splits(config: ConfigDict, *, with_extra: bool = True) -> Splits:
  """Loads the data; the held-out part comes from the training set, never from the test set.

  Without `with_extra` the file of config.data.extra, which may be large, is not read.
  """
  start = config.data.train_start
  train = _load(config, "train", start, config.data.train_examples)
  test = _load(config, "test", 0, config.data.test_examples)
  if not len(train.labels):
    raise InputError(
      f"--config.data.train_start={start} leaves none of the training examples of "
      f"{config.data.name}."
    )
  try:
    rest, heldout = datasets.holdout(train, config.data.holdout, config.seed)
  except InputError as error:
    raise InputError(
      f"--config.data.holdout={config.data.holdout} does not fit {len(train.labels)} "
      f"training examples: at least one must be held out, and one remain."
    ) from error
  if config.data.train_files:
    rest = _constructed(config, rest)
  if config.data.labels:
    # What needs no labels also learns from those who have none.
    keep_others = config.objective.name == "virtual"
    rest = datasets.few_labels(rest, config.data.labels, config.seed, keep_others)
  if config.training.batch_size > len(rest.labels):
    raise InputError(
      f"--config.training.batch_size must be at most the {len(rest.labels)} training examples "
      f"that remain, but was {config.training.batch_size}."
    )
  more = extra.read(config, rest) if config.data.extra and with_extra else None
  return Splits(rest, heldout, test, more)


def _constructed(config: ConfigDict, original: datasets.Dataset) -> datasets.Dataset:
  """Replaces the training set by the constructed one; the held-out examples stay original."""
  made = constructed.load(Path(config.data.train_files))
  shape, own = list(made.images.shape[1:]), list(original.images.shape[1:])
  words, name = f"--config.data.train_files={config.data.train_files} holds", config.data.name
  if shape != own:
    raise InputError(f"{words} images {shape}, but those of {name} are {own}.")
  if made.num_classes != original.num_classes:
    raise InputError(f"{words} {made.num_classes} classes, but {name} has {original.num_classes}.")
  return made._replace(classes=original.classes)


def _load(config: ConfigDict, split: str, start: int, count: int) -> datasets.Dataset:
  """`count` examples of a split from `start` on; 0: all."""
  name = config.data.name
  # "package.module:load", and neither "cifar10:3.0.2" nor "data.npz:images,labels".
  if name.partition(":")[2].isidentifier() and not archives.is_archive(name):
    dataset = import_object(name)(split)
  else:
    data_dir, cache_dir = config.data.data_dir or None, config.data.cache_dir or None
    dataset = datasets.load(
      name,
      split,
      data_dir=data_dir,
      cache_dir=cache_dir,
      image_size=config.data.image_size,
      decode=False,
    )
  if start == count == 0:
    return dataset
  part = slice(start, start + count if count else None)
  return dataset._replace(images=dataset.images[part], labels=dataset.labels[part])


def model(config: ConfigDict, train: datasets.Dataset) -> models.Net:
  """The network; its first layer standardizes by mean and std of config.data, or of the data.

  A network of the user's own is told num_classes, mean and std as far as it takes them.
  """
  given = config.data.mean and config.data.std
  moments = (config.data.mean, config.data.std) if given else pixel_statistics(train.images)
  channels = train.images.shape[-1]
  for key, values in zip(("mean", "std"), moments, strict=True):
    if len(values) not in (1, channels):
      raise InputError(
        f"--config.data.{key} must have 1 or {channels} entries for images of {channels} "
        f"channels, but was {values}."
      )
  mean, std = map(tuple, moments)
  net = sections.make(config, "model", num_classes=train.num_classes, mean=mean, std=std)
  return models.check(net, config.model.name)


def pixel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and standard deviation of every channel, in pixels of [0, 1].

  Of files, of some 10,000 at equal distances.
  """
  if not isinstance(images, np.ndarray):
    images = np.asarray(images[:: -(-len(images) // _SAMPLE)])
  scale = 255.0 if images.dtype == np.uint8 else 1.0
  flat = images.reshape(-1, images.shape[-1])
  mean = flat.mean(axis=0, dtype=np.float64) / scale
  std = flat.std(axis=0, dtype=np.float64) / scale
  return tuple(map(float, mean)), tuple(float(s) if s > 0 else 1.0 for s in std)


def own_set(config: ConfigDict, images: np.ndarray) -> UncertaintySet:
  """config.set; its tangent planes are learned here, of the training set's images [N, *S]."""
  return sections.make_set(config, lambda name, rank: tangents.fit(name, images, rank, config.seed))


def measured_sets(config: ConfigDict, own: UncertaintySet) -> dict[str, UncertaintySet]:
  """What a run is measured on: its own set, and balls of other norms with radii > 0.

  By the part of the config that holds the radius: "set", "evaluation.radii.l2".
  """
  norms, box = config.evaluation.radii, getattr(own, "box", None)
  others = {norm: ball(norms[norm], box) for norm, ball in BALLS.items() if norms.get(norm)}
  others.pop(own.name if isinstance(own, Ball) else "", None)
  return {"set": own} | {f"evaluation.radii.{norm}": ball for norm, ball in others.items()}


def check_extents(config: ConfigDict, own: UncertaintySet, shape: Sequence[int]) -> None:
  """InputError if a set that is measured holds every image of this shape."""
  for key, u in measured_sets(config, own).items():
    name = "set.radius" if key == "set" and "radius" in config.set else key
    value = f"={u.radius:g}" if isinstance(u, Ball) else ""
    check_extent(u, shape, f"--config.{name}{value}")


def attack(config: ConfigDict) -> attacks.TrainingAttack:
  """config.attack."""
  return sections.make(config, "attack")


def updates_of_a_batch(config: ConfigDict) -> int:
  """Free training updates at every replay; its schedules count those."""
  return config.attack.get("num_replays", 1)


def schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
  """The learning rate at each step."""
  total, peak = config.training.epochs * steps_per_epoch, config.optimizer.get("learning_rate", 1.0)
  return sections.make(config, "schedule", peak=peak, total=total, steps_per_epoch=steps_per_epoch)


def optimizer(config: ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
  """The optimizer of that name, with what config.weights asks for before and after it."""
  rate = schedule(config, steps_per_epoch * updates_of_a_batch(config))
  descent = sections.make_optimizer(config, rate)
  parts = [optax.add_decayed_weights(config.weights.decay), descent]
  if config.weights.max_column_norm:
    parts.append(optimizers.max_column_norm(config.weights.max_column_norm))
  if config.weights.average:
    parts.append(optimizers.weight_average(config.weights.average))
  return optax.chain(*parts)


def update(
  config: ConfigDict,
  net: models.Net,
  optimizer: optax.GradientTransformation,
  u: UncertaintySet,
  image_shape: Sequence[int],
  steps_per_epoch: int,
) -> training.TrainStep:
  """The config's update, computed in config.training.precision.

  Raises:
    InputError: parts of the config do not fit together.
  """
  combinations.check(config)
  name = config.training.precision
  if name == "bfloat16":
    net = _in_dtype(net, name, "training.precision")
  step = _update(config, net, optimizer, u, image_shape, steps_per_epoch)
  if name not in ("float32", "tf32"):
    return step

  def stepped(
    state: training.TrainState, batch: Batch, key: Array
  ) -> tuple[training.TrainState, training.TrainMetrics]:
    with precision.products(name):
      return step(state, batch, key)

  return stepped


def _update(
  config: ConfigDict,
  net: models.Net,
  optimizer: optax.GradientTransformation,
  u: UncertaintySet,
  image_shape: Sequence[int],
  steps_per_epoch: int,
) -> training.TrainStep:
  """By one backward pass, or of the config's objective under its attack."""
  apply, gamma = models.apply_of(net), config.weights.perturbation
  loss = sections.loss_of(config.objective.get("loss", "cross_entropy"))
  match config.attack.name:
    case "free":
      replays, whole = config.attack.num_replays, attacks.step_set(u, 1.0)
      return free.make_free_train_step(apply, optimizer, u, whole, replays, loss)
    case "recall":
      attack(config).train(u)  # which refuses sets that signs do not serve
      return free.make_recall_train_step(apply, optimizer, u, loss)
    case "liet":
      return _liet(config, apply, optimizer, u, loss, steps_per_epoch)
  if hidden := config.attack.get("hidden_radius"):
    apply = layerwise.lifted_apply(net, image_shape)
    u = layerwise.layerwise(net, image_shape, u, hidden)
  step = training.make_train_step(
    apply,
    optimizer,
    objective(config, u, steps_per_epoch),
    training_attack(config, u, steps_per_epoch),
    ascent_apply=_ascent_apply(config, net),
    ascent_in_train_mode=config.attack.get("train_mode", False),
    perturb_weights=optimizers.adversarial_weights(gamma) if gamma else None,
    penalty=_penalty(config, net, u),
  )
  return layerwise.lifted_step(step, layerwise.shapes(net, image_shape)) if hidden else step


def _liet(
  config: ConfigDict,
  apply: ApplyFn,
  optimizer: optax.GradientTransformation,
  u: UncertaintySet,
  loss: LossFn,
  steps_per_epoch: int,
) -> training.TrainStep:
  """With labels of the classes as soft as those of the examples, and a weight that grows."""
  smoothing, last = config.training.label_smoothing, config.attack.weight

  def weight(step: Array) -> Array:
    return last * (step // steps_per_epoch + 1) / config.training.epochs

  def targets(num_classes: int) -> Array:
    classes = jnp.arange(num_classes)
    return mixing.smoothed(classes, num_classes, smoothing) if smoothing else classes

  refresh = config.attack.refresh
  return liet.make_liet_train_step(apply, optimizer, u, weight, refresh, targets, loss)


def memory(config: ConfigDict, train: datasets.Dataset) -> PyTree:
  """What the first update finds in TrainState.memory; () for most attacks."""
  images = train.images
  match config.attack.name:
    case "free":
      return np.zeros((config.training.batch_size, *images.shape[1:]), np.float32)
    case "liet":
      return np.zeros((train.num_classes, *images.shape[1:]), np.float32)
    case "recall":
      key = training.streams(jax.random.key(config.seed)).memory
      return free.unknown_directions(key, len(images), images.shape[1:])
    case _:
      return ()


def training_attack(
  config: ConfigDict, u: UncertaintySet, steps_per_epoch: int
) -> Attack | ScheduledAttack:
  """config.attack over a set, which may grow at first; at every k-th update alone."""
  chosen = attack(config)
  every, warmup_steps = config.attack.get("every", 1), _warmup_steps(config, steps_per_epoch)

  def at(step: Array) -> Attack:
    grown = ramp(u, step, warmup_steps) if warmup_steps else u
    now = chosen.train(grown)
    return now if every == 1 else maximizers.only_if(step % every == 0, now)

  return ScheduledAttack(at) if warmup_steps or every > 1 else chosen.train(u)


def objective(
  config: ConfigDict, u: UncertaintySet, steps_per_epoch: int
) -> RobustObjective | ScheduledObjective:
  """config.objective; the set of bounds grows as that of the attack, and alpha with it from 0."""
  warmup_steps = _warmup_steps(config, steps_per_epoch)
  if config.objective.name != "ibp" or not warmup_steps:
    return sections.make(config, "objective", u=u)

  def at(step: Array) -> RobustObjective:
    alpha = config.objective.alpha * jnp.minimum(step / warmup_steps, 1.0)
    return sections.make(config, "objective", u=ramp(u, step, warmup_steps), alpha=alpha)

  return ScheduledObjective(at)


def _warmup_steps(config: ConfigDict, steps_per_epoch: int) -> float:
  """The updates in which the set grows from radius 0."""
  return config.attack.get("warmup", 0.0) * config.training.epochs * steps_per_epoch


def _penalty(config: ConfigDict, net: models.Net, u: UncertaintySet) -> penalties.Penalty | None:
  """config.penalty, times its weight."""
  if config.penalty.name == "none":
    return None
  layers_of, model = functools.partial(affine.layers_of, net), models.apply_of(net)
  unweighted = sections.make(config, "penalty", layers_of=layers_of, model=model, u=u)
  return penalties.weighted(config.penalty.weight, unweighted)


def _ascent_apply(config: ConfigDict, net: models.Net) -> ApplyFn | None:
  """The net in the arithmetic of the ascent, if that is another than its own."""
  dtype = config.attack.get("dtype", "float32")
  return None if dtype == "float32" else models.from_linen(_in_dtype(net, dtype, "attack.dtype"))


def _in_dtype(net: models.Net, dtype: str, key: str) -> nn.Module:
  """The net computing in another dtype, as `key` of the config asks."""
  if not isinstance(net, nn.Module) or not hasattr(net, "dtype"):
    raise InputError(
      f"--config.{key}={dtype} needs a Linen module with an attribute dtype, which "
      f"{type(net).__name__} does not have."
    )
  return net.clone(dtype=jnp.dtype(dtype))
