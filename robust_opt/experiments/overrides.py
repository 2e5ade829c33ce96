"""Config files and overrides, with one sentence for each way of getting them wrong.

  --config=configs/mnist.py:trades --config.attack.num_steps=10     # of what the file describes
  --config.attack.name=pgd --config.attack.num_steps=7              # of another attack
  --config.set.radius=8/255                                         # any number may be a fraction

A new name resets its section to the defaults of what is named, then the other overrides apply, in
whatever order they are given. A new ball has the radius that config.evaluation.radii has for its
norm; of a new data set, the mean and standard deviation of the pixels are measured. A new
optimizer has its own default learning rate; without one, 1e-3 after a change from SGD to one that
normalizes the gradient (adam, ...), 1e-2 after the opposite change, else the rate of the config.
"""

import ast
import contextlib
import difflib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from robust_opt.errors import InputError
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import sections
from robust_opt.sets import BALLS, radii
from robust_opt.training import optimizers

_OVERRIDE = re.compile(r"--?config\.([\w.]+)(?:=(.*))?", re.DOTALL)


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """(the rest, --config.key=value)."""
  items = [arg for arg in argv if _OVERRIDE.fullmatch(arg)]
  return [arg for arg in argv if arg not in items], items


def config_of(path: str, arguments: Sequence[str]) -> ConfigDict:
  """The config of a file, as for `load`, with overrides --config.key=value.

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
  if "optimizer.name" in items and "optimizer.learning_rate" not in items:
    logging.info(
      "--config.optimizer.name=%s trains at --config.optimizer.learning_rate=%s.",
      config.optimizer.name,
      config.optimizer.get("learning_rate"),
    )
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
    raise InputError(
      f"--config must be a file that defines get_config(), but there is no file {name!r}."
    )
  try:
    config = module_of(name).get_config(*([argument] if argument else []))
  except Exception as error:  # whatever the user's file raises
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip().rstrip(".")
    raise InputError(f"--config={path} could not be read: {reason}.") from error
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
  """The overrides that make a resolved and flattened config of the default one, or None."""

  def missing() -> dict[str, str]:
    """What the config does not have yet, as it is typed; tuples are lists in JSON."""
    now = config_lib.flattened(config_lib.as_dict(config))
    typed = {k: repr(tuple(v)) if isinstance(v, list) else str(v) for k, v in flat.items()}
    return {key: typed[key] for key in flat if key not in now or now[key] != flat[key]}

  config = config_lib.get_config()
  names = {key: text for key, text in missing().items() if key in _NAMES}
  try:
    apply(config, names)
    changed = missing()
    apply(config, changed)
  except InputError:
    return None
  if config_lib.flattened(config_lib.as_dict(config)) != dict(flat):
    return None
  return [f"--config.{key}={text}" for key, text in (names | changed).items()]


_NAMES = ("data.name", *(f"{section}.name" for section in sections.SECTIONS))


def apply(config: ConfigDict, items: Mapping[str, str]) -> None:
  """Sets dotted keys of a config to values as they are typed; names first.

  Raises:
    InputError: there is no such key, or the value is of another type.
  """
  # 'MLP' in quotes as it is without.
  items = {key: re.sub(r"""^(['"])(.*)\1$""", r"\2", text) for key, text in items.items()}
  if "set.name" in items:
    items["set.name"] = sections.set_name(items["set.name"])
  for section in sections.SECTIONS:
    name = items.get(f"{section}.name")
    if name is not None and name != config[section].name:
      sections.choose(config, section, name, **_of_the_config(config, section, name))
  if items.get("data.name", config.data.name) != config.data.name:
    config.data.mean = config.data.std = ()  # those of other pixels, measured unless given
  for key, text in items.items():
    _set(config, key, text)


def _of_the_config(config: ConfigDict, section: str, name: str) -> dict[str, Any]:
  """Keys of a new name that have no default, but a value in the config.

  These are the radius of a ball, and the learning rate of an optimizer.
  """
  if section == "set":
    norm = next((norm for norm, ball in BALLS.items() if ball.__name__ == name), "")
    radius = config.evaluation.radii.get(norm, 0.0)
    return {"radius": radius} if radius else {}
  if section == "optimizer" and "learning_rate" in config.optimizer:
    default = sections.keys_of(section, name).get("learning_rate", 0.0)
    missing = default is None or default is sections.REQUIRED
    return {"learning_rate": _usual_rate(config, name)} if missing else {}
  return {}


def _usual_rate(config: ConfigDict, name: str) -> float:
  """The learning rate of an optimizer without a default: as in the config, if of the same kind."""
  names = (config.optimizer.name, name)
  before, after = (each in optimizers.GRADIENT_STEPS for each in names)
  if before == after or any(":" in each for each in names):
    return float(config.optimizer.learning_rate)
  return 1e-2 if after else 1e-3


def _set(config: ConfigDict, key: str, text: str) -> None:
  *path, last = key.split(".")
  if path and path[0] in sections.SECTIONS:
    own = [*path[1:], last][0]
    if own != "name":
      sections.check_key(path[0], config[path[0]].name, own)
  else:
    _check_known(config, key)
  node = config
  for part in path:
    if not isinstance(node.get(part), ConfigDict):
      with node.ignore_type():  # mappings are made as they are named: set.groups.name=patches
        node[part] = ConfigDict()
    node = node[part]
  value = _value(key, text, node.get(last))
  with node.ignore_type():
    node[last] = value


def _check_known(config: ConfigDict, key: str) -> None:
  """InputError unless the config has that key, which is no section."""
  known = list(config_lib.flattened(config.to_dict()))
  if key in known:
    return
  if below := [name for name in known if name.startswith(f"{key}.")]:
    raise InputError(f"--config.{key} holds several keys; set one of them: {', '.join(below)}.")
  # The last part counts, then the whole.
  ends = {name: name.rpartition(".")[2] for name in known}
  near = difflib.get_close_matches(key.rpartition(".")[2], ends.values(), n=3, cutoff=0.75)
  close = [name for name, end in ends.items() if end in near]
  close = close or difflib.get_close_matches(key, known, n=3, cutoff=0.6)
  section = config.get(key.partition(".")[0])
  names = ", ".join(section if isinstance(section, ConfigDict) else config)
  hint = f"did you mean {' or '.join(close)}?" if close else f"there is {names}."
  raise InputError(f"--config.{key} is an unknown config key; {hint}")


def _value(key: str, text: str, old: Any) -> Any:
  """As typed, of the type of the old value; where that is None, a literal, number or string."""
  if isinstance(old, str):
    return text
  if isinstance(old, float):
    try:
      return radii.number(text)
    except InputError as error:
      raise InputError(f"--config.{key} {error}") from None
  value = _literal(text)
  if old is None:
    return value
  if isinstance(old, tuple) and isinstance(value, list):
    return tuple(value)
  if type(value) is not type(old):
    kind = type(old).__name__
    raise InputError(f"--config.{key} must be of type {kind} like {old!r}, but was {text!r}.")
  return value


def _literal(text: str) -> Any:
  """A literal of Python, true or false, a number or fraction, or else the text."""
  with contextlib.suppress(ValueError, SyntaxError):
    return ast.literal_eval(text)
  with contextlib.suppress(InputError):
    return radii.number(text)
  return {"true": True, "false": False}.get(text.lower(), text)
