"""A set in words: its norm and radius, and whether pixels may leave [0, 1]."""

import pytest

from robust_opt.experiments import config
from robust_opt.sets import words

LINF = {"name": "LInf", "radius": 0.1, "box": [0.0, 1.0]}
GROUPS = {"name": "GroupL21", "radius": 0.5, "groups": {"name": "patches", "side": 4}}


@pytest.mark.parametrize(
  ("config", "text"),
  [
    (LINF, "l_inf 0.1 within [0, 1]"),
    (LINF | {"box": None}, "l_inf 0.1, pixels may leave [0, 1]"),
    ({"name": "L2", "radius": 1 / 3}, "l_2 0.3333, pixels may leave [0, 1]"),
    ({"name": "l1", "radius": 12.0, "box": (0, 255)}, "l_1 12 within [0, 255]"),
    (GROUPS, "GroupL21 0.5, pixels may leave [0, 1]"),
    (
      {"name": "L0", "k": 3, "magnitude": 1.0, "box": [0, 1]},
      "L0 (k 3, magnitude 1) within [0, 1]",
    ),
    ({"name": "my.sets:Cube", "radius": 0.2}, "Cube 0.2, pixels may leave [0, 1]"),
    ({"name": "Masked", "u": LINF, "mask": "mask.npy"}, "l_inf 0.1 inside a mask within [0, 1]"),
    ({"name": "Intersection", "first": GROUPS, "second": LINF}, "Intersection within [0, 1]"),
    (
      {"name": "Union", "sets": [LINF, LINF | {"name": "L2"}]},
      "l_inf 0.1 or l_2 0.1 within [0, 1]",
    ),
    ({"name": "Product", "sets": [GROUPS, LINF], "shapes": [[4], [9]]}, "Product within [0, 1]"),
    (
      {"name": "Transforms", "max_rotation": 30.0, "max_translation": 3.0},
      "rotations of up to 30 degrees and shifts of up to 3 pixels within [0, 1]",
    ),
  ],
)
def test_the_threat_model_names_set_and_box(config, text):
  assert words.threat_model(config) == text


def test_the_signs_of_norms():
  assert words.threat_model(LINF, unicode=True) == "\u2113\u221e 0.1 within [0, 1]"
  assert words.in_words(GROUPS, unicode=True) == "GroupL21 0.5"


def test_the_default_run_is_measured_without_a_box():
  """What makes its accuracy another than that of AutoAttack."""
  assert words.box_in_words(config.digits().set.to_dict()) == "pixels may leave [0, 1]"
  assert words.box_in_words(config.mnist_methods().set.to_dict()) == "within [0, 1]"
