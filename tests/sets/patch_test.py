"""Patches: the best, the nearest and a random square, against all squares by hand."""

import itertools

import jax
import numpy as np
import pytest

import robust_opt as ro
from robust_opt import sets
from robust_opt.evaluation import autoattack, phases, verification
from robust_opt.evaluation import verdict as files
from robust_opt.sets.build import build_set, config_sha256

SIDE, SHAPE = 2, (4, 5, 3)
COUNT = 12
U = sets.Patch(SIDE)


def images(seed=0):
  return np.random.default_rng(seed).random((COUNT, *SHAPE)).astype(np.float32)


def squares():
  """All squares, [12, H, W, 1]."""
  masks = []
  for row, column in itertools.product(range(SHAPE[0] - SIDE + 1), range(SHAPE[1] - SIDE + 1)):
    mask = np.zeros((*SHAPE[:2], 1), bool)
    mask[row : row + SIDE, column : column + SIDE] = True
    masks.append(mask)
  return np.stack(masks)


@jax.jit
def operations(grad, x, key):
  return (
    U.steepest_ascent(grad, x),
    U.project(grad, x),
    U.sample(key, x),
    U.gauge(grad, x),
  )


def test_best_and_nearest_of_all_squares():
  x, grad = images(), (3 * images(1) - 1.5).astype(np.float32)
  ascent, nearest, sample, gauge = operations(grad, x, jax.random.key(0))
  ends = np.where(grad > 0, 1 - x, -x)
  masks = squares()[None]  # [1, 12, H, W, 1]
  values = np.sum(grad[:, None] * ends[:, None] * masks, axis=(2, 3, 4)).max(axis=1)
  np.testing.assert_allclose(np.sum(grad * ascent, axis=(1, 2, 3)), values, rtol=1e-5)
  clipped = np.clip(grad, -x, 1 - x)
  distances = np.sum((grad[:, None] - masks * clipped[:, None]) ** 2, axis=(2, 3, 4))
  ours = np.sum((grad - nearest) ** 2, axis=(1, 2, 3))
  np.testing.assert_allclose(ours, distances.min(axis=1), rtol=1e-5)
  np.testing.assert_array_equal(gauge, np.inf)
  for delta in (ascent, nearest, sample):
    changed = np.any(np.asarray(delta) != 0, axis=3, keepdims=True)
    assert np.all(np.any(np.all(changed[:, None] <= squares(), axis=(2, 3, 4)), axis=1))
    assert np.all((x + delta >= 0) & (x + delta <= 1))
    _, again, _, size = operations(np.asarray(delta), x, jax.random.key(0))
    np.testing.assert_array_equal(again, delta)
    assert np.all(size <= 1 + 1e-6)
  assert len({tuple(np.argwhere(d)[0]) for d in np.asarray(sample)}) > 3  # places differ


def test_bad_patches():
  x = images()
  for u, of, words in (
    (lambda: sets.Patch(0), x, "side must be an integer >= 1"),
    (lambda: sets.Patch(2.0), x, "side must be an integer >= 1"),
    (lambda: sets.Patch(1, (1.0, 0.0)), x, "box must be"),
    (lambda: sets.Patch(5), x, "needs images of at least that size"),
    (lambda: sets.Patch(1), x[:, :, 0, 0], "two axes besides the channels"),
  ):
    with pytest.raises(ro.InputError, match=words):
      jax.eval_shape(lambda x, u=u: u().gauge(x, x), of)


def linear(bias, weights, x):
  return jax.numpy.stack([0 * bias, bias]) + (x - 0.5).reshape(len(x), -1) @ weights


def problem(best_of):
  """A net of two classes, right on all x as class 1, and how far the worst case is beyond 0, [12].

  `best_of` takes what each entry can gain, [12, *S], to what the adversary can gain, [12]; for half
  of the examples it is enough.
  """
  x = 0.5 + 0.6 * (images() - 0.5)
  weights = np.random.default_rng(2).normal(size=(np.prod(SHAPE), 2)).astype(np.float32)
  slope = (weights[:, 0] - weights[:, 1]).reshape(SHAPE)
  gained = best_of(slope * np.where(slope > 0, 1 - x, -x))
  lead = -((x - 0.5).reshape(COUNT, -1) @ slope.ravel())
  bias = np.float32(np.median(gained - lead))
  assert np.all(lead + bias > 0)
  return jax.tree_util.Partial(linear, bias, weights), x, gained - lead - bias


@pytest.mark.slow
def test_the_attack_finds_the_best_square_of_a_linear_net(tmp_path):
  net, x, worst = problem(
    lambda gains: np.sum(gains[:, None] * squares()[None], axis=(2, 3, 4)).max(axis=1)
  )
  y, config = np.ones(COUNT, np.int32), {"name": "Patch", "side": SIDE}
  version = (phases.patch_phase(3, 15),)
  found = ro.autoattack(net, x, y, build_set(config), version=version, batch_size=COUNT)
  robust = found.broken_by == autoattack.ROBUST
  np.testing.assert_array_equal(robust, worst < 0)
  assert robust.sum() == COUNT // 2
  sha256 = files.data_sha256(x, y), "1 x cpu", config_sha256(config)
  claim = files.Claim(config, "patch", 0, COUNT, {}, "net", *sha256)
  path = tmp_path / "verdict.npz"
  files.save(path, found, claim, x, y)
  assert verification.verify(files.load(path), net, x, y, "net") == []
  elsewhere = found._replace(images=np.where(robust[:, None, None, None], x, found.images[:, ::-1]))
  files.save(path, elsewhere, claim, x, y)
  assert any("has gauge inf" in s for s in verification.verify(files.load(path), net, x, y, "net"))


@pytest.mark.slow
def test_the_sparse_version_finds_the_best_entries_of_a_linear_net():
  net, x, worst = problem(
    lambda gains: np.sort(gains.reshape(COUNT, -1), axis=1)[:, -3:].sum(axis=1)
  )
  u, y = sets.L0(3, box=(0.0, 1.0)), np.ones(COUNT, np.int32)
  assert [phase.name for phase in phases.VERSIONS["sparse"]] == ["pgd-ce", "sparse-rs"]
  version = (
    phases.pgd_phase("pgd", ro.losses.margin, 10, relative_step=0.5),
    phases.sparse_rs_phase(500),
  )
  found = ro.autoattack(net, x, y, u, version=version, batch_size=COUNT)
  robust = found.broken_by == autoattack.ROBUST
  assert np.all(robust[worst < 0])
  assert not np.any(robust[worst > 0.5])
  assert np.sum(worst > 0.5) > 2
  with pytest.raises(ro.InputError, match='version="sparse" attacks L0'):
    ro.autoattack(net, x, y, u)
