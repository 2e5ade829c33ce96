"""Auto-PGD: its schedule by hand, its steps by a NumPy reference, its answers by closed forms."""

import functools
import math
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import rounding

import robust_opt as ro
from robust_opt.errors import InputError
from robust_opt.maximizers.apgd import (
  _sparse_step,
  apgd,
  apgd_shrinking_l1,
  apgd_steps,
  checkpoints,
)

SETS = {"linf": ro.LInf, "l2": ro.L2, "l1": ro.L1}
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
BOTH_ALGORITHMS = pytest.mark.parametrize("name", ["l2", "l1"])  # l_inf runs that of l_2
BATCH, SHAPE, NUM_STEPS = 16, (3, 4), 50
# Sums over the entries: a value, a gradient's norm, a projection.
ROUNDING = rounding(terms=2 * 12 + 8)


@functools.cache
def problem():
  """keys [B], x [B, 3, 4], radius [B], gradients g [B, 3, 4] that are nowhere nearly 0."""
  rng = np.random.default_rng(0)
  x = rng.random((BATCH, *SHAPE)).astype(np.float32)
  x[:4] = np.round(x[:4])
  g = rng.uniform(0.5, 1.5, x.shape) * rng.choice([-1, 1], x.shape)
  radius = 10 ** rng.uniform(-1.5, 0.3, BATCH)
  keys = jax.random.split(jax.random.key(1), BATCH)
  return keys, x, radius.astype(np.float32), g.astype(np.float32)


def wave(x, g):
  """A function of many maxima, each example by itself: [B, 3, 4] -> [B]."""
  return jnp.sum(jnp.sin(12 * g * x) + 0.5 * jnp.sin(7 * x + g), axis=(1, 2))


def linear(x, g):
  return jnp.sum(g * x, axis=(1, 2))


def scan_states(maximizer, value_fn, keys, x, num_steps=NUM_STEPS):
  """The states before, between and after the steps, [num_steps + 1], and what these report."""

  def body(state, _):
    new, info = maximizer.step(value_fn, state, x)
    return new, (state, info)

  last, (states, info) = jax.lax.scan(body, maximizer.init(keys, x), length=num_steps)
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), states, last), info


@functools.cache
def trajectory(name):
  """Over the wave with box, as NumPy."""
  keys, x, radius, g = problem()
  run = jax.jit(
    lambda keys, x, radius, g: scan_states(
      apgd_steps(SETS[name](radius, (0.0, 1.0)), NUM_STEPS), lambda x: wave(x, g), keys, x
    )
  )
  return jax.tree.map(np.asarray, run(keys, x, radius, g))


def check_feasible(delta, name, x, radius):
  """Of deltas [..., B, 3, 4] over the ball and the pixels."""
  flat = np.asarray(delta, np.float64).reshape(*delta.shape[:-2], -1)
  assert np.all(np.linalg.norm(flat, ORDERS[name], axis=-1) <= radius * (1 + ROUNDING))
  moved = x + np.asarray(delta)
  assert np.all((moved >= 0) & (moved <= 1))


# The schedule.


def test_the_checkpoints_are_those_of_the_paper():
  # 0.22, 0.22 + 0.19, + 0.16, + 0.13, + 0.10, + 0.07, + 0.06 (not 0.04), + 0.06; then 1.05 > 1.
  assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
  assert checkpoints(10) == (3, 5, 6, 7, 8, 9, 10)  # 9 and 10 twice
  assert checkpoints(1) == (1,)
  assert checkpoints(0) == ()


@pytest.mark.parametrize("num_steps", [7, 40, 300, 1000])
def test_the_checkpoints_obey_their_recurrence(num_steps):
  last, now, expected = Fraction(0), Fraction(22, 100), set()
  while now <= 1:
    expected.add(math.ceil(now * num_steps))
    last, now = now, now + max(now - last - Fraction(3, 100), Fraction(6, 100))
  assert checkpoints(num_steps) == tuple(sorted(expected))


# Algorithm 1, step by step.


def reference(function, gradient, x, start, radius, num_steps, order):
  """Algorithm 1 of arXiv 2003.01690 for one example [n] in [0, 1], over l_inf or l_2, in float64.

  Returns x_0 ... x_{N-1}, x_k after its restart, the step sizes from each of them, and f(x_k).
  """

  def project(z):
    if order == np.inf:
      return np.clip(np.clip(z, x - radius, x + radius), 0, 1)
    low, high = 0.0, 1.0  # of the multiplier of z - x, by the KKT conditions
    for _ in range(60):
      middle = (low + high) / 2
      inside = np.linalg.norm(np.clip(x + middle * (z - x), 0, 1) - x) <= radius
      low, high = (middle, high) if inside else (low, middle)
    whole = np.clip(z, 0, 1)
    return whole if np.linalg.norm(whole - x) <= radius else np.clip(x + low * (z - x), 0, 1)

  def direction(g):
    return np.sign(g) if order == np.inf else g / np.linalg.norm(g)

  eta, points, values, etas = 2 * radius, [start], [], []
  best, best_value, checkpoint = None, -np.inf, 0
  for k in range(num_steps):
    values.append(function(points[k]))
    if values[k] > best_value:
      best, best_value = points[k], values[k]
    if k == 0:
      eta_then, best_value_then = eta, best_value  # w_0 = 0
    if k in checkpoints(num_steps):
      rises = sum(values[i + 1] > values[i] for i in range(checkpoint, k))
      stalls = eta == eta_then and best_value == best_value_then
      oscillates = rises < 0.75 * (k - checkpoint)
      checkpoint, eta_then, best_value_then = k, eta, best_value
      if oscillates or stalls:
        eta, points[k], values[k] = eta / 2, best, best_value
    etas.append(eta)
    z = project(points[k] + eta * direction(gradient(points[k])))
    if k == 0:
      points.append(z)
    else:
      momentum = 0.75 * (z - points[k]) + 0.25 * (points[k] - points[k - 1])
      points.append(project(points[k] + momentum))
  return np.array(points[:-1]), np.array(etas), np.array(values)


@pytest.mark.parametrize("name", ["linf", "l2"])
def test_agrees_with_a_reference_step_by_step(name):
  num_steps = 20
  with jax.enable_x64(True):
    keys, *arrays = problem()
    x, radius, g = (np.asarray(a, np.float64) for a in arrays)
    radius = np.maximum(radius, 0.5)  # in small balls the ascent converges at once
    maximizer = apgd_steps(SETS[name](radius, (0.0, 1.0)), num_steps)

    run = jax.jit(
      lambda keys, x, g: scan_states(maximizer, lambda x: wave(x, g), keys, x, num_steps)
    )
    (delta, memory), _ = jax.tree.map(np.asarray, run(keys, x, g))
  compared, halvings = 0, 0
  for i in range(BATCH):
    flat_x, flat_g = x[i].reshape(-1), g[i].reshape(-1)
    points, etas, values = reference(
      lambda z, g=flat_g: np.sum(np.sin(12 * g * z) + 0.5 * np.sin(7 * z + g)),
      lambda z, g=flat_g: 12 * g * np.cos(12 * g * z) + 3.5 * np.cos(7 * z + g),
      *(flat_x, flat_x + delta[0, i].reshape(-1), radius[i], num_steps, ORDERS[name]),
    )
    # Once the ascent has converged, rounding decides which value is larger.
    converged = np.flatnonzero(np.abs(np.diff(values)) < 1e-13)
    until = converged[0] if len(converged) else num_steps
    ours = memory.previous[1:, i].reshape(num_steps, -1)
    np.testing.assert_allclose(ours[:until], points[:until] - flat_x, atol=1e-7)
    np.testing.assert_array_equal(memory.step_size[1:, i][:until], etas[:until])
    compared += until
    halvings += np.sum(np.diff(etas[:until]) != 0)
  assert compared > BATCH * num_steps / 2
  assert halvings > BATCH  # the restarts were among what agreed


def test_the_l1_step_adapts_its_sparsity_and_length():
  states, info = trajectory("l1")
  radius, (_, best, eta, sparsity) = problem()[2], states.memory
  np.testing.assert_allclose(sparsity[0], 12 / 5, rtol=ROUNDING)
  np.testing.assert_array_equal(eta[0], radius)
  entries = np.sum(
    np.abs(best.delta) > 1e-5 * np.abs(best.delta).max((2, 3), keepdims=True), (2, 3)
  )
  for t in range(NUM_STEPS):
    if t == 0 or t % 2:  # every 4 % of 50 steps
      np.testing.assert_array_equal(sparsity[t + 1], sparsity[t])
      np.testing.assert_array_equal(eta[t + 1], eta[t])
      continue
    np.testing.assert_allclose(sparsity[t + 1], entries[t + 1] / 1.5, rtol=ROUNDING)
    sparser = sparsity[t + 1] < 0.95 * sparsity[t]
    expected = np.where(sparser, radius, np.maximum(eta[t] / 1.5, radius / 10))
    np.testing.assert_allclose(eta[t + 1], expected, rtol=ROUNDING)
  np.testing.assert_allclose(eta.min(axis=0), radius / 10, rtol=ROUNDING)
  np.testing.assert_array_equal(best.value[1:], np.maximum.accumulate(info.value))


def test_an_l1_step_is_not_lost_on_entries_at_the_box():
  x, slope = jnp.full((1, 3), 0.5), jnp.array([3.0, 2.0, 1.0])
  maximizer = apgd_steps(
    ro.L1(1.0, (0.0, 1.0)), 100, random_start=False
  )  # no checkpoint before step 4
  delta, info = jax.jit(lambda x: ro.ascend(maximizer, 4)(lambda x: x @ slope, None, x))(x)
  np.testing.assert_allclose(delta, [[0.5, 0.5, 0.0]], rtol=ROUNDING)
  np.testing.assert_allclose(info.value[:, 0] - 3.0, [0, 1.5, 2.5, 2.5], rtol=ROUNDING)


# What every maximizer owes, beyond contracts_test.


@pytest.mark.parametrize(
  "name", ["l1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("linf", "l2"))]
)
def test_a_linear_function_is_maximized_within_the_set_at_every_step(name):
  """With one gradient a step, also where the best point is kept."""
  keys, x, radius, g = problem()
  u, calls = SETS[name](radius, (0.0, 1.0)), []

  @jax.custom_vjp
  def value_fn(x):
    return linear(x, g)

  def backward(_, cotangent):
    jax.debug.callback(lambda: calls.append(1))
    return (g * cotangent[:, None, None],)

  value_fn.defvjp(lambda x: (value_fn(x), None), backward)
  attack = jax.jit(lambda x: ro.apgd(u, NUM_STEPS, keep_best=True)(value_fn, keys, x))
  delta, info = jax.block_until_ready(attack(x))
  jax.effects_barrier()
  assert len(calls) == NUM_STEPS
  chex.assert_shape(info, (NUM_STEPS, BATCH))
  check_feasible(delta, name, x, radius)
  check_feasible(trajectory(name)[0].delta, name, x, radius)
  best = np.sum(g * u.steepest_ascent(g, x), axis=(1, 2))
  gained = np.sum(g * delta, axis=(1, 2))
  np.testing.assert_allclose(gained, best, rtol=1e-4 if name != "l1" else 1e-3)


# Degenerate functions.


@BOTH_ALGORITHMS
def test_a_zero_gradient_stays_and_goes_on_from_the_best(name):
  """A hat that is flat outside: the flat examples stay; those thrown off the hat come back."""
  x = jnp.linspace(0, 1, 8)[:, None] * jnp.ones(4)

  def hat(x):
    return jnp.sum(jnp.maximum(0.0, 0.3 - jnp.abs(x - 0.45)), axis=-1)

  flat = np.asarray(hat(x) == 0)
  maximizer = apgd_steps(SETS[name](0.5, (0.0, 1.0)), NUM_STEPS, random_start=False)
  attack = jax.jit(lambda x: ro.ascend(maximizer, NUM_STEPS, keep_best=True)(hat, None, x))
  delta, info = attack(x)
  chex.assert_tree_all_finite((delta, info))
  assert flat.any()
  np.testing.assert_array_equal(delta[flat], 0)
  assert info.zero_gradient[:, flat].all()
  assert np.all(hat(x + delta)[~flat] > hat(x)[~flat])


@BOTH_ALGORITHMS
def test_nan_is_never_the_best_to_restart_from(name):
  """Beyond a cliff the value is NaN while the gradient is not: the ascent keeps coming back."""
  _, x, _, g = problem()

  def cliff(delta):
    gained = linear(delta, g)
    return jnp.where(gained > 0.1, jnp.nan, 0.0) + gained

  maximizer = apgd_steps(SETS[name](0.3), NUM_STEPS, random_start=False)
  states, info = jax.jit(lambda x: scan_states(maximizer, cliff, None, x))(0 * x)
  assert np.isnan(info.value).any(axis=0).all()
  chex.assert_tree_all_finite((states.delta, states.memory.best.value[1:]))
  assert np.all(states.memory.best.value[1:] >= 0)


# Against plain projected ascent, and in larger balls.


@functools.cache
def classifier():
  """A net of 10 classes, far from linear within the radii, on [64, 12] with its own labels."""
  rng = np.random.default_rng(3)
  first, second = rng.normal(size=(12, 32)), rng.normal(size=(32, 10))
  x = rng.random((64, 12)).astype(np.float32)

  def logits_fn(x):
    return jnp.tanh((x - 0.5) @ first * 2) @ second

  return logits_fn, x, np.argmax(logits_fn(x), -1)


@functools.cache
def mean_gain(name, method, radius, num_steps=20):
  """By how much an attack raises the mean cross-entropy, at num_steps gradients."""
  logits_fn, x, y = classifier()
  u = SETS[name](radius, (0.0, 1.0))
  attacks = {
    "apgd": lambda: ro.apgd(SETS[name](radius, (0.0, 1.0)), num_steps, keep_best=True),
    "pgd": lambda: ro.ascend(ro.pgd(u, step_of(name, 2.5 * radius / num_steps)), num_steps, True),
    "shrinking": lambda: apgd_shrinking_l1(ro.L1(radius, (0.0, 1.0)), num_steps, keep_best=True),
  }
  value_fn = lambda x: ro.losses.cross_entropy(logits_fn(x), y)  # noqa: E731
  keys = jax.random.split(jax.random.key(4), len(x))
  delta, info = jax.jit(lambda keys, x: attacks[method]()(value_fn, keys, x))(keys, x)
  assert len(info.value) == num_steps
  check_feasible(delta[:, None], name, x[:, None], radius)
  gains = np.asarray(value_fn(x + delta) - value_fn(x))
  assert gains.min() >= 0
  return gains.mean()


def step_of(name, length):
  """Signs over l_inf, Euclidean steps over l_2 and l_1."""
  return ro.LInf(length) if name == "linf" else ro.L2(length)


@pytest.mark.parametrize(("name", "radius"), [("linf", 0.2), ("l2", 0.6), ("l1", 1.0)])
@pytest.mark.slow
def test_beats_plain_ascent_at_as_many_gradients(name, radius):
  """Steps of PGD as Madry et al. choose them, 2.5 radius / num_steps."""
  assert mean_gain(name, "apgd", radius) > 1.05 * mean_gain(name, "pgd", radius)


@pytest.mark.slow
def test_shrinking_balls_end_in_the_last_and_are_no_worse():
  assert mean_gain("l1", "shrinking", 1.0) > 0.98 * mean_gain("l1", "apgd", 1.0)


@pytest.mark.slow
def test_shrinking_balls_maximize_a_linear_function():
  keys, x, radius, g = problem()

  @jax.jit
  def attack(keys, x, radius, g):
    shrinking = apgd_shrinking_l1(ro.L1(radius, (0.0, 1.0)), 2 * NUM_STEPS)
    return shrinking(lambda x: linear(x, g), keys, x)

  delta, info = attack(keys, x, radius, g)
  check_feasible(delta, "l1", x, radius)
  chex.assert_shape(info, (2 * NUM_STEPS, BATCH))
  best = np.sum(g * ro.L1(radius, (0.0, 1.0)).steepest_ascent(g, x), axis=(1, 2))
  np.testing.assert_allclose(np.sum(g * delta, axis=(1, 2)), best, rtol=1e-3)
  gained = info.value - linear(x, g)
  assert np.all(gained.max(0) > best)  # on the way it was outside
  delta, info = apgd_shrinking_l1(ro.L1(radius), 0)(lambda x: linear(x, g), keys, x)
  chex.assert_shape(info, (0, BATCH))


# What is refused.


def test_what_is_refused():
  x = jnp.zeros((2, 3))
  with pytest.raises(InputError, match=r"takes ro\.LInf, ro\.L2 or ro\.L1.*not an L0"):
    apgd(ro.sets.L0(2, 0.1), 10)
  with pytest.raises(InputError, match="num_steps must be an integer >= 0, but was -1"):
    apgd(ro.LInf(0.1), -1)
  for name in SETS:
    with pytest.raises(InputError, match="radius must be >= 0"):
      apgd(SETS[name](-0.1), 10)
    with pytest.raises(InputError, match="random start needs a key"):
      jax.eval_shape(functools.partial(apgd_steps(SETS[name](0.1), 10).init, None), x)
    other = apgd_steps(SETS[name](np.ones(3)), 10, random_start=False)
    with pytest.raises(InputError, match="one for each of the 2 examples"):
      jax.eval_shape(functools.partial(other.init, None), x)
    maximizer = apgd_steps(SETS[name](0.1), 10, random_start=False)
    with pytest.raises(InputError, match="one value for each of the 2 examples"):
      jax.eval_shape(functools.partial(ro.ascend(maximizer, 10), jnp.sum, None), x)


@BOTH_ALGORITHMS
def test_more_steps_than_were_planned_adapt_nothing(name):
  """And fewer are the beginning of the plan."""
  keys, x, radius, g = problem()
  run = jax.jit(
    lambda keys, x: (
      scan_states(apgd_steps(SETS[name](radius), 4), lambda x: wave(x, g), keys, x, 8)[0].memory
    )
  )
  step_size = np.asarray(run(keys, x).step_size)
  assert np.any(step_size[:6] != step_size[0])
  np.testing.assert_array_equal(step_size[5:], np.broadcast_to(step_size[5], (4, BATCH)))


@pytest.mark.parametrize(
  ("free", "expected"),
  [
    ((True, True, True, True), (1.5, -1.5, 0, 0)),
    ((False, True, True, True), (1.5, -1.5, 0, 0)),  # a held entry counts
    ((False, False, True, True), (1, -1, 1, 0)),  # down to the first that can move
  ],
)
def test_an_l1_step_counts_the_entries_that_the_box_holds(free, expected):
  gradient = jnp.array([4.0, -3.0, 2.0, 1.0])
  step = _sparse_step(gradient, jnp.array(free), jnp.array(2.9), jnp.array(3.0))
  np.testing.assert_allclose(step, expected, rtol=ROUNDING)
