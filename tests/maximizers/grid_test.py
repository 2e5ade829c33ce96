"""Rotations and translations: exact ones, and the worst of a grid."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import assert_close

import robust_opt as ro
from robust_opt.errors import InputError
from robust_opt.sets import Transforms, spatial
from robust_opt.types import Scored

SHAPE = (3, 5, 5, 2)
transform = jax.jit(spatial.transform)
# The sine and the weights of a rotation, and a sum over the pixels.
close = functools.partial(assert_close, terms=np.prod(SHAPE[1:]) + 16, dtype=np.float32)


def images(shape=SHAPE):
  return np.random.default_rng(0).random(shape).astype(np.float32)


def weigh(weights):
  return lambda x: jnp.sum(x * weights, axis=(1, 2, 3))


def test_whole_pixels_and_right_angles_are_exact():
  x = images()
  np.testing.assert_array_equal(transform(x, 0.0, (0.0, 0.0)), x)
  moved = transform(x, 0.0, (1.0, -2.0))  # down and to the left
  expected = np.zeros_like(x)
  expected[:, 1:, :3] = x[:, :-1, 2:]
  np.testing.assert_array_equal(moved, expected)
  turned = transform(x, 90.0, (0.0, 0.0))
  close(turned, np.rot90(x, axes=(1, 2)))
  wide = images((2, 4, 7, 1))
  close(transform(wide, 180.0, (0.0, 0.0)), wide[:, ::-1, ::-1])


def test_half_a_pixel_is_the_mean_of_two():
  x = images()
  moved = np.asarray(transform(x, 0.0, (0.0, 0.5)))
  close(moved[:, :, 1:], (x[:, :, 1:] + x[:, :, :-1]) / 2)
  close(moved[:, :, 0], x[:, :, 0] / 2)


def test_rotating_back_returns_a_smooth_image():
  rows, columns = np.meshgrid(np.arange(21) - 10, np.arange(21) - 10, indexing="ij")
  x = np.exp(-((rows - 2) ** 2 + columns**2) / 30).astype(np.float32)[None, :, :, None]
  back = transform(transform(x, 20.0, (0.0, 0.0)), -20.0, (0.0, 0.0))
  # A bilinear error is at most |f''| / 8 = 1 / 120 an axis; there are two axes and two transforms.
  np.testing.assert_allclose(back[0, 4:-4, 4:-4], x[0, 4:-4, 4:-4], atol=4 / 120)


def test_the_worst_of_the_grid_by_hand():
  x, weights = images(), np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
  attack = jax.jit(lambda x: ro.grid_search(Transforms(30.0, 1.0), 3, 3)(weigh(weights), None, x))
  delta, info = attack(x)
  grid = [(a, (r, c)) for a in (-30, 0, 30) for r in (-1, 0, 1) for c in (-1, 0, 1)]
  values = np.stack([weigh(weights)(transform(x, *candidate)) for candidate in grid])
  close(weigh(weights)(x + delta), values.max(0))
  chex.assert_shape([info.value, info.score, info.zero_gradient], (27, 3))  # the identity once
  close(info.value[0], weigh(weights)(x))
  close(info.value.max(0), values.max(0))
  assert not np.any(info.zero_gradient)
  for i in range(3):  # each example by itself
    one = weights[i : i + 1]
    close(
      ro.grid_search(Transforms(30.0, 1.0), 3, 3)(weigh(one), None, x[i : i + 1])[0][0], delta[i]
    )


def test_never_worse_than_clean_and_within_the_pixels():
  x = np.round(images())  # pixels on the edge of the box
  away = 0 * x
  clean = np.zeros(3, np.float32)
  attack = ro.grid_search(Transforms(20.0, 2.0), 4, 2)  # a grid without the identity
  delta, info = attack(lambda z: -jnp.sum((z - x) ** 2, axis=(1, 2, 3)), None, x)
  np.testing.assert_array_equal(delta, away)
  np.testing.assert_array_equal(info.value[0], clean)
  chex.assert_shape(info.value, (17, 3))
  delta, _ = attack(lambda z: jnp.sum((z - x) ** 2, axis=(1, 2, 3)), None, x)
  assert np.all((x + delta >= 0) & (x + delta <= 1))
  assert np.all(np.abs(delta).max(axis=(1, 2, 3)) > 0)


def test_points_are_compared_by_their_score_and_nan_wins():
  x = images()

  def value_fn(z):
    moved = jnp.sum((z - x) ** 2, axis=(1, 2, 3))
    return Scored(moved, jnp.where(jnp.arange(3) == 2, jnp.where(moved > 0, jnp.nan, 0.0), -moved))

  delta, info = ro.grid_search(Transforms(10.0, 1.0), 3, 1)(value_fn, None, x)
  np.testing.assert_array_equal(delta[:2], 0)
  assert np.abs(delta[2]).max() > 0
  assert np.all(info.value[1:] > 0)
  assert np.all(np.isnan(info.score[1:, 2]))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((-1.0, 1.0, 3, 3), "max_rotation must be >= 0"),
    ((1.0, float("nan"), 3, 3), "max_translation must be >= 0"),
    ((1.0, 1.0, 0, 3), "num_rotations must be at least 1"),
    ((1.0, 1.0, 3, 0), "num_translations must be at least 1"),
  ],
)
def test_bad_grids(arguments, message):
  with pytest.raises(InputError, match=f"^{message}"):
    ro.grid_search(Transforms(*arguments[:2]), *arguments[2:])


def test_bad_inputs():
  attack = ro.grid_search(Transforms(1.0, 1.0), 3, 3)
  with pytest.raises(InputError, match=r"^x must be floating point images"):
    attack(lambda z: jnp.sum(z, axis=1), None, jnp.zeros((3, 4)))
  with pytest.raises(InputError, match=r"one value for each"):
    attack(jnp.sum, None, images())
