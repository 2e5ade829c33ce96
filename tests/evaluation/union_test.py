"""AutoAttack over a union of sets: the worst case of all threats, with the threat that broke it."""

import numpy as np
import pytest
from evaluation import autoattack_test as known

import robust_opt as ro
from robust_opt import evaluate, sets
from robust_opt.certificates import exact
from robust_opt.errors import InputError
from robust_opt.evaluation import autoattack, phases, probes, verification
from robust_opt.evaluation import verdict as files
from robust_opt.sets.build import build_set

# The first phases of the standard version, shorter.
SHORT = (phases.apgd_ce(15), phases.apgd_t(15, 4))


@pytest.fixture(scope="module")
def attacked():
  """weights, x, y, the balls, and the verdict over their union; each ball breaks others."""
  weights, x, y = known.problem(num_classes=5)
  balls = []
  for norm, share in (("linf", 0.4), ("l2", 0.6)):
    distance = exact.linear_distance(*weights, x, y, sets.ball_of(norm))
    balls.append(known.ball(norm, float(np.quantile(distance, share))))
  return weights, x, y, balls, known.attack(weights, x, y, sets.Union(balls), version=SHORT)


def test_an_image_is_robust_if_it_is_in_every_set(attacked):
  weights, x, y, balls, found = attacked
  clean = exact.linear_margin(*weights, x, y, known.ball("linf", 0.0))
  worst = np.max([exact.linear_margin(*weights, x, y, u) for u in balls], axis=0)
  robust = found.broken_by == autoattack.ROBUST
  assert np.all(robust[worst < -1e-5])
  assert not np.any(robust[worst > 0.02 * (worst - clean) + 1e-5])
  for u in balls:
    alone = known.attack(weights, x, y, u, version=SHORT)
    assert found.robust_accuracy <= alone.robust_accuracy


def test_each_set_is_attacked_as_it_is_alone(attacked):
  # Random directions, so that the outcome depends on the random numbers of every attack.
  weights, x, y, balls, _ = attacked
  chance = tuple(phases.Phase(name, "apgd", probes.noise_attack) for name in ("noise", "again"))
  union = known.attack(weights, x, y, sets.Union(balls), version=chance)
  for position, u in enumerate(balls):
    alone = known.attack(weights, x, y, u, version=chance)
    broken = alone.broken_by > 0
    assert broken.any()
    assert np.all(union.broken_by[broken] > 0)
    same = (alone.broken_by == 2) & (union.broken_by == 3 + position)
    np.testing.assert_array_equal(union.images[same], alone.images[same])


def test_what_broke_an_image_lies_in_the_set_that_is_named(attacked):
  _, x, _, balls, found = attacked
  assert found.names == ("clean", "apgd-ce linf", "apgd-ce l2", "apgd-t linf", "apgd-t l2")
  delta = found.images.astype(np.float64) - x
  for index, u in ((1, balls[0]), (3, balls[0]), (2, balls[1]), (4, balls[1])):
    assert np.all(sets.lengths(u, delta[found.broken_by == index]) <= u.radius * (1 + 1e-6))
  assert np.sum(found.broken_by == 1) > 0 < np.sum(found.broken_by == 2)


def test_its_verdict_is_verified(attacked, tmp_path):
  weights, x, y, balls, found = attacked
  config = {"name": "Union", "sets": [files.ball_config(u.name, float(u.radius)) for u in balls]}
  assert build_set(config) == sets.Union(balls)
  claim = files.Claim(config, "standard", 0, 16, {}, "net", files.data_sha256(x, y), "1 x cpu")
  given = (known.net_of(weights), x, y, "net")
  files.save(tmp_path / "true.npz", found, claim, x, y)
  assert verification.verify(files.load(tmp_path / "true.npz"), *given) == []
  # Twice as far as allowed, in the set that it is nearest to.
  beyond = np.clip(x + 2.5 * (found.images - x), 0, 1)
  files.save(tmp_path / "false.npz", found._replace(images=beyond), claim, x, y)
  problems = verification.verify(files.load(tmp_path / "false.npz"), *given)
  assert any("has gauge" in problem for problem in problems)


def test_sets_that_are_no_balls_and_sets_of_one_kind():
  u = sets.Union((known.ball("linf"), known.STRUCTURED, known.ball("linf", 0.2)))
  assert phases.labels(u) == ["linf-1", "GroupL21", "linf-2"]
  steps = phases.plan("quick", lambda x: x, u)
  assert [step.name for step in steps] == [
    *("apgd-ce linf-1", "pgd-ce GroupL21", "apgd-ce linf-2"),
    *("apgd-t linf-1", "pgd-margin GroupL21", "apgd-t linf-2"),
  ]


def test_threats_on_the_command_line():
  config = evaluate.set_of("", ["linf:8/255", "l2:0.5"])
  assert build_set(config) == sets.Union((ro.LInf(8 / 255, known.BOX), ro.L2(0.5, known.BOX)))
  for text, threats, words in (
    ("{}", ["l2:1"], "either --set or --threats"),
    ("", ["l3:1"], "--threats must be norms and radii, or .*, but has 'l3:1' .*linf, l2, l1"),
    ("", ["l2"], "but has 'l2' "),
  ):
    with pytest.raises(InputError, match=words):
      evaluate.set_of(text, threats)
  with pytest.raises(InputError, match="at least one set, and only sets"):
    sets.Union(())
