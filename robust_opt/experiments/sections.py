"""The sections of a config: each is {name, the keyword arguments of what it names}.

  choose(config, "attack", "pgd", num_steps=7)     # its other keys: the defaults of pgd
  attack = make(config, "attack")                  # attacks.pgd(num_steps=7, ...)

SECTIONS has what each may name, or "package.module:name", an object of your own with the same
arguments. Keys that what is named does not take do not exist.
"""

import difflib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from robust_opt import losses, models, objectives, sets
from robust_opt.certificates.training import ibp
from robust_opt.errors import InputError
from robust_opt.experiments.attacks import ASCENT, ATTACKS
from robust_opt.sets import BALLS, UncertaintySet
from robust_opt.sets.build import SETS, build_set, import_object
from robust_opt.sets.radii import with_numbers
from robust_opt.training import optimizers, penalties

# The value of a key that has no default.
REQUIRED = inspect.Parameter.empty
_PLAIN = bool | int | float | str | tuple | None


class Section(NamedTuple):
  """What a section may name."""

  choices: Mapping[str, Callable[..., Any]]
  supplied: tuple[str, ...] = ()  # arguments that the run supplies, which are no keys


def _of(module: Any, names: Iterable[str] | None = None) -> dict[str, Callable[..., Any]]:
  return {name: getattr(module, name) for name in names or module.__all__}


def _takes_learning_rate(name: str) -> bool:
  value = getattr(optax, name)
  if name.startswith(("_", "scale_by_")) or name in optimizers.NEED_VALUE:
    return False
  return inspect.isfunction(value) and "learning_rate" in inspect.signature(value).parameters


_OPTIMIZERS = filter(_takes_learning_rate, dir(optax))

SECTIONS = {
  "set": Section(SETS),
  "attack": Section({name: function for name, (function, _) in ATTACKS.items()}),
  "objective": Section({**_of(objectives), "ibp": ibp}, ("u",)),
  "penalty": Section({"none": lambda: None, **_of(penalties)}, ("layers_of", "model", "u")),
  "model": Section(models.ARCHITECTURES, ("num_classes", "mean", "std", "dtype", "parent", "name")),
  "optimizer": Section(_of(optax, _OPTIMIZERS) | _of(optimizers)),
  "schedule": Section(optimizers.SCHEDULES, ("peak", "total", "steps_per_epoch")),
}


def find(section: str, name: str) -> Callable[..., Any]:
  """What a section names; an InputError if there is no such name."""
  choices = SECTIONS[section].choices
  if ":" in name:
    return import_object(name)
  if section == "optimizer" and name in optimizers.NEED_VALUE:
    raise InputError(_needs_value(name))
  if name not in choices:
    known = ", ".join(choices)
    known = f"an optimizer of optax or ours, {known}" if section == "optimizer" else known
    raise InputError(
      f"--config.{section}.name must be {known}, or package.module:name, but was {name!r}."
      f"{_suggestion(name, choices)}"
    )
  return choices[name]


def _suggestion(name: str, choices: Iterable[str]) -> str:
  """' Did you mean one_cycle?' of onecycle, and of my_nets.Net the way to name one's own."""
  module, _, member = name.rpartition(".")
  if module:
    return f" Did you mean {module}:{member}?"
  plain = {choice.replace("_", "").lower(): choice for choice in choices}
  near = difflib.get_close_matches(name.replace("_", "").lower(), plain, 1, cutoff=0.75)
  return f" Did you mean {plain[near[0]]}?" if near else ""


def set_name(name: str) -> str:
  """The class of a ball whose norm or class is given in any case, as l2 or linf; others as is."""
  ball = BALLS.get(name.lower())
  return name if ball is None else ball.__name__


def keys_of(section: str, name: str) -> dict[str, Any]:
  """The keys other than `name`, with their defaults, or REQUIRED."""
  parameters = inspect.signature(find(section, name)).parameters.values()
  supplied = SECTIONS[section].supplied
  keys = {p.name: _plain(p.default) for p in parameters if p.name not in supplied}
  return keys | shared_keys(section, name)


def shared_keys(section: str, name: str) -> dict[str, Any]:
  """Those of the keys that are the training's, not arguments of what is named."""
  if section == "penalty":
    return {} if name == "none" else {"weight": REQUIRED}
  return ATTACKS.get(name, (None, ASCENT))[1] if section == "attack" else {}


def choose(config: ConfigDict, section: str, name: str, **kwargs: Any) -> None:
  """Sets a section to what is named, and its other keys to that one's defaults.

  Keys without a default must be given, or set before the config is validated. What has a default
  that is no plain value (a dtype, a mask) exists as a key, but is not written out. An unknown name
  or key is an InputError.
  """
  name = set_name(name) if section == "set" else name
  for key in kwargs:
    check_key(section, name, key)
  shown = {key: value for key, value in keys_of(section, name).items() if isinstance(value, _PLAIN)}
  config[section] = ConfigDict({"name": name, **shown, **with_numbers(kwargs)})
  config[section].unlock()


def check_key(section: str, name: str, key: str) -> None:
  """InputError unless what is named takes the key."""
  keys = keys_of(section, name)
  if key not in keys:
    raise InputError(
      f"--config.{section}.{key} is unknown: --config.{section}.name={name} takes "
      f"{', '.join(keys) or 'no keys'}."
    )


def check_section(config: ConfigDict, section: str) -> None:
  """InputError unless the section has all keys that it must have, and no others."""
  chosen = config[section]
  if not isinstance(chosen, ConfigDict) or not isinstance(chosen.get("name"), str):
    raise InputError(f"--config.{section} must be {{name, its keys}}, but was {chosen!r}.")
  for key in set(chosen) - {"name"}:
    check_key(section, chosen.name, key)
  for key, default in keys_of(section, chosen.name).items():
    if default is REQUIRED and key not in chosen:
      raise InputError(f"--config.{section}.name={chosen.name} needs --config.{section}.{key}.")


def make(config: ConfigDict, section: str, **supplied: Any) -> Any:
  """What the section describes, called with its keys and what the run supplies.

  Of what is supplied, arguments that it does not take are left out; its errors are InputErrors.
  """
  # Lists become tuples: modules are keys of caches, which lists cannot be.
  own = {k: tuple(v) if isinstance(v, list) else v for k, v in config[section].to_dict().items()}
  name = str(own.pop("name"))
  function, shared = find(section, name), shared_keys(section, name)
  takes = inspect.signature(function).parameters
  kwargs = {key: value for key, value in own.items() if key not in shared}
  kwargs |= {key: value for key, value in supplied.items() if key in takes}
  if isinstance(loss := kwargs.get("loss"), str):
    kwargs["loss"] = loss_of(loss)
  try:
    return function(**kwargs)
  except (TypeError, ValueError) as error:
    if isinstance(error, InputError) and str(error).startswith("--config"):
      raise
    words = str(error).rstrip(".")
    raise InputError(f"--config.{section} does not fit {name}: {words}.") from error


def make_optimizer(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
  """config.optimizer at a learning rate; an InputError if it needs more than gradients."""
  name, schedule = config.optimizer.name, config.schedule.name
  rateless = "learning_rate" not in keys_of("optimizer", name)
  if schedule != "constant" and (rateless or name in optimizers.CONSTANT_RATE):
    raise InputError(
      f"--config.optimizer.name={name} takes no schedule of the learning rate: "
      f"--config.schedule.name must be constant, but was {schedule}."
    )
  given = config.optimizer.learning_rate if name in optimizers.CONSTANT_RATE else rate
  descent = make(config, "optimizer", learning_rate=given)
  if not isinstance(descent, optax.GradientTransformation):
    raise InputError(f"--config.optimizer.name={name} is no optimizer.")
  if _lacks_arguments(descent):
    raise InputError(_needs_value(name))
  return descent


def _lacks_arguments(descent: optax.GradientTransformation) -> bool:
  """Whether an update takes more than gradients, state and parameters."""
  params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      jax.eval_shape(lambda p: descent.update(p, descent.init(p), p), params)
  except TypeError as error:
    return "missing" in str(error) and "argument" in str(error)
  except Exception:  # an optimizer for certain parameters alone
    return False
  return False


def _needs_value(name: str) -> str:
  return (
    f"--config.optimizer.name={name} needs the loss or a function of it at every update, and "
    f"training gives an optimizer the gradient alone: choose another, as adam or sgd."
  )


def make_set(config: ConfigDict, fit_planes: Callable[[str, int], sets.BasisOf]) -> UncertaintySet:
  """config.set, or an InputError; tangent planes, basis_of={name, rank}, by `fit_planes`."""
  described = config.set.to_dict()
  planes = described.get("basis_of")
  if isinstance(planes, Mapping):
    if planes.keys() != {"name", "rank"} or planes["name"] not in ("autoencoder", "local_pca"):
      raise InputError(
        f"--config.set.basis_of must be {{name: autoencoder or local_pca, rank: an integer}}, but "
        f"was {dict(planes)}."
      )
    described["basis_of"] = fit_planes(planes["name"], planes["rank"])
  try:
    u = build_set(described)
  except InputError as error:
    raise InputError(f"--config.set does not fit {config.set.name}: {error}") from error
  if any(leaf is u for leaf in jax.tree.leaves(u)):
    raise InputError(
      f"--config.set.name={config.set.name} is no pytree: decorate the class with "
      f"robust_opt.sets.set_dataclass."
    )
  return jax.tree.map(lambda leaf: float(leaf) if isinstance(leaf, int) else leaf, u)


def loss_of(name: str) -> Callable[..., Any]:
  """The loss of that name, or a user's own."""
  if ":" in name:
    return import_object(name)
  if name not in losses.KINDS:
    raise InputError(
      f"--config.objective.loss must be one of {', '.join(losses.KINDS)}, or "
      f"package.module:name, but was {name!r}."
    )
  return getattr(losses, name)


def _plain(default: Any) -> Any:
  """A loss by its name; anything else as it is."""
  name = getattr(default, "__name__", None)
  return name if name in losses.KINDS and default is getattr(losses, name) else default
