"""Checks of arguments: an InputError that says what was passed and what to write instead.

check_count("num_steps", num_steps)
check_callable("loss", loss, "(params, x, y) -> losses [B]")
"""

import inspect
import operator
import re
from typing import Any

import numpy as np

from robust_opt.errors import InputError


def described(value: object) -> str:
  """A value in a message: 'the number 0.1', 'the class LInf', 'the function loss', 'a dict'."""
  if isinstance(value, type):
    return f"the class {value.__name__}"
  if inspect.isroutine(value):
    return f"the function {value.__name__}"
  if isinstance(value, str):
    return f"the string {value!r}"
  if value is None or isinstance(value, bool):
    return str(value)
  if isinstance(value, int | float):
    return f"the number {value!r}"
  if hasattr(value, "dtype") and hasattr(value, "shape"):
    return f"an array of {value.dtype} of the shape {value.shape}"
  name = type(value).__name__
  # By its sound: an LInf, an MLP, but a List.
  return f"{'an' if re.match('[AEIOUaeiou]|[FLMNRSX](?![a-z])', name) else 'a'} {name}"


def takes(function: Any, *args: Any, **kwargs: Any) -> bool:
  """Whether a function can be called with these arguments, as far as its signature tells."""
  try:
    inspect.signature(function).bind(*args, **kwargs)
  except TypeError:
    return False
  except ValueError:  # it has no signature, as some built-in functions
    pass
  return True


def has_parameter(function: Any, name: str) -> bool:
  """Whether the function has an argument of this name."""
  try:
    return name in inspect.signature(function).parameters
  except (TypeError, ValueError):
    return False


def check_callable(
  name: str, function: object, signature: str, *args: None, **kwargs: None
) -> None:
  """InputError unless it is a function, no class, that takes arguments as those given, if any."""
  wanted = f"{name} must be a function, {signature}, but"
  if not callable(function) or isinstance(function, type):
    raise InputError(f"{wanted} was {described(function)}.")
  if args and not takes(function, *args, **kwargs):
    raise InputError(f"{wanted} {described(function)} takes other arguments.")


def check_count(name: str, count: Any, low: int = 0, hint: str = "") -> None:
  """InputError unless the number is an integer >= low."""
  try:
    valid = operator.index(count) >= low
  except TypeError:
    valid = False
  if not valid:
    shown = count if isinstance(count, int | float) else described(count)
    raise InputError(f"{name} must be an integer >= {low}, but was {shown}{hint}.")


def check_flag(name: str, flag: object) -> None:
  """InputError unless it is True or False, as for the number of steps in its place."""
  if not isinstance(flag, bool | np.bool_):
    hint = ""
    if isinstance(flag, int):
      hint = f"; a number of steps is an argument of ro.ascend(maximizer, num_steps={flag})"
    raise InputError(f"{name} must be True or False, but was {described(flag)}{hint}.")


def check_optimizer(optimizer: object) -> None:
  """InputError unless it is a gradient transformation of optax."""
  if isinstance(optimizer, type) or not (
    hasattr(optimizer, "init") and hasattr(optimizer, "update")
  ):
    raise InputError(
      f"optimizer must be one of optax, as in optax.sgd(0.1), but was {described(optimizer)}."
    )
