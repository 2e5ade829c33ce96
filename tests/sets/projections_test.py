"""The projections are the nearest points, the furthest points the furthest: checked in float64."""

import functools

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from rounding import rounding

from robust_opt.sets import projections

NUM_CASES, NUM_ENTRIES = 4000, 6
# A norm or a sum over the entries, its root, and what shifts, scales and clips them.
ROUNDING = rounding(terms=2 * NUM_ENTRIES + 8)
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
BALLS = tuple(ORDERS)
BOXED = pytest.mark.parametrize("boxed", [False, True], ids=["ball", "ball_with_box"])
EVERY_BALL = pytest.mark.parametrize("ball", BALLS)


@functools.cache
def projection(ball, boxed):
  """(delta [N, n], radius [N], x [N, n]) -> [N, n] in float32, compiled once a shape."""
  project = getattr(projections, ball)

  @jax.jit
  @jax.vmap
  def one(delta, radius, x):
    return project(delta, radius, (-x, 1 - x) if boxed else None)

  return lambda *cases: np.asarray(one(*(np.asarray(a, np.float32) for a in cases)))


@functools.cache
def cases(seed=0):
  """Random deltas of all sizes and radii, with zeros, ties and pixels on the edge of the box."""
  rng = np.random.default_rng(seed)
  shape = (NUM_CASES, NUM_ENTRIES)
  delta = rng.normal(size=shape) * 10 ** rng.uniform(-2, 1, (NUM_CASES, 1))
  delta[:500] = np.round(delta[:500], 1)
  delta[rng.random(shape) < 0.1] = 0
  x = rng.random(shape)
  x[:1000] = np.round(x[:1000] * 2) / 2
  radius = 10 ** rng.uniform(-2, 1, NUM_CASES)
  return tuple(a.astype(np.float32) for a in (delta, radius, x))


def norm(delta, ball):
  return np.linalg.norm(np.asarray(delta, np.float64), ORDERS[ball], axis=-1)


def bounds_of(x, boxed):
  """The box around x, the same numbers as the float32 function sees; infinite without one."""
  if not boxed:
    return np.full(x.shape, -np.inf), np.full(x.shape, np.inf)
  return (-x).astype(np.float64), (np.float32(1) - x).astype(np.float64)


def points_inside(rng, shape, ball, radius, x, boxed):
  """Random points of the set, many of them on its boundary; radius [N], x [N, n]."""
  z = rng.normal(size=shape) * (rng.random(shape) < 0.7)
  reach = radius * np.minimum(1, 2 * rng.random(shape[:-1]))
  z *= (reach / np.maximum(norm(z, ball), 1e-30))[..., None]
  return np.clip(z, *bounds_of(x, boxed))


def reference(ball, delta, radius, x, boxed):
  """The projection by 200 halvings of the multiplier of the norm, in float64."""
  delta, lower_upper = delta.astype(np.float64), bounds_of(x, boxed)

  def at(multiplier):  # in [0, 1]; 0 leaves delta alone
    m = multiplier[:, None]
    if ball == "l2":
      return np.clip((1 - m) * delta, *lower_upper)
    if ball == "l1":
      threshold = m * np.abs(delta).max(-1, keepdims=True)
      return np.clip(np.sign(delta) * np.maximum(np.abs(delta) - threshold, 0), *lower_upper)
    return np.clip(np.clip(delta, -radius[:, None], radius[:, None]), *lower_upper)

  low, high = np.zeros(len(delta)), np.ones(len(delta))
  for _ in range(200):
    middle = (low + high) / 2
    outside = norm(at(middle), ball) > radius
    low, high = np.where(outside, middle, low), np.where(outside, high, middle)
  return np.where((norm(at(low * 0), ball) <= radius)[:, None], at(low * 0), at(high))


@EVERY_BALL
@BOXED
def test_agrees_with_a_float64_solver(ball, boxed):
  delta, radius, x = cases()
  nearest = projection(ball, boxed)(delta, radius, x)
  expected = reference(ball, delta, radius, x, boxed)
  error = np.abs(nearest - expected).max(-1) / np.maximum(1e-3, np.abs(delta).max(-1))
  assert error.max() < ROUNDING


@EVERY_BALL
@BOXED
def test_stays_inside_and_reaches_the_boundary(ball, boxed):
  delta, radius, x = cases()
  nearest = projection(ball, boxed)(delta, radius, x)
  assert np.all(norm(nearest, ball) <= radius * (1 + ROUNDING))
  if boxed:
    assert np.all((x + nearest >= 0) & (x + nearest <= 1))
  outside = norm(np.clip(delta, *bounds_of(x, boxed)), ball) > radius * (1 + ROUNDING)
  assert outside.sum() > 500
  np.testing.assert_allclose(norm(nearest, ball)[outside], radius[outside], rtol=ROUNDING)


@EVERY_BALL
@BOXED
def test_identity_inside_to_the_bit(ball, boxed):
  _, radius, x = cases()
  rng = np.random.default_rng(2)
  z = points_inside(rng, x.shape, ball, radius * 0.99999, x, boxed).astype(np.float32)
  if boxed:
    z = np.clip(z, -x, 1 - x)
  np.testing.assert_array_equal(projection(ball, boxed)(z, radius, x), z)


def float32s(shape, low, high):
  values = st.floats(low, high, width=32, allow_subnormal=False)
  return hnp.arrays(np.float32, shape, elements=values)


@EVERY_BALL
@BOXED
@hypothesis.settings(max_examples=15)
@hypothesis.given(
  float32s((2, 50, 5), -8, 8), float32s(50, 0, 4), float32s((50, 5), 0, 1), st.integers(-20, 20)
)
def test_idempotent_and_nonexpansive(ball, boxed, pair, radius, x, exponent):
  if not boxed:  # at any size
    pair, radius = np.ldexp(pair, exponent), np.ldexp(radius, exponent)
  project = projection(ball, boxed)
  first, second = (project(delta, radius, x) for delta in pair)
  size = np.abs(pair).max((0, 2))
  twice = project(first, radius, x)
  assert np.all(np.abs(twice - first).max(-1) <= ROUNDING * np.maximum(size, 1e-30))
  apart = np.linalg.norm(pair[0].astype(np.float64) - pair[1], axis=-1)
  now_apart = np.linalg.norm(first.astype(np.float64) - second, axis=-1)
  assert np.all(now_apart <= apart * (1 + ROUNDING) + 2 * ROUNDING * size)
  assert np.all((first == 0) | (np.sign(first) == np.sign(pair[0])))


@EVERY_BALL
@BOXED
def test_radius_0_inf_and_nan(ball, boxed):
  delta, radius, x = cases()
  project = projection(ball, boxed)
  np.testing.assert_array_equal(project(delta, 0 * radius, x), 0 * delta)
  cut = np.clip(delta, -x, 1 - x) if boxed else delta
  np.testing.assert_array_equal(project(delta, np.inf * radius, x), cut)
  spoilt = delta.copy()
  spoilt[:, 2] = np.nan
  assert np.all(np.isnan(project(spoilt, radius, x)).any(-1))


@EVERY_BALL
def test_huge_and_tiny_inputs(ball):
  # The projection is homogeneous: P(s delta; s radius) = s P(delta; radius).
  delta, radius, x = cases()
  project = projection(ball, False)
  expected = project(delta, radius, x)
  for exponent in (-80, 80):
    scaled = project(np.ldexp(delta, exponent), np.ldexp(radius, exponent), x)
    np.testing.assert_allclose(
      np.ldexp(scaled, -exponent), expected, atol=ROUNDING * np.abs(delta).max()
    )


@EVERY_BALL
@BOXED
@pytest.mark.parametrize("scale", [1e6, 1e20, 1e30])
def test_huge_inputs_at_an_ordinary_radius(ball, boxed, scale):
  # Far away the projection tends to the furthest point along delta; it must not fall short of it.
  delta, radius, x = cases()  # with ties
  if ball == "l1" and boxed:  # there, entries that tie may fall short by an ulp of theirs
    delta = delta * (1 + np.arange(NUM_ENTRIES) / 100).astype(np.float32)
  far = projection(ball, boxed)(delta * np.float32(scale), radius, x)
  full = np.where(delta > 0, 1 - x, np.where(delta < 0, x, 0)) if boxed else np.abs(delta) * 1e9
  reach = np.minimum(radius, norm(full, ball))
  np.testing.assert_allclose(norm(far, ball), reach, rtol=ROUNDING)
  if boxed:
    assert np.all((x + far >= 0) & (x + far <= 1))


def test_one_huge_entry_does_not_hide_the_others():
  # The first entry has little room; what it leaves of the radius belongs to the other two.
  delta, x = np.array([[1e30, 0.5, 0.3]]), np.array([[0.9, 0.1, 0.1]])
  ours = projection("l1", True)(delta, [0.6], x)
  np.testing.assert_allclose(ours, [[0.1, 0.35, 0.15]], rtol=ROUNDING)


def test_l1_is_no_rescaling():
  # Soft thresholding keeps (0.5, 0); rescaling would give (0.42, 0.08).
  ours = projection("l1", False)([[1.0, 0.2]], [0.5], [[0.0, 0.0]])
  np.testing.assert_allclose(ours, [[0.5, 0.0]], atol=rounding())


@pytest.mark.slow
@EVERY_BALL
@BOXED
def test_derivatives(ball, boxed):
  """Against finite differences in float64, in both modes; in the ball, outside, and saturated."""
  with jax.enable_x64(True):
    rng = np.random.default_rng(4)
    delta, x, radius = rng.normal(size=(7, 8)), rng.uniform(0.05, 0.95, (7, 8)), rng.random(7) + 0.1
    delta[0] *= 1e-2  # inside

    def project(delta, radius):
      bounds = (lambda x: (-x, 1 - x)) if boxed else (lambda x: None)
      one = lambda delta, radius, x: getattr(projections, ball)(delta, radius, bounds(x))  # noqa: E731
      return jax.vmap(one)(delta, radius, jnp.asarray(x))

    assert project(delta, radius).dtype == jnp.float64
    check_grads(jax.jit(project), (delta, radius), order=1, atol=1e-6, rtol=1e-6, eps=1e-6)


@EVERY_BALL
@BOXED
@pytest.mark.parametrize("size", [0.0, 1e-3, 5.0])
@pytest.mark.parametrize("radius", [0.0, 0.5, 100.0])
def test_derivatives_are_finite_where_they_degenerate(ball, boxed, size, radius):
  # At 0, at radius 0, inside, and in a corner of the box, where every entry is saturated.
  x = np.full((1, 4), 0.5, np.float32)
  delta = size * np.array([[1.0, -1.0, 0.5, 0.0]], np.float32)
  gradient = _gradient(ball, boxed)(delta, jnp.full((1,), radius), x)
  chex.assert_tree_all_finite(gradient)
  if size * 4 < radius and (size < 0.5 or not boxed):
    np.testing.assert_array_equal(gradient[0], 1 + np.arange(4.0)[None])


@functools.cache
def _gradient(ball, boxed):
  def total(delta, radius, x):
    one = lambda d, r, x: getattr(projections, ball)(d, r, (-x, 1 - x) if boxed else None)  # noqa: E731
    return jnp.sum(jax.vmap(one)(delta, radius, x) * (1 + jnp.arange(4.0)))

  return jax.jit(jax.grad(total, argnums=(0, 1)))
