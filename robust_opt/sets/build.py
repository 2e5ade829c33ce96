"""Builds a set from a mapping of configs or flags: `name` and keyword arguments.

  build_set({"name": "LInf", "radius": 8 / 255, "box": (0.0, 1.0)})
  build_set({"name": "GroupL21", "radius": 0.5, "groups": {"name": "patches", "side": 4}})
  build_set({"name": "my_package.my_module:Cube", "radius": 0.1})

|  value                     |  becomes                                          |
|  a mapping with `name`     |  name(**the rest), whose values are built first   |
|  a string ending in .npy   |  the array in that file                           |
|  a radius such as "8/255"  |  its number (`radii.number`)                      |
|  "package.module:name"     |  that object, imported from the working directory |
|  a list                    |  a tuple                                          |
|  anything else             |  itself                                           |
"""

import functools
import hashlib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from robust_opt import layout, sets
from robust_opt.arrays import digest
from robust_opt.errors import InputError
from robust_opt.layout import ChannelAxis
from robust_opt.sets.base import UncertaintySet
from robust_opt.sets.radii import with_numbers


@functools.cache  # static fields are compared, and partials only by identity
def _channels(channel_axis: ChannelAxis = layout.AUTO) -> sets.Groups:
  return functools.partial(sets.channels, channel_axis=channel_axis)


SETS: dict[str, type[UncertaintySet]] = {
  name: value
  for name in sets.__all__
  if isinstance(value := getattr(sets, name), type)
  and issubclass(value, UncertaintySet)
  and value not in (UncertaintySet, sets.Ball)
}
_PARTS: dict[str, Callable[..., Any]] = {"channels": _channels, "patches": sets.patches}


def build_set(config: Mapping[str, Any]) -> UncertaintySet:
  """The set that a mapping of `name` and the arguments of its class describes, or an InputError."""
  built = _build(with_numbers(config))
  if not isinstance(built, UncertaintySet):
    raise InputError(f"{config!r} must describe a set, {', '.join(SETS)}, but is {built!r}.")
  return built


def config_sha256(config: Mapping[str, Any]) -> str:
  """SHA-256 of a set's config and of the arrays in the files that it names."""
  sha = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
  for path in _array_files(config):
    sha.update(digest(_load_array(path)).encode())
  return sha.hexdigest()


def _array_files(value: Any) -> Iterator[str]:
  if isinstance(value, Mapping):
    value = [value[key] for key in sorted(value)]
  if isinstance(value, str) and value.endswith(".npy"):
    yield value
  elif isinstance(value, list | tuple):
    for entry in value:
      yield from _array_files(entry)


def _build(value: Any) -> Any:
  if isinstance(value, Mapping):
    return _call(value)
  if isinstance(value, list | tuple):
    return tuple(_build(entry) for entry in value)
  if isinstance(value, str) and value.endswith(".npy"):
    return _load_array(value)
  if isinstance(value, str) and ":" in value:
    return import_object(value)
  return value


def _call(config: Mapping[str, Any]) -> Any:
  arguments = {key: _build(value) for key, value in config.items() if key != "name"}
  name: Any = config.get("name")
  known = SETS | _PARTS
  function = import_object(name) if isinstance(name, str) and ":" in name else known.get(name)
  if not callable(function):
    raise InputError(
      f"name must be one of {', '.join(known)}, or package.module:Class of your own, but was "
      f"{name!r}."
    )
  signature = inspect.signature(function)
  try:
    signature.bind(**arguments)
  except TypeError as error:
    allowed, given = ", ".join(signature.parameters), ", ".join(arguments)
    raise InputError(f"{name} takes {allowed}, but was given {given} ({error}).") from error
  try:
    return function(**arguments)
  except InputError:
    raise
  except (TypeError, ValueError) as error:
    raise InputError(f"{name} cannot be built of {', '.join(arguments)} ({error}).") from error


def import_object(name: str) -> Any:
  """The object that "package.module:name" names; the working directory is searched first."""
  module_name, _, attribute = name.partition(":")
  sys.path.insert(0, os.getcwd())
  try:
    return getattr(importlib.import_module(module_name), attribute)
  except Exception as error:  # whatever the user's module raises
    raise InputError(f"{name} cannot be imported ({error}).") from error
  finally:
    sys.path.remove(os.getcwd())


def _load_array(path: str) -> np.ndarray:
  try:
    return np.asarray(np.load(path, allow_pickle=False))
  except (OSError, ValueError, EOFError) as error:
    raise InputError(f"{path} must be an array in a .npy file ({error}).") from error
