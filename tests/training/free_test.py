"""Training by one backward pass an update: against closed forms, and what it may not cost."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import digits_batch
from programs import equations
from rounding import assert_close, rounding, widest

import robust_opt as ro
from robust_opt import models
from robust_opt.training import free

SETS = {"linf": ro.LInf, "l2": ro.L2, "l1": ro.L1}
BALL = ro.LInf(0.3)
LR = 0.5
pytestmark = pytest.mark.usefixtures("float64")
# Forward and back through 64 pixels, 10 classes and 12 examples, at most twice.
close = functools.partial(assert_close, terms=2 * (64 + 10 + 12), steps=2, scale=1.0)


def products(step, state, batch):
  """Number of matrix products of an update, wherever in its program."""
  jaxpr = jax.make_jaxpr(step)(state, batch, jax.random.key(0)).jaxpr
  return len(list(equations(jaxpr, "dot_general")))


def free_setup(num_replays, u=BALL):
  """(step, state before the first update, batch) of softmax regression."""
  net, optimizer, batch = models.SoftmaxRegression(), optax.sgd(LR), digits_batch()
  params, model_state = widest(models.init(net, jax.random.key(0), (8, 8, 1)))
  step = free.make_free_train_step(models.from_linen(net), optimizer, u, u, num_replays)
  state = ro.init_state(params, model_state, optimizer, jnp.zeros_like(batch.x))
  return jax.jit(step), state, batch


def test_free_training_in_closed_form():
  """Softmax regression in float64: both gradients of the first pass come from the clean batch."""
  step, state, batch = free_setup(num_replays=2)
  x = np.asarray(batch.x, np.float64).reshape(12, -1)
  w, b = (np.asarray(a, np.float64) for a in jax.tree.leaves(state.params)[::-1])
  one_hot, delta = np.eye(10)[np.asarray(batch.y)], 0.0
  for _ in range(2):
    z = (x + delta) @ w + b
    p = np.exp(z - z.max(1, keepdims=True))
    error = p / p.sum(1, keepdims=True) - one_hot
    g = error @ w.T
    w, b = w - LR * (x + delta).T @ error / 12, b - LR * error.mean(0)
    delta = np.clip(delta + 0.3 * np.sign(g), -0.3, 0.3)
  after, metrics = step(state, batch, jax.random.key(0))
  found = jax.tree.leaves(after.params)
  close(found[1], w)
  close(found[0], b)
  close(after.memory.reshape(12, -1), delta)
  assert int(after.step) == 1
  assert int(metrics.zero_gradients) == 0


def test_what_free_training_remembers_fits_the_next_batch():
  """delta of one batch, around another: back into the box first."""
  u = ro.LInf(0.5, (0.0, 1.0))
  step, state, batch = free_setup(3, u)
  state = state.replace(memory=jnp.full_like(batch.x, 0.5))
  gauge = jax.jit(u.gauge)
  for i in range(3):
    x = jnp.roll(batch.x, i, axis=0)
    state, _ = step(state, batch._replace(x=x), jax.random.key(i))
    assert np.max(gauge(state.memory, x)) <= 1 + rounding(dtype=np.float64)


# Recalled training


def recall_setup(norm="linf", box=None):
  """(step, state before the first update) of softmax regression on the first digits."""
  net, optimizer = models.SoftmaxRegression(), optax.sgd(LR)
  params, model_state = widest(models.init(net, jax.random.key(0), (8, 8, 1)))
  step = free.make_recall_train_step(models.from_linen(net), optimizer, SETS[norm](0.3, box))
  memory = free.unknown_directions(jax.random.key(1), 20, (8, 8, 1))
  return jax.jit(step), ro.init_state(params, model_state, optimizer, memory)


def signs_of(state, batch):
  bits = np.unpackbits(np.asarray(state.memory)[np.asarray(batch.ids)], axis=-1)
  return 2.0 * bits.reshape(batch.x.shape) - 1.0


def input_gradient(params, x, y):
  def loss(x):
    logits, _ = models.from_linen(models.SoftmaxRegression())(params, {}, x, train=True, key=None)
    return ro.losses.cross_entropy(logits, y).sum()

  return np.asarray(jax.jit(jax.grad(loss))(x))


@pytest.mark.parametrize(
  "norm", ["l1", *(pytest.param(n, marks=pytest.mark.slow) for n in ("linf", "l2"))]
)
def test_a_recalled_update_is_a_standard_one_at_what_was_recalled(norm):
  box = (0.0, 1.0)
  step, state = recall_setup(norm, box)
  batch = digits_batch(8, start=5)
  ascent = jax.jit(SETS[norm](0.3, box).steepest_ascent)
  delta = ascent(jnp.asarray(signs_of(state, batch)), batch.x)
  after, metrics = step(state, batch, jax.random.key(0))
  apply, optimizer = models.from_linen(models.SoftmaxRegression()), optax.sgd(LR)
  clean = ro.ascend(ro.frank_wolfe(ro.LInf(0.0)), 0)
  plain = jax.jit(ro.make_train_step(apply, optimizer, ro.robust(), clean))
  bare = ro.init_state(state.params, {}, optimizer)
  expected, reported = plain(bare, batch._replace(x=batch.x + delta), jax.random.key(0))
  close(after.params, expected.params)
  close(metrics.loss, reported.loss)


def test_what_is_remembered_is_the_gradient_there_and_only_of_who_was_there():
  step, state = recall_setup()
  batch = digits_batch(8, start=5)
  at = batch.x + 0.3 * jnp.asarray(signs_of(state, batch))
  g = input_gradient(state.params, at, batch.y)
  after, _ = step(state, batch, jax.random.key(0))
  np.testing.assert_array_equal(signs_of(after, batch), np.where(g > 0, 1.0, -1.0))
  others = np.setdiff1d(np.arange(20), np.asarray(batch.ids))
  np.testing.assert_array_equal(np.asarray(after.memory)[others], state.memory[others])


def test_an_example_without_a_gradient_keeps_what_it_remembers():
  def flat(params, model_state, x, *, train, key):
    del train, key
    return jnp.broadcast_to(params, (x.shape[0], 10)), model_state

  batch, optimizer = digits_batch(8), optax.sgd(LR)
  memory = free.unknown_directions(jax.random.key(1), 20, (8, 8, 1))
  step = jax.jit(free.make_recall_train_step(flat, optimizer, ro.LInf(0.1)))
  after, metrics = step(
    ro.init_state(jnp.zeros(10), {}, optimizer, memory), batch, jax.random.key(0)
  )
  np.testing.assert_array_equal(after.memory, memory)
  assert int(metrics.zero_gradients) == 8


def test_an_update_costs_one_pass_forward_and_back():
  """Three matrix products: forward, and the gradients of theta and of delta; no pass of its own."""
  step, state, batch = free_setup(1)
  assert products(step, state, batch) == 3
  step, state = recall_setup()
  assert products(step, state, batch) == 3


def test_directions_take_a_bit_a_pixel():
  memory = free.unknown_directions(jax.random.key(0), 1000, (5, 5, 3))
  chex.assert_shape(memory, (1000, 10))
  assert memory.dtype == jnp.uint8
  share = np.unpackbits(np.asarray(memory)).mean()
  assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(80_000)
