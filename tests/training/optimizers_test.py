"""Torch's dampened SGD: its rule in NumPy, and what it is in terms of optax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rounding import assert_close

from robust_opt.errors import InputError
from robust_opt.experiments import build, config
from robust_opt.training import optimizers

# A rate, a momentum and a sum, in each of at most 8 updates.
close = functools.partial(assert_close, terms=8, steps=8, dtype=np.float32)


def run(optimizer, gradients, start):
  """The parameters after every update."""
  params, state, seen = start, optimizer.init(start), []
  for gradient in gradients:
    updates, state = jax.jit(optimizer.update)(gradient, state, params)
    params = optax.apply_updates(params, updates)
    seen.append(params)
  return seen


@pytest.mark.parametrize(
  ("momentum", "dampening"), [(0.9, 0.9), (0.9, 0.0), (0.5, 0.25), (0.0, 0.0)]
)
def test_the_rule_in_numpy(momentum, dampening):
  rng = np.random.default_rng(0)
  gradients, theta = rng.normal(size=(6, 4)).astype(np.float32), np.ones(4)
  rate = lambda t: 0.1 / (1 + 0.5 * t)  # noqa: E731
  ours = run(optimizers.dampened_sgd(rate, momentum, dampening), gradients, jnp.ones(4))
  velocity = None
  for t, gradient in enumerate(gradients):
    velocity = gradient if velocity is None else momentum * velocity + (1 - dampening) * gradient
    theta = theta - rate(t) * velocity
    close(ours[t], theta)


def test_without_dampening_it_is_optax():
  gradients = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
  ours = run(optimizers.dampened_sgd(0.1, 0.9, dampening=0.0), gradients, jnp.zeros(3))
  close(ours, run(optax.sgd(0.1, 0.9), gradients, jnp.zeros(3)))


def test_after_the_first_gradient_it_is_a_tenth_of_the_rate():
  """What the recipe relies on: sgd(1e-3) is the authors' 1e-2 but for the first gradient."""
  gradients = np.random.default_rng(2).normal(size=(8, 3)).astype(np.float32)
  gradients[0] = 0
  ours = run(optimizers.dampened_sgd(1e-2, 0.9), gradients, jnp.zeros(3))
  close(ours, run(optax.sgd(1e-3, 0.9), gradients, jnp.zeros(3)))
  first = run(optimizers.dampened_sgd(1e-2, 0.9), np.ones((1, 3), np.float32), jnp.zeros(3))
  close(first[0], np.full(3, -1e-2))


def test_a_config_names_it():
  c = config.mnist()
  config.choose(c, "optimizer", "dampened_sgd", learning_rate=0.01, momentum=0.9)
  state = build.optimizer(c, 600).init({"w": jnp.ones(2)})
  assert any(isinstance(leaf, optimizers.DampenedState) for leaf in state[1])
  with pytest.raises(InputError, match=r"nesterov is unknown: .*dampened_sgd takes learning_rate"):
    config.choose(c, "optimizer", "dampened_sgd", learning_rate=0.01, nesterov=True)
