"""Maxout and RBF nets: closed forms, invariants, and that they learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import assert_close
from scipy import signal

import robust_opt as ro
from robust_opt import models
from robust_opt.models.maxout import max_of_pieces
from robust_opt.models.rbf import squared_distances

SHAPE = (3, 2, 1)
N = 6
# Up to three layers of at most 4 x 6 units, an exponential or a logarithm, and a sum over classes.
TERMS = 3 * 4 * N + 16
close = functools.partial(assert_close, terms=TERMS, dtype=np.float32)
X = np.random.default_rng(0).uniform(0, 1, (5, *SHAPE)).astype(np.float32)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def compiled(net):
  return jax.jit(models.from_linen(net), static_argnames="train")


def logits_of(net, params, x):
  return compiled(net)(params, {}, x, train=False, key=None)[0]


# Maxout.


def test_maxout_by_hand():
  """Unit by unit and piece by piece, in float64."""
  net = models.Maxout(num_classes=3, widths=(4, 2), pieces=3, mean=0.3, std=0.4)
  fresh, _ = models.init(net, jax.random.key(0), SHAPE)
  params = jax.tree.map(lambda w: normal(*w.shape), fresh)
  h = (X.reshape(5, N).astype(np.float64) - 0.3) / 0.4
  for layer, width in (("Dense_0", 4), ("Dense_1", 2)):
    kernel, bias = (params[layer][k].astype(np.float64) for k in ("kernel", "bias"))
    assert kernel.shape == (h.shape[1], 3 * width)
    units = [
      np.max([h @ kernel[:, p * width + u] + bias[p * width + u] for p in range(3)], axis=0)
      for u in range(width)
    ]
    h = np.stack(units, axis=1)
  expected = h @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"]
  close(logits_of(net, params, X), expected)


def test_a_convolutional_maxout_layer_by_scipy():
  """Correlate, take the maximum over pieces, pool: in that order, in float64."""
  net = models.ConvMaxout(num_classes=2, widths=(3,), pieces=2, mean=0.3, std=0.4)
  x = np.random.default_rng(1).uniform(0, 1, (2, 4, 6, 2)).astype(np.float32)
  fresh, _ = models.init(net, jax.random.key(0), x.shape[1:])
  params = jax.tree.map(lambda w: normal(*w.shape), fresh)
  kernel, bias = params["ConvPool_0"]["kernel"], params["ConvPool_0"]["bias"]
  z = np.stack(
    [
      sum(
        signal.correlate2d((image[..., c] - 0.3) / 0.4, kernel[..., c, feature], mode="same")
        for c in range(2)
      )
      + bias[feature]
      for image in x.astype(np.float64)
      for feature in range(6)
    ]
  ).reshape(2, 2, 3, 4, 6)  # image, piece, unit, row, column
  h = z.max(axis=1).reshape(2, 3, 2, 2, 3, 2).max(axis=(3, 5)).transpose(0, 2, 3, 1)
  top = params["Dense_0"]
  expected = h.reshape(2, -1) @ top["kernel"] + top["bias"]
  close(logits_of(net, params, x), expected)


def test_maxout_starts_as_the_paper_does():
  params, state = models.init(models.Maxout(), jax.random.key(0), (28, 28, 1))
  shapes = {name: layer["kernel"].shape for name, layer in params.items()}
  assert shapes == {"Dense_0": (784, 1200), "Dense_1": (240, 1200), "Dense_2": (240, 10)}
  assert state == {}
  for layer in params.values():
    np.testing.assert_array_equal(layer["bias"], 0)
    assert np.abs(layer["kernel"]).max() <= 0.005
    # The standard deviation of the uniform distribution, and no sign preferred.
    np.testing.assert_allclose(np.std(layer["kernel"]), 0.005 / np.sqrt(3), rtol=0.03)
    assert abs(np.mean(layer["kernel"])) < 5 * np.std(layer["kernel"]) / layer["kernel"].size ** 0.5


def test_pieces_that_tie_share_the_gradient():
  """All of them, as at zero input, or some."""
  z = jnp.array([[0.0, 0, 0, 0, 0, 0], [1, 5, 1, 2, 0, 5], [3, 1, 2, 2, 1, 3]])
  gradient = jax.grad(lambda z: max_of_pieces(z, 3).sum())(z)
  third, half = 1 / 3, 1 / 2
  expected = [[third] * 6, [half, half, half, 0, 0, half], [1, 0, 0, 0, 0, 1]]
  close(gradient, expected)


def test_dropout_rates_are_rates_of_dropping_in_training_only():
  """What is kept is scaled so that its mean stays."""
  ones = jnp.ones((1, 20, 20, 1))
  net = models.Maxout(num_classes=400, widths=(400,), pieces=1)
  eye = {"kernel": jnp.eye(400), "bias": jnp.zeros(400)}
  params = {"Dense_0": eye, "Dense_1": eye}

  def kept(**rates):
    apply = compiled(net.clone(**rates))
    out = apply(params, {}, ones, train=True, key=jax.random.key(0))[0]
    return np.mean(out > 0), out.max()

  share, scale = kept(hidden_dropout=0.0)
  assert abs(share - 0.8) < 0.1
  close(scale, 1 / 0.8)
  share, scale = kept(input_dropout=0.0)
  assert abs(share - 0.5) < 0.125
  close(scale, 2)
  evaluated = compiled(net)(params, {}, ones, train=False, key=jax.random.key(3))[0]
  np.testing.assert_array_equal(evaluated, 1)


# RBF nets.

RBFS = ["ShallowRBF", "DeepRBF"]


def test_shallow_rbf_by_hand():
  num_classes = 7
  net = models.ShallowRBF(num_classes=num_classes, mean=0.3, std=0.4)
  mu, log_beta = normal(N, num_classes), normal(N, num_classes, seed=1)
  z = (X.reshape(5, N).astype(np.float64) - 0.3) / 0.4
  expected = np.zeros((5, num_classes))
  for k in range(num_classes):
    difference = z - mu[:, k]
    expected[:, k] = -np.diag(difference @ np.diag(np.exp(log_beta[:, k])) @ difference.T)
  params = {"output": {"mu": mu, "log_beta": log_beta}}
  close(logits_of(net, params, X), expected)


def test_deep_rbf_by_hand():
  net = models.DeepRBF(num_classes=3, width=4)
  params, _ = models.init(net, jax.random.key(0), SHAPE)
  params = jax.tree.map(lambda w: 0.5 * normal(*w.shape), params)
  z = X.reshape(5, N).astype(np.float64)
  square = ((z[:, :, None] - params["mu"]) ** 2).sum(axis=1)
  close(squared_distances(X.reshape(5, N), params["mu"]), square)
  h = np.exp(-np.exp(params["log_beta"]) * square)
  top = params["output"]
  expected = -(np.exp(top["log_beta"]) * (h[:, :, None] - top["mu"]) ** 2).sum(axis=1)
  close(logits_of(net, params, X), expected)


def test_a_template_is_its_class_and_what_lies_far_is_none():
  net = models.ShallowRBF(num_classes=3)
  params, _ = models.init(net, jax.random.key(0), SHAPE)
  mu = params["output"]["mu"]
  p = ro.losses.probabilities(logits_of(net, params, mu.T.reshape(3, *SHAPE)), "rbf")
  np.testing.assert_array_equal(np.diag(p), 1)
  assert (p[~np.eye(3, dtype=bool)] < 1).all()
  directions = np.concatenate([np.eye(N), -np.eye(N), normal(20, N)]).astype(np.float32)
  directions = directions.reshape(-1, *SHAPE)
  last = jnp.ones((len(directions), 3))
  for distance in (2.0, 5.0, 25.0, 1e4):
    p = ro.losses.probabilities(logits_of(net, params, distance * directions), "rbf")
    assert ((p < last) | (p == 0)).all()
    last = p
  np.testing.assert_array_equal(last, 0)


@pytest.mark.parametrize("name", RBFS)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.1307, 0.3081)])
def test_fresh_rbf_nets_are_neither_sure_nor_blind(name, mean, std):
  """On images as dark as MNIST's, with and without standardization."""
  rng = np.random.default_rng(0)
  x = (rng.uniform(0, 1, (8, 28, 28, 1)) * (rng.random((8, 28, 28, 1)) < 0.2)).astype(np.float32)
  net = getattr(models, name)(mean=mean, std=std)
  params, _ = models.init(net, jax.random.key(0), x.shape[1:])
  log_p = logits_of(net, params, x)
  assert log_p.max() < -0.05
  assert log_p.min() > -20
  loss = lambda p: ro.losses.independent(logits_of(net, p, x), jnp.arange(8)).mean()  # noqa: E731
  for gradient in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient) > 0).mean() > 0.9


# Training, on scikit-learn's digits.
