"""Augmentations: what they may not change, and what their draws depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_opt.data import augmentation, mixing, pipeline, trivial
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


@pytest.mark.parametrize(
  "function",
  [
    augmentation.flip,
    augmentation.crop,
    augmentation.cutout,
    pytest.param(trivial.trivial_augment, marks=pytest.mark.slow),
  ],
)
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


def test_cutout_blackens_one_square_around_a_random_pixel():
  x = images()
  gone = (np.asarray(augmentation.cutout(keys(), x, size=4)) == 0).all(axis=-1)
  assert np.array_equal(augmentation.cutout(keys(), x, size=4), np.where(gone[..., None], 0, x))
  rows, columns = gone.any(axis=2).sum(axis=1), gone.any(axis=1).sum(axis=1)
  np.testing.assert_array_equal(gone.sum(axis=(1, 2)), rows * columns)  # a rectangle
  assert {2, 4} <= set(rows) <= {2, 3, 4}  # cut at the borders
  assert {2, 4} <= set(columns) <= {2, 3, 4}


# Mixtures


def labels():
  return np.random.default_rng(2).integers(0, 5, B).astype(np.int32)


def test_smoothing_takes_an_equal_share_for_every_class():
  soft = np.asarray(mixing.smoothed(labels(), 5, 0.2))
  np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-6)
  np.testing.assert_allclose(soft[np.arange(B), labels()], 0.8 + 0.04, rtol=1e-6)
  np.testing.assert_array_equal(mixing.smoothed(labels(), 5, 0.0), np.eye(5)[labels()])
  assert pipeline.mix(("flip",), 5) is None  # labels remain classes


def test_a_share_of_one_mixes_nothing():
  ones = jnp.ones(B)
  np.testing.assert_array_equal(mixing.blended(ones, images()), images())
  np.testing.assert_array_equal(mixing.blended(0 * ones, images()), np.roll(images(), -1, axis=0))


def test_mixup_gives_the_label_the_weight_of_the_image():
  x, y = images(), np.asarray(mixing.smoothed(labels(), 5, 0.0))
  mixed, soft = mixing.mixup(keys(), x, y)
  share = np.asarray(jax.vmap(jax.random.uniform)(keys()))
  weights = share.reshape(-1, 1, 1, 1)
  np.testing.assert_allclose(mixed, weights * x + (1 - weights) * np.roll(x, -1, 0), atol=1e-6)
  expected = share[:, None] * y + (1 - share[:, None]) * np.roll(y, -1, 0)
  np.testing.assert_allclose(soft, expected, atol=1e-6)
  assert share.min() < 0.1 < 0.9 < share.max()


def test_cutmix_gives_the_label_the_share_of_the_pixels():
  x, y = images(), np.asarray(mixing.smoothed(labels(), 5, 0.0))
  mixed, soft = map(np.asarray, mixing.cutmix(keys(), x, y))
  own = (mixed == x).all(axis=-1)
  assert np.array_equal(mixed, np.where(own[..., None], x, np.roll(x, -1, axis=0)))
  share = own.mean(axis=(1, 2))
  np.testing.assert_allclose(
    soft, share[:, None] * y + (1 - share[:, None]) * np.roll(y, -1, axis=0), atol=1e-6
  )
  assert share.min() < 0.4 < 0.9 < share.max()


# TrivialAugment


OPERATIONS = trivial.OPERATIONS
# Those that leave an image as it is at strength 0.
NEUTRAL = OPERATIONS.keys() - {"solarize", "autocontrast", "equalize"}


@pytest.fixture(scope="module")
def at():
  """name -> jitted operation of an image of 8 bits."""
  jitted = {name: jax.jit(of) for name, of in OPERATIONS.items()}
  image = np.round(255 * images()[0, :6, :6]).astype(np.float32) / 255
  return lambda name, *strength: np.asarray(jitted[name](image, *strength)), image


def test_operations_of_no_strength_do_nothing(at):
  of, image = at
  for name in NEUTRAL:
    np.testing.assert_allclose(of(name, 0.0, 0.0), image, atol=1e-6, err_msg=name)


def test_operations_in_closed_form(at):
  of, image = at
  factor = 1.0 + 0.99 * 0.5
  gray = image @ np.array([0.299, 0.587, 0.114], np.float32)
  expected = {
    "brightness": factor * image,
    "color": gray[..., None] + factor * (image - gray[..., None]),
    "contrast": gray.mean() + factor * (image - gray.mean()),
    "posterize": np.floor(np.round(255 * image) / 8) * 8 / 255,
    "solarize": np.where(image >= 0.5, 1 - image, image),
    "translate_x": np.zeros_like(image),  # by 16 of 6 pixels
  }
  for name, value in expected.items():
    np.testing.assert_allclose(of(name, 0.5, 0.5), value, atol=1e-5, err_msg=name)
  stretched = of("autocontrast", 0.5, 0.5)
  np.testing.assert_allclose(stretched.min(axis=(0, 1)), 0, atol=1e-6)
  np.testing.assert_allclose(stretched.max(axis=(0, 1)), 1, atol=1e-6)
  quarter = of("rotate", 90 / 135, 90 / 135)
  np.testing.assert_allclose(quarter, np.rot90(image, -1), atol=1e-5)
