"""Attacks on a region: as strong as the closed form says, and nothing changes outside of it."""

import numpy as np
import pytest
from evaluation import autoattack_test as known

import robust_opt as ro
from robust_opt import sets
from robust_opt.evaluation import phases, verification
from robust_opt.evaluation import verdict as files
from robust_opt.evaluation.autoattack import ROBUST
from robust_opt.sets.build import config_sha256
from robust_opt.sets.examples import check_fits, for_examples
from robust_opt.studies import evaluation_options

RADIUS = 0.35


def masks(x):
  """A region for each example, [N, *S]: two rows or two columns."""
  grid = np.zeros(x.shape, bool)
  grid[::2, 1:3] = True
  grid[1::2, :, :2] = True
  return grid


def worst_margins(weights, bias, x, y, mask, radius):
  """The largest margin in the ball of l_2 within the mask, [N], as if there were no box."""
  x, mask = x.reshape(len(x), -1), mask.reshape(len(x), -1)
  slopes = weights.T[None] - weights.T[y][:, None]  # [N, C, 16]
  reach = radius * np.linalg.norm(slopes * mask[:, None], axis=2)
  leads = np.einsum("ncj,nj->nc", slopes, x) + bias - bias[y][:, None] + reach
  leads[np.arange(len(y)), y] = -np.inf
  return leads.max(axis=1)


@pytest.fixture(scope="module")
def attacked():
  weights, x, _ = known.problem()
  x = 0.5 + 0.1 * (x - 0.5)  # so that the box is never reached
  y = np.asarray(known.linear_net(*weights, x)).argmax(axis=1)
  u = sets.Masked(ro.L2(RADIUS, box=(0.0, 1.0)), masks(x))
  version = (phases.apgd_ce(20), phases.square_phase(20))
  return weights, x, y, u, known.attack(weights, x, y, u, version=version)


@pytest.mark.slow
def test_it_breaks_what_the_closed_form_says(attacked):
  weights, x, y, u, found = attacked
  worst = worst_margins(*weights, x, y, u.mask, RADIUS)
  easy = worst_margins(*weights, x, y, u.mask, 0.95 * RADIUS)
  robust = found.broken_by == ROBUST
  assert not np.any(~robust & (worst < -1e-5))
  assert not np.any(robust & (easy > 0))
  assert 0.1 < np.mean(robust) < 0.9
  delta = found.images - x
  np.testing.assert_array_equal(delta[~u.mask], 0)
  assert np.abs(delta).max() > 0.05
  assert found.names == ("clean", "apgd-ce", "square")


@pytest.mark.slow
def test_the_verdict_is_verified_mask_by_mask(attacked, tmp_path):
  weights, x, y, u, found = attacked
  np.save(tmp_path / "mask.npy", u.mask)
  config = evaluation_options._masked(files.ball_config("l2", RADIUS), str(tmp_path / "mask.npy"))
  sha256 = files.data_sha256(x, y), "1 x cpu", config_sha256(config)
  claim = files.Claim(config, "standard", 0, 16, {}, "net", *sha256)
  assert claim.u(y) == u

  def problems(found):
    files.save(tmp_path / "verdict.npz", found, claim, x, y)
    stored = files.load(tmp_path / "verdict.npz")
    return verification.verify(stored, known.net_of(weights), x, y, "net")

  assert problems(found) == []
  for change, words in ((0.001 * ~u.mask, "changed outside of the mask"), (0.2, "has gauge")):
    images = np.where(found.broken_by[:, None, None, None] > 0, found.images + change, x)
    sentences = problems(found._replace(images=images.astype(np.float32)))
    assert any(words in sentence for sentence in sentences), words


def test_masks_of_examples_and_of_images():
  shape = (5, 4, 3, 2)
  u = ro.LInf(0.1, box=(0.0, 1.0))
  x = np.zeros(shape, np.float32)
  some = np.arange(12).reshape(4, 3) % 2 == 0
  for mask in (some, some[:, :, None], np.broadcast_to(some[:, :, None], shape)):
    masked = sets.Masked(u, mask)
    check_fits(masked, shape)
    expected = np.broadcast_to(~some[:, :, None], shape)
    np.testing.assert_array_equal(masked.outside(x), expected)
  check_fits(sets.Masked(u, np.ones((3, 2), bool)), shape)  # of [C, H, W]
  each = np.arange(5)[:, None, None, None] == np.zeros((1, 4, 3, 2))
  both = for_examples(sets.Union((u, sets.Masked(u, each))), np.array([3, 0]), 4)
  np.testing.assert_array_equal(both.sets[1].mask[:, 0, 0, 0], [False, True])
  assert both.sets[0] == u
  assert for_examples(sets.Masked(u, some), np.array([3, 0]), 4) == sets.Masked(u, some)
  with pytest.raises(ro.InputError, match=r"or \[H, W\] of images, but has \(5, 4, 3, 1\)"):
    check_fits(sets.Masked(u, np.ones((5, 4, 3, 1), bool)), (6, 4, 3, 2))


def test_what_is_masked_is_said():
  union = {"name": "Union", "sets": [files.ball_config("linf", 0.1), files.ball_config("l2", 1.0)]}
  masked = evaluation_options._masked(union, "mask.npy")
  assert [part["name"] for part in masked["sets"]] == ["Masked", "Masked"]
  assert evaluation_options._masked(union, "") == union
  balls = [ro.LInf(0.1, (0.0, 1.0)), ro.L2(1.0, (0.0, 1.0))]
  u = sets.Union(tuple(sets.Masked(ball, np.ones((4, 4, 1), bool)) for ball in balls))
  names = [step.name for step in phases.plan("quick", lambda x: x, u)]
  assert names == ["apgd-ce linf", "apgd-ce l2", "apgd-t linf", "apgd-t l2"]
  for config, mask, words in (
    (union, "mask.png", "--mask must be a .npy file of bool"),
    ({"name": "Transforms"}, "mask.npy", "--mask has no meaning for rotations"),
  ):
    with pytest.raises(ro.InputError, match=words):
      evaluation_options._masked(config, mask)
