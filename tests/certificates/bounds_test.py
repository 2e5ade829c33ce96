"""Bounds of nets: sound against samples and attacks, exact where they can be, never looser."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_opt as ro
from robust_opt import losses
from robust_opt.certificates import bounds, exact
from robust_opt.models.affine import Affine, Conv, Dense, Flatten, MaxPool, Pad, ReLU, apply

pytestmark = pytest.mark.slow  # they compile for minutes


SETS = {"linf": ro.LInf, "l2": ro.L2, "l1": ro.L1}
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
EVERY_NORM = pytest.mark.parametrize("norm", list(SETS))
EVERY_METHOD = pytest.mark.parametrize("method", ["ibp", "crown"])
BOXES = {"ball": None, "ball_with_box": (0.0, 1.0)}
RADII = {"linf": 0.1, "l2": 0.3, "l1": 0.6}
UNIT = (0.0, 1.0)
CASES = [("mlp", "linf", None), ("mlp", "l2", UNIT), ("mlp", "l1", UNIT)]
CASES += [("cnn", "linf", UNIT), ("cnn", "l2", None)]
EVERY_BOX = pytest.mark.parametrize("box", list(BOXES.values()), ids=list(BOXES))
EVERY_CASE = pytest.mark.parametrize(("net", "norm", "box"), CASES)
BATCH = 5
# What bounds allow for rounding on these nets: some 300 roundings of sums of a size of up to 5.
ROUNDING = 300 * 5 * 2**-24

compiled_certified = jax.jit(bounds.certified, static_argnames="method")
compiled_logit_bounds = jax.jit(bounds.logit_bounds, static_argnames="method")


def certify(layers, x, y, norm, radius, box=None, method="crown"):
  """Always with a radius [B], so that the tests share what was compiled."""
  radii = np.broadcast_to(np.float32(radius), x.shape[:1])
  return compiled_certified(layers, x, y, SETS[norm](radii, box), method)


def bound_logits(layers, x, norm, radius, box=None, method="crown"):
  radii = np.broadcast_to(np.float32(radius), x.shape[:1])
  return compiled_logit_bounds(layers, x, SETS[norm](radii, box), method)


def normal(rng, *shape):
  """Weights that keep the size of what they are applied to, [*in, out]."""
  return (rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


@functools.cache
def problem(net, num_classes=3):
  """(layers, x, y): random weights, and the classes that the net itself predicts."""
  rng = np.random.default_rng(1)
  if net == "mlp":
    x = rng.random((BATCH, 2, 2)).astype(np.float32)
    layers = (
      Affine(np.float32(2.0), np.float32(-1.0)),
      Flatten(),
      Dense(2 * normal(rng, 4, 6), normal(rng, 6)),
      ReLU(),
      Dense(2 * normal(rng, 6, 5), normal(rng, 5)),
      ReLU(),
      Dense(normal(rng, 5, num_classes), normal(rng, num_classes)),
    )
  else:
    x = rng.random((BATCH, 5, 5, 2)).astype(np.float32)
    layers = (
      Pad(1),
      Affine(np.float32([2.0, -1.0]), np.float32([-1.0, 0.5])),
      Conv(2 * normal(rng, 3, 3, 2, 3), normal(rng, 3)),
      MaxPool(2),
      ReLU(),
      Conv(3 * normal(rng, 2, 2, 3, 4), normal(rng, 4), strides=(2, 1), padding="SAME"),
      ReLU(),
      Flatten(),
      Dense(normal(rng, 8, num_classes), normal(rng, num_classes)),
    )
  return layers, x, np.argmax(apply(layers, x), -1).astype(np.int32)


def points_inside(rng, x, norm, radius, box, num_points):
  """[num_points, *x.shape], many on the boundary and many sparse; in the ball and in the box."""
  z = rng.normal(size=(num_points, *x.shape)) * (rng.random((num_points, *x.shape)) < 0.6)
  if norm == "linf":
    z[::2] = np.sign(z[::2])
  flat = z.reshape(num_points, x.shape[0], -1)
  length = np.maximum(np.linalg.norm(flat, ORDERS[norm], axis=-1, keepdims=True), 1e-9)
  reach = np.minimum(1, 2 * rng.random((num_points, x.shape[0], 1)))
  points = x + (radius * reach * flat / length).reshape(z.shape)
  return (points if box is None else np.clip(points, *box)).astype(np.float32)


@jax.jit
def logits_at(layers, points):
  """[N, B, *S] -> [N, B, C]."""
  return jax.vmap(lambda x: apply(layers, x))(points)


def steepest_points(layers, x, norm, radius, box):
  """Where one step up or down each logit leads: [2C, B, *S]."""
  attack = ro.steepest(SETS[norm](radius, box))

  @jax.jit
  def moved(j, sign):
    delta, _ = attack(lambda x: sign * apply(layers, x)[:, j], None, x)
    return x + delta

  return np.stack([moved(j, sign) for j in range(3) for sign in (1.0, -1.0)])


@EVERY_CASE
def test_bounds_contain_what_the_net_does(net, norm, box):
  """At a thousand points; and CROWN is nowhere looser than intervals."""
  layers, x, y = problem(net)
  radius = np.float32(RADII[norm] * (1 if net == "mlp" else 0.3))
  points = points_inside(np.random.default_rng(2), x, norm, radius, box, 1000)
  points = np.concatenate([points, steepest_points(layers, x, norm, radius, box)])
  logits = np.asarray(logits_at(layers, points))
  margins = logits - np.take_along_axis(logits, y[None, :, None], -1)
  found = {}
  for method in ("ibp", "crown"):
    lower, upper = bound_logits(layers, x, norm, radius, box, method)
    robust, worst = certify(layers, x, y, norm, radius, box, method)
    chex.assert_shape([lower, upper, worst], (BATCH, 3))
    assert np.all(lower - 1e-5 <= logits)
    assert np.all(logits <= upper + 1e-5)
    assert np.all(margins <= worst + 1e-5)
    np.testing.assert_array_equal(worst[np.arange(BATCH), y], 0)
    np.testing.assert_array_equal(robust, losses.margin(worst, y) < 0)
    found[method] = np.concatenate([upper, -lower, worst], -1)
  assert np.all(found["crown"] <= found["ibp"] + 1e-5)
  assert np.mean(found["crown"] < found["ibp"] - 1e-3) > 0.3
  # Not vacuous: within a small multiple of what is attained.
  spread = logits.max(0) - logits.min(0)
  assert np.mean((upper - lower) / spread) < 2
  check_radius_0(layers, x, y, norm, box)


def check_radius_0(layers, x, y, norm, box):
  """The bounds are the logits, whatever the labels."""
  close = functools.partial(np.testing.assert_allclose, rtol=ROUNDING, atol=ROUNDING)
  logits = apply(layers, x)
  for method in ("ibp", "crown"):
    for found in bound_logits(layers, x, norm, 0, box, method):
      close(found, logits)
    for labels in (y, (y + 1) % 3):
      robust, margins = certify(layers, x, labels, norm, 0, box, method)
      close(margins, logits - np.take_along_axis(np.asarray(logits), labels[:, None], -1))
      np.testing.assert_array_equal(robust, losses.correct(logits, labels))


@hypothesis.settings(max_examples=30)
@hypothesis.given(
  seed=st.integers(0, 2**31),
  norm=st.sampled_from(list(SETS)),
  box=st.sampled_from([None, (0.0, 1.0)]),
  radius=st.floats(0, 2, width=32),
  gain=st.floats(0.125, 8, width=32),
)
def test_bounds_of_any_net_contain_what_it_does(seed, norm, box, radius, gain):
  rng = np.random.default_rng(seed)
  _, x, _ = problem("mlp")
  kernels = [gain * normal(rng, *shape) for shape in ((4, 6), (6, 5), (5, 3))]
  first, second, third = (Dense(kernel, normal(rng, kernel.shape[1])) for kernel in kernels)
  standardize = Affine(np.float32(1.0), np.float32(-0.5))
  layers = (standardize, Flatten(), first, ReLU(), second, ReLU(), third)
  logits = logits_at(layers, points_inside(rng, x, norm, radius, box, 200))
  for method in ("ibp", "crown"):
    lower, upper = bound_logits(layers, x, norm, radius, box, method)
    tolerance = 1e-5 * (1 + np.abs(lower) + np.abs(upper))
    assert np.all(lower - tolerance <= logits)
    assert np.all(logits <= upper + tolerance)


@EVERY_NORM
@EVERY_BOX
@EVERY_METHOD
def test_exact_without_hidden_layers(norm, box, method):
  """Also where the one affine map is written as three layers."""
  rng, num_classes = np.random.default_rng(3), 4
  x = rng.random((BATCH, 2, 3)).astype(np.float32)
  y = rng.integers(0, num_classes, BATCH)
  first, second = normal(rng, 6, 4), normal(rng, 4, num_classes)
  bias = normal(rng, num_classes)
  radius = np.linspace(0, 0.5, BATCH, dtype=np.float32)
  layers = [Affine(2.0, -1.0), Flatten(), Dense(first), Dense(second, bias)]
  weights, offset = 2 * first @ second, bias - np.sum(first @ second, axis=0)
  worst = exact.linear_margin(weights, offset, x, y, SETS[norm](radius, box))
  robust, margins = certify(layers, x, y, norm, radius, box, method)
  np.testing.assert_allclose(losses.margin(margins, y), worst, rtol=ROUNDING, atol=ROUNDING)
  np.testing.assert_array_equal(robust, worst < 0)


@EVERY_NORM
@EVERY_BOX
def test_two_hidden_units_against_a_dense_grid(norm, box):
  """In the plane the worst margin can be looked up; where no unit switches CROWN is exact."""
  layers = [
    Dense(jnp.array([[1.0, -1.0, 0.5], [0.5, 1.0, -2.0]]), jnp.array([-0.3, 0.1, 0.4])),
    ReLU(),
    Dense(jnp.array([[1.0, -0.5], [-1.0, 0.5], [0.3, 0.8]]), jnp.array([0.2, 0.0])),
  ]
  x = np.float32([[0.2, 0.9], [0.7, 0.3], [0.05, 0.5], [0.95, 0.95]])
  y = np.argmax(apply(layers, x), -1)
  side = np.linspace(-1, 1, 201)
  grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
  inside = grid[np.linalg.norm(grid, ORDERS[norm], axis=-1) <= 1 + 1e-9]
  hidden = x @ layers[0].kernel + layers[0].bias
  # No unit changes its sign within the radius of its own half space, times the dual norm.
  reach = np.abs(np.asarray(layers[0].kernel)).sum(0)
  small = 0.9 * np.min(np.abs(hidden) / reach, axis=-1)
  for radius in (small, np.float32([0.1] * 4), np.float32([0.5] * 4)):
    points = x + radius[:, None] * inside[:, None]
    points = points if box is None else np.clip(points, *box)
    worst = np.max(jax.vmap(lambda p: losses.margin(apply(layers, p), y))(points), axis=0)
    ibp, crown = (
      losses.margin(certify(layers, x, y, norm, radius, box, method).margins, y)
      for method in ("ibp", "crown")
    )
    assert np.all(worst <= crown + 1e-5)
    assert np.all(crown <= ibp + 1e-5)
    if radius is small:
      np.testing.assert_allclose(crown, worst, atol=2e-3)  # the grid's own error


def attacked(net, norm, box):
  """(key, radius [B]) -> the margins [B] that PGD reaches."""
  layers, x, y = problem(net)

  @jax.jit
  def reached(key, radius):
    u, step = SETS[norm](radius, box), ro.LInf(radius / 4) if norm == "linf" else ro.L2(radius / 2)
    value_fn = lambda x: losses.margin(apply(layers, x), y)  # noqa: E731
    delta, _ = ro.ascend(ro.pgd(u, step), 20)(value_fn, key, x)
    return value_fn(x + delta)

  return reached


@EVERY_CASE
def test_what_is_certified_withstands_pgd(net, norm, box):
  """At the edge of what CROWN, the tighter method, certifies; some examples are, some are not."""
  layers, x, y = problem(net)
  radii = np.concatenate([[0.0], np.geomspace(1e-3, 3, 12) * RADII[norm]]).astype(np.float32)
  robust = np.stack([certify(layers, x, y, norm, r, box).robust for r in radii])
  assert robust[0].all()
  assert not robust[-1].all()
  radius = np.array([radii[np.flatnonzero(column)[-1]] for column in robust.T])
  assert np.mean(radius > 0) > 0.5

  bounded = losses.margin(certify(layers, x, y, norm, radius, box).margins, y)
  attack = attacked(net, norm, box)
  for seed in range(5):
    reached = attack(jax.random.key(seed), radius)
    assert np.all(reached < 0)
    assert np.all(reached <= bounded + 1e-5)


def test_blocks_change_nothing(monkeypatch):
  layers, x, y = problem("mlp")
  whole = certify(layers, x, y, "linf", 0.1)
  monkeypatch.setattr(bounds, "_BLOCK", 4)
  bounds._certified.clear_cache()
  in_blocks = jax.jit(lambda radius: bounds.certified(layers, x, y, ro.LInf(radius)))
  chex.assert_trees_all_close(in_blocks(np.full(BATCH, 0.1, np.float32)), whole, atol=1e-6)


@EVERY_METHOD
def test_nothing_is_certified_of_what_is_not_right_to_begin_with(method):
  layers, x, y = problem("mlp")
  assert certify(layers, x, y, "linf", 0, None, method).robust.all()
  for labels in ((y + 1) % 3, np.full_like(y, -1), np.full_like(y, 3)):
    assert not certify(layers, x, labels, "linf", 0, None, method).robust.any()
  for value in (np.nan, np.inf):
    kernel = layers[2].kernel.copy()
    kernel[0, 0] = value
    broken = (*layers[:2], Dense(kernel, layers[2].bias), *layers[3:])
    for radius in (0, 0.1):
      assert not certify(broken, x, y, "linf", radius, None, method).robust.any()
  tie = [Flatten(), Dense(jnp.zeros((4, 3)))]
  assert not certify(tie, x, np.zeros_like(y), "linf", 0, None, method).robust.any()
  unbounded = certify(layers, x, y, "linf", np.inf, None, method)
  assert not unbounded.robust.any()


def test_bad_input_is_named():
  layers, x, y = problem("mlp")
  with pytest.raises(
    ro.InputError, match=r"certified takes ro.LInf, ro.L2 or .* not the string 'l3'"
  ):
    bounds.certified(layers, x, y, "l3")
  with pytest.raises(ro.InputError, match=r"logit_bounds takes ro.LInf.*, not an L0"):
    bounds.logit_bounds(layers, x, ro.sets.L0(2, 0.1))
  with pytest.raises(ro.InputError, match="method must be 'crown' or 'ibp', but was 'milp'"):
    bounds.certified(layers, x, y, ro.L2(0.1), method="milp")
  with pytest.raises(ro.InputError, match="end in logits"):
    bounds.logit_bounds([Affine()], x, ro.L2(0.1))
