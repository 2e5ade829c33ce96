"""Flags and config overrides, with one sentence for each way of getting them wrong.

ml_collections answers a misspelt override with a long traceback; this asks the config first.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from robust_opt.errors import InputError

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")


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


def _load(argv: Sequence[str]) -> ConfigDict:
  """The config without its overrides."""
  place = next(i for i, arg in enumerate(argv) if re.match(r"--?config(=|$)", arg))
  only = argv[place : place + 1] if "=" in argv[place] else argv[place : place + 2]
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["", *only])
  try:
    values(["", *only])
    config = holder.value
  except Exception as error:
    given = only[-1].removeprefix("--config=")
    reason = "there is no such file" if isinstance(error, OSError) else _last_line(error)
    raise InputError(f"--config={given} could not be read: {reason}.") from error
  if not isinstance(config, ConfigDict):
    raise InputError(f"{only[0]} must define get_config() -> ConfigDict.")
  return config


def _check_key(key: str, config: ConfigDict) -> None:
  node = config
  for part in key.split("."):
    if not isinstance(node, ConfigDict) or part not in node:
      known = _keys(config)
      close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
      hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}."
      raise InputError(f"--config.{key} is no key of this config; {hint}")
    node = node[part]


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
  keys: list[str] = []
  for name, value in config.items():
    keys += _keys(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [prefix + name]
  return keys


def _sentence(error: flags.Error, config: ConfigDict) -> str:
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
