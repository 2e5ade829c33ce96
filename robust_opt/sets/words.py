"""A set in words, from its config: what tables, headlines and pictures name.

  threat_model({"name": "LInf", "radius": 0.1, "box": [0, 1]})   # 'l_inf 0.1 within [0, 1]'
  threat_model({"name": "L2", "radius": 0.5})            # 'l_2 0.5, pixels may leave [0, 1]'

Training measures in the set of its config, by default without a box; AutoAttack needs one. The two
accuracies differ, and these words tell them apart.
"""

from collections.abc import Mapping
from typing import Any

from robust_opt.sets.balls import norm_of
from robust_opt.sets.base import Box
from robust_opt.sets.examples import CLASS_RADII
from robust_opt.tables import norm_name


def in_words(config: Mapping[str, Any], *, unicode: bool = False) -> str:
  """'l_inf 0.1', or with the sign of the norm; 'GroupL21 0.5', 'Product', 'l_inf 0.1 or l_2 1'."""
  if norm_of(config) == "Union":
    return " or ".join(in_words(part, unicode=unicode) for part in config["sets"])
  if norm_of(config) == "Patch":
    return f"patches of {config['side']} x {config['side']} pixels"
  if norm_of(config) == "Masked":
    return f"{in_words(config['u'], unicode=unicode)} inside a mask"
  if norm_of(config) == "Transforms":
    degrees, shift = config["max_rotation"], config["max_translation"]
    return f"rotations of up to {degrees:.4g} degrees and shifts of up to {shift:.4g} pixels"
  name, radius = norm_name(norm_of(config)), config.get("radius")
  words = name.sign if unicode else name.text
  if CLASS_RADII in config:
    radii = config[CLASS_RADII]
    low, high = min(radii), max(radii)
    return f"{words} {low:.4g} {f'to {high:.4g} ' * (high > low)}by class"
  if isinstance(radius, str):
    return f"{words} with a radius for each image"
  return f"{words} {radius:.4g}" if isinstance(radius, int | float) else words


def box_in_words(config: Mapping[str, Any]) -> str:
  """'within [0, 1]', or 'pixels may leave [0, 1]' if neither the set nor its parts have a box."""
  box = _box(config)
  return "pixels may leave [0, 1]" if box is None else f"within [{box[0]:g}, {box[1]:g}]"


def threat_model(config: Mapping[str, Any], *, unicode: bool = False) -> str:
  """The set, and whether perturbed pixels remain pixels: 'L0 (k 10, magnitude 1) within [0, 1]'."""
  where = box_in_words(config)
  if norm_of(config) in ("Transforms", "Patch"):
    return f"{in_words(config)} {where}"
  numbers = [f"{key} {value:.4g}" for key, value in config.items() if type(value) in (int, float)]
  more = f" ({', '.join(numbers)})" if numbers and "radius" not in config else ""
  joint = " " if where.startswith("within") else ", "
  return f"{in_words(config, unicode=unicode)}{more}{joint}{where}"


def _box(value: Any) -> Box | None:
  """The first box of a set or of the sets that it is made of."""
  if isinstance(value, Mapping):
    if value.get("name") in ("Transforms", "Patch"):  # which have it unless told
      low, high = value.get("box", (0.0, 1.0))
      return low, high
    if value.get("box") is not None:
      low, high = value["box"]
      return low, high
    value = list(value.values())
  found = map(_box, value) if isinstance(value, list | tuple) else iter(())
  return next((box for box in found if box is not None), None)
