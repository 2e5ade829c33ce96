"""The lifted net: what it is at lift(x), its gradients, and the worst case over every layer."""

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
from robust_opt.errors import InputError
from robust_opt.models import affine
from robust_opt.sets import products
from robust_opt.training import layerwise

LR = 0.5
# Forward and back through the widest net: sums over 9, 9 x 32, 256 and 128 entries.
TERMS = 2 * (9 + 288 + 256 + 128)
ROUNDING = rounding(terms=TERMS)
close = functools.partial(assert_close, terms=TERMS, dtype=np.float32)
NETS = {
  "softmax": (models.SoftmaxRegression(num_classes=2, mean=0.3, std=0.4), (3, 4, 1)),
  "mlp": (models.MLP(num_classes=100, widths=(7, 5), mean=0.3, std=0.4), (3, 4, 1)),
  "digits_cnn": (models.DigitsCNN(num_classes=3, mean=0.3, std=0.4), (8, 8, 1)),
  "mnist_cnn": (models.MnistCNN(), (28, 28, 1)),
}
SHAPES = {
  "softmax": [(3, 4, 1)],
  "mlp": [(3, 4, 1), (7,), (5,)],
  "digits_cnn": [(8, 8, 1), (4, 4, 32), (256,), (128,)],
  "mnist_cnn": [(28, 28, 1), (9, 9, 32), (256,), (200,)],
}


@functools.cache
def problem(name, batch=3):
  """(net, image shape, params with biases that are not 0, batch)."""
  net, image_shape = NETS[name]
  params, _ = models.init(net, jax.random.key(0), image_shape)
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(1)
  noise = [0.1 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
  params = jax.tree.unflatten(tree, [leaf + n for leaf, n in zip(leaves, noise)])
  x = rng.random((batch, *image_shape)).astype(np.float32)
  y = jnp.arange(batch, dtype=jnp.int32) % net.num_classes
  return net, image_shape, params, ro.Batch(jnp.asarray(x), y, jnp.arange(batch, dtype=jnp.int32))


def lifted_loss(name):
  """z [B, n] -> the cross-entropy of every example, [B]."""
  net, image_shape, params, batch = problem(name)
  apply = layerwise.lifted_apply(net, image_shape)
  return lambda z: ro.losses.cross_entropy(apply(params, {}, z, train=False, key=None)[0], batch.y)


def stage_gradients(name):
  """The gradient of the loss in the input of each stage, by the layers from there on."""
  net, _, params, batch = problem(name)
  stages, gradients, h = layerwise.stages(net, params), [], batch.x
  for k, stage in enumerate(stages):
    rest = [layer for later in stages[k:] for layer in later]

    def total(h, rest=rest):
      return ro.losses.cross_entropy(affine.apply(rest, h), batch.y).sum()

    gradients.append(np.asarray(jax.jit(jax.grad(total))(h)))
    h = affine.apply(stage, h)
  return gradients


# The lifted net


@pytest.mark.parametrize(
  "name", ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("digits_cnn", "mnist_cnn"))]
)
def test_at_the_lifted_example_it_is_the_net(name):
  net, image_shape, params, batch = problem(name)
  assert layerwise.shapes(net, list(image_shape)) == SHAPES[name]
  z = layerwise.lift(batch.x, SHAPES[name])
  first, *later = products.split(z, SHAPES[name])
  np.testing.assert_array_equal(first, batch.x)
  assert [block.shape for block in later] == [(3, *shape) for shape in SHAPES[name][1:]]
  assert not any(jnp.any(block) for block in later)
  for train in (False, True):
    lifted, plain = layerwise.lifted_apply(net, image_shape), models.from_linen(net)
    logits, model_state = jax.jit(functools.partial(lifted, train=train, key=None))(params, {}, z)
    expected, _ = jax.jit(functools.partial(plain, train=train, key=None))(params, {}, batch.x)
    chex.assert_equal_shape((logits, expected))
    close(logits, expected)
    assert model_state == {}


def test_a_block_is_added_where_it_says():
  """By hand, with every block other than 0: W2 (relu(W1 (relu(W0 (z0 - m) / s) + z1)) + z2)."""
  net, image_shape, params, _ = problem("mlp")
  z = np.random.default_rng(2).normal(size=(3, 24)).astype(np.float32)
  h = (z[:, :12] - 0.3) / 0.4
  for place, block in enumerate((z[:, 12:19], z[:, 19:])):
    h = np.maximum(h @ params[f"Dense_{place}"]["kernel"] + params[f"Dense_{place}"]["bias"], 0)
    h = h + block
  expected = h @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"]
  logits, _ = layerwise.lifted_apply(net, image_shape)(params, {}, z, train=True, key=None)
  close(logits, expected)


# The worst case


@pytest.mark.parametrize(
  "name", ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("digits_cnn", "mnist_cnn"))]
)
def test_one_step_is_the_sign_of_every_layers_gradient(name):
  """The gradient of each block is that of the input of its stage."""
  net, image_shape, _, batch = problem(name)
  radii = (0.1, *(0.03,) * (len(SHAPES[name]) - 1))
  u = layerwise.layerwise(net, image_shape, ro.LInf(0.1), 0.03)
  z = layerwise.lift(batch.x, SHAPES[name])
  gradient = jax.jit(jax.grad(lambda z: lifted_loss(name)(z).sum()))(z)
  delta, info = jax.jit(lambda z: ro.steepest(u)(lifted_loss(name), None, z))(z)
  assert not np.any(info.zero_gradient)
  blocks, gradients = (products.split(a, SHAPES[name]) for a in (delta, gradient))
  for block, found, g, radius in zip(blocks, gradients, stage_gradients(name), radii, strict=True):
    close(found, g)
    clear = np.abs(g) > ROUNDING * np.abs(g).max()  # below, rounding may turn the sign
    assert np.mean(clear) > 0.5
    close(block[clear], radius * np.sign(g)[clear])
    assert np.all(np.abs(block) <= np.float32(radius))


def test_the_box_is_the_images_alone():
  net, image_shape, _, batch = problem("mlp")
  u = layerwise.layerwise(net, image_shape, ro.LInf(0.6, (0.0, 1.0)), 0.6)
  z = layerwise.lift(batch.x, SHAPES["mlp"])
  ascent = jax.jit(u.steepest_ascent)
  for sign, edge in ((1, 1 - z[:, :12]), (-1, -z[:, :12])):
    delta = ascent(sign * np.ones_like(z), z)
    np.testing.assert_array_equal(delta[:, :12], np.clip(edge, -0.6, 0.6))
    np.testing.assert_array_equal(delta[:, 12:], np.float32(sign * 0.6))
  image, *later = products.split(z + jax.jit(u.sample)(jax.random.key(0), z), SHAPES["mlp"])
  assert np.all((image >= 0) & (image <= 1))
  assert all(jnp.min(block) < -0.1 for block in later)


def two_linear_layers(batch=5):
  """An MLP of two classes whose units are always on, logits W1 W0 x / std; and x, y."""
  net = models.MLP(num_classes=2, widths=(4,), std=0.5)
  params, _ = models.init(net, jax.random.key(3), (2, 3, 1))
  params["Dense_0"]["bias"] = jnp.full(4, 8.0)
  params["Dense_1"]["bias"] = -8.0 * params["Dense_1"]["kernel"].sum(0)
  x = jax.random.uniform(jax.random.key(4), (batch, 2, 3, 1))
  return net, params, x, jnp.arange(batch) % 2


def test_worst_case_of_two_linear_layers():
  """J = log(1 + exp(-m)) of a margin m that falls by r_0 |g_0|_1 + r_1 |g_1|_1, and no further."""
  net, params, x, y = two_linear_layers()
  apply, shapes = layerwise.lifted_apply(net, (2, 3, 1)), layerwise.shapes(net, (2, 3, 1))
  z = layerwise.lift(x, shapes)

  def forward(z):
    return apply(params, {}, z, train=True, key=None)

  def loss(z):
    return ro.losses.cross_entropy(forward(z)[0], y)

  chex.clear_trace_counter()

  @jax.jit
  @chex.assert_max_traces(1)
  def worst(first_radius, hidden_radius):
    u = layerwise.layerwise(net, (2, 3, 1), ro.LInf(first_radius), hidden_radius)
    penalized, _ = ro.gradient_penalty(u).outer(forward, z, z, y)
    sampled = loss(z + u.sample(jax.random.key(0), z))
    return ro.robustify(loss, ro.steepest(u), argnum=0)(z), penalized, sampled

  W0, W1 = (np.float64(params[f"Dense_{i}"]["kernel"]) for i in (0, 1))
  sign = np.where(y == 1, -1.0, 1.0)  # of the class 0 against the class 1
  g_1 = W1[:, 0] - W1[:, 1]
  g_0 = W0 @ g_1 / 0.5
  units = np.float64(x).reshape(5, 6) / 0.5 @ W0
  assert np.all(units + 8 > 0.3 / 0.5 * np.abs(W0).sum(0))  # on, wherever the image goes
  margin = sign * (units @ g_1)
  assert np.abs(margin).max() < 4
  clean, p_wrong = np.logaddexp(0, -margin), 1 / (1 + np.exp(margin))
  for radii in ((0.0, 0.0), (0.1, 0.0), (0.0, 0.2), (0.3, 0.2)):
    fall = radii[0] * np.abs(g_0).sum() + radii[1] * np.abs(g_1).sum()
    value, penalized, sampled = worst(*radii)
    close(value, np.logaddexp(0, fall - margin))
    close(penalized, clean + p_wrong * fall)
    assert np.all(sampled <= value * (1 + ROUNDING))


# Training


@pytest.mark.parametrize(
  ("name", "first"), [("mlp", ro.LInf(0.1, (0.0, 1.0))), ("mlp", ro.L1(0.5))]
)
def test_hidden_radius_0_is_algorithm_1(name, first):
  net, image_shape, params, batch = problem(name)
  optimizer, key = optax.sgd(LR, momentum=0.9), jax.random.key(5)
  state = ro.init_state(params, {}, optimizer)
  plain = ro.make_train_step(models.from_linen(net), optimizer, ro.robust(), ro.steepest(first))

  @jax.jit
  def layerwise_step(hidden_radius):
    attack = ro.steepest(layerwise.layerwise(net, image_shape, first, hidden_radius))
    apply = layerwise.lifted_apply(net, image_shape)
    step = ro.make_train_step(apply, optimizer, ro.robust(), attack)
    return layerwise.lifted_step(step, SHAPES[name])(state, batch, key)

  expected, expected_metrics = jax.jit(plain)(state, batch, key)
  new, metrics = layerwise_step(0.0)
  close(new, expected)
  close(metrics, expected_metrics)
  # A hidden radius gives another update, at a larger loss.
  other, larger = layerwise_step(0.1)
  assert larger.loss > 1.01 * metrics.loss
  apart = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), other.params, expected.params)
  assert max(jax.tree.leaves(apart)) > 1e-3


# What is refused


def test_other_nets_shapes_and_radii_are_refused():
  net, image_shape, params, batch = problem("mlp")
  with pytest.raises(InputError, match="MadryCNN has no list of layers"):
    layerwise.shapes(models.MadryCNN(), (28, 28, 1))
  with pytest.raises(InputError, match=r"^The images must have the shape \(3, 4, 1\)"):
    layerwise.lift(batch.x[:, :2], SHAPES["mlp"])
  with pytest.raises(InputError, match=r"^Blocks of the shapes"):
    layerwise.lifted_apply(net, image_shape)(params, {}, batch.x, train=False, key=None)
  with pytest.raises(InputError, match=r"^Blocks of the shapes"):
    products.split(jnp.zeros((3, 23)), SHAPES["mlp"])
  with pytest.raises(InputError, match=r"^radius must be >= 0"):
    layerwise.layerwise(net, image_shape, ro.LInf(0.1), -0.1)
