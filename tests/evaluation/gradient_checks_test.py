"""Checks before the attacks: each is failed by the net that is made for it, and by no other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_opt as ro
from robust_opt.evaluation import gradient_checks, network, trust, trust_checks

SIZE, COUNT = 16, 40
# What is wrong with a net: numbers, so that all nets are one program; 0 is nothing wrong.
FAULTS = ("gain", "no_gradient", "infinite", "backwards")
NAMES = ("gradients", "finite gradients", "slope", "pixels")


@functools.cache
def problem():
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(6, 5)).astype(np.float32)
  x = rng.random((COUNT, 6)).astype(np.float32)
  return weights, x, np.argmax(x @ weights, axis=1)


def net(weights, fault, x):
  """[B, 6] -> [B, 5]: of `no_gradient` entries the derivative is 0."""
  constant = jax.lax.stop_gradient(x)
  x = jnp.where(jnp.arange(6) < fault["no_gradient"], constant, x)
  x = x + 2 * fault["backwards"] * (constant - x)
  x = x + jnp.sqrt(constant - x + 1 - fault["infinite"])  # of 0 the derivative is infinite
  return 10.0 ** fault["gain"] * (x @ weights)


def checks(**faults):
  weights, x, y = problem()
  fault = {name: jnp.float32(faults.get(name, 0.0)) for name in FAULTS}
  logits_fn = network.as_argument(jax.tree_util.Partial(net, weights, fault), x)
  gradients = gradient_checks.measure(logits_fn, x, y, SIZE)
  made = [
    gradient_checks.zeros(gradients, np.arange(COUNT)),
    gradient_checks.finite(gradients),
    gradient_checks.slope(gradients),
    gradient_checks.pixels(logits_fn, x, gradients, SIZE, 0, (0.0, 1.0)),
  ]
  assert tuple(check.name for check in made) == NAMES
  return {check.name: check for check in made}


def failed(made):
  return {name for name, check in made.items() if check.failed}


def test_each_is_failed_by_the_net_that_is_made_for_it():
  assert failed(checks()) == set()
  saturated = checks(gain=4)
  assert failed(saturated) == {"gradients"}
  assert "exactly 0 at 33 of the 40 images" in saturated["gradients"].measured
  assert failed(checks(infinite=1)) == {"finite gradients"}
  assert failed(checks(backwards=1)) == {"slope"}
  blind = checks(no_gradient=3)
  assert failed(blind) == {"pixels"}
  assert blind["pixels"].measured.startswith("3 of 6 entries have no gradient at any image;")
  # No gradient at all: the loss is flat, and a slope cannot be measured.
  none = checks(no_gradient=6)
  assert failed(none) == {"gradients", "pixels"}
  assert none["slope"].passed is None


def test_few_saturated_images_are_few():
  flat = np.zeros(200, bool)
  for count, passed in ((0, True), (2, True), (3, False)):
    flat[:count] = True
    some = gradient_checks.Gradients(flat, ~flat, flat, ~flat, np.ones(3, bool))
    assert gradient_checks.zeros(some, np.arange(200)).passed is passed


def test_outputs_of_few_levels():
  logits = np.random.default_rng(0).normal(size=(200, 10)).astype(np.float32)
  assert trust_checks.levels(logits).passed
  assert trust_checks.levels(logits.astype(jnp.bfloat16)).passed
  assert trust_checks.levels(np.round(8 * logits)).failed
  assert trust_checks.levels(np.round(8 * logits[:9])).passed is None


def test_entries_without_influence_need_no_gradient():
  weights, x, y = problem()
  weights = np.where(np.arange(6)[:, None] < 2, 0.0, weights).astype(np.float32)
  logits_fn = network.as_argument(jax.tree_util.Partial(lambda w, x: x @ w, weights), x)
  gradients = gradient_checks.measure(logits_fn, x, y, SIZE)
  check = gradient_checks.pixels(logits_fn, x, gradients, SIZE, 0, (0.0, 1.0))
  assert check.passed
  assert "2 of 6 entries have no gradient at any image; noise of up to 0.05 there" in check.measured


@pytest.mark.slow
def test_they_are_the_first_of_the_trust_report_and_take_any_set():
  weights, x, y = problem()
  logits_fn = functools.partial(lambda w, x: x @ w, weights)
  u = ro.LInf(0.05, box=(0.0, 1.0))
  options = {"seed": 1, "batch_size": SIZE, "examples": 30}
  first = trust.preliminary(logits_fn, x, y, u, **options)
  report = functools.partial(trust.report, logits_fn, x, y, u, **options)
  whole = report(num_steps=2, num_queries=2)
  assert whole[: len(first)] == first
  assert report(num_steps=2, num_queries=2, clean=first) == whole
  assert trust.preliminary(logits_fn, x, y, ro.sets.GroupL21(0.1, np.arange(6)), **options) == first
