"""Lists of layers: those of the nets compute the same."""

import jax
import numpy as np
import pytest

import robust_opt as ro
from robust_opt import models
from robust_opt.models import affine
from robust_opt.models.affine import Conv, Dense, Flatten, MaxPool


def normal(rng, *shape):
  """Weights that keep the size of what they are applied to, [*in, out]."""
  return (rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


NETS = [
  (models.SoftmaxRegression(mean=(0.3, 0.1), std=(0.4, 0.2)), (4, 3, 2)),
  (models.MLP(num_classes=2, widths=(7, 5, 6), mean=0.3, std=0.4), (4, 3, 1)),
  (models.MLP(widths=(), mean=0.3, std=0.4), (4, 3, 1)),
  (models.DigitsCNN(mean=0.3, std=0.4), (8, 8, 1)),
  (models.MnistCNN(mean=0.3, std=0.4), (28, 28, 1)),
  (models.ConvNet(features=(3, 4), hidden=(5,), mean=0.3, std=0.4), (8, 8, 2)),
]


@pytest.mark.parametrize(("net", "shape"), NETS, ids=lambda value: type(value).__name__)
def test_the_layers_are_the_net(net, shape):
  params, model_state = models.init(net, jax.random.key(0), shape)
  rng = np.random.default_rng(8)
  params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32), params)
  x = rng.random((3, *shape)).astype(np.float32)
  apply = jax.jit(models.from_linen(net), static_argnames="train")
  logits, _ = apply(params, model_state, x, train=False, key=None)
  layers = affine.layers_of(net, params)
  close = {"rtol": 1e-5, "atol": 1e-5 * np.abs(logits).max()}
  np.testing.assert_allclose(jax.jit(affine.apply)(layers, x), logits, **close)
  stages = affine.stages(layers)
  assert [layer for stage in stages for layer in stage] == layers
  weights = (Dense, Conv)
  for k, stage in enumerate(stages):
    assert k == 0 or isinstance(stage[0], weights)
    assert sum(isinstance(layer, weights) for layer in stage) == 1


def test_a_users_model_states_its_layers():
  class Linear:
    def layer_list(self, params):
      return (Flatten(), Dense(params))

  layers = affine.layers_of(Linear(), np.eye(4, 2, dtype=np.float32))
  x = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
  np.testing.assert_array_equal(affine.apply(layers, x), x.reshape(2, 4)[:, :2])


def test_nets_without_layers_are_refused():
  with pytest.raises(ro.InputError, match="VGG has no list of layers: give it a method"):
    affine.layers_of(models.VGG(), {})
  with pytest.raises(ro.InputError, match="only without input_batch_norm"):
    affine.layers_of(models.MnistCNN(input_batch_norm=True), {})


@pytest.mark.parametrize(
  ("strides", "padding"), [((1, 1), "SAME"), ((2, 1), "VALID"), ((2, 3), "SAME"), ((2, 2), 1)]
)
def test_conv_is_xlas(strides, padding):
  rng = np.random.default_rng(6)
  x, kernel, bias = normal(rng, 3, 7, 6, 2), normal(rng, 3, 2, 2, 4), normal(rng, 4)
  layout = ("NHWC", "HWIO", "NHWC")
  around = [(padding, padding)] * 2 if isinstance(padding, int) else padding
  expected = jax.lax.conv_general_dilated(x, kernel, strides, around, dimension_numbers=layout)
  found = Conv(kernel, bias, strides, padding)(x)
  np.testing.assert_allclose(found, expected + bias, rtol=1e-5, atol=1e-6)


def test_max_pool_is_xlas():
  x = np.random.default_rng(7).normal(size=(2, 7, 6, 3)).astype(np.float32)
  for size in (1, 2, 3):
    window = (1, size, size, 1)
    expected = jax.lax.reduce_window(x, -np.inf, jax.lax.max, window, window, "VALID")
    np.testing.assert_array_equal(MaxPool(size)(x), expected)
