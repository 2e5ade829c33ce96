"""A linear model has an exact worst case: closed forms, and attacks that attain it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_opt as ro
from robust_opt import losses
from robust_opt.certificates import exact

SETS = {"linf": ro.LInf, "l2": ro.L2, "l1": ro.L1}
DUAL_ORDERS = {"linf": 1, "l2": 2, "l1": np.inf}
EVERY_NORM = pytest.mark.parametrize("norm", list(SETS))
EVERY_BOX = pytest.mark.parametrize("box", [None, (0.0, 1.0)], ids=["ball", "ball_with_box"])
EVERY_COUNT = pytest.mark.parametrize("num_classes", [2, 10])
BATCH, SHAPE = 24, (2, 3)


@functools.cache
def problem(num_classes, clean_accuracy=0.75):
  """weights [6, C], bias [C], x [B, 2, 3], y [B], radius [B]."""
  rng = np.random.default_rng(num_classes)
  weights = rng.normal(size=(6, num_classes)).astype(np.float32)
  bias = rng.normal(size=num_classes).astype(np.float32)
  x = rng.random((BATCH, *SHAPE)).astype(np.float32)
  x[:4] = np.round(x[:4])
  predicted = np.argmax(x.reshape(BATCH, -1) @ weights + bias, -1)
  wrong = rng.random(BATCH) > clean_accuracy
  y = np.where(wrong, (predicted + 1) % num_classes, predicted).astype(np.int32)
  return weights, bias, x, y, 10 ** rng.uniform(-2, 0.5, BATCH).astype(np.float32)


def logits_of(weights, bias, x):
  return x.reshape(x.shape[0], -1) @ weights + bias


worst_case = jax.jit(exact.linear_margin)
shortest = jax.jit(exact.linear_distance, static_argnames="ball")


@EVERY_NORM
@EVERY_COUNT
def test_margin_is_the_closed_form(norm, num_classes):
  weights, bias, x, y, radius = problem(num_classes)
  radius = np.where(np.arange(BATCH) < 3, np.float32(0), radius)
  w, z = weights.astype(np.float64), logits_of(weights, bias, x).astype(np.float64)
  rows = np.arange(BATCH)
  gain = np.linalg.norm(w.T[None] - w.T[y][:, None], DUAL_ORDERS[norm], axis=-1)
  worst = z - z[rows, y][:, None] + radius[:, None] * gain
  worst[rows, y] = -np.inf
  margin = worst_case(weights, bias, x, y, SETS[norm](radius))
  np.testing.assert_allclose(margin, worst.max(-1), rtol=1e-5, atol=1e-5)


@EVERY_NORM
def test_a_box_leaves_less_to_the_adversary(norm):
  """All the less, the larger the radius, until the whole box is within reach; one trace for all."""
  weights, bias, x, y, _ = problem(10)
  chex.clear_trace_counter()
  margin = jax.jit(chex.assert_max_traces(exact.linear_margin, 2))
  radii = np.float32([0.0, 0.3, 1.0, 100.0])
  boxed = np.stack([margin(weights, bias, x, y, SETS[norm](r, (0.0, 1.0))) for r in radii])
  free = np.stack([margin(weights, bias, x, y, SETS[norm](r)) for r in radii])
  assert np.all(np.diff(boxed, axis=0) >= -1e-5)
  assert np.all(boxed <= free + 1e-5)
  assert np.any(boxed[1] < free[1] - 0.1)
  clean = logits_of(weights, bias, x)
  np.testing.assert_allclose(boxed[0], losses.margin(clean, y), rtol=1e-6, atol=1e-6)
  difference = weights.T[None] - weights.T[y][:, None]
  ends = np.where(difference > 0, 1, 0) - x.reshape(BATCH, 1, -1)
  expected = losses.margin(clean + np.sum(difference * ends, -1), y)
  np.testing.assert_allclose(boxed[-1], expected, rtol=1e-5, atol=1e-5)


@functools.cache
def adversary(norm, box, num_classes):
  """radius [B] -> the margins [B] that a targeted ascent, a plain one and 200 samples reach."""
  weights, bias, x, y, _ = problem(num_classes)

  def logits_fn(x):
    return logits_of(weights, bias, x)

  def margin_at(delta):
    return losses.margin(logits_fn(x + delta), y)

  @jax.jit
  def reach(radius):
    u = SETS[norm](radius, box)
    attack = ro.steepest(u)

    def towards(target):
      delta, _ = attack(lambda x: losses.targeted_margin(logits_fn(x), y, target), None, x)
      return margin_at(delta)

    targets = (y + jnp.arange(1, num_classes)[:, None]) % num_classes
    one_step, _ = attack(lambda x: losses.margin(logits_fn(x), y), None, x)
    keys = jax.random.split(jax.random.key(0), 200)
    sampled = jax.lax.map(lambda key: margin_at(u.sample(key, x)), keys)
    return jnp.max(jax.lax.map(towards, targets), axis=0), margin_at(one_step), jnp.max(sampled, 0)

  return reach


@EVERY_NORM
@EVERY_BOX
@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.slow
def test_margin_is_attained_and_never_exceeded(norm, box, num_classes):
  """By the steepest ascent on the best target; no sample of the set and no attack does better."""
  weights, bias, x, y, radius = problem(num_classes)
  worst = worst_case(weights, bias, x, y, SETS[norm](radius, box))
  targeted, one_step, sampled = adversary(norm, box, num_classes)(radius)
  np.testing.assert_allclose(targeted, worst, rtol=1e-5, atol=2e-5)
  rounding = 1e-5 * (1 + np.abs(worst))
  assert np.all(one_step <= worst + rounding)
  assert np.all(sampled <= worst + rounding)
  if num_classes == 2:  # the margin itself is linear
    np.testing.assert_allclose(one_step, worst, rtol=1e-5, atol=2e-5)


@EVERY_NORM
@EVERY_COUNT
@pytest.mark.slow
def test_distance_is_where_the_margin_turns(norm, num_classes):
  weights, bias, x, y, _ = problem(num_classes)
  distance = shortest(weights, bias, x, y, SETS[norm])
  chex.assert_shape(distance, (BATCH,))
  right = losses.margin(logits_of(weights, bias, x), y) < 0
  assert right.any()
  assert not right.all()
  np.testing.assert_array_equal(distance == 0, ~right)
  at, below, above = (
    worst_case(weights, bias, x, y, SETS[norm](factor * distance))[right]
    for factor in (1.0, 0.99, 1.01)
  )
  np.testing.assert_allclose(at, 0, atol=2e-5)
  assert np.all(below < 0)
  assert np.all(above > 0)


@EVERY_NORM
def test_classes_of_equal_weights(norm):
  """No delta changes their difference: it is the bias that decides, and nothing is NaN."""
  weights = jnp.ones((6, 3))
  x, y = jnp.full((2, *SHAPE), 0.5), jnp.array([0, 1])
  bias = jnp.array([1.0, 0.0, -1.0])
  margin = worst_case(weights, bias, x, y, SETS[norm](5.0))
  np.testing.assert_allclose(margin, [-1, 1], atol=1e-5)
  np.testing.assert_array_equal(shortest(weights, bias, x, y, SETS[norm]), [np.inf, 0])


def test_a_label_that_does_not_exist_gives_nan():
  weights, bias, x, _, radius = problem(3)
  for label in (-1, 3):
    y = np.full(BATCH, label, np.int32)
    assert np.isnan(worst_case(weights, bias, x, y, ro.L2(radius))).all()
    assert np.isnan(shortest(weights, bias, x, y, ro.L2)).all()


def test_bad_input_is_named():
  weights, bias, x, y, _ = problem(3)
  with pytest.raises(ro.InputError, match=r"linear_margin takes ro.LInf, .*, not the string 'l3'"):
    exact.linear_margin(weights, bias, x, y, "l3")
  with pytest.raises(ro.InputError, match="not an L0"):
    exact.linear_margin(weights, bias, x, y, ro.sets.L0(2, 0.1))
  for ball in ("l2", ro.L2(1.0)):
    with pytest.raises(ro.InputError, match=r"linear_distance takes ro.LInf, ro.L2 or ro.L1, not"):
      exact.linear_distance(weights, bias, x, y, ball)
  with pytest.raises(ro.InputError, match="one row for each of the 6 entries"):
    exact.linear_margin(weights[:5], bias, x, y, ro.L2(0.1))
