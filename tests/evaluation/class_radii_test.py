"""A radius for each class, or example: every example as in an evaluation at its radius alone."""

import functools
import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from evaluation import autoattack_test as known

import robust_opt as ro
from robust_opt import sets
from robust_opt.attacks.types import AttackResult
from robust_opt.certificates import exact
from robust_opt.evaluation import phases, probes, trust, verification
from robust_opt.evaluation import verdict as files
from robust_opt.sets.examples import check_fits, for_examples, of_labels
from robust_opt.sets.words import threat_model
from robust_opt.studies import evaluation_options
from robust_opt.studies.evaluation_options import Options

TOOL = Path(__file__).parents[2] / "tools" / "check_verdict.py"
spec = importlib.util.spec_from_file_location("check_verdict", TOOL)
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)

FACTORS = np.array([0.5, 1.0] * 5)  # of the radius, for each of ten classes
SHORT = (phases.apgd_ce(10), phases.square_phase(20))


@pytest.mark.parametrize(
  ("norm", "version"),
  [("linf", SHORT), *(pytest.param(n, known.SMALL, marks=pytest.mark.slow) for n in known.RADII)],
)
def test_every_example_ends_as_at_its_radius_alone(norm, version):
  weights, x, y = known.problem(10)
  median = np.median(exact.linear_distance(*weights, x, y, sets.ball_of(norm)))
  radii = 1.3 * float(median) * FACTORS
  both = known.attack(weights, x, y, known.ball(norm, radii[y]), version=version)
  for radius in np.unique(radii):
    alone = known.attack(weights, x, y, known.ball(norm, radius), version=version)
    same = radii[y] == radius
    np.testing.assert_array_equal(both.broken_by[same], alone.broken_by[same])
    np.testing.assert_array_equal(both.images[same], alone.images[same])
    assert 0.1 < np.mean(both.broken_by[same] > 0) < 0.9


def claim_of(config, x, y):
  return files.Claim(config, "quick", 0, 16, {}, "net", files.data_sha256(x, y), "1 x cpu")


def test_the_verdict_is_verified_class_by_class(tmp_path):
  weights, x, y = known.problem(10)
  options = Options({}, norm="linf", class_radii=tuple(0.2 * FACTORS))
  config = evaluation_options.set_config(options, None)
  claim = claim_of(config, x, y)
  u = claim.u(y)
  assert u == ro.LInf(0.2 * FACTORS[y], box=(0.0, 1.0))
  found = known.attack(weights, x, y, u, version=SHORT)
  logits = functools.partial(known.linear_net, *weights)

  def problems(claim):
    files.save(tmp_path / "verdict.npz", found, claim, x, y)
    with np.load(tmp_path / "verdict.npz") as file:
      without_jax = check.problems(dict(file), logits, logits(x), x, y, "net")
    stored = files.load(tmp_path / "verdict.npz")
    assert json.loads(stored.claim.flags["set"]) == claim.set
    return verification.verify(stored, known.net_of(weights), x, y, "net"), without_jax

  assert problems(claim) == ([], [])
  first = y[found.broken_by > 0][0]
  smaller = np.where(np.arange(10) == first, 0.05, 0.2 * FACTORS)
  one, other = problems(claim._replace(set=config | {"class_radii": smaller.tolist()}))
  assert "but at most 0.05000005 is allowed" in one[0]
  assert "in a ball of radius 0.05." in other[0]
  with np.load(tmp_path / "verdict.npz") as file:
    negative = {"name": "LInf", "radius": -0.2, "box": [0.0, 1.0]}
    assert list(check._image_problems(dict(file), negative, x, y))


@pytest.mark.slow
def test_the_trust_report_scales_every_radius():
  weights, x, y = known.problem(10)
  net = known.net_of(weights)
  each, one = (
    trust.report(net, x, y, ro.LInf(radii, box=(0.0, 1.0)), num_steps=5, num_queries=10)
    for radii in (0.1 * np.ones(len(y)), 0.1)
  )
  assert each == one
  u = ro.LInf(0.1 * FACTORS[y], box=(0.0, 1.0))
  found = {check.name: check for check in trust.report(net, x, y, u, num_steps=5, num_queries=10)}
  assert "correct at radius 0: 63, 0.025: " in found["radii"].measured
  assert found["unbounded radius"].passed


def test_proofs_are_of_the_radius_of_each_image():
  weights, x, y = known.problem(10)
  radii = 0.05 * FACTORS[y]
  both = ro.certify(known.net_of(weights), x, y, ro.LInf(radii))
  for radius in np.unique(radii):
    alone = ro.certify(known.net_of(weights), x, y, ro.LInf(radius))
    same = radii == radius
    np.testing.assert_allclose(both.margins[same], alone.margins[same], rtol=1e-6)


def test_parts_of_a_data_set_have_their_radii():
  radii, shape = np.array([0.1, 0.2, 0.3]), (3, 4, 4, 1)
  region = np.ones((4, 4, 1), bool)
  u = sets.Union((ro.L2(radii), sets.Masked(ro.LInf(radii), region), ro.L1(1.0)))
  check_fits(u, shape)
  ids = np.array([2, 0])
  expected = sets.Union((ro.L2(radii[ids]), sets.Masked(ro.LInf(radii[ids]), region), ro.L1(1.0)))
  assert for_examples(u, ids, 4) == expected
  with pytest.raises(ro.InputError, match="one for each of the 2 images, but has the shape"):
    check_fits(u, (2, 4, 4, 1))
  config = {"name": "Masked", "u": {"name": "L2", "class_radii": [0.1, 0.2]}, "mask": "m.npy"}
  np.testing.assert_array_equal(
    of_labels(config, np.array([1, 1, 0]))["u"]["radius"], [0.2, 0.2, 0.1]
  )


def test_in_a_sweep_the_whole_box_is_in_no_way_of_other_radii():
  weights, x, y = known.problem(10)
  u = ro.LInf(np.where(y % 2, 0.01, 0.3), box=(0.0, 1.0))
  probe = probes.Probe(known.net_of(weights), x, y, u, 0, 32, -1)
  sweep = probe.sweep(np.arange(len(y)), lambda u, *_: at_the_edge(u), (0.5, 1.0, 2.0, 4.0))
  assert sorted(sweep) == [0.15, 0.3, 0.6, 1.0]
  assert len(sweep[1.0]) == 0  # the whole box for all, in place of 1.2 and 0.04
  np.testing.assert_array_equal(sweep[0.3], np.flatnonzero(y % 2))


def at_the_edge(u):
  """An "attack" that fools where the radius is at least 0.3."""

  def attack(keys, logits_fn, x, y):
    del keys, logits_fn
    large = jnp.broadcast_to(jnp.asarray(u.radius), y.shape) >= 0.3 - 1e-6
    return AttackResult(jnp.zeros_like(x), large)

  return attack


@pytest.mark.parametrize(
  ("labels", "radii", "words"),
  [
    ([0, 2], [0.1, 0.2], "has 2 radii, so labels must be integers from 0 to 1, but are int64 from"),
    ([0.0, 1.0], [0.1, 0.2], "but are float64 from 0.0 to 1.0"),
    ([0, -1], [0.1, 0.2], "from -1 to 0"),
    *(([0], wrong, "must be numbers > 0, one for each class, not") for wrong in (
      0.1, None, [], {}, ["0.1"], [True], [0.0], [-1.0], [float("nan")], [10**400], [[0.1]],
    )),
  ],
)  # fmt: skip
def test_class_radii_are_numbers_and_labels_their_classes(labels, radii, words):
  with pytest.raises(ro.InputError, match=words):
    of_labels({"name": "L2", "class_radii": radii}, np.array(labels))


def test_class_radii_in_a_set_are_typed_as_any_radius():
  options = Options({}, set={"name": "L2", "class_radii": ["8/255", 1]})
  config = evaluation_options.set_config(options, None)
  assert config == {"name": "L2", "class_radii": [8 / 255, 1]}
  assert threat_model(config) == "l_2 0.03137 to 1 by class, pixels may leave [0, 1]"
  with pytest.raises(ro.InputError, match="either a radius or class_radii, not both"):
    of_labels(config | {"radius": 0.1}, np.array([0]))


@pytest.mark.parametrize(
  ("given", "words"),
  [
    ({"norm": "linf", "radius": 0.1}, "either --radius or --class_radii"),
    ({}, "Give --norm with --class_radii"),
    ({"set": {"name": "LInf", "radius": 0.1}}, "Give either --set or --threats, or a ball"),
  ],
)
def test_class_radii_contradict_other_sets(given, words):
  with pytest.raises(ro.InputError, match=words):
    evaluation_options.set_config(Options({}, class_radii=(0.1, 0.2), **given), None)
