"""Losses against NumPy in float64, and what becomes of NaN and of labels that do not exist."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import assert_close, rounding

import robust_opt as ro


def logits_and_labels(batch=200, num_classes=7, scale=30.0):
  rng = np.random.default_rng(0)
  logits = (scale * rng.normal(size=(batch, num_classes))).astype(np.float32)
  return logits, rng.integers(0, num_classes, batch)


def test_cross_entropy_in_float64():
  logits, labels = logits_and_labels()
  z = logits.astype(np.float64)
  expected = np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1)) + z.max(-1)
  expected -= z[np.arange(len(z)), labels]
  loss = ro.losses.cross_entropy(logits, labels)
  chex.assert_shape(loss, (200,))
  np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
  shifted = ro.losses.cross_entropy(logits + np.float32(100), labels)
  np.testing.assert_allclose(shifted, loss, rtol=1e-4, atol=1e-4)
  gradient = jax.jit(jax.grad(lambda z: ro.losses.cross_entropy(z, labels).sum()))(logits)
  expected = jax.nn.softmax(logits) - np.eye(7)[labels]
  np.testing.assert_allclose(gradient, expected, atol=1e-6)
  huge = ro.losses.cross_entropy(jnp.array([[1e30, 0.0], [0.0, 1e30]]), jnp.array([0, 0]))
  np.testing.assert_allclose(huge, [0, 1e30])


def test_cross_entropy_of_soft_labels():
  logits, labels = logits_and_labels(scale=3.0)
  soft = np.random.default_rng(1).dirichlet(np.ones(7), len(labels)).astype(np.float32)
  classes = [ro.losses.cross_entropy(logits, np.full(len(labels), k)) for k in range(7)]
  loss = lambda z: ro.losses.cross_entropy(z, soft)  # noqa: E731
  np.testing.assert_allclose(loss(logits), np.sum(soft.T * np.array(classes), 0), rtol=1e-5)
  gradient = jax.jit(jax.grad(lambda z: loss(z).sum()))(logits)
  np.testing.assert_allclose(gradient, jax.nn.softmax(logits) - soft, atol=1e-6)
  hard = ro.losses.cross_entropy(logits, np.eye(7, dtype=np.float32)[labels])
  np.testing.assert_array_equal(hard, ro.losses.cross_entropy(logits, labels))
  impossible = ro.losses.cross_entropy(
    jnp.array([[-jnp.inf, 0.0, 0.0]]), jnp.array([[0, 0.5, 0.5]])
  )
  np.testing.assert_allclose(impossible, np.log(2), rtol=1e-6)


def test_jensen_shannon_in_float64():
  a, b = logits_and_labels(scale=3.0)[0], logits_and_labels(scale=2.0)[0][::-1]
  p, q = (np.exp(z - z.max(-1, keepdims=True)) for z in (a.astype(np.float64), b))
  p, q = (r / r.sum(-1, keepdims=True) for r in (p, q))
  m = (p + q) / 2
  expected = np.sum(p * np.log(p / m) + q * np.log(q / m), axis=-1) / 2
  divergence = ro.losses.jensen_shannon(a, b)
  np.testing.assert_allclose(divergence, expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(divergence, ro.losses.jensen_shannon(b, a), rtol=1e-5)
  apart = jnp.array([[200.0, 0.0]])
  np.testing.assert_allclose(ro.losses.jensen_shannon(apart, apart[:, ::-1]), np.log(2), rtol=1e-6)
  same = jax.jit(jax.value_and_grad(lambda z: ro.losses.jensen_shannon(z, apart).sum()))(apart)
  chex.assert_trees_all_close(same, (0.0, jnp.zeros((1, 2))), atol=1e-6)


def test_correct():
  logits, labels = logits_and_labels()
  np.testing.assert_array_equal(ro.losses.correct(logits, labels), logits.argmax(-1) == labels)
  best = logits.argmax(-1)
  assert ro.losses.correct(logits, best).all()
  for bad in (np.nan, np.inf, -np.inf):
    spoilt = np.where(np.arange(7) == (best[:, None] + 1) % 7, np.float32(bad), logits)
    assert not ro.losses.correct(spoilt, best).any()
    spoilt = np.where(np.arange(7) == best[:, None], np.float32(bad), logits)
    assert not ro.losses.correct(spoilt, best).any()


def by_hand(name, z, y, t=None):
  """Margins and ratios of one example in float64, straight from their formulas."""
  z = z.astype(np.float64)
  order = np.sort(z)[::-1]
  beaten = (np.delete(z, y).max() if t is None else z[t]) - z[y]
  if "dlr" not in name or len(z) == 2:
    return beaten
  last = order[2] if t is None or len(z) == 3 else (order[2] + order[3]) / 2
  return beaten / (order[0] - last)


@pytest.mark.parametrize("num_classes", [2, 3, 4, 10, 100])
@pytest.mark.parametrize("name", ["margin", "dlr", "targeted_margin", "targeted_dlr"])
def test_margins_in_float64(name, num_classes):
  logits, labels = logits_and_labels(50, num_classes)
  targets = ((labels + 1) % num_classes,) if "targeted" in name else ()
  ours = jax.jit(getattr(ro.losses, name))(logits, labels, *targets)
  expected = [by_hand(name, *row) for row in zip(logits, labels, *targets, strict=True)]
  np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-5)


def test_a_margin_has_a_gradient_where_cross_entropy_is_flat():
  logits, labels = jnp.array([[200.0, 0.0, -1.0]]), jnp.array([0])
  flat, steep, ratio = (
    jax.jit(jax.grad(lambda z, loss=loss: loss(z, labels).sum()))(logits)
    for loss in (ro.losses.cross_entropy, ro.losses.margin, ro.losses.dlr)
  )
  np.testing.assert_array_equal(flat, 0)
  np.testing.assert_array_equal(steep, [[-1, 1, 0]])
  assert np.abs(ratio).max() > 0


def linear(weights):
  """One logit in two forms: x [B, n] -> [B, 2]."""
  return {
    "second": lambda x: jnp.stack([0 * x[:, 0], x @ weights], axis=-1),
    "first": lambda x: jnp.stack([x @ weights, 0 * x[:, 0]], axis=-1),
    "halves": lambda x: jnp.stack([-x @ weights / 2, x @ weights / 2], axis=-1),
  }


@pytest.mark.parametrize("name", ["cross_entropy", "margin", "dlr"])
def test_one_logit_in_any_form_has_the_loss_and_gradient_of_its_difference(name):
  """However sure the net is: the gradient of log(1 + exp(-z)) is -1 / (1 + exp(z))."""
  weights = jnp.array([1.0, -2.0, 0.5])
  z = np.float32([-80, -20, -1, 0, 1, 20, 40, 60, 80])
  x = jnp.asarray(z[:, None] * np.float32([0.5, -0.25, 0.0]))  # x @ weights is z, exactly
  reference = z.astype(np.float64)
  loss = getattr(ro.losses, name)
  if name == "cross_entropy":
    value, slope = np.logaddexp(0, -reference), -1 / (1 + np.exp(reference))
  else:
    value, slope = -reference, -np.ones(len(z))
  for form, labels in (("second", 1), ("halves", 1), ("first", 0)):
    y = jnp.full(len(z), labels)
    both = jax.vmap(
      jax.value_and_grad(lambda x, y, f=form: loss(linear(weights)[f](x[None]), y[None])[0])
    )
    found, gradient = jax.jit(both)(x, y)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope[:, None] * np.asarray(weights), rtol=1e-5)


def test_many_classes_have_a_gradient_at_a_sure_label():
  """To 1e-5 of it, where the others have 1e-9 together; and the dtype stays."""
  rng = np.random.default_rng(1)
  z = rng.normal(size=(20, 7)) + 25 * np.eye(7)[2]
  total = lambda z: ro.losses.cross_entropy(z, jnp.full(20, 2)).sum()  # noqa: E731
  gradient = jax.jit(jax.grad(total))(z.astype(np.float32))
  p = np.exp(z.astype(np.float32).astype(np.float64) - z.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  p[:, 2] = -(p[:, :2].sum(-1) + p[:, 3:].sum(-1))
  np.testing.assert_allclose(gradient, p, rtol=1e-5)
  for dtype in (jnp.bfloat16, jnp.float16):
    low = jnp.asarray(z, dtype)
    assert ro.losses.cross_entropy(low, jnp.full(20, 2)).dtype == dtype
    assert ro.losses.kl_divergence(low, low[::-1]).dtype == dtype


def test_a_class_that_is_impossible_adds_nothing():
  """0 log 0 = 0, and the gradients of all objectives on such logits are finite."""
  logits = jnp.array([[1.0, -jnp.inf, 2.0], [0.5, -jnp.inf, -1.0]])
  other = jnp.array([[0.0, -jnp.inf, 1.5], [2.0, -jnp.inf, 1.0]])
  y = jnp.array([0, 2])
  rest = jnp.array([0, 2])
  for function in (
    ro.losses.kl_divergence,
    lambda a, b: ro.losses.kl_divergence(b, a),
    lambda a, b: ro.losses.cross_entropy(a, y // 2 if a.shape[1] == 2 else y),
  ):
    run = jax.jit(jax.value_and_grad(lambda a, b, f=function: f(a, b).sum()))
    value, gradient = run(logits, other)
    expected, reduced = run(logits[:, rest], other[:, rest])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, rest], reduced, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(gradient[:, 1], 0)
  for objective in (ro.trades(), ro.mart(), ro.virtual()):

    def loss(z, objective=objective):
      forward = lambda x: (z + x[:, :1] * jnp.array([1.0, 0.0, -1.0]), {})  # noqa: E731
      x = jnp.zeros((2, 1))
      return objective.outer(forward, x, x + 0.1, y)[0].sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
  impossible_label = ro.losses.cross_entropy(logits, jnp.array([1, 1]))
  np.testing.assert_array_equal(impossible_label, np.inf)
  assert np.isinf(ro.losses.kl_divergence(logits, jnp.zeros((2, 3)))).all()


def test_kl_divergence_in_float64():
  logits, _ = logits_and_labels(40, 5, scale=3.0)
  other = logits[::-1]
  p, q = (np.exp(z.astype(np.float64)) for z in (other, logits))
  p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
  expected = (p * np.log(p / q)).sum(-1)
  np.testing.assert_allclose(ro.losses.kl_divergence(logits, other), expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(ro.losses.kl_divergence(logits, logits), 0)
  gradient = jax.jit(jax.grad(lambda z: ro.losses.kl_divergence(z, other).sum()))(logits)
  np.testing.assert_allclose(gradient, q - p, atol=1e-5)


# Independent classes.

close = functools.partial(assert_close, terms=24, dtype=np.float32)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_one_vs_all_in_float64():
  logits, labels = 20 * normal(50, 6), np.random.default_rng(1).integers(0, 6, 50)
  z = logits.astype(np.float64) * np.where(np.arange(6) == labels[:, None], -1, 1)
  loss = jax.jit(ro.losses.one_vs_all)(logits, labels)
  chex.assert_shape(loss, (50,))
  np.testing.assert_allclose(loss, np.logaddexp(0, z).sum(-1), rtol=rounding(terms=24))
  gradient = jax.jit(jax.grad(lambda z: ro.losses.one_vs_all(z, labels).sum()))(logits)
  expected = jax.nn.sigmoid(logits) - np.eye(6)[labels]
  close(gradient, expected)


def test_independent_in_float64():
  log_p, labels = -np.exp(4 * normal(50, 6)), np.random.default_rng(1).integers(0, 6, 50)
  is_label = np.arange(6) == labels[:, None]
  wide = np.minimum(log_p.astype(np.float64), -1e-6)
  rest = np.where(wide > -1, np.log(-np.expm1(wide)), np.log1p(-np.exp(wide)))
  curved = np.all((log_p <= -1e-6) | is_label, axis=-1)
  expected = np.where(is_label, -log_p, -rest).sum(-1)
  loss = jax.jit(ro.losses.independent)(log_p, labels)
  chex.assert_shape(loss, (50,))
  assert curved.sum() > 30
  np.testing.assert_allclose(loss[curved], expected[curved], rtol=rounding(terms=24))
  slope = np.where(is_label, -1, np.exp(wide) / -np.expm1(wide))
  gradient = jax.jit(jax.grad(lambda z: ro.losses.independent(z, labels).sum()))(log_p)
  np.testing.assert_allclose(gradient[curved], slope[curved], rtol=rounding(terms=24), atol=1e-30)


def test_certain_and_impossible_classes_have_finite_gradients():
  values = jnp.array([0.0, -1e-38, -1e-6, -0.5, -50.0, -1000.0])
  log_p, labels = jnp.tile(values[:, None], 3), jnp.arange(6) % 3
  loss = ro.losses.independent(log_p, labels)
  gradient = jax.jit(jax.grad(lambda z: ro.losses.independent(z, labels).sum()))(log_p)
  chex.assert_tree_all_finite((loss, gradient))
  np.testing.assert_allclose(loss[-1], 1000)
  is_label = np.eye(3, dtype=bool)[labels]
  np.testing.assert_array_equal(gradient[is_label], -1)
  others = gradient[~is_label].reshape(6, 2)
  assert (others[:5] > 0).all()  # what should be absent is pushed away, also from certainty
  np.testing.assert_allclose(others[:3], 1e6, rtol=1e-3)
  np.testing.assert_array_equal(others[5], 0)


def test_the_tangent_meets_the_curve():
  """Around 1e-6 the loss and its slope are continuous."""
  labels = jnp.array([0])
  f = lambda t: ro.losses.independent(jnp.array([[-1.0, t]]), labels)[0]  # noqa: E731
  around = jax.jit(jax.vmap(jax.value_and_grad(f)))
  values, slopes = around(jnp.array([-1.001e-6, -1e-6, -0.999e-6]))
  np.testing.assert_allclose(values, values[1], rtol=1e-3)
  np.testing.assert_allclose(slopes, 1e6, rtol=2e-3)
  assert (np.diff(values) > 0).all()


@pytest.mark.parametrize("name", ["cross_entropy", "margin", "dlr", "one_vs_all", "independent"])
def test_labels_that_do_not_exist_and_ranks(name):
  loss, num_classes = jax.jit(getattr(ro.losses, name)), 7
  logits = -jnp.ones((4, num_classes))
  values = loss(logits, jnp.array([0, num_classes - 1, num_classes, -1]))
  np.testing.assert_array_equal(np.isnan(values), [False, False, True, True])
  spoilt = loss(logits.at[1, 1].set(jnp.nan), jnp.zeros(4, int))
  np.testing.assert_array_equal(np.isnan(spoilt), [False, True, False, False])
  total = lambda z: loss(z, jnp.zeros(4, int)).sum()  # noqa: E731
  gradient = jax.jit(jax.grad(total))(logits)  # all logits are equal
  chex.assert_tree_all_finite(gradient)
  for z, y in ((logits, jnp.zeros((4, num_classes), int)), (logits[0], 0), (logits[None], [0] * 4)):
    with pytest.raises(AssertionError):
      loss(z, jnp.asarray(y))


def test_what_is_no_probability_is_nan():
  log_p = jnp.array([[-1.0, 0.1], [0.1, -1.0], [-1.0, 0.0]])
  loss = ro.losses.independent(log_p, jnp.zeros(3, int))
  np.testing.assert_array_equal(np.isnan(loss), [True, True, False])


def test_probabilities():
  z = -np.abs(3 * normal(20, 5))
  e = np.exp(z.astype(np.float64))
  expected = {"softmax": e / e.sum(-1, keepdims=True), "sigmoid": e / (1 + e), "rbf": e}
  for kind, p in expected.items():
    np.testing.assert_allclose(ro.losses.probabilities(z, kind), p, rtol=rounding(terms=24))
  labels = jnp.arange(20) % 5
  taken = lambda p: p[jnp.arange(20), labels]  # noqa: E731
  close(-np.log(taken(ro.losses.probabilities(z, "softmax"))), ro.losses.cross_entropy(z, labels))
  with pytest.raises(ro.InputError, match="must be 'softmax', 'sigmoid' or 'rbf', but was 'relu'"):
    ro.losses.probabilities(z, "relu")
