"""The suite of minimal-norm attacks: exact on linear nets, within its budget, verified."""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import rounding

import robust_opt as ro
from robust_opt.attacks import penalized
from robust_opt.certificates import exact
from robust_opt.evaluation import minimal
from robust_opt.sets import BALLS, L0, lengths

BATCH, NUM_ENTRIES = 8, 6
ROUNDING = rounding(terms=6 * NUM_ENTRIES + 16)


@functools.cache
def linear_problem(num_classes=3):
  """Weights, bias, x [B, n] within the box, and labels, the first of them wrong."""
  rng = np.random.default_rng(3)
  signs = rng.choice([-1.0, 1.0], (NUM_ENTRIES, num_classes))
  weights = (signs * rng.uniform(0.6, 1.0, signs.shape)).astype(np.float32)
  bias = -0.5 * weights.sum(0)
  towards = 0.3 * signs[:, rng.integers(num_classes, size=BATCH)].T
  x = (0.5 + towards + rng.uniform(-0.1, 0.1, towards.shape)).astype(np.float32)
  y = np.argmax(x @ weights + bias, -1).astype(np.int32)
  y[0] = (y[0] + 1) % num_classes
  return weights, bias, x, y


def fewest_entries(weights, bias, x, y):
  """The number of entries that must change within [0, 1], by trying all of them, [B]."""
  fewest = np.full(len(x), np.inf)
  for i, j in itertools.product(range(len(x)), range(weights.shape[1])):
    w = weights[:, j] - weights[:, y[i]]
    gains = np.sort(np.maximum(-w * x[i], w * (1 - x[i])))[::-1]
    total = x[i] @ w + bias[j] - bias[y[i]] + np.cumsum([0.0, *gains])
    enough = np.flatnonzero(total > 0)
    if j != y[i] and len(enough):
      fewest[i] = min(fewest[i], enough[0])
  return fewest


def boxed_distance(ball):
  """The exact distance [B] within the box, by bisection of the exact margin."""
  margin = jax.jit(lambda u: exact.linear_margin(*linear_problem(), u))
  low, high = np.zeros(BATCH, np.float32), np.full(BATCH, NUM_ENTRIES, np.float32)
  for _ in range(30):
    middle = (low + high) / 2
    fooled = np.asarray(margin(ball(middle, (0.0, 1.0)))) > 0
    low, high = np.where(fooled, low, middle), np.where(fooled, middle, high)
  return high


def check(norm, num_calls, shares=None):
  """The distances of the linear problem, whose claims are recomputed here."""
  weights, bias, x, y = linear_problem()
  logits_fn = functools.partial(linear, weights, bias)
  found = minimal.minimal(logits_fn, x, y, norm, num_calls=num_calls, shares=shares)
  predicted = np.argmax(logits_fn(found.x_adv), -1)
  assert np.all(predicted != y)
  assert np.all((found.x_adv >= 0) & (found.x_adv <= 1))
  ball = L0 if norm == "l0" else BALLS[norm]
  np.testing.assert_array_equal(found.distance, lengths(ball, found.x_adv - x.astype(np.float64)))
  assert found.distance[0] == 0 == found.found_by[0]  # misclassified without an attack
  assert np.all(found.found_by[1:] > 0)
  assert found.num_calls <= num_calls
  return found


def linear(weights, bias, x):
  return x @ weights + bias


def test_the_exact_distance_of_a_linear_net_over_l2():
  weights, bias, x, y = linear_problem()
  found = check("l2", 300, {"ddn": 0.6, "refine": 0.4})
  ratio = found.distance[1:] / exact.linear_distance(weights, bias, x, y, ro.L2)[1:]
  assert np.all(ratio >= 1 - ROUNDING)
  assert np.all(ratio < 1.02)


@pytest.mark.slow
@pytest.mark.parametrize("norm", list(minimal.SUITES))
def test_the_exact_distances_of_a_linear_net(norm):
  weights, bias, x, y = linear_problem()
  found = check(norm, 1000)
  if norm == "l0":
    np.testing.assert_array_equal(found.distance[1:], fewest_entries(weights, bias, x, y)[1:])
    return
  ratio = found.distance[1:] / boxed_distance(BALLS[norm])[1:]
  assert np.all(ratio >= 1 - ROUNDING)
  assert np.all(ratio < 1.01)


def test_the_fewest_entries_of_a_linear_net():
  weights, bias, x, y = linear_problem()
  found = check("l0", 300, {"sigma_zero": 1.0})
  fewest = fewest_entries(weights, bias, x, y)
  assert np.all(found.distance[1:] >= fewest[1:])
  assert np.mean(found.distance[1:] == fewest[1:]) > 0.8


def smooth(x):
  """A fixed smooth net of 4 classes."""
  rng = np.random.default_rng(5)
  first = jnp.asarray(rng.normal(size=(NUM_ENTRIES, 8)), jnp.float32)
  second = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)
  return jnp.tanh(3 * (x - 0.5) @ first) @ second


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "l0"])
def test_no_more_calls_than_stated_and_a_larger_budget_finds_less(norm):
  x = np.random.default_rng(6).random((BATCH, NUM_ENTRIES), np.float32)
  y = np.argmax(smooth(x), -1)
  passes = []

  @jax.custom_vjp
  def counted(x):
    jax.debug.callback(lambda _: passes.append("forward"), x[0, 0])
    return x

  def backward(_, g):
    jax.debug.callback(lambda _: passes.append("backward"), g[0, 0])
    return (g,)

  counted.defvjp(lambda x: (counted(x), None), backward)
  areas = []
  for budget in (120, 1000):
    found = minimal.minimal(smooth, x, y, norm, num_calls=budget)
    areas.append(found.area())
    plan = minimal._plan(minimal.SUITES[norm], budget, 4)
    passes.clear()
    u = minimal._everywhere(norm)
    net = jax.tree_util.Partial(lambda x: smooth(counted(x)))
    run = minimal._run(plan, net, u, jax.random.key(0), y, x, y)
    jax.block_until_ready(run)
    jax.effects_barrier()
    assert len(passes) + 1 + len(plan) <= found.num_calls <= budget
    assert len(passes) > 0.8 * budget
  assert areas[1] <= areas[0]
  assert np.isfinite(areas[1])


def test_curve_area_and_verdict():
  x = np.full((4, 2), 0.5, np.float32)
  found = minimal.Distances(
    *("linf", ("clean", "ddn"), np.zeros(4, np.int32), np.array([0.0, 0.1, 0.3, np.inf])),
    *(np.array([0, 1, 1, -1], np.int32), np.zeros((4, 2), np.float32), 100),
  )
  np.testing.assert_array_equal(
    found.curve([0.0, 0.1, 0.2, 0.3, 9.0]), [0.75, 0.5, 0.5, 0.25, 0.25]
  )
  assert found.area() == np.inf
  fine = np.linspace(0, 1, 100_001)
  np.testing.assert_allclose(found.area(1.0), np.mean(found.curve(fine)), atol=1e-4)
  verdict = found.verdict(x, 0.1)
  np.testing.assert_array_equal(verdict.broken_by, [0, 1, -1, -1])
  assert verdict.robust_accuracy == found.curve([0.1])[0]
  np.testing.assert_array_equal(verdict.images[:, 0], [0, 0, 0.5, 0.5])


def test_optimality():
  best = np.array([0.0, 1.0, 2.0])
  assert minimal.optimality(best, best) == 1
  np.testing.assert_allclose(minimal.optimality(np.array([0.0, np.inf, np.inf]), best), 0)
  # The areas are 1 and 4 / 3, the worst 4 / 3: half of what lies between.
  np.testing.assert_allclose(minimal.optimality(np.array([0.0, 1.5, 2.0]), best), 0.5)


@hypothesis.given(st.integers(0, 2**31 - 1), st.floats(0.01, 3.0))
@hypothesis.settings(max_examples=10)
def test_the_proximal_map_minimizes(seed, weight):
  """In a uniform metric one step is exact: no point near the result, nor 0, is better."""
  rng = np.random.default_rng(seed)
  v = rng.normal(size=(1, 5)).astype(np.float32)
  others = rng.normal(size=(200, 5)) * 10 ** rng.uniform(-4, 0, (200, 1))
  for ball in BALLS.values():
    z = np.asarray(proximal(ball(np.inf), v, np.float32([weight])))
    points = np.concatenate([z, z + others, np.zeros_like(v)]).astype(np.float64)
    values = weight * lengths(ball, points) + np.sum((points - v) ** 2, -1) / 2
    assert values[0] <= np.min(values) + 1e-5


@jax.jit
def proximal(u, v, weight):
  return penalized._proximal(u, v, weight, jnp.ones_like(v), 1)


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    ({"norm": "l3"}, "norm must be one of linf, l2, l1, l0, but was 'l3'"),
    ({"num_calls": 20}, "num_calls must allow a step of each of ddn, fab"),
    ({"shares": {"pgd": 1.0}}, "shares must be of the attacks ddn, "),
    ({"shares": {"ddn": 0.7, "refine": 0.7}}, "shares must be > 0 and their sum at most 1"),
  ],
)
def test_bad_input_is_one_sentence(arguments, sentence):
  weights, bias, x, y = linear_problem()
  with pytest.raises(ro.InputError, match=sentence):
    ro.minimal(functools.partial(linear, weights, bias), x, y, **arguments)
