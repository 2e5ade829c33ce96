"""Rotations and translations: the worst of the grid, and a verdict that states which it was."""

import functools

import jax
import numpy as np
import pytest

import robust_opt as ro
from robust_opt import evaluate, sets
from robust_opt.errors import InputError
from robust_opt.evaluation import moves, phases, verification
from robust_opt.evaluation import verdict as files
from robust_opt.evaluation.autoattack import ROBUST
from robust_opt.maximizers.grid import candidates
from robust_opt.sets.build import build_set, config_sha256
from robust_opt.sets.spatial import transform
from robust_opt.sets.words import threat_model

SHAPE = (5, 5, 1)
CONFIG = {"name": "Transforms", "max_rotation": 10.0, "max_translation": 0.25}
U = build_set(CONFIG)


def logits_fn(weights, x):
  return x.reshape(len(x), -1) @ weights


@functools.cache
def problem():
  rng = np.random.default_rng(1)
  weights = rng.normal(size=(25, 3)).astype(np.float32)
  x = rng.random((40, *SHAPE)).astype(np.float32)
  y = np.argmax(logits_fn(weights, x), axis=1).astype(np.int32)
  y[::8] = (y[::8] + 1) % 3
  return jax.tree_util.Partial(logits_fn, weights), x, y


@functools.cache
def attacked():
  """A linear problem and its verdict over the set."""
  net, x, y = problem()
  return net, x, y, ro.autoattack(net, x, y, U, version="grid", batch_size=20)


def saved(path, found, config=CONFIG):
  _, x, y = problem()
  claim = files.Claim(
    config, "grid", 0, 20, {}, "net", files.data_sha256(x, y), "1 x cpu", config_sha256(config)
  )
  files.save(path, found, claim, x, y)
  return files.load(path)


def problems(stored):
  net, x, y = problem()
  return verification.verify(stored, net, x, y, "net")


@pytest.mark.slow
def test_an_image_is_broken_by_the_worst_of_the_grid():
  net, x, y, found = attacked()

  @jax.jit
  def worst_margins(grid):
    def margins(move):
      return ro.losses.margin(net(transform(x, move[0], move[1:])), y)

    return jax.lax.map(margins, grid).max(axis=0)

  worst = np.asarray(worst_margins(candidates(U, 31, 5)))
  right = np.argmax(net(x), axis=1) == y
  np.testing.assert_array_equal(found.broken_by == 0, ~right)
  np.testing.assert_array_equal(found.broken_by == ROBUST, right & (worst <= 0))
  assert 0 < np.sum(found.broken_by == ROBUST) < np.sum(right)


@pytest.mark.slow
def test_the_verdict_states_the_moves_and_they_are_recomputed(tmp_path):
  _, x, _, found = attacked()
  stored = saved(tmp_path / "verdict.npz", found)
  assert problems(stored) == []
  assert stored.moves.shape == (len(stored.broken_ids), 3)
  move, index = stored.moves[0], stored.broken_ids[0]
  again = transform(x[[index]], move[0], move[1:])[0]
  np.testing.assert_allclose(stored.verdict.images[0], again, atol=moves.TOLERANCE)
  other = stored.moves + np.float32([1, 0, 0])
  assert any("not made by the rotations" in s for s in problems(stored._replace(moves=other)))
  assert any("not made by the rotations" in s for s in problems(stored._replace(moves=None)))
  # Honest moves, but of a larger set than is claimed.
  small = CONFIG | {"max_rotation": 2.0}
  claim = stored.claim._replace(set=small, set_sha256=config_sha256(small))
  assert any("has gauge" in sentence for sentence in problems(stored._replace(claim=claim)))
  images = stored.verdict.images.copy()
  images[0, 0, 0] += 0.001
  changed = stored._replace(verdict=stored.verdict._replace(images=images))
  assert any("1 of its images are not made by" in sentence for sentence in problems(changed))


@pytest.mark.slow
def test_beside_another_threat_it_breaks_what_either_breaks(tmp_path):
  net, x, y, alone = attacked()
  config = evaluate.set_of("", ["linf:0.04", "spatial:10:0.25"])
  version = (phases.apgd_ce(10),)
  ball, spatial = build_set(config).sets
  assert spatial == U
  of_all = ro.autoattack(net, x, y, build_set(config), version=version, batch_size=20)
  of_ball = ro.autoattack(net, x, y, ball, version=version, batch_size=20)
  assert of_all.names == ("clean", "apgd-ce linf", "grid Transforms")
  expected = (alone.broken_by == ROBUST) & (of_ball.broken_by == ROBUST)
  np.testing.assert_array_equal(of_all.broken_by == ROBUST, expected)
  assert of_all.robust_accuracy <= min(alone.robust_accuracy, of_ball.robust_accuracy)
  stored = saved(tmp_path / "verdict.npz", of_all, config)
  assert problems(stored) == []
  by_ball = of_all.broken_by[stored.broken_ids] == 1
  np.testing.assert_array_equal(np.isnan(stored.moves[:, 0]), by_ball)


def test_flags_words_and_errors():
  assert evaluate.set_of("", ["spatial:10"])["sets"] == [CONFIG | {"max_translation": 3.0}]
  words = "rotations of up to 10 degrees and shifts of up to 0.25 pixels within [0, 1]"
  assert threat_model(CONFIG) == words
  with pytest.raises(InputError, match="has 'spatial:a'"):
    evaluate.set_of("", ["spatial:a"])
  net, x, y = problem()
  for u, version, sentence in (
    (U, "standard", 'version="grid" attacks Transforms'),
    (ro.LInf(0.1, (0.0, 1.0)), "grid", r"grid_search takes ro\.sets\.Transforms, as in"),
  ):
    with pytest.raises(InputError, match=sentence):
      ro.autoattack(net, x, y, u, version=version)
  assert moves.transforms_of(sets.Union((ro.LInf(0.1), U))) == U
  assert moves.transforms_of(ro.LInf(0.1)) is None
  np.testing.assert_array_equal(candidates(U, 3, 1), [[-10, 0, 0], [10, 0, 0]])
