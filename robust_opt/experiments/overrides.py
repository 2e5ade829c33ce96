"""Flags and config overrides, with one sentence for each way of getting them wrong.

ml_collections answers a misspelt override with a long traceback; this asks the config first.
"""

import ast
import difflib
import functools
import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from robust_opt.errors import InputError

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")


def define_config() -> flags.FlagHolder:
  """Defines --config, a config file, and --config.key=value for every key of it."""
  return config_flags.DEFINE_config_file("config", help_string="A config file, as in configs/.")


def default_config(argv: list[str], path: Path) -> None:
  """Puts --config=path first if argv names no config; config_flags reads sys.argv itself."""
  if not any(re.match(r"--?config(=|$)", arg) for arg in argv):
    argv.insert(1, f"--config={path}")


def parse(argv: Sequence[str]) -> list[str]:
  """Parses argv into absl's flags and returns what is left of it.

  Raises:
    InputError: an unknown flag or config key, a value of the wrong type, an unreadable config.
  """
  config = _load(argv)
  for arg in argv:
    if override := _OVERRIDE.match(arg):
      _check_key(override.group(1), config)
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    raise InputError(_sentence(error, config)) from error


def override(config: ConfigDict, item: str) -> None:
  """Sets one key=value, of --override; the value is a Python literal, or else a string.

  Raises:
    InputError: there is no such key, or the value is of another type.
  """
  key, _, text = item.partition("=")
  *path, name = key.split(".")
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = text
  try:
    node = functools.reduce(ConfigDict.__getitem__, path, config)
    if name not in node:
      raise KeyError(f"there is no key {key!r}")
    node[name] = value
  except (KeyError, TypeError, AttributeError) as error:
    raise InputError(f"--override={item} does not fit the recipe: {error}.") from error


def _load(argv: Sequence[str]) -> ConfigDict:
  """The config without its overrides."""
  place = next(i for i, arg in enumerate(argv) if re.match(r"--?config(=|$)", arg))
  only = argv[place : place + 1] if "=" in argv[place] else argv[place : place + 2]
  given = re.sub(r"^--?config=?", "", only[-1])
  path = Path(given.split(":", 1)[0])  # what is behind a colon goes to get_config
  if not path.is_file():
    raise InputError(f"--config must be a file that defines get_config(), but {given!r} is none.")
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["", *only])
  try:
    values(["", *only])
    config = holder.value
  except Exception as error:  # whatever the user's file raises
    raise InputError(f"--config={given} could not be read: {_last_line(error)}.") from error
  if not isinstance(config, ConfigDict):
    raise InputError(
      f"--config={given} must define get_config() that returns a ConfigDict, but it returned "
      f"{type(config).__name__}."
    )
  return config


def _check_key(key: str, config: ConfigDict) -> None:
  node, path = config, "config"
  for part in key.split("."):
    if not isinstance(node, ConfigDict) or part not in node:
      names = ", ".join(node) if isinstance(node, ConfigDict) else "no key below it"
      hint = _did_you_mean(key, _keys(config)) or f"--{path} has {names}."
      raise InputError(f"--config.{key} is no key of this config; {hint}")
    node, path = node[part], f"{path}.{part}"
  if isinstance(node, ConfigDict):
    raise InputError(f"--{path} holds several keys; set one of them: {', '.join(node)}.")


def _did_you_mean(given: str, known: Sequence[str]) -> str:
  """Of dotted names the last part counts, then the whole; empty if nothing is close."""
  ends = {name: name.rpartition(".")[2] for name in known}
  near = difflib.get_close_matches(given.rpartition(".")[2], ends.values(), n=3, cutoff=0.75)
  close = [name for name, end in ends.items() if end in near]
  close = close or difflib.get_close_matches(given, known, n=3, cutoff=0.6)
  return f"did you mean {' or '.join(close)}?" if close else ""


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
  keys: list[str] = []
  for name, value in config.items():
    keys += _keys(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [prefix + name]
  return keys


def _sentence(error: flags.Error, config: ConfigDict) -> str:
  if isinstance(error, flags.UnrecognizedFlagError):
    known = [*flags.FLAGS, *(f"config.{key}" for key in _keys(config))]
    hint = _did_you_mean(f"--{error.flagname}", [f"--{name}" for name in known])
    return f"--{error.flagname} is no flag; {hint or '--help lists them.'}"
  wrong_type = re.match(r"flag --config\.([^=]+)=(.*?): ", str(error), re.DOTALL)
  if not wrong_type:
    return _last_line(error)
  key, given = wrong_type.groups()
  node = config
  for part in key.split("."):
    node = node[part]
  return f"--config.{key} must be of type {type(node).__name__} like {node!r}, but was {given!r}."


def _last_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[-1].strip().rstrip(".")
