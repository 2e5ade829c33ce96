"""What the learner pays beside its loss."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rounding import assert_close, rounding

import robust_opt as ro
from robust_opt import models
from robust_opt.keys import keys_of
from robust_opt.models import affine
from robust_opt.training import init_state, penalties

SHAPE = (6, 6, 2)
# Forward and back through at most 72 inputs and 9 outputs, and norms of as many.
TERMS = 2 * (72 + 9)
ROUNDING = rounding(terms=2 * TERMS)
close = functools.partial(assert_close, terms=TERMS, scale=1.0, dtype=np.float32)


def batch_of(shape, classes=3, size=4):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.random((size, *shape)), jnp.float32)
  return ro.Batch(x, jnp.asarray(rng.integers(0, classes, size)), jnp.arange(size))


def keys_for(batch, seed=0):
  return keys_of(jax.random.key(seed), batch.ids)


def matrix_of(layer, shape):
  """The linear part of a layer as a matrix [out, in]."""
  eye = jnp.eye(int(np.prod(shape))).reshape(-1, *shape)
  return np.asarray(layer.linear(eye).reshape(len(eye), -1).T, np.float64)


def random_layer(kind, padding="SAME", strides=(1, 1)):
  rng = np.random.default_rng(1)
  if kind == "dense":
    return affine.Dense(jnp.asarray(rng.normal(size=(72, 9)), jnp.float32)), (72,)
  kernel = jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32)
  return affine.Conv(kernel, 0.0, strides, padding), SHAPE


@pytest.mark.parametrize(
  "given",
  [pytest.param(("dense",), marks=pytest.mark.slow), ("conv", "SAME", (2, 2))],
  ids=str,
)
def test_the_largest_singular_value_and_its_gradient(given):
  """Its gradient is the outer product u v^T of the singular vectors."""
  layer, shape = random_layer(*given)
  u, singular, vt = np.linalg.svd(matrix_of(layer, shape), full_matrices=False)
  converged = lambda layer: penalties.largest_singular_value(layer, shape, 4000)  # noqa: E731
  found, gradient = jax.jit(jax.value_and_grad(converged))(layer)
  np.testing.assert_allclose(found, singular[0], rtol=1e-4)
  v = jnp.asarray(vt[:1].reshape(1, *shape), jnp.float32)

  def paired(kernel):  # <u, L v>
    moved = dataclasses.replace(layer, kernel=kernel).linear(v)
    return jnp.sum(moved.reshape(-1) * u[:, 0])

  expected = jax.jit(jax.grad(paired))(layer.kernel)
  np.testing.assert_allclose(gradient.kernel, expected, rtol=2e-2, atol=2e-3)
  after = lambda layer: [  # noqa: E731
    penalties.largest_singular_value(layer, shape, k) for k in (1, 2, 4, 8, 16)
  ]
  few = jax.jit(after)(layer)
  # From below, and never worse for an iteration more.
  assert np.all(np.diff(few) >= -ROUNDING * singular[0])
  assert few[-1] <= singular[0] * (1 + ROUNDING)


def test_weights_of_zero_have_no_norm_and_no_gradient():
  layer = affine.Dense(jnp.zeros((5, 3)))
  norm = lambda layer: penalties.largest_singular_value(layer, (5,))  # noqa: E731
  value, gradient = jax.jit(jax.value_and_grad(norm))(layer)
  assert value == 0
  np.testing.assert_array_equal(gradient.kernel, 0)


@pytest.mark.slow
def test_operator_norms_of_a_net():
  """Nothing but weights counts: neither the examples nor the standardization."""
  net = models.DigitsCNN()
  params, _ = models.init(net, jax.random.key(0), (8, 8, 1))
  batch = batch_of((8, 8, 1))
  of_net = functools.partial(affine.layers_of, net)
  penalty = penalties.operator_norm(of_net, iterations=300)
  value = jax.jit(penalty)(params, {}, batch, keys_for(batch))
  shape, expected = (8, 8, 1), 0.0
  for layer in of_net(params):
    if isinstance(layer, affine.Dense | affine.Conv):
      expected += np.linalg.norm(matrix_of(layer, shape), 2) ** 2
    shape = layer(jnp.zeros((1, *shape))).shape[1:]
  np.testing.assert_allclose(value, expected, rtol=1e-3)
  other = penalties.operator_norm(
    functools.partial(affine.layers_of, net.clone(std=0.1)), iterations=300
  )
  close(other(params, {}, batch._replace(x=0 * batch.x), keys_for(batch)), value)


def jacobian_norms(net, params, x):
  """Sum over the stages of the squared Frobenius norm of each one's Jacobian, [B]."""
  total = []
  for example in x:
    h, value = example[None], 0.0
    for stage in affine.stages(affine.layers_of(net, params)):
      run = functools.partial(affine.apply, stage)
      value += float(jnp.sum(jax.jacobian(run)(h) ** 2))
      h = run(h)
    total.append(value)
  return np.array(total)


@pytest.mark.slow
def test_layer_jacobians_are_estimated_without_bias():
  net = models.DigitsCNN()
  params, _ = models.init(net, jax.random.key(0), (8, 8, 1))
  batch = batch_of((8, 8, 1), size=2)
  penalty = penalties.layer_jacobian(functools.partial(affine.layers_of, net))
  seeds = jnp.arange(400)
  draws = jax.jit(
    lambda: jax.lax.map(
      lambda s: penalty(params, {}, batch, keys_of(jax.random.key(s), batch.ids)), seeds
    )
  )()
  chex.assert_shape(draws, (400, 2))
  error = np.abs(np.mean(draws, 0) - jacobian_norms(net, params, batch.x))
  assert np.all(error <= 4 * np.std(draws, 0) / np.sqrt(400))


def test_layer_jacobians_in_closed_form():
  """Of one dense layer: |W|_F^2 / std^2 for every example, and 2 W / std^2 its mean gradient."""
  net = models.SoftmaxRegression(num_classes=3, mean=0.5, std=0.25)
  params, _ = models.init(net, jax.random.key(0), (4,))
  batch = batch_of((4,), size=1)
  penalty = penalties.layer_jacobian(functools.partial(affine.layers_of, net))

  @jax.jit
  def mean(params):
    keys = jax.random.split(jax.random.key(0), 4000)
    return jnp.mean(jax.vmap(lambda key: penalty(params, {}, batch, key[None])[0])(keys))

  value, gradient = jax.value_and_grad(mean)(params)
  kernel = params["Dense_0"]["kernel"]
  np.testing.assert_allclose(value, jnp.sum(kernel**2) / 0.25**2, rtol=0.08)
  assert np.abs(gradient["Dense_0"]["kernel"] - 2 * kernel / 0.25**2).max() < 0.15 * value
  np.testing.assert_array_equal(gradient["Dense_0"]["bias"], 0)


def curved(params, model_state, x, *, train, key):
  """Logits (0, a x^2 / 2): the gradient of their difference is a x."""
  del train, key
  return jnp.stack([0 * x[:, 0], params * jnp.sum(x**2, -1) / 2], -1), model_state


def test_gradient_alignment_in_closed_form():
  """The gradient of every loss is along x, so that the angle is that between x and x + eta."""
  batch = batch_of((5,), classes=2)
  uncertainty = ro.LInf(0.5)
  keys = keys_for(batch)
  penalty = penalties.gradient_alignment(curved, uncertainty)
  moved = batch.x + jax.jit(uncertainty.sample)(keys, batch.x)
  lengths = jnp.linalg.norm(batch.x, axis=-1) * jnp.linalg.norm(moved, axis=-1)
  expected = 1 - jnp.sum(batch.x * moved, -1) / lengths
  close(jax.jit(penalty)(1.0, {}, batch, keys), expected)


def test_no_gradient_is_no_direction():
  batch = batch_of((5,), classes=2)
  penalty = penalties.gradient_alignment(curved, ro.LInf(0.3))
  mean = lambda a: jnp.mean(penalty(a, {}, batch, keys_for(batch)))  # noqa: E731
  value, gradient = jax.jit(jax.value_and_grad(mean))(0.0)
  assert (value, gradient) == (1, 0)


@pytest.mark.slow
def test_the_learner_descends_loss_and_penalty():
  """A step under a penalty is a step down the gradient of the sum."""
  net = models.MLP(widths=(7,))
  params, state = models.init(net, jax.random.key(0), (8, 8, 1))
  model, batch = models.from_linen(net), batch_of((8, 8, 1))
  optimizer = optax.sgd(0.1)
  penalty = penalties.weighted(
    0.01, penalties.operator_norm(functools.partial(affine.layers_of, net))
  )
  attack = ro.steepest(ro.LInf(0.1))
  make = functools.partial(ro.make_train_step, model, optimizer, ro.robust(), attack)
  start = init_state(params, state, optimizer)
  plain, _ = jax.jit(make())(start, batch, jax.random.key(0))
  paid, metrics = jax.jit(make(penalty=penalty))(start, batch, jax.random.key(0))
  value, slope = jax.value_and_grad(lambda p: penalty(p, {}, batch, None))(params)
  expected = jax.tree.map(lambda p, g: p - 0.1 * g, plain.params, slope)
  close(paid.params, expected)
  assert metrics.loss > value > 0


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_a_weight_is_a_finite_number(weight):
  with pytest.raises(ro.InputError, match="weight must be a finite number >= 0, but was"):
    penalties.weighted(weight, penalties.operator_norm(lambda params: []))
