"""The version "adaptive": its bound holds as often as stated, and what it attacks ends as ever."""

import importlib.util
import itertools
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from evaluation.autoattack_test import KilledError, cache_in
from scipy import stats

import robust_opt as ro
from robust_opt.errors import InputError
from robust_opt.evaluation import (
  adaptive,
  autoattack,
  headline,
  outcome,
  phases,
  verdict,
  verification,
)
from robust_opt.tables import Rate

TOOL = Path(__file__).parents[2] / "tools" / "check_verdict.py"
spec = importlib.util.spec_from_file_location("check_verdict", TOOL)
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)


def test_the_bound_is_that_of_the_hypergeometric_distribution():
  for population, sample in ((40, 10), (300, 45), (997, 100), (6000, 420), (25, 25), (1, 0)):
    most = adaptive.most_unseen(population, sample)
    errors = np.arange(1, population + 1)
    missed = stats.hypergeom.pmf(0, population, errors, sample)
    assert most == np.argmax(np.append(missed, 0.0) <= 0.05)
    smallest = adaptive.sample_size(population, max(1, most))
    assert smallest <= max(sample, 1)
    assert adaptive.most_unseen(population, smallest) <= max(1, most)
    assert smallest == 0 or adaptive.most_unseen(population, smallest - 1) > max(1, most)
  assert adaptive.sample_size(300, 0) == 300  # no error at all: everything
  assert adaptive.sample_size(300, 300) == 0


def rationed(scores, breakable, share, seed, core=None, by=adaptive.CORE):
  """The outcome if attack `by` breaks just `breakable` [N], after a core that broke `core` [N]."""
  broken_by = np.full(len(scores), outcome.ROBUST, np.int32)
  reached = np.full(len(scores), -np.inf, np.float32)

  def run(index, among, number):
    del number
    if index < adaptive.CORE:
      broken_by[core & (broken_by == outcome.ROBUST)] = 1
      reached[:] = scores
    elif index == by:
      broken_by[among & breakable & (broken_by == outcome.ROBUST)] = index + 1

  core = np.zeros(len(scores), bool) if core is None else core
  return adaptive.attack(run, broken_by, reached, share, seed), broken_by


def test_the_bound_holds_in_19_of_20_evaluations_and_not_much_more_often():
  """With one more error than the share allows, all far away: the worst case of the test."""
  total, share, trials = 300, 0.04, 400
  scores = -np.arange(total, dtype=np.float32)
  for last in (13, 20):  # 12 are allowed
    breakable = np.zeros(total, bool)
    breakable[-last:] = True
    false = 0
    for seed in range(trials):
      found, broken_by = rationed(scores, breakable, share, seed)
      missed = int(np.sum(breakable & (broken_by == outcome.ROBUST)))
      false += missed > found.bound
      assert missed <= np.sum(breakable[found.skipped])
    few, many = stats.binom.ppf([0.001, 0.999], trials, 0.05)
    assert false <= many
    assert last > 13 or few / 2 <= false  # it is not more careful than it says


@pytest.mark.parametrize("by", [0, 1, 2])
def test_what_is_near_is_found_and_the_far_rest_is_skipped(by):
  rng = np.random.default_rng(0)
  scores = rng.normal(size=1000).astype(np.float32)
  order = np.argsort(-scores)
  breakable, core = np.zeros(1000, bool), np.zeros(1000, bool)
  core[order[:200]], breakable[order[200:280]] = True, True
  found, broken_by = rationed(scores, breakable, 0.02, seed=1, core=core, by=adaptive.CORE + by)
  np.testing.assert_array_equal(found.order, order[200:])
  assert found.bound == 20
  assert len(found.audit) < 120
  last = max((np.flatnonzero(order[200:] == i)[0] for i in found.audit if breakable[i]), default=-1)
  first = max(25, last + 1)
  # The attack that breaks some goes on in steps of 50, while it breaks a twelfth of one.
  goes_on = [np.mean(np.arange(max(0, n - 50), n) < 80) > 1 / 12 for n in range(first, 801, 50)]
  expected = first + 50 * goes_on.index(False) * (np.arange(3) == by)
  np.testing.assert_array_equal(found.reached, expected)
  np.testing.assert_array_equal(broken_by[order[200:280]] > 0, True)
  assert len(found.skipped) == 800 - first - np.sum(~np.isin(found.audit, found.order[:first]))
  everything, broken_by = rationed(scores, breakable, 0.0, seed=1, core=core)
  assert len(everything.skipped) == everything.bound == 0
  np.testing.assert_array_equal(broken_by > 0, core | breakable)


def changed_array(name, change):
  return lambda found, broken: (found._replace(**{name: change(getattr(found, name))}), broken)


def broke(which):
  def lie(found, broken):
    broken = broken.copy()
    broken[which(found)] = 5
    return found, broken

  return lie


LIES = {
  "a smaller bound": changed_array("bound", lambda bound: bound - 1),
  "fewer reached": changed_array("reached", lambda counts: counts - 1),
  "more reached": changed_array("reached", lambda counts: counts + np.array([0, 0, 25])),
  "a smaller audit": changed_array("audit", lambda audit: audit[1:]),
  "a larger share": changed_array("share", lambda share: 2 * share),
  "another audit": lambda found, broken: (
    found._replace(audit=np.sort(np.append(found.audit[1:], found.skipped[-1]))), broken
  ),
  "one left out": changed_array("order", lambda order: order[1:]),
  "another order": changed_array("order", lambda order: order[::-1]),
  "an audited error that had no effect": broke(lambda found: found.audit[-1]),
  "an error of a skipped attack": broke(lambda found: found.skipped[-1]),
}  # fmt: skip


@pytest.fixture(scope="module")
def honest():
  scores = np.random.default_rng(3).normal(size=400).astype(np.float32)
  breakable = scores > np.sort(scores)[-10]
  return rationed(scores, breakable, 0.03, seed=4)


def test_both_verifiers_agree_where_few_are_left():
  for seed in range(60):
    rng = np.random.default_rng(seed)
    count, share = int(rng.integers(1, 60)), rng.choice([0.0, 0.02, 0.1, 0.5])
    scores = rng.normal(size=count).astype(np.float32)
    core, breakable = rng.random((2, count)) < rng.random((2, 1))
    by = int(rng.integers(3, 6))
    found, broken_by = rationed(scores, breakable & ~core, share, seed, core, by)
    assert not list(adaptive.problems(found, broken_by, seed))
    file = adaptive.to_arrays(found) | {"broken_by": broken_by}
    assert not list(check._ration_problems(file, {"version": "adaptive", "seed": seed}))


@pytest.mark.parametrize("case", [None, *LIES])
def test_a_bound_that_does_not_follow_is_refused_by_both_verifiers(case, honest):
  found, broken_by = LIES[case](*honest) if case else honest
  problems = list(adaptive.problems(found, broken_by, seed=4))
  file = adaptive.to_arrays(found) | {"broken_by": broken_by}
  also = list(check._ration_problems(file, {"version": "adaptive", "seed": 4}))
  assert bool(problems) == bool(also) == bool(case), (problems, also)
  chex.assert_trees_all_equal(adaptive.of_arrays(file), found)


# Few programs: in the standard version three runs of one attack, after the first.
CE, SHORT, LONG = phases.apgd_ce(2), phases.square_phase(3), phases.square_phase(40)
NAMES = ("clean", "apgd-ce", "square", "square", "square", "square", "square")


@pytest.fixture
def few_steps(monkeypatch):
  monkeypatch.setitem(phases.VERSIONS, "standard", (CE, LONG, LONG, LONG))
  monkeypatch.setitem(phases.VERSIONS, "adaptive", (CE, SHORT, SHORT, LONG, LONG, LONG))


def linear_problem(count=150):
  rng = np.random.default_rng(5)
  weights = rng.normal(size=(16, 5)).astype(np.float32)
  x = rng.random((count, 4, 4, 1)).astype(np.float32)
  net = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights)
  y = np.asarray(net(x)).argmax(axis=1).astype(np.int32)
  y[::10] = (y[::10] + 1) % 5
  return net, x, y


def test_what_is_attacked_in_full_ends_as_in_the_standard_version(few_steps, tmp_path):
  net, x, y = linear_problem()
  u = ro.LInf(0.08, box=(0.0, 1.0))

  def run(version="adaptive", **options):
    return ro.autoattack(net, x, y, u, version=version, batch_size=32, **options)

  standard, store, seen = run("standard"), {}, []
  found = run(share=0.06, cache=cache_in(store), report=seen.append)
  ration = found.ration
  assert standard.ration is None
  assert 0 < len(ration.skipped) < len(ration.order)
  assert found.names == NAMES
  full = ~np.isin(np.arange(len(x)), ration.skipped)
  same = full & ~np.isin(found.broken_by, (2, 3))  # not broken by a short run
  assert np.sum(found.broken_by[same] > 3) > 0
  as_standard = np.where(standard.broken_by > 1, standard.broken_by + 2, standard.broken_by)
  np.testing.assert_array_equal(found.broken_by[same], as_standard[same])
  np.testing.assert_allclose(found.images[same], standard.images[same], atol=1e-6)
  assert np.sum((standard.broken_by > 0) & (found.broken_by < 0)) <= ration.bound
  assert all(a.done < b.done and a.remaining >= b.remaining for a, b in itertools.pairwise(seen))
  assert seen[-1].done <= 1
  everything = run(share=0.0)
  assert len(everything.ration.skipped) == everything.ration.bound == 0
  assert not np.any((everything.broken_by < 0) & (standard.broken_by >= 0))

  killed = {}
  for dies_after in (2, len(store) - 2):
    with pytest.raises(KilledError):
      run(share=0.06, cache=cache_in(killed, dies_after))
  chex.assert_trees_all_equal(run(share=0.06, cache=cache_in(killed))[1:], found[1:])
  assert killed.keys() == store.keys()

  claim = verdict.Claim(
    set=verdict.ball_config("linf", 0.08),
    version="adaptive",
    seed=0,
    batch_size=32,
    source={},
    net_sha256="net",
    data_sha256=verdict.data_sha256(x, y),
    device="1 x cpu",
  )
  path = tmp_path / "verdict.npz"
  for changed, kept, words in (
    ({}, ration, ""),
    ({"version": "standard"}, ration, "does state that it skipped"),
    ({}, None, "does not state what it skipped"),
    ({"seed": 1}, ration, "audit is not the random sample"),
    ({}, ration._replace(bound=0), "states that at most 0 could still fall"),
  ):
    verdict.save(path, found._replace(ration=kept), claim._replace(**changed), x, y)
    problems = verification.verify(verdict.load(path), net, x, y, "net")
    assert (words in " ".join(problems)) if words else not problems


def test_what_it_does_not_take_is_one_sentence():
  net, x, y = linear_problem(20)
  u = ro.LInf(0.1, box=(0.0, 1.0))
  for options, words in (
    ({"version": "standard", "share": 0.1}, 'share is for version="adaptive"'),
    ({"version": "adaptive", "share": 1.0}, r"share must be in \[0, 1\), but was 1"),
    ({"version": "adaptive", "u": ro.sets.Union([u, u])}, "takes a single ball, not a union"),
    ({"version": "adaptive", "u": ro.LInf(0.1)}, "needs a set with a finite box"),
  ):
    with pytest.raises(InputError, match=words) as caught:
      autoattack.autoattack(net, x, y, **{"u": u} | options)
    assert "\n" not in str(caught.value)


def test_the_headline_states_the_bound():
  ball = {"name": "LInf", "radius": 0.1, "box": [0.0, 1.0]}
  attack = headline.ensemble_over("adaptive", ball)
  found = headline.of_ensemble(Rate(990, 1000), Rate(800, 1000), attack, [], bound=4)
  assert (
    "under AutoAttack, adaptive version, over l_inf 0.1 within [0, 1]. At most 0.40 % of the "
    "images could still fall to the attacks that were skipped (95 % confidence): the standard "
    "version would leave at least 79.60 %."
  ) in found.sentence
  nothing = headline.of_ensemble(Rate(990, 1000), Rate(800, 1000), attack, [], bound=0)
  assert "No attack that could still break an image was skipped." in nothing.sentence
