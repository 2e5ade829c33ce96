"""Randomized smoothing of a linear classifier, whose smoothed radius is its distance."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import rounding
from scipy import stats

import robust_opt as ro
from robust_opt.certificates.smoothing import certify_smoothed, class_counts, lower_confidence_bound

pytestmark = pytest.mark.slow  # they compile for minutes


WEIGHTS = np.float32([3.0, -2.0, 1.0, 0.5])
SIGMA = 0.25
BATCH = 6
# A quantile in float64, times sigma in float32.
ROUNDING = rounding(terms=4)


def linear_logits(x):
  """Two classes; the smoothed one is the plain one, by the symmetry of the noise."""
  score = x.reshape(x.shape[0], -1) @ WEIGHTS - 1.0
  return jnp.stack([-score, score], axis=-1)


def three_classes(x):
  return x.reshape(x.shape[0], -1)[:, :3]


@functools.cache
def problem():
  """keys [B], x [B, 2, 2], the plain class [B], and its exact l_2 radius [B]."""
  direction = WEIGHTS / np.linalg.norm(WEIGHTS)
  distance = np.array([-0.5, -0.2, -0.05, 0.05, 0.2, 0.5])
  rng = np.random.default_rng(0)
  along = rng.normal(size=(BATCH, 4))
  along -= (along @ direction)[:, None] * direction
  x = direction / np.linalg.norm(WEIGHTS) + distance[:, None] * direction + along
  x = x.astype(np.float32).reshape(BATCH, 2, 2)
  return jax.random.split(jax.random.key(1), BATCH), x, (distance > 0).astype(int), abs(distance)


def test_radius_is_below_the_exact_one_and_approaches_it():
  keys, x, plain, distance = problem()
  shares = []
  for n in (100, 1000, 30_000):
    prediction, radius = certify_smoothed(keys, linear_logits, x, SIGMA, n=n, at_once=512)
    chex.assert_shape([prediction, radius], (BATCH,))
    chex.assert_type([prediction, radius], [jnp.int32, jnp.float32])
    decided = np.asarray(prediction) >= 0
    np.testing.assert_array_equal(prediction[decided], plain[decided])
    assert np.all(radius <= distance)
    shares.append(radius / distance)
  assert decided.all()
  assert shares[0].mean() < shares[1].mean() < shares[2].mean()
  assert np.all(shares[2][distance < 0.4] > 0.85)


def test_counts_have_the_probability_of_the_class():
  """P(argmax of a noisy copy = the plain class) = Phi(distance / sigma)."""
  keys, x, plain, distance = problem()
  n = 5000
  counts = class_counts(keys, linear_logits, x, SIGMA, n, 256)
  np.testing.assert_array_equal(counts.sum(-1), n)
  p = stats.norm.cdf(distance / SIGMA)
  deviation = np.sqrt(p * (1 - p) / n)
  assert np.all(np.abs(counts[np.arange(BATCH), plain] / n - p) < 4 * deviation)


def test_more_than_two_classes_and_ties():
  keys, x, *_ = problem()

  def certificate(logits_fn, x):
    return certify_smoothed(keys, logits_fn, x, SIGMA, n=2000, at_once=500)

  y = np.arange(BATCH) % 3
  prediction, radius = certificate(three_classes, np.eye(4, dtype=np.float32)[y])
  np.testing.assert_array_equal(prediction, y)
  assert np.all((radius > 0.5) & (radius < 1 / np.sqrt(2)))  # the plain net's own distance

  def broken(x):
    return jnp.where(jnp.arange(3) == 1, jnp.nan, jnp.zeros((x.shape[0], 3)))

  np.testing.assert_array_equal(class_counts(keys, broken, x, SIGMA, 10, 5), 0)
  tie = np.broadcast_to((WEIGHTS / np.sum(WEIGHTS**2)).reshape(2, 2), x.shape).astype(np.float32)
  for logits_fn, images in ((linear_logits, tie), (three_classes, 0 * x), (broken, x)):
    prediction, radius = certificate(logits_fn, images)
    np.testing.assert_array_equal(prediction, -1)
    np.testing.assert_array_equal(radius, 0)


def test_a_key_decides_for_its_example_alone():
  """Neither the neighbors, nor the order, nor how many copies go at once."""
  keys, x, *_ = problem()
  counts = class_counts(keys, linear_logits, x, SIGMA, 101, 64)
  for at_once in (1, 50, 101, 200):
    again = class_counts(keys, linear_logits, x, SIGMA, 101, at_once)
    np.testing.assert_array_equal(again, counts)
  np.testing.assert_array_equal(
    class_counts(keys[::-1], linear_logits, x[::-1], SIGMA, 101, 64)[::-1], counts
  )
  alone = class_counts(keys[2:3], linear_logits, x[2:3], SIGMA, 101, 64)
  np.testing.assert_array_equal(alone, counts[2:3])
  other = class_counts(jax.random.split(jax.random.key(9), BATCH), linear_logits, x, SIGMA, 101, 64)
  assert np.any(other != counts)


def test_the_bound_does_not_see_the_copies_of_the_guess():
  """With as many copies of either, the counts behind the radius are not those of the guess."""
  keys, x, plain, _ = problem()
  guess_keys, bound_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  guesses, counts = (
    class_counts(k, linear_logits, x, SIGMA, 500, 100) for k in (guess_keys, bound_keys)
  )
  assert np.any(guesses != counts)
  _, radius = certify_smoothed(keys, linear_logits, x, SIGMA, 500, 500, 0.01, 100)
  p = stats.beta.ppf(0.01, counts[np.arange(BATCH), plain], 501 - counts[np.arange(BATCH), plain])
  np.testing.assert_allclose(radius, np.where(p > 0.5, SIGMA * stats.norm.ppf(p), 0), rtol=ROUNDING)


@pytest.mark.parametrize("n", [1, 7, 1000])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_clopper_pearson(n, alpha):
  """At the bound the count that was seen, or a larger one, has probability alpha."""
  k = np.unique(np.linspace(0, n, 8).astype(int))
  p = lower_confidence_bound(k, n, alpha)
  assert p[0] == 0
  assert np.all(np.diff(p) > 0)
  assert np.all(p <= k / n)
  np.testing.assert_allclose(stats.binom.sf(k[1:] - 1, n, p[1:]), alpha, rtol=1e-6)
  np.testing.assert_allclose(p[-1], alpha ** (1 / n), rtol=1e-9)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"sigma": 0.0}, "sigma must be > 0, but was 0.0"),
    ({"sigma": float("nan")}, "sigma must be > 0"),
    ({"alpha": 1.0}, "alpha must lie in"),
    ({"n0": 0}, "n0 must be at least 1"),
    ({"n": 0}, "n must be at least 1"),
    ({"at_once": 0}, "at_once must be at least 1"),
    ({"n": 9}, "n must be at least 10 for alpha=0.001, but was 9"),
    ({"x": np.zeros((BATCH, 4), np.uint8)}, "x must be floating point, not uint8"),
    ({"logits_fn": lambda x: linear_logits(x)[:, :1]}, "at least 2 classes"),
  ],
)
def test_bad_input_is_named(change, message):
  keys, x, *_ = problem()
  with pytest.raises(ro.InputError, match=message):
    certify_smoothed(**{"keys": keys, "logits_fn": linear_logits, "x": x, "sigma": 0.1, **change})
