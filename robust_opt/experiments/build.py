"""From a config to its data and the objects that its sections describe."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from robust_opt.data import augmentation, constructed, datasets
from robust_opt.errors import InputError
from robust_opt.experiments import sections
from robust_opt.experiments.attacks import TrainingAttack
from robust_opt.sets import UncertaintySet, tangents
from robust_opt.sets.build import import_object
from robust_opt.training import optimizers
from robust_opt.types import Array

_SAMPLE = 10_000  # images of a large data set that determine its mean and standard deviation


class Splits(NamedTuple):
  """The data of a run: to learn from, to choose a checkpoint by, and to report on."""

  train: datasets.Dataset
  heldout: datasets.Dataset
  test: datasets.Dataset


def splits(config: ConfigDict) -> Splits:
  """Loads the data; the held-out part comes from the training set, never from the test set."""
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
  return Splits(rest, heldout, test)


def _constructed(config: ConfigDict, original: datasets.Dataset) -> datasets.Dataset:
  """Replaces the training set by the constructed one; the held-out examples stay original."""
  made = constructed.load(Path(config.data.train_files))
  if made.images.shape[1:] != original.images.shape[1:]:
    raise InputError(
      f"--config.data.train_files={config.data.train_files} holds images "
      f"{list(made.images.shape[1:])}, but those of {config.data.name} are "
      f"{list(original.images.shape[1:])}."
    )
  if made.num_classes != original.num_classes:
    raise InputError(
      f"--config.data.train_files={config.data.train_files} holds {made.num_classes} "
      f"classes, but {config.data.name} has {original.num_classes}."
    )
  return made


def _load(config: ConfigDict, split: str, start: int, count: int) -> datasets.Dataset:
  """`count` examples of a split from `start` on; 0: all."""
  if ":" in config.data.name:
    dataset = import_object(config.data.name)(split)
  else:
    data_dir, cache_dir = config.data.data_dir or None, config.data.cache_dir or None
    dataset = datasets.load(
      config.data.name,
      split,
      data_dir=data_dir,
      cache_dir=cache_dir,
      image_size=config.data.image_size,
    )
  if start == count == 0:
    return dataset
  part = slice(start, start + count if count else None)
  return dataset._replace(images=dataset.images[part], labels=dataset.labels[part])


def model(config: ConfigDict, train: datasets.Dataset) -> nn.Module:
  """The network, its first layer standardizing by the mean and std of config.data, or the data's.

  A network of your own gets those of num_classes, mean and std that it has.
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
  return sections.make(config, "model", num_classes=train.num_classes, mean=mean, std=std)


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
  """config.set.

  Args:
    config: checked by config.validate.
    images: [N, *S], of the training set: tangent planes are learned here.
  """
  return sections.make_set(config, lambda name, rank: tangents.fit(name, images, rank, config.seed))


def attack(config: ConfigDict) -> TrainingAttack:
  """config.attack."""
  return sections.make(config, "attack")


def updates_of_a_batch(config: ConfigDict) -> int:
  """Free training updates at every replay; its schedules count those."""
  return config.attack.get("num_replays", 1)


def schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
  """The learning rate at each step."""
  total = config.training.epochs * steps_per_epoch
  peak = config.optimizer.learning_rate
  return sections.make(config, "schedule", peak=peak, total=total, steps_per_epoch=steps_per_epoch)


def optimizer(config: ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
  """The optimizer of that name, with what config.weights asks for before and after it."""
  rate = schedule(config, steps_per_epoch * updates_of_a_batch(config))
  descent = sections.make(config, "optimizer", learning_rate=rate)
  if not isinstance(descent, optax.GradientTransformation):
    raise InputError(f"--config.optimizer.name={config.optimizer.name} is no optimizer.")
  parts = [optax.add_decayed_weights(config.weights.decay), descent]
  if config.weights.max_column_norm:
    parts.append(optimizers.max_column_norm(config.weights.max_column_norm))
  if config.weights.average:
    parts.append(optimizers.weight_average(config.weights.average))
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
