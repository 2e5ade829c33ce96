"""One table, sets x operations: what every set promises. A new set is a new row of SETS."""

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sets.cases import BATCH, BOX, NUM_ENTRIES, ROUNDING, inner, keys, length, random_cases, run

import robust_opt as ro
from robust_opt import sets

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
  "linf": lambda radius: ro.LInf(radius),
  "linf_with_box": lambda radius: ro.LInf(radius, BOX),
  "l2": lambda radius: ro.L2(radius),
  "l2_with_box": lambda radius: ro.L2(radius, BOX),
  "l1": lambda radius: ro.L1(radius),
  "l1_with_box": lambda radius: ro.L1(radius, BOX),
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
  "union": lambda radius: sets.Union((ro.L2(radius), ro.LInf(0.6 * radius))),
  "union_with_box": lambda radius: sets.Union((ro.L1(radius, BOX), ro.LInf(0.4 * radius, BOX))),
  "product": lambda radius: sets.Product(
    (ro.L2(radius), ro.L1(0.5 * radius), ro.LInf(2 * radius)), ((1, 3), (2,), (1,))
  ),
  "product_with_box": lambda radius: sets.Product(
    (ro.LInf(radius, BOX), ro.L2(0.5 * radius, BOX)), ((2, 2), (2,))
  ),
  "masked_l2": lambda radius: sets.Masked(ro.L2(radius), MASK),
  "masked_l1_with_box": lambda radius: sets.Masked(ro.L1(radius, BOX), MASK),
  "masked_group_l21": lambda radius: sets.Masked(sets.GroupL21(radius, LABELS), MASK[None]),
}
# Sets whose steepest ascent is exact, and those with a box.
EXACT = [name for name in SETS if name != "intersection"]
WITH_BOX = [name for name in SETS if "box" in name or name == "intersection"]
CONVEX = [name for name in SETS if not name.startswith(("l0", "union"))]
EVERY_SET = pytest.mark.parametrize("name", list(SETS))


def call(name, operation, first, x, radius):
  return run(SETS[name](radius), operation, first, x)


@EVERY_SET
def test_points_lie_in_the_set(name):
  g, x, radius = random_cases()
  points = {
    "steepest_ascent": call(name, "steepest_ascent", g, x, radius),
    "project": call(name, "project", 3 * g, x, radius),
    "sample": call(name, "sample", keys(), x, radius),
  }
  for operation, delta in points.items():
    chex.assert_shape(delta, g.shape)
    chex.assert_type(delta, jnp.float32)
    size = call(name, "gauge", delta, x, radius)
    assert np.all(size <= 1 + ROUNDING), operation
    if name in WITH_BOX:
      assert np.all((x + delta >= 0) & (x + delta <= 1)), operation
    elif operation != "sample":
      np.testing.assert_allclose(size[radius < 0.03], 1, rtol=ROUNDING)
    if operation == "steepest_ascent" and name in EXACT and name not in WITH_BOX:
      np.testing.assert_allclose(size, 1, rtol=ROUNDING)


@pytest.mark.parametrize("name", EXACT)
def test_steepest_ascent_beats_random_points(name):
  g, x, radius = random_cases()
  best = inner(g, call(name, "steepest_ascent", g, x, radius))
  rng = np.random.default_rng(1)
  for scale in (0.1, 0.3, 1.0, 3.0, 10.0, 1000.0):
    noise = scale * rng.normal(size=g.shape) if scale < 1000 else 0
    point = call(name, "project", (noise + scale * g).astype(np.float32), x, radius)
    reach = radius * (SCALE.max() if name == "ellipsoid" else NUM_ENTRIES)
    assert np.all(inner(g, point) <= best + ROUNDING * reach * length(g))


@pytest.mark.parametrize("name", CONVEX)
def test_nearest_point_by_the_variational_inequality(name):
  # P(v) is the projection onto a convex set iff <v - P(v), z - P(v)> <= 0 for every z in the set.
  delta, x, radius = random_cases(3)
  if name == "intersection":  # Dykstra's algorithm is slow for points far away
    delta = (2 * radius / length(delta))[:, None].astype(np.float32) * delta
  nearest = call(name, "project", delta, x, radius)
  away = delta.astype(np.float64) - nearest
  # The z of the largest <away, z> of all, and random ones.
  zs = [call(name, "steepest_ascent", away.astype(np.float32), x, radius)]
  zs += [call(name, "sample", keys(seed), x, radius) for seed in range(5)]
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
  first, second = (call(name, "project", delta, x, radius) for delta in pair)
  size = np.abs(pair).max((0, 2))
  assert np.all(np.isfinite(first))
  twice = call(name, "project", first, x, radius)
  assert np.all(np.abs(twice - first).max(-1) <= ROUNDING * size + 1e-30)
  apart, now_apart = length(pair[0].astype(np.float64) - pair[1]), length(first - second)
  assert np.all(now_apart <= apart * (1 + ROUNDING) + 1e-5 * size)


@EVERY_SET
def test_the_scale_of_the_gradient_does_not_matter(name):
  g, x, radius = random_cases()
  step = call(name, "steepest_ascent", g, x, radius)
  for scale in (1e-30, 1e-12, 1e12, 1e30):
    scaled = call(name, "steepest_ascent", g * np.float32(scale), x, radius)
    np.testing.assert_allclose(scaled, step, rtol=2e-4, atol=2e-5 * np.abs(step).max())
    np.testing.assert_allclose(length(scaled), length(step), rtol=1e-4)


@EVERY_SET
def test_zero_and_nan(name):
  """Gradient 0 gives 0, and NaN gives NaN: also the gauge at radius 0."""
  g, x, radius = random_cases()
  g[:100] = 0
  step = call(name, "steepest_ascent", g, x, radius)
  assert np.all(np.isfinite(step))
  np.testing.assert_array_equal(step[:100], 0)
  g[::2, 3] = np.nan
  for operation in ("steepest_ascent", "project", "gauge"):
    value = call(name, operation, g, x, radius).reshape(BATCH, -1)
    assert np.all(np.isnan(value[::2]).any(-1)), operation
    assert not np.any(np.isnan(value[1::2])), operation
  assert np.all(np.isnan(call(name, "gauge", g, x, 0 * radius)[::2]))


@EVERY_SET
def test_projection_leaves_inner_points_alone(name):
  _, x, radius = random_cases()
  inside = (0.9 * call(name, "sample", keys(5), x, radius)).astype(np.float32)
  again = call(name, "project", inside, x, radius)
  if name.startswith("tangent"):  # only to rounding: the plane is not a set of float32 numbers
    np.testing.assert_allclose(again, inside, atol=ROUNDING * radius.max())
  else:
    np.testing.assert_array_equal(again, inside)


@EVERY_SET
def test_gauge_is_homogeneous(name):
  _, x, radius = random_cases()
  delta = call(name, "sample", keys(5), x, radius)
  value = call(name, "gauge", delta, x, radius)
  np.testing.assert_allclose(call(name, "gauge", 4 * delta, x, radius), 4 * value, rtol=ROUNDING)
  np.testing.assert_array_equal(call(name, "gauge", 0 * delta, x, 0 * radius), 0)
  moved = np.abs(delta).max(-1) > 0
  assert np.all(np.isinf(call(name, "gauge", delta, x, 0 * radius)[moved]))


@EVERY_SET
def test_every_example_has_its_own_radius_and_key(name):
  g, x, radius = random_cases()
  for operation, first in (
    ("steepest_ascent", g),
    ("project", g),
    ("gauge", g),
    ("sample", keys()),
  ):
    together = call(name, operation, first, x, radius)
    i = BATCH // 2
    alone = call(name, operation, first, x, np.full_like(radius, radius[i]))
    np.testing.assert_array_equal(alone[i], together[i])
    turned = call(name, operation, first[::-1], x[::-1], radius[::-1])
    np.testing.assert_allclose(turned, together[::-1], rtol=ROUNDING, atol=ROUNDING)
    if operation != "gauge":
      np.testing.assert_array_equal(call(name, operation, first, x, 0 * radius), 0)


# A set is a value.


@EVERY_SET
def test_equality_hash_and_repr(name):
  u, same, other = SETS[name](0.5), SETS[name](0.5), SETS[name](0.25)
  assert u == same
  assert hash(u) == hash(same)
  assert u != other
  assert u != "a set"
  assert jax.tree.structure(u) == jax.tree.structure(other)  # so that jit traces once for both
  assert repr(u).startswith(f"{type(u).__name__}(")
  assert "0.5" in repr(u)


@pytest.mark.parametrize(
  "name", [n if n in ("l2", "product") else pytest.param(n, marks=pytest.mark.slow) for n in SETS]
)
def test_a_set_is_an_argument_of_jit_and_vmap(name):
  """One trace for many radii, also of [], and a sweep by vmap is the loop over them."""
  g, x, _ = random_cases(batch=3)
  radii = [np.float32(radius) for radius in (0.0, 0.1, 1.0)]
  us, traces = [SETS[name](radius) for radius in radii], []

  def worst(u):
    traces.append(u)
    attack = ro.ascend(ro.pgd(u, u, random_start=False), 2)
    return attack(lambda z: jnp.sum(g * jnp.sin(z), -1), None, x)[0]

  compiled = jax.jit(worst)
  looped = np.stack([compiled(u) for u in us])
  assert len(traces) == 1
  chex.assert_tree_all_finite(looped)
  np.testing.assert_array_equal(looped[0], 0)
  swept = jax.jit(jax.vmap(worst))(jax.tree.map(lambda *leaves: np.stack(leaves), *us))
  np.testing.assert_allclose(swept, looped, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["linf", "l2", "l1"])
def test_the_worst_case_has_a_gradient_in_the_radius(name):
  """d/dr of max over |delta| <= r of <g, delta> is the dual norm of g."""
  g, x, radius = random_cases()
  dual = {"linf": 1, "l2": 2, "l1": np.inf}[name]

  def worst(u):
    return jnp.sum(g * u.steepest_ascent(g, x))

  gradient = jax.jit(jax.grad(worst))(SETS[name](jnp.asarray(radius)))
  expected = SETS[name](np.linalg.norm(g.astype(np.float64), dual, axis=-1))
  np.testing.assert_allclose(gradient.radius, expected.radius, rtol=ROUNDING)


def test_arrays_are_data_and_what_decides_shapes_is_static():
  leaves = {name: len(jax.tree.leaves(SETS[name](0.5))) for name in SETS}
  assert {name for name, count in leaves.items() if count == 2} == {
    *("ellipsoid", "tangent", "linf_l2", "linf_l2_with_box", "intersection", "product_with_box"),
    *("masked_l2", "masked_l1_with_box", "masked_group_l21", "l0", "l0_with_box"),
    *("union", "union_with_box"),
  }
  assert leaves["group_l21"] == leaves["tangent_at"] == leaves["linf"] == 1
  assert sets.GroupL21(0.5, LABELS) != sets.GroupL21(0.5, LABELS[::-1])
  assert sets.Masked(ro.L2(0.5), MASK) != sets.Masked(ro.L2(0.5), ~MASK)
  assert sets.Ellipsoid(0.5, SCALE) != sets.Ellipsoid(0.5, 2 * SCALE)
