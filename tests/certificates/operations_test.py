"""Nonlinear operations bound themselves, by lines that touch them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_opt.certificates.operations import ABS, RELU, SIGMOID, TANH, Maximum, Piecewise

OPERATIONS = {
  "relu": RELU,
  "abs": ABS,
  "leaky_relu": Piecewise(0.1, 1.0),
  "concave": Piecewise(2.0, -0.5),
  "sigmoid": SIGMOID,
  "tanh": TANH,
  "maximum": Maximum(),
}
COUNT = 300


def values(operation, z):
  """Of entries z [COUNT, 3]: [COUNT, 3], of maxima [COUNT]."""
  if isinstance(operation, Maximum):
    return z.max(axis=-1)
  return np.asarray(operation.function(z) if hasattr(operation, "function") else operation(z))


FAST = ("leaky_relu", "sigmoid", "maximum")


@pytest.mark.parametrize(
  "name",
  [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in OPERATIONS],
)
def test_an_operation_lies_between_its_lines(name):
  operation, rng = OPERATIONS[name], np.random.default_rng(0)
  # Intervals of every sign, some of width 0, each entry or window an example of its own.
  lower, upper = np.sort(3 * rng.normal(size=(2, COUNT, 3)), axis=0).astype(np.float32)
  upper = np.where(rng.random(upper.shape) < 0.1, lower, upper)
  pull_back = jax.jit(jax.vmap(functools.partial(operation.pull_back)))
  low, high = operation.interval(lower, upper)
  shares = np.concatenate([rng.random((100, *lower.shape)), rng.integers(0, 2, (60, *lower.shape))])
  shares = shares.astype(np.float32)
  for sign in (1.0, -1.0):
    for slope in (None, 0.0, 0.7, 1.0):
      a = np.full(low.shape, sign, np.float32)
      chosen = () if slope is None else (np.full(lower.shape, slope, np.float32),)
      pulled, constant = pull_back(a, lower, upper, *chosen)
      bound = np.asarray(constant.value + constant.slack)
      gaps = []
      for share in shares:
        z = np.clip(lower + share * (upper - lower), lower, upper)
        f = values(operation, z)
        assert np.all((low <= f) & (f <= high))
        f = f.reshape(COUNT, -1).astype(np.float64)
        gaps.append(np.sum(np.float64(pulled) * z, axis=-1) + bound - sign * f.sum(axis=-1))
      assert np.min(gaps) >= 0
      if not isinstance(operation, Maximum):
        # Each of the three lines touches its function, at an end, at 0 or in between.
        assert np.all(np.min(gaps, axis=0) < 0.1 + 0.5 * np.max(upper - lower, axis=-1))


def test_lines_by_hand():
  """Settled on either side, and crossing with either line from below."""
  lower, upper = np.float32([1, -3, -1, -3]), np.float32([2, -1, 3, 1])
  pulled, constant = RELU.pull_back(jnp.ones(4), lower, upper)
  np.testing.assert_allclose(pulled, [1, 0, 0.75, 0.25])
  np.testing.assert_allclose(constant.value, 0.75 + 0.75)
  pulled, constant = RELU.pull_back(-jnp.ones(4), lower, upper)
  np.testing.assert_allclose(pulled, [-1, 0, -1, 0])
  np.testing.assert_allclose(constant.value, 0)
  pulled, _ = RELU.pull_back(-jnp.ones(4), lower, upper, jnp.full(4, 0.25))
  np.testing.assert_allclose(pulled, [-1, 0, -0.25, -0.25])
  pulled, constant = Piecewise(0.5, 1.0).pull_back(jnp.ones(4), lower, upper)
  np.testing.assert_allclose(pulled, [1, 0.5, 0.875, 0.625])  # the chords of (-1, 3) and (-3, 1)
  np.testing.assert_allclose(constant.value, 0.375 + 0.375)


def test_a_maximum_that_one_entry_always_attains_is_exact():
  lower = np.float32([[0, -2, 3, 1]])
  for sign in (1, -1):
    pulled, constant = Maximum().pull_back(jnp.full(1, sign, jnp.float32), lower, lower + 1.5)
    np.testing.assert_array_equal(pulled, [[0, 0, sign, 0]])
    np.testing.assert_array_equal(constant.value, 0)
