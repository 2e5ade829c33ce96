"""Steps onto decision hyperplanes: there or as near as the box allows, and the shortest."""

import functools

import chex
import jax
import numpy as np
import pytest
from scipy import optimize

import robust_opt as ro
from robust_opt.attacks import hyperplanes
from robust_opt.certificates import exact

pytestmark = pytest.mark.slow

DUAL_ORDERS = {np.inf: 1, 2: 2, 1: np.inf}
BATCH, NUM_ENTRIES = 12, 6
EVERY_NORM = pytest.mark.parametrize("u", [ro.LInf(1.0), ro.L2(1.0), ro.L1(1.0)])


def planes(num_cases, seed=0):
  """w [N, n], gap [N], lower and upper [N, n]; zeros, ties and entries without room among them."""
  rng = np.random.default_rng(seed)
  w = rng.normal(size=(num_cases, NUM_ENTRIES))
  w[rng.random(w.shape) < 0.1] = 0
  w[::5] = np.round(w[::5])
  w[::7] = w[::7, :1]
  lower, upper = -rng.random(w.shape), rng.random(w.shape)
  upper[rng.random(w.shape) < 0.2] = 0
  reach = np.sum(np.where(w > 0, w * upper, w * lower), -1)
  gap = reach * rng.choice([0.0, 0.01, 0.3, 0.9, 1.5], num_cases)
  turned = rng.random(num_cases) < 0.5  # the same problem, seen from the other side
  w[turned], gap[turned] = -w[turned], -gap[turned]
  return tuple(a.astype(np.float32) for a in (w, gap, lower, upper))


def steps_onto(u, w, gap, lower, upper):
  run = jax.jit(functools.partial(hyperplanes.to_hyperplanes, u))
  return np.asarray(run(w, gap, (lower, upper)), np.float64)


@EVERY_NORM
def test_to_hyperplane_gets_there_or_as_near_as_the_box_allows(u):
  w, gap, lower, upper = planes(2000)
  step = steps_onto(u, w, gap, lower, upper)
  assert np.all((step >= lower) & (step <= upper))
  towards = np.where(gap < 0, -1.0, 1.0)[:, None] * w
  reach = np.sum(np.where(towards > 0, towards * upper, towards * lower), -1)
  scale = np.abs(w).sum(-1)
  np.testing.assert_allclose(
    np.sum(towards * step, -1) / np.maximum(scale, 1e-9),
    np.minimum(np.abs(gap), reach) / np.maximum(scale, 1e-9),
    atol=1e-6,
  )
  np.testing.assert_array_equal(step[w == 0], 0)
  np.testing.assert_array_equal(step[gap == 0], 0)


@pytest.mark.parametrize("u", [ro.LInf(1.0), ro.L1(1.0)])
def test_to_hyperplane_is_the_shortest_by_linear_programming(u):
  cases = planes(60, seed=1)
  steps = steps_onto(u, *cases)
  n, num_solved = NUM_ENTRIES, 0
  for (w, gap, lower, upper), step in zip(zip(*(a.astype(np.float64) for a in cases)), steps):
    # In z = (step, t): |step_j| <= t_j for l_1, all t_j the same for l_inf; sum t is minimized.
    num_t = n if isinstance(u, ro.L1) else 1
    t_of = np.eye(n) if isinstance(u, ro.L1) else np.ones((n, 1))
    found = optimize.linprog(
      np.concatenate([np.zeros(n), np.ones(num_t)]),
      A_ub=np.block([[np.eye(n), -t_of], [-np.eye(n), -t_of]]),
      b_ub=np.zeros(2 * n),
      A_eq=np.concatenate([w, np.zeros(num_t)])[None],
      b_eq=[gap],
      bounds=[*zip(lower, upper), *[(0, None)] * num_t],
    )
    if found.success:
      num_solved += 1
      np.testing.assert_allclose(ro.sets.lengths(u, step[None]), found.fun, rtol=1e-5, atol=1e-6)
  assert num_solved > 35  # the others are beyond the reach of their box


def test_to_hyperplane_is_the_shortest_by_the_kkt_conditions():
  # In l_2, <step, z - step> >= 0 for every z of the box on the hyperplane; 400 halvings of lambda.
  w, gap, lower, upper = (a.astype(np.float64) for a in planes(500, seed=2))
  step = steps_onto(ro.L2(1.0), *planes(500, seed=2))
  w, gap = np.where(gap < 0, -1.0, 1.0)[:, None] * w, np.abs(gap)
  low, high = np.zeros(len(w)), np.full(len(w), 1e6)
  for _ in range(400):
    middle = (low + high) / 2
    there = np.sum(w * np.clip(middle[:, None] * w, lower, upper), -1) >= gap
    low, high = np.where(there, low, middle), np.where(there, middle, high)
  np.testing.assert_allclose(step, np.clip(high[:, None] * w, lower, upper), atol=2e-6)


@EVERY_NORM
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_to_hyperplane_has_no_scale(u, scale):
  w, gap, lower, upper = planes(200)
  scaled = steps_onto(u, w * np.float32(scale), gap * np.float32(scale), lower, upper)
  np.testing.assert_allclose(scaled, steps_onto(u, w, gap, lower, upper), atol=2e-5)


@EVERY_NORM
@pytest.mark.parametrize("num_classes", [2, 10])
def test_closest_hyperplane_of_a_linear_model(u, num_classes):
  rng = np.random.default_rng(num_classes)
  x = rng.uniform(0.3, 0.7, (BATCH, NUM_ENTRIES)).astype(np.float32)
  weights = rng.normal(size=(NUM_ENTRIES, num_classes)).astype(np.float32)
  bias = rng.normal(size=num_classes).astype(np.float32)
  logits_fn = lambda x: x @ weights + bias  # noqa: E731
  logits = logits_fn(x)
  y = np.argmax(logits, -1)
  rivals = hyperplanes.rivals_by_rank(logits, y)
  chex.assert_shape(rivals, (num_classes - 1, BATCH))
  ranked = np.take_along_axis(logits, rivals.T, -1)
  assert np.all(np.diff(ranked, axis=-1) <= 0)
  assert not np.any(np.asarray(rivals) == y)
  w, gap = hyperplanes.closest_hyperplane(u, logits_fn, x, y, rivals)
  distance = gap / np.linalg.norm(w, DUAL_ORDERS[u.order], axis=-1)
  np.testing.assert_allclose(
    distance, exact.linear_distance(weights, bias, x, y, type(u)), rtol=1e-5
  )
