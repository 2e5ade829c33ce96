"""Sets that differ from example to example: a radius for each, or for each class, or a mask.

u = ro.LInf(radii)                          # [N], one for each example of a data set
check_fits(u, x.shape)
u_of_batch = for_examples(u, ids, x.ndim)   # radii [B] and masks [B, *S]
of_labels({"name": "LInf", "class_radii": [0.1, 0.2]}, y)    # the config with its radii [N]
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from robust_opt.errors import InputError
from robust_opt.sets.base import UncertaintySet
from robust_opt.sets.masks import Masked, broadcastable

CLASS_RADII = "class_radii"  # in the config of a set, in place of its radius


def for_examples(u: UncertaintySet, ids: np.ndarray, ndim: int) -> UncertaintySet:
  """The set of the examples of these ids: of radii [N] and masks [N, *S], `ndim` axes, theirs."""
  changes = {name: radius[ids] for name, radius in radii_of(u).items() if np.ndim(radius)}
  if isinstance(u, Masked) and u.mask.ndim == ndim and len(u.mask) > 1:
    changes["mask"] = u.mask[ids]
  for name, parts in _parts(u).items():
    of_examples = tuple(for_examples(part, ids, ndim) for part in parts)
    changes[name] = of_examples if isinstance(getattr(u, name), tuple) else of_examples[0]
  return dataclasses.replace(u, **changes) if changes else u  # type: ignore[type-var]


def radii_of(u: UncertaintySet) -> dict[str, Any]:
  """The radii of a set by name, [] or [N]; not those of the sets that it is made of."""
  names = getattr(u, "_radii", ("radius",))
  return {name: getattr(u, name) for name in names if hasattr(u, name)}


def with_parts(u: UncertaintySet) -> Iterator[UncertaintySet]:
  """The set, and those that it is made of."""
  yield u
  for parts in _parts(u).values():
    for part in parts:
      yield from with_parts(part)


def _parts(u: UncertaintySet) -> dict[str, tuple[UncertaintySet, ...]]:
  """The sets that a set is made of, by field."""
  fields = (field.name for field in dataclasses.fields(u))  # type: ignore[arg-type]
  values = {name: getattr(u, name) for name in fields}
  tuples = {name: v if isinstance(v, tuple) else (v,) for name, v in values.items()}
  return {name: v for name, v in tuples.items() if v and isinstance(v[0], UncertaintySet)}


def check_fits(u: UncertaintySet, shape: Sequence[int]) -> None:
  """InputError unless radii and masks fit examples [N, *S] of this shape."""
  for part in with_parts(u):
    for name, radius in radii_of(part).items():
      if np.shape(radius) not in ((), tuple(shape[:1])):
        raise InputError(
          f"{name} must be one number, or one for each of the {shape[0]} images, but has the shape "
          f"{np.shape(radius)}."
        )
    if isinstance(part, Masked):
      broadcastable(part.mask.shape, shape)


def of_labels(config: Any, labels: np.ndarray) -> Any:
  """The config in which the radii [C] of classes are radii [N] of these labels [N].

  Raises:
    InputError: class_radii are not one number > 0 for each class, or stand beside a radius.
  """
  if isinstance(config, list | tuple):
    return [of_labels(part, labels) for part in config]
  if not isinstance(config, Mapping):
    return config
  rest = {key: of_labels(value, labels) for key, value in config.items() if key != CLASS_RADII}
  if CLASS_RADII not in config:
    return rest
  if "radius" in rest:
    raise InputError(f"A set takes either a radius or {CLASS_RADII}, not both.")
  return {**rest, "radius": _class_radii(config[CLASS_RADII])[_classes(labels, config)]}


def _class_radii(radii: Any) -> np.ndarray:
  """[C] float64."""
  given = radii if isinstance(radii, list | tuple) else ()
  numbers = [isinstance(r, int | float) and not isinstance(r, bool) for r in given]
  largest = float(np.finfo(np.float32).max)
  if not numbers or not all(numbers) or not all(0 < r <= largest for r in given):
    raise InputError(f"{CLASS_RADII} must be numbers > 0, one for each class, not {radii}.")
  return np.array(given, np.float64)


def _classes(labels: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
  """The labels, if each has a radius."""
  labels, count = np.asarray(labels), len(config[CLASS_RADII])
  integers = np.issubdtype(labels.dtype, np.integer)
  if not integers or labels.min(initial=0) < 0 or labels.max(initial=0) >= count:
    raise InputError(
      f"{CLASS_RADII} has {count} radii, so labels must be integers from 0 to {count - 1}, but are "
      f"{labels.dtype} from {labels.min()} to {labels.max()}."
    )
  return labels
