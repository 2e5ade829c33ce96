"""Sparse-RS: within its set, repeatable, close to the best of all choices on a linear net."""

import functools
import itertools

import jax
import numpy as np
import pytest

import robust_opt as ro
from robust_opt.attacks.sparse_rs import sparse_rs

BATCH, SHAPE, BOX = 8, (4, 3), (0.0, 1.0)


def linear(weights, x):
  return (x - 0.5).reshape(len(x), -1) @ weights


@functools.cache
def problem():
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(12, 3)).astype(np.float32)
  x = rng.random((BATCH, *SHAPE), np.float32)
  y = np.argmax(linear(weights, x), -1).astype(np.int32)
  return weights, x, y


@jax.jit
def attacked(u, seed, weights, x, y):
  keys = jax.random.split(jax.random.key(seed), BATCH)
  return sparse_rs(u, 150)(keys, functools.partial(linear, weights), x, y)


def best_margin(weights, x, y, k):
  """The largest margin over all choices of k pixels, each channel at its better end, [B]."""
  best = np.full(len(x), -np.inf)
  for i, j in itertools.product(range(len(x)), range(3)):
    w = (weights[:, j] - weights[:, y[i]]).reshape(SHAPE)
    gains = np.sum(np.maximum(-w * x[i], w * (1 - x[i])), -1)
    clean = np.sum(w * (x[i] - 0.5))
    if j != y[i]:
      best[i] = max(best[i], clean + np.sum(np.sort(gains)[::-1][:k]))
  return best


def test_it_fools_what_can_be_fooled_with_so_many_pixels():
  weights, x, y = problem()
  for k in (1, 2):
    u = ro.sets.L0(k, 1.0, BOX, channel_axis=-1)
    delta, fooled = attacked(u, 0, weights, x, y)
    moved = np.asarray(x + delta)
    assert np.all((moved >= 0) & (moved <= 1))
    assert np.all(np.sum(np.any(np.asarray(delta) != 0, -1), -1) <= k)
    np.testing.assert_array_equal(fooled, np.argmax(linear(weights, moved), -1) != y)
    possible = best_margin(weights, x, y, k) > 0
    np.testing.assert_array_equal(fooled, possible)
    assert np.mean(possible) > 0
    np.testing.assert_array_equal(delta[~fooled], 0)
    again = attacked(u, 0, weights, x, y)
    np.testing.assert_array_equal(again.delta, delta)


@pytest.mark.parametrize(
  ("make", "sentence"),
  [
    (lambda: sparse_rs(ro.L2(1.0, BOX)), "sparse_rs takes ro.sets.L0 with a finite box"),
    (lambda: sparse_rs(ro.sets.L0(3, box=BOX), alpha=0.0), "alpha must be in"),
    (lambda: sparse_rs(ro.sets.L0(3, box=BOX), num_queries=0), "num_queries must be at least 1"),
    (
      lambda: ro.sets.L0(3, box=BOX, channel_axis=3).project(np.ones((2, 4)), np.ones((2, 4))),
      "channel_axis must be an axis of an example",
    ),
  ],
)
def test_bad_input_is_one_sentence(make, sentence):
  with pytest.raises(ro.InputError, match=sentence):
    make()
