"""From a config to objects, by name: getattr(module, name)(**kwargs), no registry."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from robust_opt import maximizers, models
from robust_opt.data import augmentation, constructed, datasets
from robust_opt.errors import InputError
from robust_opt.maximizers import Attack
from robust_opt.sets import balls
from robust_opt.training import optimizers
from robust_opt.types import Array

PIXEL_BOX = (0.0, 1.0)


class Splits(NamedTuple):
  """The data of a run: to learn from, to choose a checkpoint by, and to report on."""

  train: datasets.Dataset
  heldout: datasets.Dataset
  test: datasets.Dataset


def splits(config: ConfigDict) -> Splits:
  """Loads the data; the held-out part comes from the training set, never from the test set."""
  start = config.dataset.train_start
  train = _load(config, "train", start, config.dataset.train_examples)
  test = _load(config, "test", 0, config.dataset.test_examples)
  if not len(train.labels):
    raise InputError(
      f"--config.dataset.train_start={start} leaves none of the training examples of "
      f"{config.dataset.name}."
    )
  try:
    rest, heldout = datasets.holdout(train, config.dataset.holdout, config.seed)
  except InputError as error:
    raise InputError(
      f"--config.dataset.holdout={config.dataset.holdout} does not fit {len(train.labels)} "
      f"training examples: at least one must be held out, and one remain."
    ) from error
  if config.dataset.train_files:
    rest = _constructed(config, rest)
  if config.dataset.labels:
    # What needs no labels also learns from those who have none.
    keep_others = config.objective.name == "virtual"
    rest = datasets.few_labels(rest, config.dataset.labels, config.seed, keep_others)
  if config.training.batch_size > len(rest.labels):
    raise InputError(
      f"--config.training.batch_size must be at most the {len(rest.labels)} training examples "
      f"that remain, but was {config.training.batch_size}."
    )
  return Splits(rest, heldout, test)


def _constructed(config: ConfigDict, original: datasets.Dataset) -> datasets.Dataset:
  """What was made of the training set, in its place; what is held out stays real."""
  made = constructed.load(Path(config.dataset.train_files))
  if made.images.shape[1:] != original.images.shape[1:]:
    raise InputError(
      f"--config.dataset.train_files={config.dataset.train_files} holds images "
      f"{list(made.images.shape[1:])}, but those of {config.dataset.name} are "
      f"{list(original.images.shape[1:])}."
    )
  if made.num_classes != original.num_classes:
    raise InputError(
      f"--config.dataset.train_files={config.dataset.train_files} holds {made.num_classes} "
      f"classes, but {config.dataset.name} has {original.num_classes}."
    )
  return made


def _load(config: ConfigDict, split: str, start: int, count: int) -> datasets.Dataset:
  """`count` examples of a split from `start` on; 0: all."""
  data_dir, cache_dir = config.dataset.data_dir or None, config.dataset.cache_dir or None
  dataset = datasets.load(config.dataset.name, split, data_dir=data_dir, cache_dir=cache_dir)
  if start == count == 0:
    return dataset
  part = slice(start, start + count if count else None)
  return dataset._replace(images=dataset.images[part], labels=dataset.labels[part])


def model(config: ConfigDict, train: datasets.Dataset) -> nn.Module:
  """The network, its first layer standardising by the config's mean and std or the data's own."""
  # Modules are keys of caches, which lists cannot be.
  attributes = {k: tuple(v) if isinstance(v, list) else v for k, v in config.model.items()}
  name = attributes.pop("name")
  names = [n for n in models.__all__ if isinstance(getattr(models, n), type)]
  if name not in names:
    raise InputError(f"--config.model.name must be one of {', '.join(names)}, but was {name!r}.")
  if not attributes["mean"] or not attributes["std"]:
    attributes["mean"], attributes["std"] = pixel_statistics(train.images)
  channels = train.images.shape[-1]
  for key in ("mean", "std"):
    if len(attributes[key]) not in (1, channels):
      raise InputError(
        f"--config.model.{key} must have 1 or {channels} entries for images of {channels} "
        f"channels, but was {attributes[key]}."
      )
  try:
    return getattr(models, name)(num_classes=train.num_classes, **attributes)
  except TypeError as error:
    raise InputError(f"--config.model does not fit {name}: {error}.") from error


def pixel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and standard deviation of every channel, in pixels of [0, 1]."""
  scale = 255.0 if images.dtype == np.uint8 else 1.0
  flat = images.reshape(-1, images.shape[-1])
  mean = flat.mean(axis=0, dtype=np.float64) / scale
  std = flat.std(axis=0, dtype=np.float64) / scale
  return tuple(map(float, mean)), tuple(float(s) if s > 0 else 1.0 for s in std)


def uncertainty_set(config: ConfigDict, norm: str, radius: float | Array) -> balls.Ball:
  """The ball of that norm and radius, within the pixel box if the config asks for it."""
  return balls.BALLS[norm](radius, box=PIXEL_BOX if config.uncertainty.box else None)


def own_set(config: ConfigDict) -> balls.Ball:
  """The ball that the config trains over."""
  return uncertainty_set(config, config.uncertainty.name, config.uncertainty.radius)


def attack(config: ConfigDict, u: balls.Ball, num_steps: int) -> Attack:
  """The config's attack over a ball, to train by.

  One step is Algorithm 1's, to the full radius, unless it starts at random; more are those of the
  maximizer that the config names, of which the last point counts.
  """
  match config.attack.name if num_steps else "none":
    case "uniform_noise":
      return maximizers.noise(u)
    case "random_signs":
      return maximizers.noise(u, extreme=True)
    case "power_iteration":
      maximizer = maximizers.power_iteration(u)
    case "n_fgsm":
      maximizer = maximizers.noisy_step(dataclasses.replace(u, radius=2 * u.radius), u)
    case "pgd" if config.attack.random_start:
      maximizer = _pgd(config, u)
    case _:
      maximizer = _maximizer(config, u, num_steps)
  return maximizers.ascend(maximizer, num_steps)


def evaluation_attack(config: ConfigDict, u: balls.Ball, num_steps: int | None = None) -> Attack:
  """`attack`, to measure by: of more than one step every example's best point counts.

  It ascends the cross-entropy, which is not flat where power iteration starts: that is PGD here.
  By default of the config's steps; a standard net is attacked by one, as the paper's robust nets.
  """
  steps = max(1, config.attack.num_steps) if num_steps is None else num_steps
  return maximizers.ascend(_maximizer(config, u, steps), steps, keep_best=steps > 1)


def watching_attack(config: ConfigDict, u: balls.Ball) -> Attack:
  """What a training does not train against: PGD-10 beside one step, one step beside more."""
  if config.attack.num_steps > 1:
    return evaluation_attack(config, u, 1)
  pgd = ConfigDict(config).copy_and_resolve_references()
  pgd.attack.update(name="pgd", num_steps=10, relative_step=0.25, random_start=True)
  return evaluation_attack(pgd, u, 10)


def _maximizer(config: ConfigDict, u: balls.Ball, num_steps: int) -> maximizers.InnerMaximizer:
  if num_steps <= 1:
    return maximizers.frank_wolfe(u)
  if config.attack.name in ("frank_wolfe", "lbfgs"):
    return getattr(maximizers, config.attack.name)(u)
  return _pgd(config, u)


def _pgd(config: ConfigDict, u: balls.Ball) -> maximizers.InnerMaximizer:
  # Over l_2 and l_1 the projection knows of the box, and gradient steps (l_2) climb to the maximum.
  step_ball = balls.LInf if isinstance(u, balls.LInf) else balls.L2
  step = step_ball(config.attack.relative_step * u.radius)
  return maximizers.pgd(u, step, random_start=config.attack.random_start)


def schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
  """The learning rate at each step."""
  peak = config.optimizer.learning_rate
  total = config.training.epochs * steps_per_epoch
  match config.optimizer.schedule:
    case "inverse_time":
      return lambda step: peak / (1.0 + config.optimizer.inverse_time_rate * step)
    case "halving":
      every = max(1, round(config.optimizer.halving_epochs * steps_per_epoch))
      return optax.exponential_decay(peak, every, decay_rate=0.5, staircase=True)
    case "cosine":
      return optax.cosine_decay_schedule(peak, total)
    case "triangular":
      up = max(1, total // 2)
      rise, fall = optax.linear_schedule(0, peak, up), optax.linear_schedule(peak, 0, total - up)
      return optax.join_schedules([rise, fall], [up])
    case _:
      return optax.constant_schedule(peak)


def updates_of_a_batch(config: ConfigDict) -> int:
  """Free training updates at every replay; its schedules count those."""
  return max(1, config.attack.num_steps) if config.attack.name == "free" else 1


def optimizer(config: ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
  """What descends: an l_2 penalty on every parameter, then the optimiser of that name.

  It bounds the weights of every unit and averages the weights, if the config asks for it.
  """
  name = config.optimizer.name
  factory = getattr(optimizers if name in optimizers.__all__ else optax, name, None)
  refusal = (
    f"--config.optimizer.name must be an optimiser of optax or dampened_sgd, but was {name!r}."
  )
  if not callable(factory):
    raise InputError(refusal)
  try:
    rate = schedule(config, steps_per_epoch * updates_of_a_batch(config))
    descent = factory(rate, **config.optimizer.kwargs.to_dict())
  except TypeError as error:
    raise InputError(f"--config.optimizer.kwargs does not fit {name}: {error}.") from error
  if not isinstance(descent, optax.GradientTransformation):
    raise InputError(refusal)
  parts = [optax.add_decayed_weights(config.optimizer.weight_decay), descent]
  if config.optimizer.max_column_norm:
    parts.append(optimizers.max_column_norm(config.optimizer.max_column_norm))
  if config.optimizer.average:
    parts.append(optimizers.weight_average(config.optimizer.average))
  return optax.chain(*parts)


def augment(config: ConfigDict) -> Callable[[Array, Array], Array] | None:
  """The config's augmentations one after the other, or None."""
  functions: list[Any] = [getattr(augmentation, name) for name in config.training.augment]
  if not functions:
    return None

  def apply(keys: Array, images: Array) -> Array:
    for stream, function in enumerate(functions):
      streams = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, stream)
      images = function(streams, images, channel_axis=-1)
    return images

  return apply
