"""The network of --architecture with the weights of --weights, and the images of --data for it.

  net = load(source, data)              # data = examples("cifar10", "", "", 0)
  net.logits_fn, net.title              # a weights.LoadedNet

`--architecture` is a name in models.ARCHITECTURES, or JSON with the name and its attributes.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robust_opt import weight_files, weights
from robust_opt.data import archives, datasets
from robust_opt.data.datasets import Dataset
from robust_opt.errors import InputError


def load(source: Mapping[str, str], data: Dataset) -> weights.LoadedNet:
  """The network.

  Args:
    source: architecture and weights; mean and std of the pixels, numbers separated by commas, if
      they are neither attributes of the architecture nor in the file of the weights.
    data: its images; the network has as many classes, unless num_classes is an attribute.

  Raises:
    InputError: what `weights.load_torch` refuses, or numbers that are none.
  """
  name, attributes = _named(source["architecture"])
  attributes = {"num_classes": data.num_classes} | attributes
  if ("mean" in source) != ("std" in source):
    raise InputError("Give both --mean and --std, or neither.")
  for key in {"mean", "std"} & source.keys():
    attributes[key] = _numbers(key, source[key], data.images.shape[-1])
  path = Path(source["weights"])
  file = weight_files.read(path)
  moments = {} if attributes.keys() & {"mean", "std"} else file.moments
  return weights.loaded(
    weights.build(name, **moments, **attributes), file, path, data.images.shape[1:]
  )


def examples(data: str, data_dir: str, cache_dir: str, image_size: int) -> Dataset:
  """The test images of a data set by its name, or those of files or a folder.

  Raises:
    InputError: they cannot be found or read.
  """
  if archives.is_archive(data) or Path(data).expanduser().is_dir():
    images, labels, classes = datasets.read_examples(data, image_size)
    return datasets.from_arrays(images, labels, len(classes) or None)
  return datasets.load(
    data, "test", data_dir=data_dir or None, cache_dir=cache_dir or None, image_size=image_size
  )


def _named(text: str) -> tuple[str, dict[str, Any]]:
  """The name and the attributes, lists as tuples."""
  if not text.startswith("{"):
    return text, {}
  try:
    value = json.loads(text)
    name = value.pop("name")
  except (ValueError, KeyError) as error:
    raise InputError(
      f'--architecture must be a name, or JSON such as {{"name": "WideResNet", "depth": 34}}, but '
      f"was {text!r} ({error})."
    ) from error
  return name, {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}


def _numbers(key: str, text: str, channels: int) -> tuple[float, ...]:
  """Numbers separated by commas, one or one per channel; those of std are positive."""
  try:
    values = tuple(map(float, text.split(",")))
  except ValueError:
    values = ()
  in_range = all(map(math.isfinite, values)) and (key == "mean" or all(v > 0 for v in values))
  if len(values) not in (1, channels) or not in_range:
    raise InputError(
      f"--{key} must be a number for each of the {channels} channels, as 0.5,0.5,0.5, or one for "
      f"all, but was {text!r}."
    )
  return values
