"""Losses against NumPy in float64, and what becomes of NaN and of labels that do not exist."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_cross_entropy_of_huge_logits():
  loss = ro.losses.cross_entropy(jnp.array([[1e30, 0.0], [0.0, 1e30]]), jnp.array([0, 0]))
  np.testing.assert_allclose(loss, [0, 1e30])


def test_gradient_is_softmax_minus_one_hot():
  logits, labels = logits_and_labels(scale=2.0)
  gradient = jax.grad(lambda z: ro.losses.cross_entropy(z, labels).sum())(logits)
  expected = jax.nn.softmax(logits) - np.eye(7)[labels]
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("label", [7, 100, -1])
def test_a_label_out_of_range_is_nan(label):
  logits, labels = logits_and_labels()
  labels[3] = label
  loss = ro.losses.cross_entropy(logits, labels)
  np.testing.assert_array_equal(np.isnan(loss), np.arange(200) == 3)


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


@pytest.mark.parametrize("loss", [ro.losses.cross_entropy, ro.losses.correct])
def test_ranks_are_checked(loss):
  logits, labels = logits_and_labels()
  for arguments in ((logits, np.eye(7)[labels]), (logits[0], labels[0]), (logits[None], labels)):
    with pytest.raises(AssertionError):
      loss(*arguments)


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


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_a_margin_says_whether_the_label_wins(num_classes):
  logits, labels = logits_and_labels(300, num_classes)
  correct = ro.losses.correct(logits, labels)
  for loss in (ro.losses.margin, ro.losses.dlr):
    np.testing.assert_array_equal(loss(logits, labels) > 0, ~correct)
  beaten = [ro.losses.targeted_margin(logits, labels, labels * 0 + t) for t in range(num_classes)]
  best = np.where(np.arange(num_classes)[:, None] == labels, -np.inf, np.stack(beaten)).max(0)
  np.testing.assert_allclose(best, ro.losses.margin(logits, labels), rtol=1e-6)


def test_dlr_depends_neither_on_scale_nor_on_shift():
  logits, labels = logits_and_labels(50, 6, scale=1.0)
  targets = (labels + 2) % 6
  for loss, *more in ((ro.losses.dlr,), (ro.losses.targeted_dlr, targets)):
    once = loss(logits, labels, *more)
    np.testing.assert_allclose(loss(1e3 * logits + 7, labels, *more), once, rtol=1e-3, atol=1e-4)


def test_a_margin_has_a_gradient_where_cross_entropy_is_flat():
  logits, labels = jnp.array([[200.0, 0.0, -1.0]]), jnp.array([0])
  flat, steep, ratio = (
    jax.grad(lambda z, loss=loss: loss(z, labels).sum())(logits)
    for loss in (ro.losses.cross_entropy, ro.losses.margin, ro.losses.dlr)
  )
  np.testing.assert_array_equal(flat, 0)
  np.testing.assert_array_equal(steep, [[-1, 1, 0]])
  assert np.abs(ratio).max() > 0


def test_equal_logits_and_labels_that_do_not_exist():
  logits = jnp.zeros((3, 5))
  for loss in (ro.losses.margin, ro.losses.dlr):
    np.testing.assert_array_equal(loss(logits, jnp.array([0, 5, -1])), [0, np.nan, np.nan])
    value, gradient = jax.value_and_grad(lambda z, loss=loss: loss(z, jnp.zeros(3, int)).sum())(
      logits
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_one_class_has_no_margin():
  with pytest.raises(ro.InputError, match="at least 2 classes, but has 1"):
    ro.losses.margin(jnp.zeros((3, 1)), jnp.zeros(3, int))


def test_kl_divergence_in_float64():
  logits, _ = logits_and_labels(40, 5, scale=3.0)
  other = logits[::-1]
  p, q = (np.exp(z.astype(np.float64)) for z in (other, logits))
  p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
  expected = (p * np.log(p / q)).sum(-1)
  np.testing.assert_allclose(ro.losses.kl_divergence(logits, other), expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(ro.losses.kl_divergence(logits, logits), 0)
  gradient = jax.grad(lambda z: ro.losses.kl_divergence(z, other).sum())(logits)
  np.testing.assert_allclose(gradient, q - p, atol=1e-5)
