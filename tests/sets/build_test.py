"""Sets that mappings describe are those that constructors give; anything else is one sentence."""

import numpy as np
import pytest

import robust_opt as ro
from robust_opt import sets
from robust_opt.errors import InputError
from robust_opt.sets.build import build_set


@pytest.mark.parametrize(
  ("config", "expected"),
  [
    ({"name": "LInf", "radius": 0.1}, ro.LInf(0.1)),
    ({"name": "L1", "radius": 2.0, "box": [0.0, 1.0]}, ro.L1(2.0, box=(0.0, 1.0))),
    (
      {"name": "GroupL21", "radius": 0.5, "groups": {"name": "patches", "side": 4}},
      sets.GroupL21(0.5, sets.patches(4)),
    ),
    (
      {
        "name": "Product",
        "sets": [{"name": "LInf", "radius": 0.1}, {"name": "L2", "radius": 0.5}],
        "shapes": [[2, 2], [3]],
      },
      sets.Product((ro.LInf(0.1), ro.L2(0.5)), ((2, 2), (3,))),
    ),
    ({"name": "robust_opt.sets.balls:L2", "radius": 0.3}, ro.L2(0.3)),
  ],
)
def test_a_mapping_describes_what_the_constructor_makes(config, expected):
  assert build_set(config) == expected


def test_equal_mappings_give_equal_sets():
  config = {"name": "GroupL21", "radius": 0.5, "groups": {"name": "channels", "channel_axis": 0}}
  assert build_set(config) == build_set(dict(config))


def test_arrays_are_loaded_from_their_files(tmp_path):
  np.save(tmp_path / "scale.npy", np.full((2, 2), 0.5, np.float32))
  config = {"name": "Ellipsoid", "radius": 1.0, "scale": str(tmp_path / "scale.npy")}
  assert build_set(config) == sets.Ellipsoid(1.0, np.full((2, 2), 0.5, np.float32))


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"name": "Linf", "radius": 0.1}, "name must be one of .*LInf.*, but was 'Linf'"),
    ({"radius": 0.1}, "name must be one of .* but was None"),
    ({"name": "LInf", "radius": 0.1, "norm": 2}, "LInf takes radius, box, but was given"),
    ({"name": "GroupL21", "radius": 0.1}, "GroupL21 takes radius, groups, .*missing"),
    ({"name": "LInf", "radius": "big"}, "radius must be a number, .* the string 'big'"),
    ({"name": "LInf", "radius": -1.0}, "radius must be >= 0"),
    ({"name": "patches", "side": 4}, "must describe a set"),
    ({"name": "no_such_module:Cube"}, "no_such_module:Cube cannot be imported"),
    ({"name": "Ellipsoid", "radius": 1.0, "scale": "absent.npy"}, "absent.npy must be an array"),
  ],
)
def test_what_cannot_be_built_is_one_sentence(config, message):
  with pytest.raises(InputError, match=message):
    build_set(config)
