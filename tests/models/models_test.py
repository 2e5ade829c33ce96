"""Every net: shapes, parameters, standardization; batch statistics and dropout where there are."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import assert_close

from robust_opt import models
from robust_opt.errors import InputError

NAMES = [name for name in models.__all__ if isinstance(getattr(models, name), type)]
# XLA takes some ten seconds for each function of a VGG, however narrow it is.
# DeepMind's variants differ from their base classes by attributes: reference_test.py.
NETS = [
  pytest.param(n, marks=pytest.mark.slow) if n == "VGG" else n
  for n in NAMES
  if not n.startswith("DM")
]
# A handful of layers, none of which sums more than 800 entries.
close = functools.partial(assert_close, terms=5 * 800, dtype=np.float32)
SHAPES = {"VGG": (32, 32, 3), "MnistCNN": (28, 28, 1), "DigitsCNN": (8, 8, 1)}
BLOCKS = {"stage_sizes": (1, 1), "width": 1 / 16}
SMALL = {
  "VGG": {"width": 1 / 16},
  "PreActResNet": BLOCKS,
  "DMPreActResNet": BLOCKS,
  "ResNet": BLOCKS,
  "ResNet2B": {"width": 1 / 4},
  "WideResNet": {"depth": 10, "width": 1 / 4},
  "DMWideResNet": {"depth": 10, "width": 1 / 4},
  "ViT": {"patch": 4, "dim": 12, "depth": 1, "heads": 2},
}
STATISTICS = {"mean": 0.0, "std": 1.0}


@functools.cache
def build(name, **attributes):
  """(module, params, model_state, images of a batch of 3)."""
  shape = SHAPES.get(name, (8, 8, 1))
  net = getattr(models, name)(**{**STATISTICS, **SMALL.get(name, {}), **attributes})
  params, model_state = models.init(net, jax.random.key(0), shape)
  x = np.random.default_rng(0).uniform(0, 1, (3, *shape)).astype(np.float32)
  return net, params, model_state, x


@functools.cache
def compiled(net):
  return jax.jit(models.from_linen(net), static_argnames="train")


def run(net, params, model_state, x, train=False, seed=0):
  return compiled(net)(params, model_state, x, train=train, key=jax.random.key(seed))


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


BLOCKY = ("DMPreActResNet", "DMWideResNet", "ResNet", "PreActResNet")  # as WideResNet, slower


def but_for_the_slow(names):
  return [pytest.param(n, marks=pytest.mark.slow) if n in BLOCKY else n for n in names]


@pytest.mark.parametrize("name", but_for_the_slow(NETS))
def test_logits_and_state(name):
  net, params, model_state, x = build(name)
  logits, state = run(net, params, model_state, x)
  chex.assert_shape(logits, (3, 10))
  chex.assert_type([logits, *jax.tree.leaves((params, model_state))], jnp.float32)
  chex.assert_tree_all_finite(logits)
  chex.assert_trees_all_equal(state, model_state)  # evaluation touches nothing
  alone, _ = run(net, params, model_state, x[1:2])
  close(alone[0], logits[1])
  assert np.abs(logits - jax.nn.softmax(logits)).max() > 1e-3  # logits, not probabilities


# MnistCNN pads with black pixels first: the test below.
@pytest.mark.parametrize("name", but_for_the_slow(name for name in NETS if name != "MnistCNN"))
def test_standardization_comes_first(name):
  """mean and std are in pixels: the net of (x - mean) / std, whatever else it does to x."""
  net, params, model_state, x = build(name)
  expected, _ = run(net, params, model_state, (x - 0.3) / 0.4)
  logits, _ = run(net.clone(mean=0.3, std=0.4), params, model_state, x)
  close(logits, expected)


@pytest.mark.parametrize(
  ("name", "attributes", "words"),
  [
    ("WideResNet-28-10", {"depth": 12}, "must be 10, 16, 22, ..., not 12"),
    ("ResNet18", {"stem": "tiny"}, "must be cifar or imagenet, not 'tiny'"),
    ("PreActResNet18", {"shortcut_of": "x"}, "must be activated or input, not 'x'"),
    ("ViT-Ti", {"patch": 3}, r"multiples of patch=3, but they are 8 x 8"),
  ],
)
def test_attributes_that_make_no_net_are_refused(name, attributes, words):
  net = models.ARCHITECTURES[name](**attributes)
  with pytest.raises(InputError, match=words):
    models.init(net, jax.random.key(0), (8, 8, 1))


def test_mnist_pads_with_black_pixels_before_it_standardizes():
  """As the authors did: a border of 0 becomes -mean / std. (x - mean) / std alone is another."""
  net, params, model_state, x = build("MnistCNN", mean=0.3, std=0.4)
  logits, _ = run(net, params, model_state, x)
  without, _ = run(net.clone(**STATISTICS), params, model_state, (x - 0.3) / 0.4)
  assert np.abs(without - logits).max() > 1e-3
  # By hand, with XLA's own convolution and pool.
  z = (np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))) - 0.3) / 0.4
  for layer, size in (("conv1", 3), ("conv2", 2)):
    p = params[layer]
    dims = ("NHWC", "HWIO", "NHWC")
    z = jax.lax.conv_general_dilated(z, p["kernel"], (1, 1), "VALID", dimension_numbers=dims)
    z = jax.nn.relu(z + p["bias"])
    window = (1, size, size, 1)
    z = jax.lax.reduce_window(z, -jnp.inf, jax.lax.max, window, window, "VALID")
  z = jax.nn.relu(z.reshape(3, -1) @ params["dense1"]["kernel"] + params["dense1"]["bias"])
  expected = z @ params["dense2"]["kernel"] + params["dense2"]["bias"]
  close(logits, expected)


def test_mnist_net_is_the_papers():
  _, params, model_state, _ = build("MnistCNN")
  kernels = {layer: p["kernel"].shape for layer, p in params.items()}
  assert kernels == {
    "conv1": (5, 5, 1, 32),
    "conv2": (5, 5, 32, 64),
    "dense1": (256, 200),
    "dense2": (200, 10),
  }
  assert model_state == {}
  assert count(params) == 832 + 51_264 + 51_400 + 2_010


def test_vgg_is_the_papers():
  net = models.VGG()
  variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  params, statistics = variables["params"], variables["batch_stats"]
  convolutions = [p["kernel"].shape for n, p in params.items() if n.startswith("Conv")]
  widths = sorted(shape[-1] for shape in convolutions)
  assert widths == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
  assert all(shape[:2] == (3, 3) for shape in convolutions)
  dense = [p["kernel"].shape for n, p in params.items() if n.startswith("Dense")]
  assert sorted(dense) == [(512, 10), (512, 512)]
  assert len(statistics) == 14  # after every convolution, and the dense layer
  fed = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512]
  out = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
  expected = sum(9 * i * o + o + 2 * o for i, o in zip(fed, out))
  expected += 512 * 512 + 512 + 2 * 512 + 512 * 10 + 10
  assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize(
  ("name", "attributes"),
  [
    pytest.param("VGG", {"dropout": False}, marks=pytest.mark.slow),
    ("MnistCNN", {"input_batch_norm": True}),
    ("PreActResNet", {}),
  ],
)
def test_batch_statistics_move_in_train_mode_only(name, attributes):
  net, params, model_state, x = build(name, **attributes)
  logits, state = run(net, params, model_state, x, train=True)
  assert set(state) == {"batch_stats"}
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state, model_state)
  assert all(jax.tree.leaves(moved))
  neighbor = np.concatenate([x[:2], 1 - x[2:]])
  other, _ = run(net, params, model_state, neighbor, train=True)
  assert np.abs(other[:2] - logits[:2]).max() > 1e-4  # the batch is tied together
  evaluated, _ = run(net, params, state, x)
  assert np.abs(evaluated - run(net, params, model_state, x)[0]).max() > 1e-4


def test_mnist_input_batch_norm_has_no_parameters():
  """A non-affine batch normalization of the input, as in the authors' 2015 code."""
  _, plain, _, _ = build("MnistCNN")
  net, params, model_state, x = build("MnistCNN", input_batch_norm=True)
  chex.assert_trees_all_equal_shapes(params, plain)
  _, state = run(net, params, model_state, x, train=True)
  padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
  (statistics,) = state["batch_stats"].values()
  close(statistics["mean"], 0.1 * padded.mean(axis=(0, 1, 2)))
  expected = 0.9 + 0.1 * padded.var(axis=(0, 1, 2))
  close(statistics["var"], expected)
  # Input normalized by its own statistics: its units do not matter (up to epsilon).
  large = run(net, params, model_state, 100 * x, train=True)[0]
  larger = run(net, params, model_state, 1000 * x, train=True)[0]
  np.testing.assert_allclose(large, larger, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_vgg_dropout_and_types_in_train_mode():
  """In bfloat16, parameters and logits stay in float32; dropout follows its key."""
  net, params, model_state, x = build("VGG", dtype="bfloat16")
  first, state = run(net, params, model_state, x, train=True, seed=1)
  chex.assert_type([first, *jax.tree.leaves((params, state))], jnp.float32)
  chex.assert_tree_all_finite(first)
  other, _ = run(net, params, model_state, x, train=True, seed=2)
  assert np.abs(first - other).max() > 1e-3
  evaluated = [run(net, params, model_state, x, seed=seed)[0] for seed in (1, 2)]
  np.testing.assert_array_equal(*evaluated)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_net_states_its_shapes(dtype):
  """Traced, not compiled: VGG too, in both modes and any number of classes.

  In bfloat16, too, parameters, statistics and logits are float32.
  """
  for name in NAMES:
    net = getattr(models, name)(num_classes=7, dtype=dtype, **SMALL.get(name, {}))
    x = jax.ShapeDtypeStruct((3, *SHAPES.get(name, (8, 8, 1))), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    params = variables["params"]
    state = {k: v for k, v in variables.items() if k != "params"}
    for train in (False, True):
      apply = lambda p, s, x, train=train, net=net: models.from_linen(net)(  # noqa: E731
        p, s, x, train=train, key=jax.random.key(0)
      )
      jaxpr, (logits, new) = jax.make_jaxpr(apply, return_shape=True)(params, state, x)
      assert (logits.shape, logits.dtype) == ((3, 7), jnp.float32)
      chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
      chex.assert_trees_all_equal_dtypes(*jax.tree.leaves(params), logits)
      computes_low = "bf16" in str(jaxpr)
      assert computes_low == (dtype == jnp.bfloat16), name


class Bare(nn.Module):
  """Takes images alone."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(x.reshape(len(x), -1))


class Told(nn.Module):
  """Has to be told whether it is trained."""

  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(3)(x.reshape(len(x), -1)) + train


def test_a_module_of_the_user_may_take_train_with_or_without_default_or_not_at_all():
  x, key = jnp.ones((2, 4, 4, 1)), jax.random.key(0)
  flat = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(3)])
  for net, added in ((Bare(), 0), (Told(), 1), (flat, 0)):
    params, state = models.init(net, key, (4, 4, 1))
    apply = models.apply_of(net)
    told = [apply(params, state, x, train=train, key=None)[0] for train in (False, True)]
    np.testing.assert_allclose(told[1] - told[0], added, atol=1e-6)
