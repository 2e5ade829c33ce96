"""Torch's dampened SGD against NumPy and optax, and the projection of columns of weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rounding import assert_close, rounding

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


@pytest.mark.parametrize(("momentum", "dampening"), [(0.9, 0.0), (0.5, 0.25), (0.0, 0.0)])
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


def test_a_config_names_it():
  c = config.mnist()
  config.choose(c, "optimizer", "dampened_sgd", learning_rate=0.01, momentum=0.9)
  state = build.optimizer(c, 600).init({"w": jnp.ones(2)})
  assert any(isinstance(leaf, optimizers.DampenedState) for leaf in state[1])
  with pytest.raises(InputError, match=r"nesterov is unknown: .*dampened_sgd takes learning_rate"):
    config.choose(c, "optimizer", "dampened_sgd", learning_rate=0.01, nesterov=True)


# Schedules, against their formulas: 20 epochs of 5 updates.

PEAK, TOTAL, PER_EPOCH = 0.5, 100, 5


def half_cosine(start, end, t):
  return end + (start - end) * (1 + np.cos(np.pi * t)) / 2


def one_cycle(step):
  low, end = PEAK / 10, PEAK / 1000
  return (
    half_cosine(low, PEAK, step / 20) if step < 20 else half_cosine(PEAK, end, (step - 20) / 80)
  )


def warmup_cosine(step):
  return PEAK * step / 10 if step < 10 else half_cosine(PEAK, PEAK / 100, (step - 10) / 90)


def piecewise(step):
  return PEAK * (0.1 if step >= 15 else 1) * (0.5 if step >= 60 else 1) * (2 if step >= 90 else 1)


@pytest.mark.parametrize(
  ("formula", "own"),
  [
    (one_cycle, {"warmup": 0.2, "div_factor": 10.0, "final_div_factor": 100.0}),
    (warmup_cosine, {"warmup": 0.1, "end": 0.01}),
    (piecewise, {"boundaries": (3, 0.6, 0.9), "factors": (0.1, 0.5, 2.0)}),
  ],
)
def test_schedules_are_their_formulas(formula, own):
  rate = jax.jit(optimizers.SCHEDULES[formula.__name__](PEAK, TOTAL, PER_EPOCH, **own))
  expected = [formula(step) for step in range(TOTAL)]
  np.testing.assert_allclose([rate(step) for step in range(TOTAL)], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", optimizers.SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 3])
def test_schedules_of_few_updates_are_finite(name, total):
  rate = optimizers.SCHEDULES[name](PEAK, total, 1)
  values = np.array([rate(step) for step in range(total)])
  assert np.isfinite(values).all()
  assert (values >= 0).all()
  assert (values <= PEAK * (1 + 1e-6)).all()


# The bound on columns of weights.

LIMIT = 1.9365
BOUND = 1 + rounding(terms=16)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def column_norms(kernel):
  w = np.asarray(kernel, np.float64)
  return np.linalg.norm(w.reshape(-1, w.shape[-1]), axis=0)


def projected(params, updates, limit=LIMIT):
  bound = optimizers.max_column_norm(limit)
  new, state = jax.jit(bound.update)(updates, bound.init(params), params)
  assert state == optax.EmptyState()
  return optax.apply_updates(params, new), new


def test_columns_are_projected_exactly():
  params = {"kernel": normal(5, 8), "conv": 0.3 * normal(2, 3, 4, 6), "bias": 100 * normal(8)}
  updates = jax.tree.map(lambda w: 0.3 * normal(*w.shape, seed=1), params)
  moved, changed = projected(params, updates)
  np.testing.assert_array_equal(changed["bias"], updates["bias"])
  for name in ("kernel", "conv"):
    after = params[name].astype(np.float64) + updates[name]
    norm = column_norms(after)
    assert (norm <= LIMIT).any()
    assert (norm > LIMIT).any()
    close(moved[name], after * np.minimum(1, LIMIT / norm))
    inside = norm <= LIMIT
    np.testing.assert_array_equal(changed[name][..., inside], updates[name][..., inside])
    close(column_norms(moved[name])[~inside], LIMIT)
    assert column_norms(moved[name]).max() <= LIMIT * BOUND


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_columns_of_any_scale(scale):
  """No square under- or overflows: from weights of 0, the update is the new weight."""
  direction = normal(5, 3)
  params = {"kernel": jnp.zeros((5, 3))}
  moved, _ = projected(params, {"kernel": np.float32(scale) * direction}, limit=2.0)
  if scale < 1:
    np.testing.assert_array_equal(moved["kernel"], np.float32(scale) * direction)
  else:
    expected = 2 * direction / np.linalg.norm(direction, axis=0)
    close(moved["kernel"], expected)
