"""Flips and crops: what they may not change, and what their draws depend on."""

import jax
import numpy as np
import pytest

from robust_opt.data import augmentation, pipeline
from robust_opt.keys import keys_of

B, H, W, C = 64, 8, 6, 3


def images(seed=0):
  return np.random.default_rng(seed).uniform(0.1, 1.0, (B, H, W, C)).astype(np.float32)


def keys(seed=0, ids=None):
  return keys_of(jax.random.key(seed), np.arange(B) if ids is None else ids)


def test_flip_is_an_involution_and_mirrors_about_half():
  x = images()
  once = augmentation.flip(keys(), x)
  np.testing.assert_array_equal(augmentation.flip(keys(), once), x)
  same = (once == x).all(axis=(1, 2, 3))
  mirrored = (once == x[:, :, ::-1]).all(axis=(1, 2, 3))
  assert np.all(same ^ mirrored)
  assert 16 < mirrored.sum() < 48  # a fair coin strays so far once in 15,000


@pytest.mark.parametrize("padding", [0, 4])
def test_crop_is_a_shift_that_fills_with_black(padding):
  x = images()
  out = np.asarray(augmentation.crop(keys(), x, padding))
  assert out.shape == x.shape
  assert out.dtype == x.dtype
  padded = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
  places = [(i, j) for i in range(2 * padding + 1) for j in range(2 * padding + 1)]
  found = [
    [p for p in places if np.array_equal(out[b], padded[b, p[0] : p[0] + H, p[1] : p[1] + W])]
    for b in range(B)
  ]
  assert all(len(f) == 1 for f in found)  # exactly one shift explains it
  seen = {f[0] for f in found}
  assert {i for i, _ in seen} == {j for _, j in seen} == set(range(2 * padding + 1))


@pytest.mark.parametrize("function", [augmentation.flip, augmentation.crop])
def test_draws_depend_on_each_key_alone(function):
  x, order = images(), np.random.default_rng(1).permutation(B)
  whole = np.asarray(function(keys(), x))
  np.testing.assert_array_equal(function(keys(ids=order), x[order]), whole[order])
  np.testing.assert_array_equal(function(keys(ids=np.arange(3, 7)), x[3:7]), whole[3:7])
  assert not np.array_equal(function(keys(seed=1), x), whole)


def test_a_pipeline_chains_augmentations_with_draws_of_their_own():
  assert pipeline.augment(()) is None
  x = images()
  out = np.asarray(pipeline.augment(("flip", "flip"))(keys(), x))
  mirrored = (out != x).any(axis=(1, 2, 3))
  assert mirrored.any()  # the same draw twice would always cancel
  assert not mirrored.all()
