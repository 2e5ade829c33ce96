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
