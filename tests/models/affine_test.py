"""Lists of layers: those of the nets compute the same, and every layer bounds itself."""

import functools

import chex
import jax
import numpy as np
import pytest

import robust_opt as ro
from robust_opt import models
from robust_opt.certify import from_params
from robust_opt.models import affine
from robust_opt.models.affine import Affine, Conv, Dense, Flatten, MaxPool, Pad, ReLU

# What bounds allow for rounding here: some 300 roundings of sums of a size of up to 5.
ROUNDING = 300 * 5 * 2**-24


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
  layers = from_params(net, params)
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

  layers = from_params(Linear(), np.eye(4, 2, dtype=np.float32))
  x = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
  np.testing.assert_array_equal(affine.apply(layers, x), x.reshape(2, 4)[:, :2])


def test_nets_without_layers_are_refused():
  with pytest.raises(ro.InputError, match="VGG has no list of layers: give it a method"):
    affine.layers_of(models.VGG(), {})
  with pytest.raises(ro.InputError, match="only without input_batch_norm"):
    affine.layers_of(models.MnistCNN(input_batch_norm=True), {})


def intervals(rng, shape):
  """Of every sign, some of width 0, some with ties."""
  ends = np.sort(rng.normal(size=(2, *shape)), axis=0)
  ends[:, rng.random(shape) < 0.2] = np.round(ends[:, rng.random(shape) < 0.2].mean())
  lower, upper = ends.astype(np.float32)
  return lower, np.where(rng.random(shape) < 0.1, lower, upper)


LAYERS = {
  "dense": ((8,), lambda rng: Dense(normal(rng, 8, 3), normal(rng, 3))),
  "affine": ((2, 2, 2), lambda rng: Affine(normal(rng, 2), normal(rng, 2))),
  "pad": ((3, 2, 2), lambda rng: Pad(1)),
  "flatten": ((2, 2, 2), lambda rng: Flatten()),
  "conv": ((4, 4, 2), lambda rng: Conv(normal(rng, 2, 3, 2, 2), normal(rng, 2), (1, 2), "SAME")),
  "relu": ((8,), lambda rng: ReLU()),
  "max_pool": ((5, 4, 2), lambda rng: MaxPool(2)),
  "max_pool_of_3": ((3, 3, 2), lambda rng: MaxPool(3)),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_every_layer_bounds_itself(name):
  """<a, layer(z)> <= <a', z> + c on the interval, an equality where the layer is affine."""
  rng = np.random.default_rng(5)
  shape, make = LAYERS[name]
  layer = make(rng)
  run, interval, pull_back = (
    functools.partial(jax.jit(getattr(type(layer), name)), layer)
    for name in ("__call__", "interval", "pull_back")
  )
  lower, upper = intervals(rng, (64, *shape))
  low, high = interval(lower, upper)
  a = rng.normal(size=low.shape).astype(np.float32)
  a[rng.random(a.shape) < 0.1] = 0
  pulled, constant = pull_back(a, lower, upper)
  chex.assert_shape(pulled, lower.shape)
  chex.assert_shape(constant, (64,))
  axes = tuple(range(1, 1 + len(shape)))
  outputs = tuple(range(1, a.ndim))
  for share in [np.zeros(shape), np.ones(shape), *rng.random((100, *shape))]:
    corner = rng.random(shape) < 0.5
    z = (lower + (upper - lower) * np.where(corner, np.round(share), share)).astype(np.float32)
    out = np.asarray(run(z))
    assert np.all(low - 1e-5 <= out)
    assert np.all(out <= high + 1e-5)
    attained = np.sum(a * out, outputs)
    bound = np.sum(np.asarray(pulled) * z, axes) + constant
    assert np.all(attained <= bound + 1e-4)
    if name not in ("relu", "max_pool", "max_pool_of_3"):
      np.testing.assert_allclose(attained, bound, rtol=ROUNDING, atol=ROUNDING)
  if name in ("relu", "max_pool", "max_pool_of_3"):  # from above never looser than the interval
    up, constant = pull_back(np.abs(a), lower, upper)
    largest = np.sum(np.maximum(up, 0) * upper + np.minimum(up, 0) * lower, axes) + constant
    np.testing.assert_allclose(largest, np.sum(np.abs(a) * high, outputs), rtol=1e-4, atol=1e-5)


def test_relu_lines():
  """By hand: settled on either side, and crossing with either line from below."""
  lower, upper = np.float32([[1, -3, -1, -3]]), np.float32([[2, -1, 3, 1]])
  up, constant = ReLU().pull_back(np.ones((1, 4), np.float32), lower, upper)
  np.testing.assert_allclose(up, [[1, 0, 0.75, 0.25]])
  np.testing.assert_allclose(constant, 0.75 + 0.75, rtol=100 * 2**-24)
  down, constant = ReLU().pull_back(-np.ones((1, 4), np.float32), lower, upper)
  np.testing.assert_allclose(down, [[-1, 0, -1, 0]])
  np.testing.assert_allclose(constant, 0)


def test_max_pool_that_one_entry_always_wins_is_exact():
  lower = np.float32([[[[0], [-2]], [[3], [1]]]])
  upper, pull_back = lower + np.float32(1.5), jax.jit(MaxPool.pull_back)
  for sign in (1, -1):
    a = np.full((1, 1, 1, 1), sign, np.float32)
    pulled, constant = pull_back(MaxPool(2), a, lower, upper)
    np.testing.assert_array_equal(pulled.reshape(-1), [0, 0, sign, 0])
    np.testing.assert_array_equal(constant, 0)


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
