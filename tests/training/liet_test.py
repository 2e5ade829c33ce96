"""Single steps from label information: against closed forms in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import digits_batch
from rounding import assert_close, widest

import robust_opt as ro
from robust_opt import losses, models
from robust_opt.training import liet

RADIUS, LR, WEIGHT = 0.1, 0.5, 3.0
pytestmark = pytest.mark.usefixtures("float64")
close = functools.partial(assert_close, terms=4 * (64 + 10), steps=2, scale=1.0)


def setup(refresh=2):
  """(jitted step, state before the first update) of softmax regression."""
  net, optimizer = models.SoftmaxRegression(), optax.sgd(LR)
  params, model_state = widest(models.init(net, jax.random.key(0), (8, 8, 1)))
  ball = ro.LInf(RADIUS, (0.0, 1.0))
  apply = models.from_linen(net)
  step = liet.make_liet_train_step(apply, optimizer, ball, lambda step: WEIGHT, refresh)
  state = ro.init_state(params, model_state, optimizer, widest(jnp.zeros((10, 8, 8, 1))))
  return jax.jit(step), state


def logits(params, x):
  return models.from_linen(models.SoftmaxRegression())(params, {}, x, train=True, key=None)[0]


def gradient_in_x(params, x, y):
  return jax.grad(lambda x: losses.cross_entropy(logits(params, x), y).sum())(x)


def information(params):
  gray = jnp.full((10, 8, 8, 1), 0.5)
  return RADIUS * jnp.sign(gradient_in_x(params, gray, jnp.arange(10)))


@jax.jit
def expected(params, batch, sign):
  """(parameters, loss) after an update that starts at sign times the label information."""
  u = ro.LInf(RADIUS, (0.0, 1.0))
  start = u.project(sign * information(params)[batch.y], batch.x)
  ascent = RADIUS * jnp.sign(gradient_in_x(params, batch.x + start, batch.y))
  x_adv = batch.x + u.project(start + ascent, batch.x)

  def loss(params):
    before, after = logits(params, batch.x + start), logits(params, x_adv)
    divergence = losses.jensen_shannon(before, after)
    return jnp.mean(losses.cross_entropy(after, batch.y) + WEIGHT * divergence)

  value, gradient = jax.value_and_grad(loss)(params)
  return jax.tree.map(lambda w, g: w - LR * g, params, gradient), value


def test_an_update_in_closed_form(monkeypatch):
  """Without noise, of a single example, whose start has one of two signs."""
  monkeypatch.setattr(liet, "NOISE", (0.0, 0.0))
  step, state = setup()
  batch = digits_batch(1)
  both = [expected(state.params, batch, sign) for sign in (1.0, -1.0)]
  found = set()
  for i in range(5):
    after, metrics = step(state, batch, jax.random.key(i))
    sign = int(np.argmin([abs(metrics.loss - value) for _, value in both]))
    close(after.params, both[sign][0])
    close(metrics.loss, both[sign][1])
    found.add(sign)
  assert found == {0, 1}
  assert float(abs(both[0][1] - both[1][1])) > 1e-3


@pytest.mark.slow
def test_label_information_is_refreshed_at_every_kth_step():
  step, first = setup(refresh=2)
  batch = digits_batch()
  second, _ = step(first, batch, jax.random.key(0))
  close(second.memory, information(first.params))
  third, _ = step(second, batch, jax.random.key(1))
  np.testing.assert_array_equal(third.memory, second.memory)
  fourth, _ = step(third, batch, jax.random.key(2))
  close(fourth.memory, information(third.params))
  assert np.any(fourth.memory != second.memory)


@pytest.mark.slow
def test_labels_may_be_soft():
  """One-hot labels are the classes."""
  step, state = setup()
  batch = digits_batch()
  soft = batch._replace(y=widest(jax.nn.one_hot(batch.y, 10)))
  hard, _ = step(state, batch, jax.random.key(0))
  close(step(state, soft, jax.random.key(0))[0].params, hard.params)
