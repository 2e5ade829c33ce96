"""Radii as they are typed, and radii at which a set holds every image."""

import dataclasses
import logging

import numpy as np
import pytest
from absl import flags

import robust_opt as ro
from robust_opt import commands, construct, evaluate, sets
from robust_opt.errors import InputError
from robust_opt.experiments import config, overrides, sections
from robust_opt.papers import ilyas2019
from robust_opt.sets import radii
from robust_opt.sets.build import build_set

SHAPE = (4, 3, 2)  # 24 entries
BOX = (0.0, 1.0)


# Numbers, wherever a radius is typed


def of_flag(text, name="radius", define=evaluate.define_flags):
  """The value of a flag of a command, which is not really defined: others have its name."""
  parsers = {}
  with pytest.MonkeyPatch.context() as patch:
    for kind in ("string", "integer", "boolean", "enum", "list"):
      patch.setattr(flags, f"DEFINE_{kind}", lambda *_, **__: None)
    patch.setattr(flags, "DEFINE", lambda parser, name, *_, **__: parsers.update({name: parser}))
    define()
  return parsers[name].parse(text)


def of_study(text, name):
  (field,) = (field for field in dataclasses.fields(ilyas2019.Preset) if field.name == name)
  return of_flag(text, name, lambda: commands._define(field, None))


def of_override(*items):
  """The value of the last of key=value."""
  c = config.digits()
  overrides.apply_all(c, items)
  return config.flattened(c.to_dict())[items[-1].partition("=")[0]]


def of_json(text):
  u = build_set(evaluate.set_config(f'{{"name": "LInf", "radius": "{text}"}}'))
  return u.radius


def of_choose(text):
  c = config.digits()
  sections.choose(c, "set", "L2", radius=text)
  return c.set.radius


TYPED = {
  "evaluate --radius": of_flag,
  "construct --radius": lambda text: of_flag(text, "radius", construct.define_flags),
  "construct --step": lambda text: of_flag(text, "step", construct.define_flags),
  "ilyas2019 --radius": lambda text: of_study(text, "radius"),
  "ilyas2019 --trained_radius": lambda text: of_study(text, "trained_radius"),
  "ilyas2019 --tested_radius": lambda text: of_study(text, "tested_radius"),
  "ilyas2019 --inversion_step": lambda text: of_study(text, "inversion_step"),
  "--set": of_json,
  "choose": of_choose,
  "set.radius": lambda text: of_override(f"set.radius={text}"),
  "radius of a new ball": lambda text: of_override("set.name=L2", f"set.radius={text}"),
  "radius_inf": lambda text: of_override("set.name=LInfL2", f"set.radius_inf={text}"),
  "radius_2": lambda text: of_override("set.name=LInfL2", f"set.radius_2={text}"),
  "magnitude": lambda text: of_override("set.name=L0", "set.k=3", f"set.magnitude={text}"),
  "linf": lambda text: of_override(f"evaluation.radii.linf={text}"),
  "l2": lambda text: of_override(f"evaluation.radii.l2={text}"),
  "l1": lambda text: of_override(f"evaluation.radii.l1={text}"),
  "step": lambda text: of_override("attack.name=pgd", f"attack.relative_step={text}"),
  "hidden": lambda text: of_override("attack.name=layerwise", f"attack.hidden_radius={text}"),
}


@pytest.mark.parametrize("read", TYPED.values(), ids=TYPED)
def test_a_radius_may_be_a_fraction(read):
  for text, value in (("8/255", 8 / 255), ("1 / 4", 0.25), ("0.1", 0.1), ("1e-3", 1e-3), ("2", 2)):
    assert read(text) == value


@pytest.mark.parametrize("text", ["eight", "8/0", "8/255/2", "", "/255"])
@pytest.mark.parametrize("name", ["evaluate --radius", "--set", "choose", "set.radius", "l2"])
def test_what_is_no_number_is_one_sentence(name, text):
  with pytest.raises(InputError) as error:
    TYPED[name](text)
  assert f"must be a number or a fraction such as 8/255, but was {text!r}." in str(error.value)


# Sets that hold every image


DIAMETERS = {ro.LInf: 1.0, ro.L2: np.sqrt(24), ro.L1: 24.0}


@pytest.mark.parametrize("ball", DIAMETERS)
def test_a_ball_holds_every_image_from_the_diameter_of_the_box_on(ball):
  for low, high in ((0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)):
    diameter = (high - low) * DIAMETERS[ball]
    balls = [ball(factor * diameter, (low, high)) for factor in (0.999, 1.0, 8.0)]
    assert [radii.holds_every_image(u, SHAPE) for u in balls] == [False, True, True]
    assert radii.diameter(balls[0], SHAPE) == pytest.approx(diameter)
  assert radii.holds_every_image(ball(DIAMETERS[ball]), SHAPE)  # without a box: of [0, 1]
  assert not radii.holds_every_image(ball(0.0), SHAPE)


def test_other_sets_hold_every_image_if_they_lead_from_corner_to_corner():
  mask = np.ones(SHAPE, bool)
  some = mask.copy()
  some[0] = False
  scale, groups = np.full(SHAPE, 0.5, np.float32), sets.patches(1)
  plane = np.eye(24, dtype=np.float32)[:3].reshape(3, *SHAPE)
  cases = [
    (sets.L0(24, 1.0, BOX), True),
    (sets.L0(23, 1.0, BOX), False),
    (sets.L0(24, 0.9, BOX), False),
    (sets.LInfL2(1.0, 5.0, BOX), True),
    (sets.LInfL2(8.0, 0.5, BOX), False),
    (sets.LInfL2(0.1, 5.0, BOX), False),
    (sets.Masked(ro.LInf(1.0, BOX), mask), True),
    (sets.Masked(ro.LInf(1.0, BOX), some), False),  # a patch may be of any content
    (sets.Intersection(ro.LInf(1.0, BOX), ro.L1(24.0)), True),
    (sets.Intersection(ro.LInf(8.0, BOX), ro.L1(23.0)), False),
    (sets.GroupLInf2(np.sqrt(2) + 1e-3, groups), True),
    (sets.GroupLInf2(np.sqrt(2) - 1e-3, groups), False),
    (sets.Ellipsoid(2 * np.sqrt(24) + 1e-3, scale), True),
    (sets.Ellipsoid(2 * np.sqrt(24) - 1e-3, scale), False),
    (sets.Tangent(1e3, plane), False),
    (sets.Transforms(180.0, 9.0), False),
  ]
  for u, holds in cases:
    assert radii.holds_every_image(u, SHAPE) == holds, u


def test_commands_refuse_such_a_set_and_the_library_warns(caplog):
  u = ro.L2(8.0, BOX)
  with caplog.at_level(logging.WARNING):
    radii.check_extent(ro.L2(4.8, BOX), SHAPE, "--radius=4.8")
    radii.check_extent(ro.L2(4.8, BOX), SHAPE)
    assert not caplog.records
    with pytest.raises(InputError, match=r"^--radius=8 allows every image in \[0, 1\]") as error:
      radii.check_extent(u, SHAPE, "--radius=8")
    assert "over l_2 the radius must be < 4.899 for images of 4 x 3 x 2" in str(error.value)
    assert "8 of 255 levels in [0, 1] are 8/255" in str(error.value)
    assert not caplog.records
    radii.check_extent(u, SHAPE)
  (record,) = caplog.records
  assert record.getMessage() == str(error.value).replace("--radius=8", repr(u), 1)
