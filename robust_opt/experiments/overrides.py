"""Flags and config overrides, with one sentence for each way of getting them wrong.

  --config=configs/mnist.py:trades --config.attack.num_steps=10     # of what the file describes
  --config.attack.name=pgd --config.attack.num_steps=7              # of another attack

A new name resets its section to the defaults of what is named, then the other overrides apply, in
whatever order they are given.
"""

import ast
import difflib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from robust_opt.errors import InputError
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import sections

_OVERRIDE = re.compile(r"--?config\.([\w.]+)(?:=(.*))?", re.DOTALL)


def define_config() -> flags.FlagHolder:
  """Defines --config; --config.key=value are no flags, but arguments of `config_of`."""
  return flags.DEFINE_string(
    "config",
    str(Path(config_lib.__file__)),
    "A config file, as in configs/, or file.py:argument of its get_config; and "
    "--config.key=value for every key of it.",
  )


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """(the rest, --config.key=value)."""
  items = [arg for arg in argv if _OVERRIDE.fullmatch(arg)]
  return [arg for arg in argv if arg not in items], items


def config_of(path: str, arguments: Sequence[str]) -> ConfigDict:
  """The config of a file with overrides.

  Args:
    path: of the file, or path:argument of its get_config.
    arguments: --config.key=value.

  Raises:
    InputError: the file cannot be read, or an argument is no override that fits.
  """
  items = {}
  for argument in arguments:
    override = _OVERRIDE.fullmatch(argument)
    if override is None:
      raise InputError(f"Every argument must be a --flag=value, but one was {argument!r}.")
    if override[2] is None:
      raise InputError(f"{argument} needs a value, as in {argument}=VALUE.")
    items[override[1]] = override[2]
  config = load(path)
  apply(config, items)
  unused = f"evaluation.radii.{config.set.name.lower()}"
  if unused in items:
    raise InputError(
      f"--config.{unused} has no effect: config.set is {config.set.name}, measured at its own "
      f"--config.set.radius."
    )
  return config


def load(path: str) -> ConfigDict:
  """What get_config of a file returns; "path:argument" calls get_config("argument")."""
  name, _, argument = path.partition(":")
  if not Path(name).is_file():
    raise InputError(f"--config must be a file that defines get_config(), but was {path!r}.")
  try:
    module = module_of(name)
    config = module.get_config(argument) if argument else module.get_config()
  except Exception as error:  # whatever the user's file raises
    raise InputError(f"--config={path} could not be read: {_last_line(error)}.") from error
  if not isinstance(config, ConfigDict):
    raise InputError(
      f"--config={path} must define get_config() that returns a ConfigDict, but it returned "
      f"{type(config).__name__}."
    )
  return config


def module_of(path: str) -> Any:
  """The module of a config file."""
  spec = importlib.util.spec_from_file_location(Path(path).stem, path)
  if spec is None or spec.loader is None:
    raise ImportError(f"{path} is no Python file")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def apply_all(config: ConfigDict, items: Sequence[str], flag: str = "override") -> None:
  """`apply` of key=value strings, as of --override, or another flag."""
  try:
    apply(config, dict(item.partition("=")[::2] for item in items))
  except InputError as error:
    words = " ".join(f"--{flag}={item}" for item in items)
    raise InputError(f"{words} does not fit the recipe: {error}") from error


def flags_of(flat: Mapping[str, Any]) -> list[str] | None:
  """The overrides that make a resolved config of the default one, or None if none do.

  Args:
    flat: dotted key -> JSON value, as of config_lib.flattened(config_lib.as_dict(config)).
  """
  start, found = config_lib.get_config(), []
  try:
    for section in sections.SECTIONS:
      name = flat[f"{section}.name"]
      if name != start[section].name:
        sections.choose(start, section, name)
        found.append(f"--config.{section}.name={name}")
    usual = config_lib.flattened(config_lib.as_dict(start))
    changed = {key: value for key, value in flat.items() if usual.get(key, _ABSENT) != value}
    apply(start, {key: _typed(value) for key, value in changed.items()})
  except (InputError, KeyError):
    return None
  if config_lib.flattened(config_lib.as_dict(start)) != dict(flat):
    return None
  return found + [f"--config.{key}={_typed(value)}" for key, value in changed.items()]


_ABSENT = object()


def _typed(value: Any) -> str:
  """As it is typed after a flag; tuples are lists in JSON."""
  return (
    value if isinstance(value, str) else repr(tuple(value) if isinstance(value, list) else value)
  )


def apply(config: ConfigDict, items: Mapping[str, str]) -> None:
  """Sets keys of a config; names first.

  Args:
    config: is changed.
    items: dotted key -> value as typed.

  Raises:
    InputError: there is no such key, or the value is of another type.
  """
  items = {key: _unquoted(text) for key, text in items.items()}
  for section in sections.SECTIONS:
    name = items.get(f"{section}.name")
    if name is not None and name != config[section].name:
      sections.choose(config, section, name)
  for key, text in items.items():
    _set(config, key, text)


def _unquoted(text: str) -> str:
  """'MLP' in quotes as it is without."""
  quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
  return text[1:-1] if quoted else text


def _set(config: ConfigDict, key: str, text: str) -> None:
  section, _, below = key.partition(".")
  if section in sections.SECTIONS and below:
    first = below.partition(".")[0]
    if first != "name":
      sections.check_key(section, config[section].name, first)
    _set_below(config[section], below.split("."), key, text)
    return
  node = config
  *path, last = key.split(".")
  for part in (*path, last):
    if not isinstance(node, ConfigDict) or part not in node:
      raise InputError(f"--config.{key} is an unknown config key; {_hint(key, node, config)}")
    parent, node = node, node[part]
  if isinstance(node, ConfigDict):
    raise InputError(f"--config.{key} holds several keys; set one of them: {', '.join(node)}.")
  parent[last] = _value(key, text, node)


def _set_below(node: ConfigDict, path: Sequence[str], key: str, text: str) -> None:
  """Below a section, where mappings are made as they are named: set.groups.name=patches."""
  *above, last = path
  for part in above:
    if not isinstance(node.get(part), ConfigDict):
      node[part] = ConfigDict()
    node = node[part]
  value = _value(key, text, node.get(last))
  with node.ignore_type():
    node[last] = value


def _value(key: str, text: str, old: Any) -> Any:
  """As typed, of the type of the old value; where that is None, a literal or a string."""
  if isinstance(old, str):
    return text
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    constants = {"true": True, "false": False, "nan": float("nan"), "inf": float("inf")}
    value = constants.get(text.lower(), text)
  if old is None:
    return value
  if isinstance(old, float) and type(value) is int:
    return float(value)
  if isinstance(old, tuple) and isinstance(value, list):
    return tuple(value)
  if type(value) is not type(old):
    kind = type(old).__name__
    raise InputError(f"--config.{key} must be of type {kind} like {old!r}, but was {text!r}.")
  return value


def _hint(key: str, node: Any, config: ConfigDict) -> str:
  close = _did_you_mean(key, list(config_lib.flattened(config.to_dict())))
  names = ", ".join(node) if isinstance(node, ConfigDict) else "no key below it"
  return close or f"there is {names}."


def _did_you_mean(given: str, known: Sequence[str]) -> str:
  """Of dotted names the last part counts, then the whole; empty if nothing is close."""
  ends = {name: name.rpartition(".")[2] for name in known}
  near = difflib.get_close_matches(given.rpartition(".")[2], ends.values(), n=3, cutoff=0.75)
  close = [name for name, end in ends.items() if end in near]
  close = close or difflib.get_close_matches(given, known, n=3, cutoff=0.6)
  return f"did you mean {' or '.join(close)}?" if close else ""


def _last_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[-1].strip().rstrip(".")
