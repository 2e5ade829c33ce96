"""The measurements on nets whose answers are known."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import assert_close, rounding

from robust_opt.errors import InputError
from robust_opt.theory import explanations

BATCH, SHAPE, NUM_CLASSES = 5, (3, 2, 1), 3
EPSILONS = np.linspace(-2, 2, 9, dtype=np.float32)
# Forward and back through 6 inputs, to 3 classes, and least squares over 9 points.
TERMS = 2 * (6 + NUM_CLASSES) + 4 * 9
ROUNDING = rounding(terms=TERMS)
close = functools.partial(assert_close, terms=TERMS, dtype=np.float32)


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def linear_net(weights):
  """weights [C, *S]: logits <w_k, x>."""
  return lambda x: jnp.sum(x[:, None] * weights, axis=tuple(range(2, x.ndim + 1)))


X, DIRECTION = draw(BATCH, *SHAPE), draw(BATCH, *SHAPE, seed=1)
WEIGHTS = draw(NUM_CLASSES, *SHAPE, seed=2)
LINEAR = linear_net(WEIGHTS)

linearity = jax.jit(explanations.linearity)
rotate = jax.jit(explanations.rotate_toward)
smallest_angle = jax.jit(explanations.smallest_angle, static_argnums=0)
agreement_on_mistakes = jax.jit(explanations.agreement_on_mistakes)
confidence_on_mistakes = jax.jit(explanations.confidence_on_mistakes)


def first_coordinate(x):
  """Logits (x_0, 0): class 1 where the first input is below 0; NaN where it is."""
  first = x.reshape(len(x), -1)[:, 0]
  return jnp.stack([first, 0 * first], axis=-1)


# Growth with the dimension


def test_the_worst_change_grows_with_n_and_noise_with_its_root():
  dimensions = (1, 16, 256)
  growth = explanations.activation_growth(jax.random.key(0), dimensions, 0.25, 2000)
  n = np.array(dimensions)
  close(growth.worst, 0.25 * n)
  close(growth.noise[0], 0.25)  # one input: noise is the worst
  np.testing.assert_allclose(growth.noise[1:], 0.25 * np.sqrt(np.pi * n[1:] / 2), rtol=0.08)


def test_growth_at_one_dimension_does_not_depend_on_the_others():
  key = jax.random.key(1)
  alone = explanations.activation_growth(key, [7], 0.1, 3)
  among = jax.jit(lambda eps: explanations.activation_growth(key, np.array([2, 7]), eps, 3))(0.1)
  close(among.noise[1], alone.noise[0])


@pytest.mark.parametrize(
  ("dimensions", "trials"), [([], 1), (np.array([], int), 1), ([0], 1), ([2, -1], 1), ([2], 0)]
)
def test_growth_rejects_nothing_to_draw(dimensions, trials):
  with pytest.raises(InputError, match="but w"):
    explanations.activation_growth(jax.random.key(0), dimensions, 0.1, trials)


# Along a line


def test_the_sweep_takes_the_net_along_the_line():
  traces = []

  def net(x):
    traces.append(1)
    return jnp.tanh(LINEAR(x))

  logits = jax.jit(lambda e: explanations.epsilon_sweep(net, X, DIRECTION, e))(EPSILONS)
  assert len(traces) == 1
  chex.assert_shape(logits, (9, BATCH, NUM_CLASSES))
  straight = LINEAR(X) + EPSILONS[:, None, None] * LINEAR(DIRECTION)
  close(logits, jnp.tanh(straight))
  fit = linearity(EPSILONS, straight)
  chex.assert_shape(fit, (BATCH, NUM_CLASSES))
  close(fit.line, 1)
  close(fit.knee, 1)


def test_a_knee_at_zero_is_seen_and_broken_curves_are_nan():
  both_ways = np.abs(EPSILONS)[:, None, None]
  fit = linearity(EPSILONS, both_ways)
  close(fit.line, 0, scale=1.0)  # it rises as much as it falls
  close(fit.knee, 1)
  logits = np.stack([np.full(9, 3.3), np.full(9, np.nan), EPSILONS], axis=1)[:, None]
  logits[4, 0, 1] = np.inf
  for r_squared in linearity(EPSILONS, jnp.asarray(logits, jnp.float32)):
    np.testing.assert_array_equal(np.isnan(r_squared[0]), [True, True, False])


def test_r_squared_is_that_of_least_squares():
  logits = np.asarray(draw(9, 2, NUM_CLASSES))
  fit = linearity(EPSILONS, logits)
  one = np.ones(9)
  designs = {
    "line": [one, EPSILONS],
    "knee": [one, np.minimum(EPSILONS, 0), np.maximum(EPSILONS, 0)],
  }
  flat = logits.reshape(9, -1)
  total = np.sum((flat - flat.mean(0)) ** 2, axis=0)
  for name, columns in designs.items():
    _, residual, _, _ = np.linalg.lstsq(np.stack(columns, axis=1), flat, rcond=None)
    found = np.ravel(getattr(fit, name))
    close(found, 1 - residual / total)
  assert np.all(fit.knee >= fit.line - ROUNDING)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_r_squared_knows_no_units(scale):
  logits = draw(9, 1, 2)
  expected = linearity(EPSILONS, logits)
  found = linearity(EPSILONS * np.float32(1 / scale), 5.0 * scale + scale * logits)
  chex.assert_trees_all_close(found, expected, atol=1e-4)


def test_linearity_on_one_side_of_x_only():
  eps = np.arange(6, dtype=np.float32)
  fit = linearity(eps, eps[:, None, None] ** 2)
  close(fit.knee, fit.line)
  assert fit.line[0, 0] < 0.99


def test_lines_reject_what_says_nothing():
  with pytest.raises(InputError, match="at least 4"):
    linearity(EPSILONS[:3], jnp.zeros((3, 1, 2)))
  with pytest.raises(InputError, match="direction must have the shape"):
    explanations.epsilon_sweep(LINEAR, X, DIRECTION[0], EPSILONS)
  with pytest.raises(InputError, match="has none"):
    explanations.intervals(jnp.zeros((0, 2), bool))


@pytest.mark.parametrize(
  ("wrong", "runs", "longest"),
  [("", 0, 0), ("111111", 1, 6), ("101101", 3, 2), ("011100", 1, 3), ("110001", 2, 2)],
)
def test_intervals(wrong, runs, longest):
  column = np.array([digit == "1" for digit in wrong.ljust(6, "0")])
  found = jax.jit(explanations.intervals)(np.stack([column, ~column], axis=1))
  assert (found.runs[0], found.longest[0]) == (runs, longest)
  chex.assert_type(found, jnp.int32)


# In a plane


def test_the_plane_of_a_linear_net():
  u, v = X, DIRECTION
  found = jax.jit(lambda extent: explanations.plane(LINEAR, X, u, v, extent, 5))(2.0)
  chex.assert_shape(found, (BATCH, 5, 5))
  grid = np.linspace(-2, 2, 5)
  for j, a in enumerate(grid):
    for k, b in enumerate(grid):
      np.testing.assert_array_equal(found[:, j, k], jnp.argmax(LINEAR(X + a * u + b * v), axis=-1))
  broken = explanations.plane(lambda x: LINEAR(x) + jnp.inf * x[:, 0, 0], X, X, X, 1.0, 3)
  assert np.all(broken == -1)
  with pytest.raises(InputError, match="v must have the shape"):
    explanations.plane(LINEAR, X, X, X[:1], 1.0, 3)
  with pytest.raises(InputError, match="at least 2"):
    explanations.plane(LINEAR, X, X, X, 1.0, 1)


@pytest.mark.parametrize("resolution", [3, 83])
def test_the_middle_of_a_plane_is_x_to_the_bit(resolution):
  seen = []

  def net(x):
    jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
    return x.reshape(len(x), -1)

  jax.block_until_ready(explanations.plane(net, X, 1e6 * X, 1e7 * X, 0.3, resolution))
  jax.effects_barrier()
  assert sum(np.array_equal(x, X) for x in seen) == 1


def test_components():
  corners = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 0]])  # touching at corners only
  masks = np.stack([corners, np.zeros((3, 3)), np.ones((3, 3)), 1 - corners]).astype(bool)
  np.testing.assert_array_equal(explanations.components(masks), [4, 0, 1, 3])
  assert explanations.components(masks[0]) == 4
  with pytest.raises(InputError, match="1 axes"):
    explanations.components(masks[0, 0])


# Rotations


def length(x):
  return np.linalg.norm(np.asarray(x, np.float64).reshape(len(x), -1), axis=1)


def angle_between(a, b):
  """By the half angle, exact for small and for large angles."""
  a, b = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (a, b))
  a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
  return 2 * np.arctan2(np.linalg.norm(a - b, axis=1), np.linalg.norm(a + b, axis=1))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("angle", [1e-3, 0.3, np.pi / 2, 2.5])
def test_rotation_turns_by_the_angle_and_keeps_the_norm(angle, scale):
  rotated = rotate(X, scale * DIRECTION, angle)
  close(length(rotated), length(X))
  np.testing.assert_allclose(angle_between(X, rotated), angle, rtol=3e-4)
  full = angle_between(X, DIRECTION)
  close(angle_between(rotated, DIRECTION), np.abs(full - angle))


def test_rotation_by_nothing_and_without_a_plane_leaves_x():
  np.testing.assert_array_equal(rotate(X, DIRECTION, 0.0), X)
  for g in (0 * X, X, -X, 3e-7 * X, 1e20 * X):
    np.testing.assert_array_equal(rotate(X, g, 0.7), X)
  np.testing.assert_array_equal(rotate(0 * X, DIRECTION, 0.7), 0 * X)


def test_rotation_keeps_examples_apart():
  rotated = rotate(X, DIRECTION.at[1].set(jnp.nan), 0.2)
  assert np.all(np.isnan(rotated[1]))
  alone = rotate(X[:1], DIRECTION[:1], 0.2)
  close(rotated[:1], alone)
  with pytest.raises(InputError, match="g must have the shape"):
    rotate(X, DIRECTION[:1], 0.2)


def test_the_smallest_angle_is_that_at_which_the_class_turns():
  """x at the angle a from the boundary x_0 = 0: the first of the grid beyond a."""
  distance = np.array([0.25, 0.55, 1.4])
  x = jnp.asarray(np.stack([np.sin(distance), np.cos(distance)], axis=1), jnp.float32)
  g = jnp.tile(jnp.array([-1.0, 0.0]), (3, 1))
  angles = jnp.arange(8) / 10
  y = jnp.zeros(3, int)
  found = smallest_angle(first_coordinate, x, y, g, angles)
  close(found, [0.3, 0.6, np.inf])
  mistaken = smallest_angle(first_coordinate, x, y + 1, g, angles)
  np.testing.assert_array_equal(mistaken, 0)
  still = smallest_angle(first_coordinate, x, y, 0 * g, angles)
  np.testing.assert_array_equal(still, np.inf)
  broken = smallest_angle(first_coordinate, x * jnp.nan, y, g, angles)
  np.testing.assert_array_equal(broken, 0)
  with pytest.raises(InputError, match="at least one angle"):
    smallest_angle(first_coordinate, x, y, g, angles[:0])


# Nets side by side


def test_agreement_on_mistakes():
  y = jnp.array([0, 0, 0, 0, 1, 2])
  a = jnp.array([0, 1, 1, 2, 0, 1])  # wrong from the second on
  b = jnp.array([1, 1, 0, 1, 0, 2])  # as a: the second and the fifth; both wrong: the fourth too
  found = agreement_on_mistakes(a, b, y)
  close((found.mistakes, found.both), (2 / 5, 2 / 3))
  assert (found.num_mistakes, found.num_both) == (5, 3)
  same = agreement_on_mistakes(a, a, y)
  assert (same.mistakes, same.both) == (1, 1)
  y = jnp.array([0, 1])
  for a, b, mistakes in ((y, 1 - y, np.nan), (1 - y, y, 0)):  # one of them never errs
    found = agreement_on_mistakes(a, b, y)
    np.testing.assert_array_equal([found.mistakes, found.both], [mistakes, np.nan])


def test_transfer_matrix():
  nets = [LINEAR, lambda x: -LINEAR(x), lambda x: jnp.nan * LINEAR(x)]
  sets = [X, -X]
  y = jnp.argmax(LINEAR(X), axis=-1)
  found = explanations.transfer_matrix(nets, sets, y)
  np.testing.assert_array_equal(found, [[1, 0, 0], [0, 1, 0]])
  np.testing.assert_array_equal(explanations.transfer_matrix(nets, jnp.stack(sets), y), found)
  half = y.at[:2].set((y[:2] + 1) % NUM_CLASSES)
  np.testing.assert_allclose(explanations.transfer_matrix(nets[:1], sets[:1], half), [[0.6]])
  for missing in (([], sets), (nets, [])):
    with pytest.raises(InputError, match="at least one net and one set"):
      explanations.transfer_matrix(*missing, y)


def test_effective_weights_are_averaged_over_examples():
  """Without what all logits share."""
  centered = WEIGHTS - jnp.mean(WEIGHTS, axis=0)
  close(explanations.effective_weights(lambda x: LINEAR(x) + jnp.sum(x**2), X), centered)
  squared = explanations.effective_weights(lambda x: LINEAR(x**2), X)
  close(squared, 2 * jnp.mean(X, axis=0) * centered)
  with pytest.raises(InputError, match="at least 2 classes"):
    explanations.effective_weights(lambda x: LINEAR(x)[:, :1], X)


def test_cosine_similarity():
  a = jnp.array([[3.0, 4.0], [3.0, 4.0], [1.0, 0.0], [1e-30, 0.0], [0.0, 0.0]])
  b = jnp.array([[30.0, 40.0], [-3.0, -4.0], [0.0, 2.0], [1e30, 1e30], [1.0, 1.0]])
  found = jax.jit(explanations.cosine_similarity)(a, b)
  np.testing.assert_allclose(found, [1, -1, 0, np.sqrt(0.5), np.nan], atol=ROUNDING)
  with pytest.raises(InputError, match="b must have the shape"):
    explanations.cosine_similarity(a, b[0])


# Confidence


def test_confidence_on_mistakes():
  probabilities = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [1.0, 0.0]])
  broken = probabilities.at[0, 0].set(jnp.nan)
  for p, y, expected in (
    (probabilities, [0, 0, 0, 0], (0.7, 0.95, 0.5)),
    (probabilities[::3], [0, 0], (np.nan, 0.95, 0)),
    (probabilities[::3], [1, 1], (0.95, np.nan, 1)),
    (broken[::3], [0, 0], (np.nan, 1.0, 0.5)),
  ):
    found = confidence_on_mistakes(p, jnp.array(y))
    np.testing.assert_allclose(found, expected, rtol=ROUNDING)


def test_rubbish_rate():
  probabilities = jnp.array([[0.9, 0.9, 0.1], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.0, 0.0, 0.0]])
  assert explanations.rubbish_rate(probabilities) == 0.5
  assert explanations.rubbish_rate(probabilities, 0.8) == 0.25
  assert explanations.rubbish_rate(probabilities, 0.0) == 0.75
  assert np.isnan(explanations.rubbish_rate(probabilities.at[0].set(jnp.nan)))
