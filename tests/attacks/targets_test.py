"""Targeted attacks: what they call a success is the target's prediction, for every attack."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_opt as ro
from robust_opt import losses
from robust_opt.attacks import fab, minimal, sigma_zero, white_box
from robust_opt.attacks import targets as targets_lib
from robust_opt.attacks.square import square
from robust_opt.attacks.targets import target_classes, targeted

BATCH, NUM_ENTRIES, NUM_CLASSES = 6, 5, 4
BOX = (0.0, 1.0)
U = ro.L2(0.8, BOX)
ATTACKS = {
  "apgd": lambda: white_box.ascent(ro.apgd(U, 15, keep_best=True), losses.margin),
  "pgd": lambda: white_box.ascent(
    ro.ascend(ro.pgd(U, ro.L2(0.1)), 15, keep_best=True), losses.cross_entropy
  ),
  "fab": lambda: fab.fab(U, num_steps=10),
  "square": lambda: square(U, num_queries=100),
  "ddn": lambda: minimal.ddn(ro.L2(math.inf, BOX), 40),
  "sigma_zero": lambda: sigma_zero.sigma_zero(ro.sets.L0(NUM_ENTRIES, box=BOX), 40),
}
SLOW = ("apgd", "pgd", "fab", "square", "ddn", "sigma_zero")


@functools.cache
def problem():
  """Weights, examples, labels, and targets, of which the first is predicted already."""
  rng = np.random.default_rng(2)
  weights = rng.normal(size=(NUM_ENTRIES, NUM_CLASSES)).astype(np.float32)
  x = rng.uniform(0.2, 0.8, (BATCH, NUM_ENTRIES)).astype(np.float32)
  y = np.argmax(net(weights, x), -1).astype(np.int32)
  targets = ((y + 1) % NUM_CLASSES).astype(np.int32)
  targets[0] = y[0]
  return weights, x, y, targets


def net(weights, x):
  return (x - 0.5) @ weights


@pytest.mark.parametrize(
  "name", [pytest.param(a, marks=pytest.mark.slow if a in SLOW else ()) for a in ATTACKS]
)
def test_a_success_is_the_prediction_of_the_target(name):
  weights, x, _, targets = problem()
  logits_fn = functools.partial(net, weights)
  attack = targeted(ATTACKS[name]())
  keys = jax.random.split(jax.random.key(0), BATCH)
  delta, hit = jax.jit(lambda keys, x, t: attack(keys, logits_fn, x, t))(keys, x, targets)
  np.testing.assert_array_equal(hit, np.argmax(logits_fn(x + delta), -1) == targets)
  assert hit[0]
  np.testing.assert_array_equal(delta[0], 0)
  assert np.mean(hit[1:]) >= 0.6


def test_targets():
  logits = jnp.asarray([[3.0, 1.0, -2.0], [-5.0, 0.0, 1.0]])
  y = np.array([2, 2])
  np.testing.assert_array_equal(target_classes("least_likely", logits, y), [1, 0])
  np.testing.assert_array_equal(target_classes(1, logits, y), [1, 1])
  many = np.zeros(3000, int)
  drawn = target_classes("random", jnp.zeros((3000, 3)), many, jax.random.key(0))
  assert np.all(np.abs(np.bincount(drawn, minlength=3) - [0, 1500, 1500]) < 150)


def test_the_two_logits():
  logits = jnp.asarray([[3.0, 1.0, 2.0], [0.0, 5.0, 5.0], [0.0, jnp.nan, 1.0], [0.0, 1.0, jnp.inf]])
  two = targets_lib._two_logits(lambda x: logits, jnp.array([2, 2, 2, 2]), logits)
  np.testing.assert_array_equal(two[:2], [[3, 2], [5, 5]])
  assert np.all(losses.correct(two, jnp.zeros(4, jnp.int32)))  # the target is never predicted


@pytest.mark.parametrize(
  ("target", "sentence"),
  [
    (4, "target must be a class from 0 to 3, or one of least_likely, random, but was 4"),
    ("cat", "but was 'cat'"),
    ("random", "Random targets need a key"),
  ],
)
def test_bad_input_is_one_sentence(target, sentence):
  with pytest.raises(ro.InputError, match=sentence):
    target_classes(target, jnp.zeros((2, 4)), np.zeros(2, int))
