"""Radii as they are typed, and radii that cannot be meant.

  number("8/255")                                       # 0.03137254901960784
  with_numbers({"name": "LInf", "radius": "8/255"})     # the config of a set, with that number
  check_extent(ro.LInf(8.0), (32, 32, 3), "--radius=8")

The last is an InputError: someone meant 8/255.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from robust_opt.errors import InputError
from robust_opt.sets.balls import Ball, lengths
from robust_opt.sets.base import Box, UncertaintySet
from robust_opt.sets.unions import Union


def number(text: str | float) -> float:
  """A number or a fraction: 0.1, 1e-3, 8/255.

  Raises:
    InputError: it is neither.
  """
  top, slash, bottom = str(text).partition("/")
  try:
    return float(top) / float(bottom) if slash else float(top)
  except (ValueError, ZeroDivisionError):
    raise InputError(f"must be a number or a fraction such as 8/255, but was {text!r}.") from None


def with_numbers(value: Any) -> Any:
  """The config of a set, where every radius or magnitude in it that is a string is its number.

  Names of .npy files remain. InputError if a string is no number.
  """
  if isinstance(value, Mapping):
    return {key: _with_number(key, entry) for key, entry in value.items()}
  return [with_numbers(entry) for entry in value] if isinstance(value, list) else value


def _with_number(key: str, value: Any) -> Any:
  is_length = any(name in key for name in ("radius", "radii", "magnitude"))
  if is_length and isinstance(value, list):
    return [_with_number(key, entry) for entry in value]
  if not (is_length and isinstance(value, str)) or value.endswith(".npy"):
    return with_numbers(value)
  try:
    return number(value)
  except InputError as error:
    raise InputError(f"{key} {error}") from None


def box_of(u: UncertaintySet) -> Box:
  """The box of the set, or [0, 1] if it has none: where the clean images must lie."""
  box: Box | None = getattr(u, "box", None)
  return (0.0, 1.0) if box is None else box


def diameter(u: Ball, shape: Sequence[int]) -> float:
  """That of the box in the norm of u: of n entries in [0, 1] it is 1, sqrt(n) or n."""
  low, high = box_of(u)
  return float(lengths(u, np.full((1, *shape), high - low))[0])


def holds_every_image(u: UncertaintySet, shape: Sequence[int]) -> bool:
  """Whether x + U(x) is the whole box, whatever the image of this shape.

  A ball holds it if its radius, or one of its radii, is at least the diameter, a union if one of
  its sets does, any other set if it leads from the darkest image to the brightest and back. False
  for a set without a gauge.
  """
  if isinstance(u, Ball):
    return bool(np.any(np.asarray(u.radius) >= diameter(u, shape)))
  if isinstance(u, Union):
    return any(holds_every_image(part, shape) for part in u.sets)
  low, high = box_of(u)
  darkest, brightest = (jnp.full((1, *shape), end, jnp.float32) for end in (low, high))
  delta = brightest - darkest
  try:
    gauges = u.gauge(delta, darkest), u.gauge(-delta, brightest)
  except (InputError, AttributeError):
    return False
  return bool(np.all(np.asarray(gauges) <= 1))


def check_extent(u: UncertaintySet, shape: Sequence[int], given: str = "") -> None:
  """Refuses, or warns of, a set that holds every image of this shape.

  Commands say what was `given`, and it is an InputError: they would spend hours on a known answer.
  The library does not, and it is a warning: there it may be a test that the accuracy falls to 0.
  """
  if not holds_every_image(u, shape):
    return
  low, high = box_of(u)
  named = type(u).__name__ if np.ndim(getattr(u, "radius", 0.0)) else u  # not N radii
  words = f"{given or named} allows every image in [{low:g}, {high:g}], to which no "
  words += "network is robust"
  if isinstance(u, Ball):
    sign, size = f"l_{u.name.removeprefix('l')}", " x ".join(map(str, shape))
    words += f": over {sign} the radius must be < {diameter(u, shape):.4g} for images of {size}"
  words += ". Radii are in the units of the pixels: 8 of 255 levels in [0, 1] are 8/255."
  if given:
    raise InputError(words)
  logging.getLogger(__name__).warning("%s", words)
