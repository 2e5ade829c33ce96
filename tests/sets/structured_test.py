"""Structured sets: closed forms, other algorithms, and sets that are others in disguise."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats
from sets.cases import BATCH, BOX, NUM_ENTRIES, ROUNDING, inner, length, random_cases, run
from sets.contracts_test import BASIS, LABELS, MASK, SCALE, basis_of, call

import robust_opt as ro
from robust_opt import sets
from robust_opt.errors import InputError

KEY = jax.random.key(6)
OPERATIONS = ("steepest_ascent", "project", "gauge")


def group_norms(delta):
  return np.stack([length(delta[..., label == LABELS]) for label in np.unique(LABELS)], -1)


@pytest.mark.parametrize("name", ["group_l21", "group_linf2", "ellipsoid", "tangent", "product"])
def test_samples_are_uniform(name):
  x, ones = np.zeros((2000, NUM_ENTRIES), np.float32), np.ones(2000, np.float32)
  keys = jax.random.split(jax.random.key(4), 2000)
  gauge = call(name, "gauge", call(name, "sample", keys, x, ones), x, ones)
  dimensions = 2 if name == "tangent" else NUM_ENTRIES
  # In n dimensions a uniform point of the set has a uniform gauge^n.
  assert stats.kstest(gauge.astype(np.float64) ** dimensions, "uniform").pvalue > 0.01


# Groups.


def test_groups_in_closed_form():
  g, x, radius = random_cases()
  norms = group_norms(g)
  own = np.searchsorted(np.unique(LABELS), LABELS)
  unit = g / norms[:, own]
  step = call("group_linf2", "steepest_ascent", g, x, radius)
  np.testing.assert_allclose(step, radius[:, None] * unit, rtol=ROUNDING)
  step = call("group_l21", "steepest_ascent", g, x, radius)
  largest = norms.argmax(-1)[:, None] == own
  np.testing.assert_allclose(step, radius[:, None] * unit * largest, rtol=ROUNDING)
  np.testing.assert_allclose(inner(g, step), radius * norms.max(-1), rtol=ROUNDING)
  projected = call("group_linf2", "project", g, x, radius)
  shrunk = g * np.minimum(1, radius[:, None] / norms[:, own])
  np.testing.assert_allclose(projected, shrunk, rtol=ROUNDING)


@pytest.mark.slow
def test_groups_of_one_and_of_all_are_the_balls():
  g, x, radius = random_cases()
  single, whole = np.arange(NUM_ENTRIES), np.zeros(NUM_ENTRIES, int)
  pairs = [
    (sets.GroupL21(radius, single), ro.L1(radius)),
    (sets.GroupL21(radius, whole), ro.L2(radius)),
    (sets.GroupLInf2(radius, single), ro.LInf(radius)),
    (sets.GroupLInf2(radius, whole), ro.L2(radius)),
  ]
  for ours, ball in pairs:
    for operation in OPERATIONS:
      value, expected = (run(u, operation, g, x) for u in (ours, ball))
      np.testing.assert_allclose(value, expected, rtol=ROUNDING, atol=ROUNDING)


def test_channels_and_patches():
  np.testing.assert_array_equal(sets.channels((1, 2, 3)), [[[0, 1, 2], [0, 1, 2]]])
  np.testing.assert_array_equal(sets.patches(2)((3, 4)), [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]])
  labels = sets.patches(2)((4, 4, 3))
  chex.assert_shape(labels, (4, 4, 3))
  np.testing.assert_array_equal(np.unique(labels, return_counts=True)[1], [12] * 4)
  x = np.zeros((2, 4, 4, 3), np.float32)
  g = np.ones_like(x)
  g[0, 2:, :2] = g[1, :, :, 1] = -3
  of_patch = run(sets.GroupL21(1.0, sets.patches(2)), "steepest_ascent", g, x)
  np.testing.assert_allclose(of_patch[0, 2:, :2], -1 / np.sqrt(12), rtol=ROUNDING)
  np.testing.assert_allclose(np.sum(np.abs(of_patch[0])), np.sqrt(12), rtol=ROUNDING)
  of_channel = run(sets.GroupL21(1.0, sets.channels), "steepest_ascent", g, x)
  np.testing.assert_allclose(of_channel[1, :, :, 1], -0.25, rtol=ROUNDING)
  np.testing.assert_array_equal(of_channel[1, :, :, ::2], 0)


# Ellipsoid.


def test_ellipsoid_in_closed_form():
  g, x, radius = random_cases()
  scale, r = SCALE.astype(np.float64), radius[:, None]
  step = call("ellipsoid", "steepest_ascent", g, x, radius)
  expected = r * scale**2 * g / length(scale * g)[:, None]
  np.testing.assert_allclose(step, expected, rtol=2 * ROUNDING)
  ball = sets.Ellipsoid(radius, np.full(NUM_ENTRIES, 2, np.float32))
  np.testing.assert_allclose(
    run(ball, "project", g, x), run(ro.L2(2 * radius), "project", g, x), rtol=2 * ROUNDING
  )


def test_ellipsoid_projection_by_a_float64_root():
  delta, x, radius = random_cases(2, batch=40)
  delta *= np.float32(10) ** np.linspace(-1, 4, 40, dtype=np.float32)[:, None]
  ours = np.asarray(call("ellipsoid", "project", delta, x, radius))
  square = SCALE.astype(np.float64) ** 2
  for d, r, nearest in zip(delta.astype(np.float64), radius.astype(np.float64), ours):

    def excess(log_m, d=d, r=r):
      return np.log(length(d * np.sqrt(square) / (square + np.exp(log_m))) / r)

    if length(d / SCALE) <= r:
      expected = d
    else:
      m = np.exp(optimize.brentq(excess, -60, 60, xtol=1e-12))
      expected = d * square / (square + m)
    np.testing.assert_allclose(nearest, expected, rtol=2 * ROUNDING)


# Few entries.


def test_l0_by_all_supports():
  """Both operations are exact, with a box as without; the largest |delta| would not be."""
  v, x, radius = random_cases()
  supports = np.array([s for s in itertools.product((0, 1), repeat=NUM_ENTRIES) if sum(s) == 2])
  for name, boxed in (("l0", False), ("l0_with_box", True)):
    low, high = -radius[:, None], radius[:, None]
    if boxed:
      low, high = np.maximum(low, -x), np.minimum(high, 1 - x)
    furthest = np.where(v > 0, high, low)[:, None] * supports
    best = np.max(np.sum(v[:, None] * furthest, -1), -1)
    ours = call(name, "steepest_ascent", v, x, radius)
    np.testing.assert_allclose(inner(v, ours), best, rtol=1e-5)
    assert np.all(np.count_nonzero(ours, axis=-1) <= 2)
    clipped = np.clip(v, low, high)
    distance = np.sum((v[:, None].astype(np.float64) - clipped[:, None] * supports) ** 2, -1).min(
      -1
    )
    ours = call(name, "project", v, x, radius)
    assert np.all(np.count_nonzero(ours, axis=-1) <= 2)
    np.testing.assert_allclose(np.sum((v - ours.astype(np.float64)) ** 2, -1), distance, rtol=1e-5)
    order = np.argsort(-np.abs(v), axis=-1)[:, :2]
    naive = np.zeros_like(v)
    np.put_along_axis(naive, order, np.take_along_axis(clipped, order, -1), -1)
    worse = np.sum((v - naive.astype(np.float64)) ** 2, -1) > distance * (1 + 1e-4)
    assert np.mean(worse) > 0.1 if boxed else not np.any(worse)


def test_l0_counts():
  g, x, _ = random_cases(batch=5)
  for k in (0, 4, 100):
    step = run(sets.L0(k, 0.25), "steepest_ascent", g, x)
    np.testing.assert_array_equal(np.count_nonzero(step, axis=-1), min(k, NUM_ENTRIES))
    np.testing.assert_array_equal(step[step != 0], 0.25 * np.sign(g)[step != 0])
  per_example = run(sets.L0(np.arange(5), 0.25), "project", g, x)
  np.testing.assert_array_equal(np.count_nonzero(per_example, axis=-1), np.arange(5))
  np.testing.assert_array_equal(run(sets.L0(2, 0.25), "gauge", np.sign(g), x), np.inf)
  ties = np.float32([[0.0, 2.0, -2.0, 2.0]])
  step = run(sets.L0(2, 0.5), "steepest_ascent", ties, 0 * ties)
  np.testing.assert_array_equal(step, np.float32([[0, 0.5, -0.5, 0]]))
  tiny = np.float32([[0.0, 1e-30, 1e30, 0.0]])
  step = run(sets.L0(2, 0.5), "steepest_ascent", tiny, 0 * tiny)
  np.testing.assert_array_equal(step, np.float32([[0, 0.5, 0.5, 0]]))


def test_l0_of_pixels_by_trying_all_of_them():
  rng = np.random.default_rng(4)
  x, v = (rng.random((20, 4, 3)).astype(np.float32) for _ in range(2))
  v = np.float32(2 * v - 1)
  u = sets.L0(2, 0.8, (0.0, 1.0), channel_axis=-1)
  clipped = np.clip(v, np.maximum(-x, -0.8), np.minimum(1 - x, 0.8))
  bounds = np.where(v > 0, np.minimum(1 - x, 0.8), np.maximum(-x, -0.8))
  supports = [np.isin(np.arange(4), pair)[:, None] for pair in itertools.combinations(range(4), 2)]
  gains = [np.sum(v * bounds * support, (1, 2)) for support in supports]
  distances = [np.sum((v - clipped * support) ** 2, (1, 2)) for support in supports]
  step, nearest = run(u, "steepest_ascent", v, x), run(u, "project", v, x)
  np.testing.assert_allclose(np.sum(v * step, (1, 2)), np.max(gains, axis=0), rtol=1e-5)
  np.testing.assert_allclose(np.sum((v - nearest) ** 2, (1, 2)), np.min(distances, 0), rtol=1e-5)
  for points in (step, nearest, run(u, "sample", jax.random.split(jax.random.key(0), 20), x)):
    assert np.all(np.sum(np.any(points != 0, -1), -1) <= 2)
    assert np.all(run(u, "gauge", points, x) <= 1 + 1e-6)
  np.testing.assert_array_equal(run(u, "gauge", clipped, x), np.inf)


# Tangents.


def onto_span(v, rows):
  coefficients = np.linalg.lstsq(rows.T.astype(np.float64), v.T.astype(np.float64), rcond=1e-6)[0]
  return (rows.T @ coefficients).T


def test_tangent_in_closed_form():
  g, x, radius = random_cases()
  along, r = onto_span(g, BASIS), radius[:, None]
  step = call("tangent", "steepest_ascent", g, x, radius)
  np.testing.assert_allclose(step, r * along / length(along)[:, None], atol=1e-5 * radius.max())
  np.testing.assert_allclose(length(step), radius, rtol=ROUNDING)
  nearest = call("tangent", "project", g, x, radius)
  expected = along * np.minimum(1, r / length(along)[:, None])
  np.testing.assert_allclose(nearest, expected, atol=1e-5)
  assert np.all(np.isinf(call("tangent", "gauge", g, x, radius)))


def test_tangent_gives_no_direction_for_a_gradient_off_the_span():
  g, x, radius = random_cases()
  normal = (g - onto_span(g, BASIS)).astype(np.float32)
  axes = sets.Tangent(radius, np.eye(NUM_ENTRIES, dtype=np.float32)[:2])
  off = g * (np.arange(NUM_ENTRIES) >= 2)
  np.testing.assert_array_equal(run(axes, "steepest_ascent", off, x), 0)
  np.testing.assert_array_equal(call("tangent", "steepest_ascent", normal, x, radius), 0)
  nothing = sets.Tangent(radius, 0 * BASIS)
  np.testing.assert_array_equal(run(nothing, "steepest_ascent", g, x), 0)


@pytest.mark.slow
def test_tangent_with_a_basis_for_every_example():
  rng = np.random.default_rng(0)
  g, x, radius = random_cases(batch=4)
  g, x = g.reshape(4, 2, 3), x.reshape(4, 2, 3)
  basis = (rng.normal(size=(4, 2, 2, 3)) * 1e-3).astype(np.float32)
  together = sets.Tangent(radius, basis, per_example=True)
  for i in (0, 3):
    alone = sets.Tangent(radius[i], basis[i])
    for operation in OPERATIONS:
      expected = run(alone, operation, g[i : i + 1], x[i : i + 1])[0]
      np.testing.assert_allclose(run(together, operation, g, x)[i], expected, atol=1e-5)
  everything = sets.Tangent(radius, rng.normal(size=(9, 2, 3)).astype(np.float32))
  step, expected = (run(u, "steepest_ascent", g, x) for u in (everything, ro.L2(radius)))
  np.testing.assert_allclose(step, expected, atol=1e-5)


def test_tangent_at_is_tangent_with_the_basis_of_every_x():
  g, x, radius = random_cases(batch=8)
  expected = sets.Tangent(radius, basis_of(x), per_example=True)
  inside = run(expected, "steepest_ascent", g, x)
  keys = jax.random.split(jax.random.key(0), 8)
  for operation, first in (
    *(("steepest_ascent", g), ("project", g), ("sample", keys)),
    *(("gauge", g), ("gauge", inside)),
  ):
    ours = call("tangent_at", operation, first, x, radius)  # the radius is traced
    np.testing.assert_allclose(ours, run(expected, operation, first, x), atol=1e-6)


def test_no_derivative_flows_into_the_basis():
  """Not even one of NaN, as of singular vectors where two singular values are equal."""
  g, x, radius = random_cases(batch=4)
  bad = sets.TangentAt(radius, lambda x: BASIS * (1 + jnp.sqrt(0 * x))[:, None])
  for operation in OPERATIONS:
    total = lambda x, op=operation: jnp.sum(getattr(bad, op)(0.1 * g, x))  # noqa: E731
    of_x = jax.jit(jax.grad(total))(x)
    np.testing.assert_array_equal(of_x, 0)


# Intersections.


def test_linf_l2_by_duality():
  # <g, delta> <= m r^2 / 2 + sum of max over |z| <= q of g z - m z^2 / 2, for every m > 0.
  g, x, radius = random_cases()
  q = (0.6 * radius)[:, None]
  ours = inner(g, call("linf_l2", "steepest_ascent", g, x, radius))
  bound = np.full(BATCH, np.inf)
  for m in (10 ** np.linspace(-4, 4, 1500))[:, None]:
    z = np.clip(g / m, -q, q)
    bound = np.minimum(bound, m[0] * radius**2 / 2 + np.sum(g * z - m * z**2 / 2, -1))
  assert np.all(ours <= bound * (1 + ROUNDING))
  np.testing.assert_allclose(ours, bound, rtol=1e-4)


@pytest.mark.slow
def test_linf_l2_has_the_two_balls_as_limits():
  g, x, radius = random_cases()
  for operation in OPERATIONS:
    for ours, ball in (
      (sets.LInfL2(radius, 10 * radius, BOX), ro.LInf(radius, BOX)),
      (sets.LInfL2(10 * radius, radius, BOX), ro.L2(radius, BOX)),
    ):
      value, expected = (run(u, operation, g, x) for u in (ours, ball))
      np.testing.assert_allclose(value, expected, rtol=ROUNDING, atol=ROUNDING)


def test_intersection_against_the_exact_set():
  """Dykstra nears the projection, and the ascent the maximum, which it never exceeds."""
  g, x, radius = random_cases()
  exact = sets.LInfL2(0.6 * radius, radius)
  ours = sets.Intersection(ro.LInf(0.6 * radius), ro.L2(radius))
  for distance, tolerance in ((1.2, 1e-6), (2.0, 1e-3)):
    delta = distance * (radius / length(g)).astype(np.float32)[:, None] * g
    error = np.abs(run(ours, "project", delta, x) - run(exact, "project", delta, x)).max(-1)
    assert np.all(error <= tolerance * radius)
  np.testing.assert_allclose(run(ours, "gauge", g, x), run(exact, "gauge", g, x), rtol=ROUNDING)
  best = inner(g, run(exact, "steepest_ascent", g, x))
  reached = inner(g, run(ours, "steepest_ascent", g, x)) / best
  assert np.all(reached <= 1 + ROUNDING)
  assert np.all(reached >= 0.95)


def test_intersection_of_a_set_with_a_larger_one_is_the_set():
  g, x, radius = random_cases()
  ours = sets.Intersection(ro.L2(radius), ro.LInf(1.01 * radius), num_iterations=5)
  for operation in OPERATIONS:
    value, expected = (run(u, operation, g, x) for u in (ours, ro.L2(radius)))
    np.testing.assert_allclose(value, expected, rtol=ROUNDING, atol=ROUNDING)


def test_intersection_with_a_plane():
  g, x, radius = random_cases()
  ours = sets.Intersection(ro.LInf(radius), sets.Tangent(2 * radius, BASIS))
  step = run(ours, "steepest_ascent", g, x)
  assert np.all(run(ours, "gauge", step, x) <= 1 + ROUNDING)
  assert np.all(inner(g, step) > 0)


# Products.


def test_product_is_every_block_by_itself():
  """Each set sees its own block of g and of x in the block's shape: one has a box, another not."""
  g, x, radius = random_cases()
  labels = np.array([[0, 1], [1, 0]])
  image, vector = sets.GroupL21(radius, labels), ro.LInf(2 * radius, BOX)
  u = sets.Product((image, vector), ((2, 2), (2,)))
  blocks = [(image, slice(0, 4), (2, 2)), (vector, slice(4, 6), (2,))]

  def each(operation):
    for of_block, place, shape in blocks:
      first, at = (v[:, place].reshape(-1, *shape) for v in (g, x))
      yield run(of_block, operation, first, at).reshape(BATCH, -1)

  for operation in ("steepest_ascent", "project"):
    np.testing.assert_array_equal(run(u, operation, g, x), np.concatenate([*each(operation)], 1))
  gauges = np.concatenate([*each("gauge")], 1)
  assert np.any(gauges[:, 0] > gauges[:, 1])
  assert np.any(gauges[:, 0] < gauges[:, 1])
  np.testing.assert_array_equal(run(u, "gauge", g, x), gauges.max(1))


def test_a_block_of_radius_0_stays():
  g, x, radius = random_cases()
  u = sets.Product((ro.L2(0.0), ro.L2(radius)), ((4,), (2,)))
  for operation in ("steepest_ascent", "project"):
    moved = run(u, operation, g, x)
    np.testing.assert_array_equal(moved[:, :4], 0)
    assert np.all(np.abs(moved[:, 4:]).max(1) > 0)
    assert np.all(run(u, "gauge", moved, x) <= 1 + ROUNDING)  # 0 / 0 is inside
  np.testing.assert_array_equal(run(u, "gauge", g, x), np.inf)


def test_blocks_are_sampled_independently():
  x = np.zeros((2000, NUM_ENTRIES), np.float32)
  half = (ro.LInf(1.0), (3,))
  drawn = run(sets.Product(*zip(half, half)), "sample", jax.random.key(0), x)
  correlations = np.corrcoef(drawn.T) - np.eye(NUM_ENTRIES)
  assert np.abs(correlations).max() < 4.5 / np.sqrt(2000)
  old_keys = jax.random.PRNGKey(0)
  np.testing.assert_array_equal(run(sets.Product(*zip(half, half)), "sample", old_keys, x), drawn)


# Masks.


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_masked_ball_is_the_ball_of_the_entries_that_may_change(norm, box):
  g, x, radius = random_cases()
  u = sets.Masked(ro.sets.BALLS[norm](radius, box), MASK)
  ball = ro.sets.BALLS[norm](radius, box)
  for operation in ("steepest_ascent", "project"):
    moved = run(u, operation, 2 * g, x)
    np.testing.assert_array_equal(moved[:, ~MASK], 0)
    alone = run(ball, operation, 2 * g[:, MASK], x[:, MASK])
    np.testing.assert_allclose(moved[:, MASK], alone, rtol=ROUNDING, atol=ROUNDING)
    inside = run(u, "gauge", moved, x)
    np.testing.assert_allclose(
      inside, run(ball, "gauge", moved[:, MASK], x[:, MASK]), rtol=ROUNDING
    )
  np.testing.assert_array_equal(run(u, "gauge", g, x), np.inf)


@pytest.mark.parametrize(
  "norm", ["l1", *(pytest.param(n, marks=pytest.mark.slow) for n in ("linf", "l2"))]
)
def test_masks_of_every_example_hold_from_the_random_start_on(norm):
  """Images [B, 4, 4, 3], a window of its own in each, all channels of it."""
  rng = np.random.default_rng(0)
  x = rng.random((20, 4, 4, 3)).astype(np.float32)
  mask = rng.random((20, 4, 4, 1)) < 0.3

  def ball(radius):
    return sets.Masked(ro.sets.BALLS[norm](radius, BOX), mask)

  attack = ro.restarts(ro.ascend(ro.pgd(ball(0.3), ball(0.1)), 3), 2)
  starts = ro.noise(ball(0.3))
  for found in (attack, starts):
    delta, _ = jax.jit(
      lambda x, found=found: found(lambda x: jnp.sum(x**2, axis=(1, 2, 3)), KEY, x)
    )(x)
    outside = np.broadcast_to(~mask, x.shape)
    np.testing.assert_array_equal(np.asarray(delta)[outside], 0)
    assert np.all(np.any(delta != 0, axis=(1, 2, 3)) == np.any(mask, axis=(1, 2, 3)))
    assert np.all(run(ball(0.3), "gauge", delta, x) <= 1 + ROUNDING)


def test_samples_within_a_mask():
  """Of l_inf uniform; of l_2 as the entries of a uniform point of the whole ball are."""
  x = np.zeros((2000, NUM_ENTRIES), np.float32)
  cube = run(sets.Masked(ro.LInf(1.0), MASK), "sample", KEY, x)
  assert stats.kstest(cube[:, MASK].ravel(), "uniform", (-1, 2)).pvalue > 0.01
  for ball in (ro.L2(1.0), ro.L1(1.0)):
    drawn = run(sets.Masked(ball, MASK), "sample", KEY, x)
    np.testing.assert_array_equal(drawn[:, MASK], run(ball, "sample", KEY, x)[:, MASK])


def test_a_mask_keeps_the_type_of_x():
  x, u = jnp.zeros((2, NUM_ENTRIES), jnp.bfloat16), sets.Masked(ro.LInf(0.5), MASK)
  for operation, first in (*((o, x) for o in OPERATIONS), ("sample", KEY)):
    assert jax.eval_shape(getattr(u, operation), first, x).dtype == jnp.bfloat16


# What is refused.


@pytest.mark.parametrize(
  ("build", "message"),
  [
    (lambda: sets.GroupL21(-1.0, LABELS), "radius must be >= 0"),
    (lambda: sets.LInfL2(0.1, float("nan")), "radius_2 must be >= 0"),
    (lambda: sets.LInfL2(-0.1, 1.0), "radius_inf must be >= 0"),
    (lambda: sets.Ellipsoid(1.0, 0 * SCALE), "Every entry of scale must be > 0"),
    (lambda: sets.L0(-1, 0.1), "k must be an integer >= 0"),
    (lambda: sets.L0(1.5, 0.1), "k must be an integer >= 0, but was 1.5"),
    (lambda: sets.L0(1, 0.1, (1.0, 0.0)), "box must be"),
    (lambda: sets.patches(0), "side must be at least 1"),
    (lambda: sets.Tangent(1.0, SCALE), "basis must be floating point"),
    (lambda: sets.TangentAt(-1.0, basis_of), "radius must be >= 0"),
    (lambda: sets.Intersection(ro.L2(1.0), ro.L1(1.0), 0), "num_iterations must be"),
    (lambda: sets.Masked(ro.L2(1.0), 1.0 * MASK), "mask must be an array of bool.* float64"),
    (lambda: sets.Masked(ro.L2(1.0), [True]), "mask must be an array of bool.* list"),
    (lambda: sets.Product((), ()), "A product needs at least one set"),
    (lambda: sets.Product((ro.L2(1.0),), ((3, 0),)), "Every entry of a block's shape must be"),
  ],
)
def test_bad_sets(build, message):
  with pytest.raises(InputError, match=f"^{message}"):
    build()


@pytest.mark.parametrize(
  ("u", "message"),
  [
    (sets.GroupL21(1.0, LABELS), "groups must be integer labels"),
    (sets.GroupLInf2(1.0, 0.5 * np.ones((2, 3))), "groups must be integer labels"),
    (sets.Ellipsoid(1.0, SCALE), "scale must have the shape"),
    (sets.Tangent(1.0, BASIS), "basis has the shape"),
    (sets.TangentAt(1.0, lambda x: x[:, None, 0]), "basis has the shape"),
    (sets.L0(1, np.ones(5)), "magnitude must be one number"),
    (sets.Masked(ro.L2(1.0), MASK), r"mask must have the shape \(2, 3\) of an example,"),
    (sets.Masked(ro.L2(1.0), np.ones((3, 2, 3), bool)), "mask must have the shape"),
    (sets.Product((ro.L2(1.0),), ((2, 3),)), r"Blocks of the shapes \[\(2, 3\)\] are flattened"),
  ],
)
def test_bad_shapes(u, message):
  x = jnp.zeros((4, 2, 3))
  with pytest.raises(InputError, match=f"^{message}"):
    u.project(x, x)
