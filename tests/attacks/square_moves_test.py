"""The moves of Square Attack, against the paper's own formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import rounding

from robust_opt.attacks import square_moves


def test_the_sides_follow_the_halvings():
  sides = square_moves.sides_of((32, 32, 3), 0.8, least=1)
  assert sides.shape == (10, 2)
  np.testing.assert_array_equal(sides[:, 0], sides[:, 1])
  np.testing.assert_array_equal(sides[:, 0], [29, 20, 14, 10, 7, 5, 4, 3, 2, 1])
  # Vectors: intervals, the share of whose entries is p; narrow images: their whole breadth.
  np.testing.assert_array_equal(
    square_moves.sides_of((1, 400, 1), 0.8, 1)[:3], [[1, 320], [1, 160], [1, 80]]
  )
  np.testing.assert_array_equal(
    square_moves.sides_of((40, 4, 1), 0.8, 1)[:3], [[32, 4], [16, 4], [8, 4]]
  )
  # Of volumes the share of p, as cubes; where one axis is short, more of the others.
  np.testing.assert_array_equal(square_moves.sides_of((10, 10, 10, 1), 0.8, 1)[:3, 0], [9, 7, 6])
  np.testing.assert_array_equal(
    square_moves.sides_of((2, 10, 10, 1), 0.8, 1)[:3], [[2, 9, 9], [2, 6, 6], [2, 4, 4]]
  )
  assert square_moves.sides_of((28, 28, 1), 0.8, 3).min() == 3
  np.testing.assert_array_equal(square_moves.sides_of((2, 2, 1), 0.8, 3), np.full((10, 2), 2))


bump_at = jax.jit(square_moves._bump, static_argnames="order")


def paper_bump(side, power=2):
  """Equation 2, term by term, for both halves; the authors' program has 1 / k^4 over l_1."""

  def half(width):
    n = side // 2
    values = np.zeros((side, width))
    for r in range(side):
      for s in range(width):
        m = n - max(abs(r - n), abs(s - width // 2))
        values[r, s] = sum(1 / (n + 1 - k) ** power for k in range(m + 1))
    return values

  return np.concatenate([half(side // 2), -half(side - side // 2)], axis=1)


@pytest.mark.parametrize(("order", "power"), [(2, 2), (1, 4)])
@pytest.mark.parametrize("side", [3, 4, 5, 8])
def test_the_bump_is_that_of_the_paper(side, order, power):
  # One program for all sides: beyond its side a bump is nothing.
  places, sides = jnp.ix_(jnp.arange(8), jnp.arange(8)), jnp.array([side, side])
  expected = paper_bump(side, power)
  # Differences of float32 sums of at most pi^2 / 6, half an ulp each.
  for split, values in ((1, expected), (0, expected.T)):
    bump = bump_at(places, sides, split, order=order)[:side, :side]
    np.testing.assert_allclose(bump, values, atol=2 * np.finfo(np.float32).eps)


def test_bumps_and_windows_with_one_axis_and_three():
  bump = functools.partial(bump_at, order=2)
  interval = bump(jnp.ix_(jnp.arange(5)), jnp.array([5]), 0)
  height = np.cumsum(1 / np.arange(1, 3) ** 2)  # sums of one term and of two
  # Two pixels, whose middle is the second, and three.
  np.testing.assert_allclose(
    interval, [0.25, 1.25, -0.25, -height[1], -0.25], atol=2 * np.finfo(np.float32).eps
  )
  cube = bump(jnp.ix_(*[jnp.arange(4)] * 3), jnp.array([4] * 3), 2)
  np.testing.assert_array_equal(cube, -np.asarray(cube)[:, :, [2, 3, 0, 1]])  # split along the last
  np.testing.assert_array_equal(cube, np.asarray(cube).transpose(1, 0, 2))
  # The same distances in every direction: a slice through the middle is the bump of an image.
  image = bump(jnp.ix_(*[jnp.arange(4)] * 2), jnp.array([4] * 2), 1)
  np.testing.assert_array_equal(cube[2], image)

  shape, corner, sides = (4, 5, 6, 2), jnp.array([1, 0, 3]), jnp.array([2, 3, 1])
  window = np.zeros((4, 5, 6, 1), bool)
  window[1:3, 0:3, 3:4] = True
  found = square_moves._inside(square_moves._offsets(corner, shape), sides)
  np.testing.assert_array_equal(found, window)


def by_the_paper(u, delta, sides, order):
  """Algorithm 3 with its loop over channels; the ball has radius 1 and its norm is l_order.

  Over l_1 as in the authors' program: a steeper bump, as many times the mass as there are channels.
  """
  height, width, channels = delta.shape
  rows, columns = sides
  corners = np.floor(u[:4] * np.array([height - rows + 1, width - columns + 1] * 2)).astype(int)
  first = np.s_[corners[0] : corners[0] + rows, corners[1] : corners[1] + columns]
  second = np.s_[corners[2] : corners[2] + rows, corners[3] : corners[3] + columns]
  bump = paper_bump(rows, power=2 if order == 2 else 4)
  bump = bump if u[4] >= 0.5 else bump.T

  def norm(v):
    return np.sum(np.abs(v) ** order) ** (1 / order)

  new, unused = delta.copy(), 1 - np.sum(np.abs(delta) ** order)
  for i in range(channels):
    sign = -1 if u[5 + i] < 0.5 else 1
    temp = sign * bump / norm(bump) + delta[first][..., i] / norm(delta[first][..., i])
    either = np.zeros((height, width), bool)
    either[first] = either[second] = True
    available = (np.sum(np.abs(delta[either][:, i]) ** order) + unused / channels) ** (1 / order)
    available *= channels if order == 1 else 1
    new[..., i][second] = 0
    new[..., i][first] = temp / norm(temp) * available
  return new


def l1_projected(delta, low, high):
  """Onto the l_1 ball of radius 1 and the bounds, by bisection of the threshold in float64."""

  def at(threshold):
    return np.clip(np.sign(delta) * np.maximum(np.abs(delta) - threshold, 0), low, high)

  below, above = 0.0, np.abs(delta).max()
  if np.abs(at(0.0)).sum() <= 1:
    return at(0.0)
  for _ in range(60):
    middle = (below + above) / 2
    below, above = (middle, above) if np.abs(at(middle)).sum() > 1 else (below, middle)
  return at(above)


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("order", [1, 2])
def test_the_move_over_l2_and_l1_is_that_of_the_paper(order, bounded):
  """Over l_2 the result is cut by the bounds, over l_1 projected onto them and the ball."""
  rng, shape, radius = np.random.default_rng(0), (8, 7, 3), 0.25
  limit = radius / 50 if bounded else np.inf
  bounds = (jnp.full(shape, -limit), jnp.full(shape, limit))
  move = jax.jit(functools.partial(square_moves._move_mass, order=order))
  for seed in range(12):
    key, side = jax.random.key(seed), 3 + seed % 4
    delta = rng.normal(size=shape)
    delta *= rng.uniform(0.3, 1) / np.linalg.norm(delta.ravel(), order)
    moved = move(key, jnp.array([side, side]), jnp.float32(radius * delta), radius, bounds)
    u = np.asarray(jax.random.uniform(key, (5 + shape[-1],)), np.float64)
    expected = by_the_paper(u, delta, (side, side), order)
    if order == 1:
      assert np.linalg.norm(expected.ravel(), 1) > 1.1  # so that clipping would not do
      expected = l1_projected(expected, -limit / radius, limit / radius)
    expected = radius * np.clip(expected, -limit / radius, limit / radius)
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    if not bounded:
      np.testing.assert_allclose(np.linalg.norm(expected.ravel(), order), radius, rtol=1e-6)


def test_the_start_over_linf_is_vertical_stripes():
  start = np.asarray(square_moves._stripes(jax.random.key(0), (7, 64, 3)))
  np.testing.assert_array_equal(start, np.broadcast_to(start[:1], start.shape))
  assert set(np.unique(start)) == {-1.0, 1.0}
  assert abs(start[0].mean()) < 0.3


@pytest.mark.parametrize(
  ("shape", "order"),
  [
    ((17, 23, 3), 2),
    ((28, 28, 1), 1),
    ((3, 3, 2), 2),
    ((1, 30, 1), 1),
    ((30, 2), 2),
    ((6, 7, 6, 1), 1),
  ],
)
def test_the_start_over_l2_and_l1_is_a_grid_of_bumps_on_the_sphere(shape, order):
  start = jax.jit(lambda key: square_moves._bump_grid(key, shape, order))(jax.random.key(0))
  start = np.asarray(start, np.float64)
  assert start.shape == shape
  np.testing.assert_allclose(
    np.linalg.norm(start.ravel(), order), 1.0, rtol=rounding(terms=start.size + 16)
  )
  filled = [size - size % 5 if size >= 5 else size for size in shape[:-1]]
  assert np.sum(np.any(start != 0, axis=-1)) == np.prod(filled)  # every tile is filled
  # The channels differ by signs, one a tile.
  np.testing.assert_allclose(np.abs(start[..., 0]), np.abs(start[..., -1]), rtol=rounding(terms=4))
