"""Training on labels that are no classes: any loss that takes y, and its worst case."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rounding import assert_close

import robust_opt as ro
from robust_opt.training import free as one_pass
from robust_opt.training import take
from robust_opt.training.step import check_batch

COUNT, ENTRIES, OUTPUTS, RADIUS = 48, 6, 3, 0.05
BALL = ro.LInf(RADIUS)
ONE_STEP = ro.steepest(BALL)


def apply(params, model_state, x, *, train, key):
  return x @ params["w"] + params["b"], model_state


def binary(logits, y):
  return optax.sigmoid_binary_cross_entropy(logits[:, 0], y)


def one_output(outputs, y):
  return (outputs[:, 0] - y) ** 2


def squares(outputs, y):
  return jnp.sum((outputs - y) ** 2, axis=-1)


def several(logits, y):
  return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, y), axis=-1)


def problem(kind):
  """(loss, y [N, ...], number of outputs): labels that a linear model can learn from x."""
  rng = np.random.default_rng(0)
  x = rng.random((COUNT, ENTRIES)).astype(np.float32)
  z = (x - 0.5) @ rng.normal(size=(ENTRIES, OUTPUTS)).astype(np.float32)
  loss, y, outputs = {
    "one_logit": (binary, (z[:, 0] > 0).astype(np.float32), 1),
    "one_logit_of_integers": (binary, (z[:, 0] > 0).astype(np.int32), 1),
    "regression": (one_output, z[:, 0], 1),
    "regression_of_several": (squares, z, OUTPUTS),
    "soft_labels": (optax.softmax_cross_entropy, np.asarray(jax.nn.softmax(4 * z)), OUTPUTS),
    "several_labels": (several, (z > 0).astype(np.float32), OUTPUTS),
  }[kind]
  return loss, ro.ArrayData(x, y), outputs


def fresh(outputs, optimizer, memory=()):
  params = {"w": jnp.zeros((ENTRIES, outputs)), "b": jnp.zeros(outputs)}
  return ro.init_state(params, {}, optimizer, memory)


def trained(make_step, kind, memory=(), num_steps=40):
  loss, data, outputs = problem(kind)
  optimizer = optax.adam(0.03)
  scan = ro.make_scan(make_step(optimizer, loss), ro.EpochPlan(COUNT, 16))
  run = jax.jit(scan, static_argnums=3)
  state, metrics = run(fresh(outputs, optimizer, memory), data, jax.random.key(1), num_steps)
  # At w = 0, the first gradient in x is 0 for every example: none moves.
  assert int(metrics.zero_gradients[0]) == 16
  epochs = np.mean(np.reshape(metrics.loss[:39], (13, 3)), axis=1)
  assert epochs[-1] < 0.95 * epochs[0]
  return state


@pytest.mark.parametrize(
  "kind",
  [
    "one_logit",
    "one_logit_of_integers",
    "regression_of_several",
    "soft_labels",
  ],
)
def test_a_step_takes_any_loss_and_labels(kind):
  """With an attack that compares points, which the loss itself then decides."""
  pgd = ro.ascend(ro.pgd(BALL, ro.LInf(RADIUS / 2)), 2, keep_best=True)
  attack = ro.restarts(pgd, 2)
  trained(lambda opt, loss: ro.make_train_step(apply, opt, ro.robust(loss), attack), kind)


@pytest.mark.parametrize("objective", [ro.mixture, lambda loss: ro.gradient_penalty(BALL, loss)])
def test_other_objectives_of_a_loss_take_them_too(objective):
  def make(opt, loss):
    return ro.make_train_step(apply, opt, objective(loss=loss), ONE_STEP)

  trained(make, "regression_of_several")


@pytest.mark.parametrize("kind", ["regression", "several_labels"])
def test_steps_of_one_backward_pass_take_them(kind):
  def free(opt, loss):
    return one_pass.make_free_train_step(apply, opt, BALL, BALL, 1, loss)

  trained(free, kind, jnp.zeros((16, ENTRIES)))

  def recall(opt, loss):
    return one_pass.make_recall_train_step(apply, opt, BALL, loss)

  trained(recall, kind, one_pass.unknown_directions(jax.random.key(2), COUNT, (ENTRIES,)))


@pytest.mark.parametrize("outputs", [1, OUTPUTS])
def test_algorithm_1_of_a_linear_regression_in_closed_form(outputs):
  """For J = |W'x - y|^2 delta is radius * sign(W (W'x - y)), and grad_W J = 2 x' (W'x' - y)'."""
  loss, data, _ = problem("regression" if outputs == 1 else "regression_of_several")
  rng, optimizer = np.random.default_rng(3), optax.sgd(0.1)
  w, b = rng.normal(size=(ENTRIES, outputs)), rng.normal(size=outputs)
  state = ro.init_state({"w": jnp.float32(w), "b": jnp.float32(b)}, {}, optimizer)
  batch = take(data, jnp.arange(8))
  step = jax.jit(ro.make_train_step(apply, optimizer, ro.robust(loss), ONE_STEP))
  new, metrics = step(state, batch, jax.random.key(0))

  x, y = np.float64(batch.x), np.float64(batch.y).reshape(8, outputs)
  moved = x + RADIUS * np.sign((x @ w + b - y) @ w.T)
  error = moved @ w + b - y
  expected = {"w": w - 0.1 * 2 * moved.T @ error / 8, "b": b - 0.1 * 2 * error.mean(axis=0)}
  terms = 4 * (ENTRIES + outputs + 8)  # forward and back, twice
  assert_close(metrics.loss, np.mean(np.sum(error**2, axis=1)), terms=terms)
  assert_close(new.params, expected, terms=terms)


def test_classes_are_compared_by_the_margin_and_others_by_the_loss():
  rng = np.random.default_rng(0)
  z, y = rng.normal(size=(8, 3)).astype(np.float32), rng.integers(0, 3, 8)
  for loss in (ro.losses.cross_entropy, ro.losses.one_vs_all, ro.losses.dlr):
    out = ro.robust(loss).inner(lambda x: (x, {}), z, y)(z)
    np.testing.assert_array_equal(out.score, ro.losses.margin(z, y))
    np.testing.assert_array_equal(out.value, loss(z, y))
  soft = np.eye(3, dtype=np.float32)[y]
  out = ro.robust(optax.softmax_cross_entropy).inner(lambda x: (x, {}), z, soft)(z)
  np.testing.assert_array_equal(out, optax.softmax_cross_entropy(z, soft))


# What is refused.


def mean_of_all(z, y):
  return jnp.mean((z - y) ** 2)


def broadcast(z, y):
  return optax.sigmoid_binary_cross_entropy(z, y)  # [B, 1] against [B]: [B, B]


def not_summed(z, y):
  return (z - y[:, None]) ** 2


@pytest.mark.parametrize("loss", [mean_of_all, broadcast, not_summed])
@pytest.mark.parametrize("free", [False, True])
def test_a_loss_has_one_value_for_each_example(loss, free):
  optimizer, batch = optax.sgd(0.1), take(problem("one_logit")[1], jnp.arange(8))
  if free:
    step = one_pass.make_free_train_step(apply, optimizer, BALL, BALL, 1, loss)
  else:
    step = ro.make_train_step(apply, optimizer, ro.robust(loss), ONE_STEP)
  state = fresh(1, optimizer, jnp.zeros((8, ENTRIES)))
  with pytest.raises(ro.InputError, match=r"^The loss must return one value for each of the 8 ex"):
    step(state, batch, jax.random.key(0))


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"y": jnp.zeros(7)}, r"^A batch of 8 examples must have y \[8, \.\.\.\].*\(7,\)"),
    ({"y": jnp.zeros(())}, r"^A batch of 8 examples must have y"),
    ({"ids": jnp.zeros((8, 1), jnp.int32)}, r"ids \[8\], but they have the shapes .*\(8, 1\)"),
    ({"x": jnp.zeros((8, 6), jnp.uint8)}, r"floating point array .* but are uint8 of the shape"),
    ({"x": {"image": jnp.zeros((8, 6))}}, r"one floating point array .* but are a dict"),
  ],
)
def test_batches_that_do_not_fit_together(change, words):
  batch = take(problem("regression")[1], jnp.arange(8))
  with pytest.raises(ro.InputError, match=words):
    check_batch(batch._replace(**change))
