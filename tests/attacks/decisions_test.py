"""Attacks that see labels alone: near the exact distance of a linear net."""

import functools
import math

import jax
import numpy as np
import pytest

import robust_opt as ro
from robust_opt.attacks.boundary import boundary
from robust_opt.attacks.hop_skip_jump import hop_skip_jump
from robust_opt.certificates import exact

BATCH, NUM_ENTRIES, BOX = 6, 5, (0.0, 1.0)


def labels_alone(weights, bias, x):
  return jax.nn.one_hot((x @ weights + bias).argmax(-1), weights.shape[1])


ATTACKS = {
  "hop_skip_jump": functools.partial(hop_skip_jump, num_steps=8, num_evaluations=40, num_starts=20),
  "boundary": functools.partial(boundary, num_steps=500, num_starts=20),
}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("ball", "name"), [(ro.L2, "hop_skip_jump"), (ro.LInf, "hop_skip_jump"), (ro.L2, "boundary")]
)
def test_labels_are_enough(ball, name):
  rng = np.random.default_rng(1)
  weights = rng.normal(size=(NUM_ENTRIES, 3)).astype(np.float32)
  bias = -0.5 * weights.sum(0)
  x = rng.uniform(0.3, 0.7, (BATCH, NUM_ENTRIES)).astype(np.float32)
  y = np.argmax(x @ weights + bias, -1).astype(np.int32)
  y[0] = (y[0] + 1) % 3
  logits_fn = functools.partial(labels_alone, weights, bias)
  attack = ATTACKS[name](ball(math.inf, BOX))
  keys = jax.random.split(jax.random.key(0), BATCH)
  delta, fooled = jax.jit(lambda keys, x, y: attack(keys, logits_fn, x, y))(keys, x, y)
  assert np.all(fooled)
  moved = np.asarray(x + delta)
  assert np.all((moved >= 0) & (moved <= 1))
  assert np.all(np.argmax(logits_fn(moved), -1) != y)
  np.testing.assert_array_equal(delta[0], 0)
  ratio = ro.sets.lengths(ball, np.asarray(delta))[1:]
  ratio = ratio / exact.linear_distance(weights, bias, x, y, ball)[1:]
  assert np.all(ratio > 1 - 1e-5)
  assert np.median(ratio) < 1.1


def test_bad_input_is_one_sentence():
  with pytest.raises(ro.InputError, match=r"hop_skip_jump takes ro\.LInf or ro.L2, not a L1"):
    hop_skip_jump(ro.L1(1.0, BOX))
  with pytest.raises(ro.InputError, match=r"boundary takes ro.L2, not a LInf"):
    boundary(ro.LInf(1.0, BOX))
  with pytest.raises(ro.InputError, match="num_steps must be at least 1"):
    boundary(ro.L2(1.0, BOX), num_steps=0)
  with pytest.raises(ro.InputError, match="num_starts must be at least 1"):
    hop_skip_jump(ro.L2(1.0, BOX), num_starts=0)
