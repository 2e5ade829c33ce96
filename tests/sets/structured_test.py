"""Structured sets: closed forms, variational inequalities, and what every set promises."""

import functools
import itertools

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import rounding
from scipy import optimize, stats

import robust_opt as ro
from robust_opt import sets
from robust_opt.errors import InputError

BATCH, NUM_ENTRIES = 200, 6
# A norm over the entries, its root, and what shifts, scales and clips them.
ROUNDING = rounding(terms=2 * NUM_ENTRIES + 8)
KEY = jax.random.key(6)
BOX = (0.0, 1.0)
MASK = np.array([True, False, False, True, True, True])
LABELS = np.array([7, 2, 7, 4, 2, 7])  # three groups, of 2, 1 and 3 entries, not in order
SCALE = np.array([0.01, 0.1, 0.5, 1.0, 2.0, 30.0], np.float32)
_ROWS = np.random.default_rng(11).normal(size=(3, NUM_ENTRIES))
# Of rank 2: the third row follows from the first two, with a copy between them and a row of 0.
BASIS = np.stack([_ROWS[0], 2 * _ROWS[0], _ROWS[1], 0 * _ROWS[0], _ROWS[0] - _ROWS[1]])
BASIS = BASIS.astype(np.float32)


def basis_of(x):
  """Another plane at every x, of rank 2."""
  return BASIS * (0.5 + x)[:, None]


SETS = {
  "group_l21": lambda radius: sets.GroupL21(radius, LABELS),
  "group_linf2": lambda radius: sets.GroupLInf2(radius, LABELS),
  "ellipsoid": lambda radius: sets.Ellipsoid(radius, SCALE),
  "l0": lambda radius: sets.L0(2, radius),
  "l0_with_box": lambda radius: sets.L0(2, radius, BOX),
  "tangent": lambda radius: sets.Tangent(radius, BASIS),
  "tangent_at": lambda radius: sets.TangentAt(radius, basis_of),
  "linf_l2": lambda radius: sets.LInfL2(0.6 * radius, radius),
  "linf_l2_with_box": lambda radius: sets.LInfL2(0.6 * radius, radius, BOX),
  "intersection": lambda radius: sets.Intersection(ro.L1(1.5 * radius), ro.L2(radius, BOX)),
  "product": lambda radius: sets.Product(
    (ro.L2(radius), ro.L1(0.5 * radius), ro.LInf(2 * radius)), ((1, 3), (2,), (1,))
  ),
  "product_with_box": lambda radius: sets.Product(
    (ro.LInf(radius, BOX), ro.L2(0.5 * radius, BOX)), ((2, 2), (2,))
  ),
  "masked_linf": lambda radius: sets.Masked(ro.LInf(radius), MASK),
  "masked_linf_with_box": lambda radius: sets.Masked(ro.LInf(radius, BOX), MASK),
  "masked_l2": lambda radius: sets.Masked(ro.L2(radius), MASK),
  "masked_l1_with_box": lambda radius: sets.Masked(ro.L1(radius, BOX), MASK),
  "masked_group_l21": lambda radius: sets.Masked(sets.GroupL21(radius, LABELS), MASK[None]),
}
EXACT = [name for name in SETS if name != "intersection"]
CONVEX = [name for name in SETS if not name.startswith("l0")]
EVERY_SET = pytest.mark.parametrize("name", list(SETS))


@functools.cache
def jitted(name, operation):
  """(delta or g or keys, x, radius) -> the operation's value; compiled once a shape."""
  function = jax.jit(lambda first, x, radius: getattr(SETS[name](radius), operation)(first, x))
  return lambda first, x, radius: np.asarray(function(first, x, radius))


def random_cases(seed=0, batch=BATCH):
  rng = np.random.default_rng(seed)
  g, x = rng.normal(size=(batch, NUM_ENTRIES)), rng.random((batch, NUM_ENTRIES))
  x[: batch // 4] = np.round(x[: batch // 4] * 2) / 2
  radius = 10 ** rng.uniform(-2, 0.5, batch)
  return tuple(a.astype(np.float32) for a in (g, x, radius))


def run(u, operation, first, x):
  return np.asarray(jax.jit(getattr(u, operation))(first, x))


def inner(g, delta):
  return np.sum(np.asarray(g, np.float64) * delta, axis=-1)


def length(v):
  return np.linalg.norm(np.asarray(v, np.float64), axis=-1)


def group_norms(delta):
  return np.stack([length(delta[..., label == LABELS]) for label in np.unique(LABELS)], -1)


# What every set promises.


@EVERY_SET
def test_points_of_the_set(name):
  g, x, radius = random_cases()
  keys = jax.random.split(jax.random.key(0), BATCH)
  gauge = jitted(name, "gauge")
  points = {
    "steepest_ascent": jitted(name, "steepest_ascent")(g, x, radius),
    "project": jitted(name, "project")(3 * g, x, radius),
    "sample": jitted(name, "sample")(keys, x, radius),
  }
  for operation, delta in points.items():
    chex.assert_shape(delta, g.shape)
    chex.assert_type(delta, jnp.float32)
    size = gauge(delta, x, radius)
    assert np.all(size <= 1 + ROUNDING), operation
    if "box" in name or name == "intersection":
      assert np.all((x + delta >= 0) & (x + delta <= 1)), operation
    if operation != "sample" and "box" not in name and name != "intersection":
      np.testing.assert_allclose(size[radius < 0.03], 1, rtol=ROUNDING)
    if operation == "steepest_ascent" and name in EXACT and "box" not in name:
      np.testing.assert_allclose(size, 1, rtol=ROUNDING)


@pytest.mark.parametrize("name", EXACT)
def test_steepest_ascent_beats_random_points(name):
  g, x, radius = random_cases()
  best = inner(g, jitted(name, "steepest_ascent")(g, x, radius))
  rng = np.random.default_rng(1)
  for scale in (0.1, 0.3, 1.0, 3.0, 10.0, 1000.0):
    noise = scale * rng.normal(size=g.shape) if scale < 1000 else 0
    point = jitted(name, "project")((noise + scale * g).astype(np.float32), x, radius)
    reach = radius * (SCALE.max() if name == "ellipsoid" else NUM_ENTRIES)
    assert np.all(inner(g, point) <= best + ROUNDING * reach * length(g))


@pytest.mark.parametrize("name", CONVEX)
def test_nearest_point_by_the_variational_inequality(name):
  # P(v) is the projection onto a convex set iff <v - P(v), z - P(v)> <= 0 for every z in the set.
  delta, x, radius = random_cases(3)
  if name == "intersection":  # Dykstra's algorithm is slow for points far away
    delta = (2 * radius / length(delta))[:, None].astype(np.float32) * delta
  nearest = jitted(name, "project")(delta, x, radius)
  away = delta.astype(np.float64) - nearest
  # The z of the largest <away, z> of all, and random ones.
  zs = [jitted(name, "steepest_ascent")(away.astype(np.float32), x, radius)]
  for seed in range(5):
    keys = jax.random.split(jax.random.key(seed), BATCH)
    zs.append(jitted(name, "sample")(keys, x, radius))
  tolerance = 3e-3 if name == "intersection" else 2 * ROUNDING
  for z in zs:
    scale = length(away) * (length(z) + length(nearest) + length(delta) * 1e-1)
    assert np.max(inner(away, z - nearest) - tolerance * scale) <= 1e-9
  assert np.mean(length(away) > 1e-3) > 0.3


def float32s(shape, low, high):
  return hnp.arrays(np.float32, shape, elements=st.floats(low, high, width=32))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONVEX if name != "intersection"])
@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(
  float32s((2, 20, NUM_ENTRIES), -8, 8), float32s(20, 0, 4), float32s((20, NUM_ENTRIES), 0, 1)
)
def test_idempotent_and_nonexpansive(name, pair, radius, x):
  project = jitted(name, "project")
  first, second = (project(delta, x, radius) for delta in pair)
  size = np.abs(pair).max((0, 2))
  assert np.all(np.isfinite(first))
  twice = project(first, x, radius)
  assert np.all(np.abs(twice - first).max(-1) <= ROUNDING * size + 1e-30)
  apart, now_apart = length(pair[0].astype(np.float64) - pair[1]), length(first - second)
  assert np.all(now_apart <= apart * (1 + ROUNDING) + 1e-5 * size)


@EVERY_SET
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_step_does_not_depend_on_the_scale_of_the_gradient(name, scale):
  g, x, radius = random_cases()
  ascent = jitted(name, "steepest_ascent")
  step, scaled = ascent(g, x, radius), ascent(g * np.float32(scale), x, radius)
  np.testing.assert_allclose(scaled, step, rtol=2e-4, atol=2e-5 * np.abs(step).max())
  np.testing.assert_allclose(length(scaled), length(step), rtol=1e-4)


@EVERY_SET
def test_zero_and_nan_gradients(name):
  g, x, radius = random_cases()
  g[:100] = 0
  step = jitted(name, "steepest_ascent")(g, x, radius)
  assert np.all(np.isfinite(step))
  np.testing.assert_array_equal(step[:100], 0)
  g[::2, 3] = np.nan
  for operation in ("steepest_ascent", "project", "gauge"):
    value = jitted(name, operation)(g, x, radius).reshape(BATCH, -1)
    assert np.all(np.isnan(value[::2]).any(-1)), operation
    assert not np.any(np.isnan(value[1::2])), operation


@EVERY_SET
def test_projection_leaves_inner_points_alone(name):
  _, x, radius = random_cases()
  inside = jitted(name, "sample")(jax.random.split(jax.random.key(5), BATCH), x, radius)
  inside = (0.9 * inside).astype(np.float32)
  again = jitted(name, "project")(inside, x, radius)
  if name.startswith("tangent"):  # only to rounding: the plane is not a set of float32 numbers
    np.testing.assert_allclose(again, inside, atol=ROUNDING * radius.max())
  else:
    np.testing.assert_array_equal(again, inside)


@EVERY_SET
def test_gauge_is_homogeneous(name):
  _, x, radius = random_cases()
  delta = jitted(name, "sample")(jax.random.split(jax.random.key(5), BATCH), x, radius)
  gauge = jitted(name, "gauge")
  value = gauge(delta, x, radius)
  np.testing.assert_allclose(gauge(4 * delta, x, radius), 4 * value, rtol=ROUNDING)
  np.testing.assert_array_equal(gauge(0 * delta, x, 0 * radius), 0)
  moved = np.abs(delta).max(-1) > 0
  assert np.all(np.isinf(gauge(delta, x, 0 * radius)[moved]))


@pytest.mark.slow
@EVERY_SET
@pytest.mark.parametrize("operation", ["steepest_ascent", "project", "gauge"])
def test_a_radius_for_every_example(name, operation):
  g, x, radius = random_cases()
  together = jitted(name, operation)(g, x, radius)
  for i in (0, BATCH // 2, BATCH - 1):
    alone = np.asarray(jitted(name, operation)(g, x, radius[i]))
    np.testing.assert_allclose(alone[i], together[i], rtol=4 * ROUNDING, atol=ROUNDING)
  nothing = jitted(name, operation)(g, x, 0 * radius)
  if operation != "gauge":
    np.testing.assert_array_equal(nothing, 0 * g)


@EVERY_SET
def test_samples_depend_on_their_own_key(name):
  _, x, radius = random_cases()
  keys = jax.random.split(jax.random.key(2), BATCH)
  together = jitted(name, "sample")(keys, x, radius)
  np.testing.assert_array_equal(
    jitted(name, "sample")(keys[::-1], x[::-1], radius[::-1]), together[::-1]
  )
  one_key = run(SETS[name](radius), "sample", jax.random.key(2), x)
  np.testing.assert_allclose(one_key, together, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@EVERY_SET
def test_jit_vmap_and_attacks(name):
  """A sweep over radii by vmap is the loop over them, within an attack of several steps."""
  g, x, _ = random_cases(batch=3)

  def worst(radius):
    u = SETS[name](radius)
    attack = ro.ascend(ro.pgd(u, u, random_start=False), 2)
    return attack(lambda z: jnp.sum(g * jnp.sin(z), -1), None, x)[0]

  radii = np.float32([0.0, 0.1, 1.0])
  swept = jax.jit(jax.vmap(worst))(radii)
  chex.assert_tree_all_finite(swept)
  looped = np.stack([jax.jit(worst)(radius) for radius in radii])
  np.testing.assert_allclose(swept, looped, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(swept[0], 0)


@pytest.mark.parametrize("name", ["group_l21", "group_linf2", "ellipsoid", "tangent", "product"])
def test_samples_are_uniform(name):
  x, ones = np.zeros((2000, NUM_ENTRIES), np.float32), np.ones(2000, np.float32)
  keys = jax.random.split(jax.random.key(4), 2000)
  gauge = jitted(name, "gauge")(jitted(name, "sample")(keys, x, ones), x, ones)
  dimensions = 2 if name == "tangent" else NUM_ENTRIES
  # In n dimensions a uniform point of the set has a uniform gauge^n.
  assert stats.kstest(gauge.astype(np.float64) ** dimensions, "uniform").pvalue > 0.01


# Groups.


def test_groups_in_closed_form():
  g, x, radius = random_cases()
  norms = group_norms(g)
  own = np.searchsorted(np.unique(LABELS), LABELS)
  unit = g / norms[:, own]
  step = jitted("group_linf2", "steepest_ascent")(g, x, radius)
  np.testing.assert_allclose(step, radius[:, None] * unit, rtol=ROUNDING)
  step = jitted("group_l21", "steepest_ascent")(g, x, radius)
  largest = norms.argmax(-1)[:, None] == own
  np.testing.assert_allclose(step, radius[:, None] * unit * largest, rtol=ROUNDING)
  np.testing.assert_allclose(inner(g, step), radius * norms.max(-1), rtol=ROUNDING)
  projected = jitted("group_linf2", "project")(g, x, radius)
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
    for operation in ("steepest_ascent", "project", "gauge"):
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
  step = jitted("ellipsoid", "steepest_ascent")(g, x, radius)
  expected = r * scale**2 * g / length(scale * g)[:, None]
  np.testing.assert_allclose(step, expected, rtol=2 * ROUNDING)
  ball = sets.Ellipsoid(radius, np.full(NUM_ENTRIES, 2, np.float32))
  np.testing.assert_allclose(
    run(ball, "project", g, x), run(ro.L2(2 * radius), "project", g, x), rtol=2 * ROUNDING
  )


def test_ellipsoid_projection_by_a_float64_root():
  delta, x, radius = random_cases(2, batch=40)
  delta *= np.float32(10) ** np.linspace(-1, 4, 40, dtype=np.float32)[:, None]
  ours = np.asarray(jitted("ellipsoid", "project")(delta, x, radius))
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
    ours = jitted(name, "steepest_ascent")(v, x, radius)
    np.testing.assert_allclose(inner(v, ours), best, rtol=1e-5)
    assert np.all(np.count_nonzero(ours, axis=-1) <= 2)
    clipped = np.clip(v, low, high)
    distance = np.sum((v[:, None].astype(np.float64) - clipped[:, None] * supports) ** 2, -1).min(
      -1
    )
    ours = jitted(name, "project")(v, x, radius)
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
  np.testing.assert_array_equal(run(sets.L0(2, 0.25), "gauge", np.sign(g), x), np.inf)
  ties = np.float32([[0.0, 2.0, -2.0, 2.0]])
  step = run(sets.L0(2, 0.5), "steepest_ascent", ties, 0 * ties)
  np.testing.assert_array_equal(step, np.float32([[0, 0.5, -0.5, 0]]))
  tiny = np.float32([[0.0, 1e-30, 1e30, 0.0]])
  step = run(sets.L0(2, 0.5), "steepest_ascent", tiny, 0 * tiny)
  np.testing.assert_array_equal(step, np.float32([[0, 0.5, 0.5, 0]]))


# Tangents.


def onto_span(v, rows):
  coefficients = np.linalg.lstsq(rows.T.astype(np.float64), v.T.astype(np.float64), rcond=1e-6)[0]
  return (rows.T @ coefficients).T


def test_tangent_in_closed_form():
  g, x, radius = random_cases()
  along, r = onto_span(g, BASIS), radius[:, None]
  step = jitted("tangent", "steepest_ascent")(g, x, radius)
  np.testing.assert_allclose(step, r * along / length(along)[:, None], atol=1e-5 * radius.max())
  np.testing.assert_allclose(length(step), radius, rtol=ROUNDING)
  nearest = jitted("tangent", "project")(g, x, radius)
  expected = along * np.minimum(1, r / length(along)[:, None])
  np.testing.assert_allclose(nearest, expected, atol=1e-5)
  assert np.all(np.isinf(jitted("tangent", "gauge")(g, x, radius)))


def test_tangent_gives_no_direction_for_a_gradient_off_the_span():
  g, x, radius = random_cases()
  normal = (g - onto_span(g, BASIS)).astype(np.float32)
  axes = sets.Tangent(radius, np.eye(NUM_ENTRIES, dtype=np.float32)[:2])
  off = g * (np.arange(NUM_ENTRIES) >= 2)
  np.testing.assert_array_equal(run(axes, "steepest_ascent", off, x), 0)
  np.testing.assert_array_equal(jitted("tangent", "steepest_ascent")(normal, x, radius), 0)
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
    for operation in ("steepest_ascent", "project", "gauge"):
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
    ours = jitted("tangent_at", operation)(first, x, radius)  # the radius is traced
    np.testing.assert_allclose(ours, run(expected, operation, first, x), atol=1e-6)


def test_no_derivative_flows_into_the_basis():
  """Not even one of NaN, as of singular vectors where two singular values are equal."""
  g, x, radius = random_cases(batch=4)
  bad = sets.TangentAt(radius, lambda x: BASIS * (1 + jnp.sqrt(0 * x))[:, None])
  for operation in ("steepest_ascent", "project", "gauge"):
    of_x = jax.grad(lambda x, u=bad, op=operation: jnp.sum(getattr(u, op)(0.1 * g, x)))(x)
    np.testing.assert_array_equal(of_x, 0)


# Intersections.


def test_linf_l2_by_duality():
  # <g, delta> <= m r^2 / 2 + sum of max over |z| <= q of g z - m z^2 / 2, for every m > 0.
  g, x, radius = random_cases()
  q = (0.6 * radius)[:, None]
  ours = inner(g, jitted("linf_l2", "steepest_ascent")(g, x, radius))
  bound = np.full(BATCH, np.inf)
  for m in (10 ** np.linspace(-4, 4, 1500))[:, None]:
    z = np.clip(g / m, -q, q)
    bound = np.minimum(bound, m[0] * radius**2 / 2 + np.sum(g * z - m * z**2 / 2, -1))
  assert np.all(ours <= bound * (1 + ROUNDING))
  np.testing.assert_allclose(ours, bound, rtol=1e-4)


@pytest.mark.slow
def test_linf_l2_has_the_two_balls_as_limits():
  g, x, radius = random_cases()
  for operation in ("steepest_ascent", "project", "gauge"):
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
  for operation in ("steepest_ascent", "project", "gauge"):
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


def test_products_that_are_other_sets():
  """Cubes make a cube, l_2 balls the set of group_linf2, and one block is the set itself."""
  g, x, radius = random_cases()
  cube, ball = ro.LInf(radius, BOX), ro.L2(radius)
  groups = sets.GroupLInf2(radius, np.array([0, 0, 1, 1, 1, 2]))
  pairs = [
    (sets.Product((cube, cube), ((2, 1), (4,))), cube),
    (sets.Product((ro.L1(radius),), ((NUM_ENTRIES,),)), ro.L1(radius)),
    (sets.Product((ball,) * 3, ((2,), (3, 1), (1,))), groups),
  ]
  for ours, same in pairs:
    for operation in ("steepest_ascent", "project", "gauge"):
      value, expected = (run(u, operation, g, x) for u in (ours, same))
      np.testing.assert_allclose(value, expected, rtol=ROUNDING, atol=ROUNDING)


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


def test_the_worst_case_of_a_linear_function_through_a_mask():
  """For l_p the maximum of <g, delta> is the radius times the dual norm of the masked g."""
  g, x, radius = random_cases()
  for norm, order in (("linf", 1), ("l2", 2), ("l1", np.inf)):
    u = sets.Masked(ro.sets.BALLS[norm](radius), MASK)
    step = run(u, "steepest_ascent", g, x)
    expected = radius * np.linalg.norm(g[:, MASK].astype(np.float64), order, axis=1)
    np.testing.assert_allclose(inner(g, step), expected, rtol=ROUNDING)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
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
  x = jnp.zeros((2, NUM_ENTRIES), jnp.bfloat16)
  u = sets.Masked(ro.LInf(0.5), MASK)
  assert u.steepest_ascent(x + 1, x).dtype == u.sample(KEY, x).dtype == jnp.bfloat16
  assert u.gauge(x + 1, x).dtype == u.project(x, x).dtype == jnp.bfloat16


# What is refused.


@pytest.mark.parametrize(
  ("build", "message"),
  [
    (lambda: sets.GroupL21(-1.0, LABELS), "radius must be >= 0"),
    (lambda: sets.LInfL2(0.1, float("nan")), "radius_2 must be >= 0"),
    (lambda: sets.LInfL2(-0.1, 1.0), "radius_inf must be >= 0"),
    (lambda: sets.Ellipsoid(1.0, 0 * SCALE), "Every entry of scale must be > 0"),
    (lambda: sets.L0(-1, 0.1), "k must be an integer >= 0"),
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
    (sets.Masked(ro.L2(1.0), MASK), r"mask must have the shape \(2, 3\) of an example or"),
    (sets.Masked(ro.L2(1.0), np.ones((3, 2, 3), bool)), "mask must have the shape"),
    (sets.Product((ro.L2(1.0),), ((2, 3),)), r"Blocks of the shapes \[\(2, 3\)\] are flattened"),
  ],
)
def test_bad_shapes(u, message):
  x = jnp.zeros((4, 2, 3))
  with pytest.raises(InputError, match=f"^{message}"):
    u.project(x, x)
