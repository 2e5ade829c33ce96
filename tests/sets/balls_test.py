"""The sets: their steepest ascent against brute force, their samples, their gauge, their radius."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import rounding
from scipy import optimize, stats

import robust_opt as ro
from robust_opt.errors import InputError
from robust_opt.sets import projections

SETS = {"linf": ro.LInf, "l2": ro.L2, "l1": ro.L1}
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
BOXES = {"ball": None, "ball_with_box": (0.0, 1.0)}
OPERATIONS = ("steepest_ascent", "project", "gauge")
EVERY_SET = pytest.mark.parametrize("name", list(SETS))
EVERY_BOX = pytest.mark.parametrize("box", list(BOXES.values()), ids=list(BOXES))
BATCH, NUM_ENTRIES = 2000, 4
# A norm over the entries, its root, and what scales and clips them.
ROUNDING = rounding(terms=2 * NUM_ENTRIES + 8)


@functools.cache
def jitted(name, box, operation):
  """(delta or g or key, x, radius) -> the operation's value; compiled once a shape."""
  function = jax.jit(lambda first, x, radius: getattr(SETS[name](radius, box), operation)(first, x))
  return lambda first, x, radius: np.asarray(function(first, x, radius))


def random_cases(seed=0, batch=BATCH, num_entries=NUM_ENTRIES):
  """g [B, n] without ties, x [B, n] with pixels on the edge of the box, radii [B]."""
  rng = np.random.default_rng(seed)
  g, x = rng.normal(size=(batch, num_entries)), rng.random((batch, num_entries))
  x[: batch // 4] = np.round(x[: batch // 4] * 2) / 2
  radius = 10 ** rng.uniform(-2, 0.5, batch)
  return tuple(a.astype(np.float32) for a in (g, x, radius))


def norm(delta, name):
  flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
  return np.linalg.norm(flat, ORDERS[name], axis=-1)


def inner(g, delta):
  return np.sum(np.asarray(g, np.float64) * delta, axis=-1)


def bounds_of(x, box):
  x = np.asarray(x, np.float64)
  return (np.full(x.shape, -np.inf), np.full(x.shape, np.inf)) if box is None else (-x, 1 - x)


# Steepest ascent: argmax of <g, delta>.


def test_steepest_ascent_in_closed_form():
  g, x, radius = random_cases()
  r = radius[:, None]
  np.testing.assert_array_equal(
    jitted("linf", None, "steepest_ascent")(g, x, radius), r * np.sign(g)
  )
  along = r * g / np.linalg.norm(g, axis=-1, keepdims=True)
  np.testing.assert_allclose(
    jitted("l2", None, "steepest_ascent")(g, x, radius), along, rtol=ROUNDING
  )
  largest = np.eye(NUM_ENTRIES)[np.abs(g).argmax(-1)]
  expected = (r * np.sign(g) * largest).astype(np.float32)
  np.testing.assert_array_equal(jitted("l1", None, "steepest_ascent")(g, x, radius), expected)


@pytest.mark.parametrize("name", ["linf", "l1"])
def test_steepest_ascent_is_the_best_vertex(name):
  g, x, radius = random_cases()
  signs = np.array(list(itertools.product((-1, 1), repeat=NUM_ENTRIES)))
  vertices = (
    signs if name == "linf" else np.concatenate([np.eye(NUM_ENTRIES), -np.eye(NUM_ENTRIES)])
  )
  best = radius * np.max(g.astype(np.float64) @ vertices.T, axis=-1)
  ours = inner(g, jitted(name, None, "steepest_ascent")(g, x, radius))
  np.testing.assert_allclose(ours, best, rtol=ROUNDING)


@pytest.mark.parametrize("name", ["linf", "l1"])
def test_steepest_ascent_in_the_box_by_linear_programming(name):
  g, x, radius = random_cases()
  ours = inner(g, jitted(name, (0.0, 1.0), "steepest_ascent")(g, x, radius))
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
  g, x, radius = random_cases()
  ours = inner(g, jitted("l2", (0.0, 1.0), "steepest_ascent")(g, x, radius))
  lower, upper = bounds_of(x, (0.0, 1.0))
  bound = np.full(BATCH, np.inf)
  for m in np.concatenate([[1e-9], 10 ** np.linspace(-4, 4, 1500)])[:, None]:
    z = np.clip(g / m, lower, upper)
    bound = np.minimum(bound, m[0] * radius**2 / 2 + np.sum(g * z - m * z**2 / 2, -1))
  assert np.all(ours <= bound * (1 + ROUNDING) + 1e-9)
  np.testing.assert_allclose(ours, bound, rtol=1e-4, atol=1e-6)


@EVERY_SET
@EVERY_BOX
def test_steepest_ascent_beats_random_points(name, box):
  g, x, radius = random_cases()
  best = inner(g, jitted(name, box, "steepest_ascent")(g, x, radius))
  rng = np.random.default_rng(1)
  for scale in (0.1, 0.3, 1.0, 3.0, 10.0):
    point = (scale * rng.normal(size=g.shape) + scale * g).astype(np.float32)
    point = jitted(name, box, "project")(point, x, radius)
    assert np.all(inner(g, point) <= best + ROUNDING * radius * np.linalg.norm(g, axis=-1))


@EVERY_SET
@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-12, 1e-6, 1.0, 1e12, 1e30, 1e37])
def test_step_has_the_length_of_the_radius(name, scale):
  g, x, radius = random_cases()
  g = np.where(np.abs(g) < 1e-3, 0, g) * np.float32(scale)
  step = jitted(name, None, "steepest_ascent")(g, x, radius)
  np.testing.assert_allclose(norm(step, name), radius, rtol=ROUNDING)


@EVERY_SET
@EVERY_BOX
def test_gradients_of_unequal_scale(name, box):
  # Entries of 1e-30 beside others of 1e30: no square over- or underflows into a lost step.
  g, x, radius = random_cases()
  g[:, 1] *= np.float32(1e-30)
  g[:, 2] *= np.float32(1e30)
  step = jitted(name, box, "steepest_ascent")(g, x, radius)
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
def test_zero_and_nan_gradients(name, box):
  g, x, radius = random_cases()
  g[:500] = 0
  g[500:1000, 1:3] = 0
  step = jitted(name, box, "steepest_ascent")(g, x, radius)
  assert np.all(np.isfinite(step))
  np.testing.assert_array_equal(step[g == 0], 0)
  g[::2, 3] = np.nan
  step = jitted(name, box, "steepest_ascent")(g, x, radius)
  assert np.all(np.isnan(step[::2]).any(-1))
  assert np.all(np.isfinite(step[1::2]))


@EVERY_SET
@EVERY_BOX
def test_steepest_ascent_is_equivariant(name, box):
  g, x, radius = random_cases()
  x = np.round(x * 256) / 256  # so that 1 - x is exact
  ascent = jitted(name, box, "steepest_ascent")
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
  np.testing.assert_array_equal(ro.L1(0.3).steepest_ascent(g, x), np.float32([[0, 0.3, 0, 0]]))
  in_box = ro.L1(0.75, (0.0, 1.0)).steepest_ascent(g, x)
  np.testing.assert_array_equal(in_box, np.float32([[0, 0.5, -0.25, 0]]))


def test_l1_spends_its_step_where_there_is_room():
  # The largest entry is saturated and the second nearly: the third takes what is left.
  g = np.array([[9.0, -5.0, 1.0, 0.0]], np.float32)
  x = np.array([[1.0, 0.25, 0.5, 0.5]], np.float32)
  u = ro.L1(jnp.float32(0.5), (0.0, 1.0))
  np.testing.assert_array_equal(u.steepest_ascent(g, x), np.float32([[0, -0.25, 0.25, 0]]))

  g, x, radius = random_cases()
  g[:, 0] = 0
  step = jitted("l1", (0.0, 1.0), "steepest_ascent")(g, x, radius)
  room = np.where(g > 0, 1 - x, np.where(g < 0, x, 0)).sum(-1)
  assert np.mean(room < radius) > 0.05
  np.testing.assert_allclose(norm(step, "l1"), np.minimum(radius, room), rtol=ROUNDING)


# Feasibility: the box exactly, the ball to a rounding.


@EVERY_SET
@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 1.0), (-2.1, 2.6), (0.0, 255.0)])
def test_every_operation_stays_in_the_box_exactly(name, box):
  low, width = np.float32(box[0]), np.float32(box[1] - box[0])
  for seed in range(5):
    g, x, radius = random_cases(seed)
    x, radius = np.clip(low + width * x, *np.float32(box)), width * radius
    keys = jax.random.split(jax.random.key(seed), BATCH)
    points = {
      "steepest_ascent": jitted(name, box, "steepest_ascent")(g, x, radius),
      "project": jitted(name, box, "project")(g, x, radius),
      "sample": jitted(name, box, "sample")(keys, x, radius),
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
  delta = jitted(name, (0.0, 1.0), operation)(g, x, radius)
  assert np.all((x + delta >= 0) & (x + delta <= 1))


@EVERY_SET
def test_project_is_onto_ball_and_box_together(name):
  """Not onto one after the other, which is another point."""
  delta, x, radius = random_cases()
  delta *= 3
  ours = jitted(name, (0.0, 1.0), "project")(delta, x, radius)
  together = jax.vmap(lambda d, x, r: getattr(projections, name)(d, r, (-x, 1 - x)))
  np.testing.assert_allclose(ours, together(delta, x, radius), rtol=ROUNDING, atol=rounding())
  in_turn = np.clip(jitted(name, None, "project")(delta, x, radius), -x, 1 - x)
  other = np.mean(np.abs(ours - in_turn).max(-1) > 1e-3)
  assert (other > 0.2) == (name != "linf")


# Samples.


@functools.cache
def samples(name, box):
  x = np.random.default_rng(3).random((BATCH, NUM_ENTRIES)).astype(np.float32)
  radius = np.linspace(0.1, 3, BATCH, dtype=np.float32)
  keys = jax.random.split(jax.random.key(7), BATCH)
  return jitted(name, box, "sample")(keys, x, radius), keys, x, radius


@EVERY_SET
def test_samples_fill_the_ball(name):
  delta, _, x, radius = samples(name, None)
  gauge = jitted(name, None, "gauge")(delta, x, radius)
  assert gauge.max() <= 1 + ROUNDING
  # In n dimensions a uniform point of the ball has a uniform gauge^n.
  assert stats.kstest(gauge.astype(np.float64) ** NUM_ENTRIES, "uniform").pvalue > 0.01
  direction = delta / radius[:, None]
  assert np.all(np.abs(direction.mean(0)) < 4 * direction.std(0) / np.sqrt(BATCH))
  covariance = np.cov(direction.T)  # and directions show no preference
  np.testing.assert_allclose(
    covariance, np.eye(NUM_ENTRIES) * covariance[0, 0], atol=0.15 * covariance[0, 0]
  )


@EVERY_SET
@EVERY_BOX
def test_a_sample_depends_on_its_own_key_only(name, box):
  delta, keys, x, radius = samples(name, box)
  draw = jitted(name, box, "sample")
  order = np.random.default_rng(0).permutation(BATCH)
  np.testing.assert_array_equal(draw(keys[order], x[order], radius[order]), delta[order])
  np.testing.assert_allclose(draw(keys[:5], x[:5], radius[:5]), delta[:5], rtol=ROUNDING)
  assert len(np.unique(np.round(draw(keys, 0 * x + 0.5, 1 + 0 * radius), 6), axis=0)) > BATCH * 0.9


def test_one_key_serves_the_batch_and_raw_keys_are_keys():
  x, u = np.zeros((3, 2), np.float32), ro.L2(1.0)
  typed = u.sample(jax.random.key(3), x)
  assert len(np.unique(typed)) == typed.size
  np.testing.assert_array_equal(u.sample(jax.random.PRNGKey(3), x), typed)
  keys = jax.random.split(jax.random.key(3), 3)
  np.testing.assert_array_equal(u.sample(keys, x), typed)
  np.testing.assert_array_equal(u.sample(jax.random.key_data(keys), x), typed)


# Gauge.


@EVERY_SET
@EVERY_BOX
def test_gauge(name, box):
  delta, x, radius = random_cases()
  delta *= np.float32(0.25)
  gauge = jitted(name, box, "gauge")
  value = gauge(delta, x, radius)
  chex.assert_shape(value, (BATCH,))
  np.testing.assert_array_equal(gauge(delta * np.float32(4), x, radius), value * 4)
  if box is None:
    np.testing.assert_allclose(value, norm(delta, name) / radius, rtol=ROUNDING)
    np.testing.assert_array_equal(gauge(-delta, x, radius), value)
  # At most 1 exactly where the projection changes nothing.
  unchanged = np.all(jitted(name, box, "project")(delta, x, radius) == delta, axis=-1)
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
@EVERY_BOX
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_radius_for_every_example(name, box, operation):
  g, x, radius = random_cases()
  together = jitted(name, box, operation)(g, x, radius)
  for i in (0, 3, BATCH // 2, BATCH - 1):
    alone = jitted(name, box, operation)(g, x, radius[i])
    np.testing.assert_allclose(alone[i], together[i], rtol=ROUNDING, atol=rounding())


@EVERY_SET
@EVERY_BOX
def test_a_sweep_over_radii_traces_once(name, box):
  x = jnp.full((3, 2, 2, 1), 0.5)
  chex.clear_trace_counter()

  @jax.jit
  @chex.assert_max_traces(1)
  def everything(radius, key):
    u = SETS[name](radius, box)
    delta = u.sample(key, x)
    return u.steepest_ascent(x, x), u.project(delta, x), u.gauge(delta, x), delta

  for radius in (0.0, 0.1, 0.5, 2.0, np.float32(1.0), jnp.float32(3.0)):
    steepest, projected, gauge, delta = everything(jnp.float32(radius), jax.random.key(0))
    chex.assert_tree_all_finite((steepest, projected, gauge))
    chex.assert_shape([steepest, projected, delta], x.shape)
    if radius == 0:
      chex.assert_trees_all_equal((steepest, projected, delta), (0 * x, 0 * x, 0 * x))
      np.testing.assert_array_equal(gauge, 0)


@EVERY_SET
@pytest.mark.parametrize("radius", [-1.0, -1e-9, float("nan"), np.array([0.1, -0.1])])
def test_bad_radius(name, radius):
  with pytest.raises(InputError, match=r"^radius must be >= 0 .*, but was [^\n]*\.$"):
    SETS[name](radius)


@EVERY_SET
@pytest.mark.parametrize("box", [(1.0, 0.0), (0.5, 0.5), (0.0, float("nan"))])
def test_bad_box(name, box):
  with pytest.raises(InputError, match=r"^box must be \(low, high\) with low < high, .*\.$"):
    SETS[name](0.1, box)


# Shapes and types.


@EVERY_SET
@EVERY_BOX
def test_shapes(name, box):
  """[B, *S] is B examples of prod(S) entries each; [B] is B examples of one entry."""

  @jax.jit
  def everything(g, x, key):
    u = SETS[name](0.25, box)
    return u.steepest_ascent(g, x), u.project(g, x), u.sample(key, x), u.gauge(g, x)

  g, x = np.random.default_rng(0).random((2, 5, 4, 2, 1)).astype(np.float32)
  *deltas, gauge = everything(g, x, jax.random.key(0))
  chex.assert_shape(deltas, x.shape)
  flat = (5, 8)
  *flat_deltas, flat_gauge = everything(g.reshape(flat), x.reshape(flat), jax.random.key(0))
  reshaped = [delta.reshape(flat) for delta in deltas]
  chex.assert_trees_all_close((*reshaped, gauge), (*flat_deltas, flat_gauge), rtol=ROUNDING)
  of_scalars = jax.eval_shape(everything, g[:, 0, 0, 0], x[:, 0, 0, 0], jax.random.key(0))
  chex.assert_shape(of_scalars, (5,))


@EVERY_SET
@EVERY_BOX
def test_float64(name, box):
  g, x, radius = random_cases(batch=20)
  expected = jitted(name, box, "steepest_ascent")(g, x, radius)
  with jax.enable_x64(True):
    u = SETS[name](np.float64(radius), box)
    g, x = jnp.asarray(g, jnp.float64), jnp.asarray(x, jnp.float64)
    step, projected = u.steepest_ascent(g, x), u.project(3 * g, x)
    delta = u.sample(jax.random.key(0), x)
    assert {a.dtype for a in (step, projected, delta, u.gauge(g, x))} == {np.dtype("float64")}
    np.testing.assert_allclose(step, expected, atol=ROUNDING * radius.max())
    for point in (step, projected, delta):
      assert np.all(
        norm(point, name) <= np.float64(radius) * (1 + rounding(terms=16, dtype=np.float64))
      )


@EVERY_SET
def test_shapes_that_differ_and_integers_are_refused(name):
  u, x = SETS[name](0.1), jnp.zeros((2, 3))
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
  g, x, radius = random_cases(0)
  x = np.clip(x, 0.05, 0.95)

  @jax.grad
  def derivative(x):
    return jnp.sum(getattr(SETS[name](radius, (0.0, 1.0)), operation)(g, x))

  found = jax.jit(derivative)(x)
  chex.assert_tree_all_finite(found)
  if (name, operation) == ("linf", "project"):
    in_ball = np.clip(g, -radius[:, None], radius[:, None])
    by_box = (in_ball < -x) | (in_ball > 1 - x)
    np.testing.assert_array_equal(found, -1.0 * by_box)
