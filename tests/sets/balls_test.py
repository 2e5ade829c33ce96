"""Balls: steepest ascent against brute force, the box to the last bit, samples, gauge, types."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import rounding
from scipy import optimize, stats
from sets.cases import inner, keys, random_cases, run

import robust_opt as ro
from robust_opt.errors import InputError
from robust_opt.sets import BALLS

ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
BOXES = {"ball": None, "ball_with_box": (0.0, 1.0)}
OPERATIONS = ("steepest_ascent", "project", "gauge")
EVERY_SET = pytest.mark.parametrize("name", list(BALLS))
EVERY_BOX = pytest.mark.parametrize("box", list(BOXES.values()), ids=list(BOXES))
BATCH, NUM_ENTRIES = 2000, 4
# A norm over the entries, its root, and what scales and clips them.
ROUNDING = rounding(terms=2 * NUM_ENTRIES + 8)


def call(name, box, operation, first, x, radius):
  return run(BALLS[name](radius, box), operation, first, x)


def cases(seed=0, batch=BATCH):
  return random_cases(seed, batch, NUM_ENTRIES)


def norm(delta, name):
  flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
  return np.linalg.norm(flat, ORDERS[name], axis=-1)


def bounds_of(x, box):
  x = np.asarray(x, np.float64)
  return (np.full(x.shape, -np.inf), np.full(x.shape, np.inf)) if box is None else (-x, 1 - x)


# Steepest ascent: argmax of <g, delta>.


def test_steepest_ascent_in_closed_form():
  g, x, radius = cases()
  r = radius[:, None]
  np.testing.assert_array_equal(call("linf", None, "steepest_ascent", g, x, radius), r * np.sign(g))
  along = r * g / np.linalg.norm(g, axis=-1, keepdims=True)
  np.testing.assert_allclose(
    call("l2", None, "steepest_ascent", g, x, radius), along, rtol=ROUNDING
  )
  largest = np.eye(NUM_ENTRIES)[np.abs(g).argmax(-1)]
  expected = (r * np.sign(g) * largest).astype(np.float32)
  np.testing.assert_array_equal(call("l1", None, "steepest_ascent", g, x, radius), expected)


@pytest.mark.parametrize("name", ["linf", "l1"])
def test_steepest_ascent_in_the_box_by_linear_programming(name):
  g, x, radius = cases()
  ours = inner(g, call(name, (0.0, 1.0), "steepest_ascent", g, x, radius))
  for i in range(0, BATCH, 50):  # delta = up - down, each within [0, room]
    up, down = 1 - x[i].astype(np.float64), x[i].astype(np.float64)
    if name == "linf":
      up, down = np.minimum(up, radius[i]), np.minimum(down, radius[i])
    budget = {} if name == "linf" else {"A_ub": np.ones((1, 2 * NUM_ENTRIES)), "b_ub": [radius[i]]}
    limits = [(0, high) for high in np.concatenate([up, down])]
    best = -optimize.linprog(np.concatenate([-g[i], g[i]]), bounds=limits, **budget).fun
    np.testing.assert_allclose(ours[i], best, rtol=ROUNDING, atol=rounding())


def test_l2_steepest_ascent_in_the_box_by_duality():
  # <g, delta> <= m r^2 / 2 + sum of max over the box of g z - m z^2 / 2, for every m > 0.
  g, x, radius = cases()
  ours = inner(g, call("l2", (0.0, 1.0), "steepest_ascent", g, x, radius))
  lower, upper = bounds_of(x, (0.0, 1.0))
  bound = np.full(BATCH, np.inf)
  for m in np.concatenate([[1e-9], 10 ** np.linspace(-4, 4, 1500)])[:, None]:
    z = np.clip(g / m, lower, upper)
    bound = np.minimum(bound, m[0] * radius**2 / 2 + np.sum(g * z - m * z**2 / 2, -1))
  assert np.all(ours <= bound * (1 + ROUNDING) + 1e-9)
  np.testing.assert_allclose(ours, bound, rtol=1e-4, atol=1e-6)


@EVERY_SET
def test_step_has_the_length_of_the_radius(name):
  g, x, radius = cases()
  g = np.where(np.abs(g) < 1e-3, 0, g)
  for scale in (1e-37, 1e-30, 1e-6, 1.0, 1e12, 1e37):
    step = call(name, None, "steepest_ascent", g * np.float32(scale), x, radius)
    np.testing.assert_allclose(norm(step, name), radius, rtol=ROUNDING)


@EVERY_SET
@EVERY_BOX
def test_gradients_of_unequal_scale(name, box):
  # Entries of 1e-30 beside others of 1e30: no square over- or underflows into a lost step.
  g, x, radius = cases()
  g[:, 1] *= np.float32(1e-30)
  g[:, 2] *= np.float32(1e30)
  step = call(name, box, "steepest_ascent", g, x, radius)
  lower, upper = bounds_of(x, box)
  reach = np.where(g > 0, upper, -lower)
  if name == "linf":
    np.testing.assert_allclose(np.abs(step), np.minimum(reach, radius[:, None]), rtol=ROUNDING)
  else:
    np.testing.assert_allclose(
      norm(step, name), np.minimum(radius, norm(reach, name)), rtol=ROUNDING
    )
    np.testing.assert_allclose(np.abs(step[:, 2]), np.minimum(radius, reach[:, 2]), rtol=ROUNDING)


@EVERY_SET
@EVERY_BOX
def test_steepest_ascent_is_equivariant(name, box):
  g, x, radius = cases()
  x = np.round(x * 256) / 256  # so that 1 - x is exact

  def ascent(g, x, radius):
    return call(name, box, "steepest_ascent", g, x, radius)

  step = ascent(g, x, radius)
  np.testing.assert_array_equal(ascent(g * np.float32(2.0**40), x, radius), step)
  np.testing.assert_allclose(ascent(-g, 1 - x, radius), -step, rtol=ROUNDING)
  order = [2, 0, 3, 1]
  np.testing.assert_allclose(
    ascent(g[:, order], x[:, order], radius), step[:, order], atol=ROUNDING * radius.max()
  )
  np.testing.assert_array_equal(ascent(g[::-1], x[::-1], radius[::-1]), step[::-1])


def test_l1_ties_go_to_the_first():
  g = np.array([[0.0, 2.0, -2.0, 2.0]], np.float32)
  x = np.full_like(g, 0.5)
  alone = call("l1", None, "steepest_ascent", g, x, np.float32([0.3]))
  np.testing.assert_array_equal(alone, np.float32([[0, 0.3, 0, 0]]))
  in_box = call("l1", (0.0, 1.0), "steepest_ascent", g, x, np.float32([0.75]))
  np.testing.assert_array_equal(in_box, np.float32([[0, 0.5, -0.25, 0]]))


def test_l1_spends_its_step_where_there_is_room():
  # The largest entry is saturated and the second nearly: the third takes what is left.
  g = np.array([[9.0, -5.0, 1.0, 0.0]], np.float32)
  x = np.array([[1.0, 0.25, 0.5, 0.5]], np.float32)
  step = call("l1", (0.0, 1.0), "steepest_ascent", g, x, np.float32([0.5]))
  np.testing.assert_array_equal(step, np.float32([[0, -0.25, 0.25, 0]]))

  g, x, radius = cases()
  g[:, 0] = 0
  step = call("l1", (0.0, 1.0), "steepest_ascent", g, x, radius)
  room = np.where(g > 0, 1 - x, np.where(g < 0, x, 0)).sum(-1)
  assert np.mean(room < radius) > 0.05
  np.testing.assert_allclose(norm(step, "l1"), np.minimum(radius, room), rtol=ROUNDING)


# Feasibility: the box exactly, the ball to a rounding.


@EVERY_SET
@pytest.mark.parametrize("box", [(0.0, 1.0), (-2.1, 2.6), (0.0, 255.0)])
def test_every_operation_stays_in_the_box_exactly(name, box):
  low, width = np.float32(box[0]), np.float32(box[1] - box[0])
  for seed in range(5):
    g, x, radius = cases(seed)
    x, radius = np.clip(low + width * x, *np.float32(box)), width * radius
    points = {
      "steepest_ascent": call(name, box, "steepest_ascent", g, x, radius),
      "project": call(name, box, "project", g, x, radius),
      "sample": call(name, box, "sample", keys(seed, BATCH), x, radius),
    }
    for operation, delta in points.items():
      chex.assert_shape(delta, g.shape)
      chex.assert_type(delta, jnp.float32)
      moved = x + delta
      assert moved.dtype == np.float32
      assert moved.min() >= np.float32(box[0]), operation
      assert moved.max() <= np.float32(box[1]), operation
      assert np.all(norm(delta, name) <= radius * (1 + ROUNDING)), operation


@EVERY_SET
@pytest.mark.parametrize("operation", ["steepest_ascent", "project"])
def test_entries_that_just_meet_their_bound(name, operation):
  # One entry has nearly as much room as the whole radius: where rounding would cross the bound.
  rng = np.random.default_rng(5)
  x = rng.uniform(0.01, 1, (BATCH, NUM_ENTRIES)).astype(np.float32)
  radius = (x[:, 0] * rng.choice([1, 1 - 1e-7, 1 + 1e-7], BATCH)).astype(np.float32)
  g = np.concatenate([-np.ones((BATCH, 1)), 1e-9 * rng.normal(size=(BATCH, 3))], 1)
  g = g.astype(np.float32) * (100 if operation == "project" else 1)
  delta = call(name, (0.0, 1.0), operation, g, x, radius)
  assert np.all((x + delta >= 0) & (x + delta <= 1))


# Samples.


@EVERY_SET
def test_samples_fill_the_ball(name):
  x = np.random.default_rng(3).random((BATCH, NUM_ENTRIES)).astype(np.float32)
  radius = np.linspace(0.1, 3, BATCH, dtype=np.float32)
  delta = call(name, None, "sample", keys(7, BATCH), x, radius)
  gauge = call(name, None, "gauge", delta, x, radius)
  assert gauge.max() <= 1 + ROUNDING
  # In n dimensions a uniform point of the ball has a uniform gauge^n.
  assert stats.kstest(gauge.astype(np.float64) ** NUM_ENTRIES, "uniform").pvalue > 0.01
  direction = delta / radius[:, None]
  assert np.all(np.abs(direction.mean(0)) < 4 * direction.std(0) / np.sqrt(BATCH))
  covariance = np.cov(direction.T)  # and directions show no preference
  np.testing.assert_allclose(
    covariance, np.eye(NUM_ENTRIES) * covariance[0, 0], atol=0.15 * covariance[0, 0]
  )


def test_one_key_serves_the_batch_and_raw_keys_are_keys():
  x, u = np.zeros((3, 2), np.float32), ro.L2(1.0)
  typed = u.sample(jax.random.key(3), x)
  assert len(np.unique(typed)) == typed.size
  np.testing.assert_array_equal(u.sample(jax.random.PRNGKey(3), x), typed)
  np.testing.assert_array_equal(u.sample(keys(3, 3), x), typed)
  np.testing.assert_array_equal(u.sample(jax.random.key_data(keys(3, 3)), x), typed)


# Gauge.


@EVERY_SET
@EVERY_BOX
def test_gauge(name, box):
  delta, x, radius = cases()
  delta *= np.float32(0.25)

  def gauge(delta, x, radius):
    return call(name, box, "gauge", delta, x, radius)

  value = gauge(delta, x, radius)
  chex.assert_shape(value, (BATCH,))
  np.testing.assert_array_equal(gauge(delta * np.float32(4), x, radius), value * 4)
  if box is None:
    np.testing.assert_allclose(value, norm(delta, name) / radius, rtol=ROUNDING)
    np.testing.assert_array_equal(gauge(-delta, x, radius), value)
  # At most 1 exactly where the projection changes nothing.
  unchanged = np.all(call(name, box, "project", delta, x, radius) == delta, axis=-1)
  sure = np.abs(value - 1) > ROUNDING
  np.testing.assert_array_equal((value <= 1)[sure], unchanged[sure])
  assert 50 < unchanged.sum() < BATCH - 50
  # delta / gauge is the last point inside, on the ray of delta.
  finite = np.isfinite(value) & (value > 0)
  edge = delta[finite] / value[finite, None]
  at_edge = np.array(delta)
  at_edge[finite] = edge
  np.testing.assert_allclose(gauge(at_edge, x, radius)[finite], 1, rtol=ROUNDING)
  np.testing.assert_array_equal(gauge(0 * delta, x, 0 * radius), 0)
  assert np.all(np.isinf(gauge(delta, x, 0 * radius)))


# The radius.


@EVERY_SET
@pytest.mark.parametrize("radius", [-1.0, -1e-9, float("nan"), np.array([0.1, -0.1])])
def test_bad_radius(name, radius):
  with pytest.raises(InputError, match=r"^radius must be >= 0 .*, but was [^\n]*\.$"):
    BALLS[name](radius)


@EVERY_SET
@pytest.mark.parametrize("box", [(1.0, 0.0), (0.5, 0.5), (0.0, float("nan"))])
def test_bad_box(name, box):
  with pytest.raises(InputError, match=r"^box must be \(low, high\) with low < high, .*\.$"):
    BALLS[name](0.1, box)


# Shapes and types.


@jax.jit
def everything(u, g, x, key):
  return u.steepest_ascent(g, x), u.project(3 * g, x), u.sample(key, x), u.gauge(g, x)


@EVERY_SET
def test_shapes(name):
  """[B, *S] is B examples of prod(S) entries each; [B] is B examples of one entry."""
  u, key = BALLS[name](0.25, BOXES["ball_with_box"]), jax.random.key(0)
  g, x = np.random.default_rng(0).random((2, 5, 4, 2, 1)).astype(np.float32)
  *deltas, gauge = everything(u, g, x, key)
  chex.assert_shape(deltas, x.shape)
  flat = (5, 8)
  *flat_deltas, flat_gauge = everything(u, g.reshape(flat), x.reshape(flat), key)
  reshaped = [delta.reshape(flat) for delta in deltas]
  chex.assert_trees_all_close((*reshaped, gauge), (*flat_deltas, flat_gauge), rtol=ROUNDING)
  of_scalars = jax.eval_shape(everything, u, g[:, 0, 0, 0], x[:, 0, 0, 0], key)
  chex.assert_shape(of_scalars, (5,))


@EVERY_SET
@EVERY_BOX
def test_float64(name, box):
  g, x, radius = cases(batch=20)
  expected = call(name, box, "steepest_ascent", g, x, radius)
  with jax.enable_x64(True):
    u = BALLS[name](np.float64(radius), box)
    values = everything(u, np.float64(g), np.float64(x), jax.random.key(0))
    assert {value.dtype for value in values} == {np.dtype("float64")}
    np.testing.assert_allclose(values[0], expected, atol=ROUNDING * radius.max())
    edge = np.float64(radius) * (1 + rounding(terms=16, dtype=np.float64))
    for point in values[:3]:
      assert np.all(norm(point, name) <= edge)


@EVERY_SET
def test_shapes_that_differ_and_integers_are_refused(name):
  u, x = BALLS[name](0.1), jnp.zeros((2, 3))
  for operation in OPERATIONS:
    with pytest.raises(AssertionError):
      getattr(u, operation)(jnp.zeros((2, 4)), x)
    # In uint8 a radius of 0.1 would silently round to 0.
    with pytest.raises(InputError, match="float"):
      getattr(u, operation)(jnp.zeros((2, 3), jnp.uint8), x.astype(jnp.uint8))


@pytest.mark.parametrize("shape", [(2,), (3, 1), (1,)])
def test_a_radius_of_another_shape_is_refused(shape):
  x = jnp.full((3, 4), 0.5)
  with pytest.raises(InputError, match="one for each of the 3 examples, but has the shape"):
    ro.L2(jnp.ones(shape)).project(x, x)


@EVERY_SET
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_set_with_a_box_has_derivatives_in_x(name, operation):
  g, x, radius = cases()
  x = np.clip(x, 0.05, 0.95)

  @jax.grad
  def derivative(x):
    return jnp.sum(getattr(BALLS[name](radius, (0.0, 1.0)), operation)(g, x))

  found = jax.jit(derivative)(x)
  chex.assert_tree_all_finite(found)
  if (name, operation) == ("linf", "project"):
    in_ball = np.clip(g, -radius[:, None], radius[:, None])
    by_box = (in_ball < -x) | (in_ball > 1 - x)
    np.testing.assert_array_equal(found, -1.0 * by_box)
