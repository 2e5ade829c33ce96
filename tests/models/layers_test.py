"""Convolution and pooling against flax and XLA, in both formulations."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import assert_close

from robust_opt.errors import InputError
from robust_opt.models import layers

# Forward and back through sums over up to 5 x 5 x 8 entries, and over the pixels of two images.
close = functools.partial(assert_close, terms=2 * (5 * 5 * 8 + 2 * 10 * 9), dtype=np.float32)


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture(params=["matmul", "native"])
def formulation(request, monkeypatch):
  monkeypatch.setattr(layers, "formulation", request.param)
  return request.param


def test_formulation_follows_the_backend_unless_set(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
  assert layers.use_matmul()
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert not layers.use_matmul()
  monkeypatch.setattr(layers, "formulation", "matmul")
  assert layers.use_matmul()
  monkeypatch.setattr(layers, "formulation", "im2col")
  with pytest.raises(ValueError, match="im2col"):
    layers.use_matmul()


@pytest.mark.parametrize(  # 1 channel and 8: both ways of extracting patches
  ("channels", "kernel_size", "padding"),
  [(1, (3, 3), "SAME"), (1, (5, 5), "VALID"), (8, (2, 3), "SAME"), (8, (5, 5), "VALID")],
)
def test_convolve_is_flax_conv(formulation, channels, kernel_size, padding):
  x = normal(0, 2, 7, 8, channels)
  reference = nn.Conv(4, kernel_size, padding=padding, bias_init=nn.initializers.normal())
  ours = layers.Conv(4, kernel_size, padding=padding)
  variables = jax.jit(reference.init)(jax.random.key(1), x)
  shapes = jax.eval_shape(ours.init, jax.random.key(1), x)
  chex.assert_trees_all_equal_shapes_and_dtypes(variables, shapes)
  y, expected = jax.jit(ours.apply)(variables, x), jax.jit(reference.apply)(variables, x)
  chex.assert_equal_shape([y, expected])
  close(y, expected)


@pytest.mark.parametrize(  # channels, kernel, padding, strides, dilation, groups
  "case",
  [
    (3, (3, 3), 1, (2, 2), (1, 1), 1),
    (8, (3, 2), "SAME", (2, 3), (1, 1), 1),
    (8, (4, 4), 1, (2, 2), (1, 1), 1),
    (8, (1, 1), 0, (2, 2), (1, 1), 1),
    (3, (3, 2), 0, (3, 2), (1, 1), 1),
    (8, (3, 3), 2, (1, 2), (2, 2), 1),
    (2, (3, 2), "SAME", (2, 1), (2, 3), 1),
    (8, (3, 3), "VALID", (2, 1), (1, 2), 4),
    (4, (2, 2), 1, (2, 2), (1, 1), 2),
  ],
)
def test_strides_dilation_and_groups_are_xlas(monkeypatch, float64, case):
  """Values and both gradients of both formulations, for every padding."""
  channels, size, padding, strides, dilation, groups = case
  x, kernel = normal(0, 2, 9, 8, channels), normal(1, *size, channels // groups, 4)
  around = [(padding, padding)] * 2 if isinstance(padding, int) else padding

  def xlas(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, strides, around, rhs_dilation=dilation, feature_group_count=groups,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip

  def ours(x, kernel):
    layer = layers.Conv(4, size, padding, strides=strides, dilation=dilation, groups=groups,
                        use_bias=False, dtype=jnp.float64)  # fmt: skip
    return layer.apply({"params": {"kernel": kernel}}, x)

  def with_gradients(function, x, kernel):
    y, pull_back = jax.vjp(function, x, kernel)
    return y, pull_back(jnp.cos(jnp.arange(y.size, dtype=float)).reshape(y.shape))

  @jax.jit
  def all_of_them(x, kernel):
    outcomes = [with_gradients(xlas, x, kernel)]
    for name in ("native", "matmul"):
      monkeypatch.setattr(layers, "formulation", name)
      outcomes.append(with_gradients(ours, x, kernel))
    return outcomes

  expected, *found = all_of_them(x, kernel)
  for outcome in found:
    assert_close(outcome, expected, terms=500, dtype=np.float64)
  assert expected[0].dtype == np.float64


def test_average_pools():
  x = normal(0, 2, 7, 4, 3)
  close(layers.average_pool(x, 2), nn.avg_pool(x, (2, 2), strides=(2, 2)))
  close(layers.global_average_pool(x), nn.avg_pool(x, x.shape[1:3])[:, 0, 0])


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 2, 1), (2, 1, 0)])
def test_overlapping_max_pool_is_flax_max_pool(size, stride, padding):
  x, around = normal(0, 2, 8, 7, 3) - 3, [(padding, padding)] * 2  # the border would be seen as 0

  def value_and_grad(pool):
    return jax.jit(jax.value_and_grad(lambda x: jnp.sum(jnp.sin(pool(x)))))(x)

  close(
    value_and_grad(lambda x: layers.overlapping_max_pool(x, size, stride, padding)),
    value_and_grad(lambda x: nn.max_pool(x, (size, size), (stride, stride), around)),
  )


def test_unknown_activation_is_refused():
  with pytest.raises(InputError, match=r"one of relu, silu, gelu, but was 'swish'"):
    layers.activation_of("swish")


def test_unknown_padding_is_refused():
  with pytest.raises(ValueError, match="CIRCULAR"):
    layers.convolve(jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1)), "CIRCULAR")


@pytest.mark.parametrize("size", [2, 3])
def test_max_pool_is_flax_max_pool_where_nothing_ties(size):
  x = normal(0, 2, 8, 7, 3)

  def value_and_grad(pool):
    def value(x):
      y = pool(x)
      return (y * normal(1, *y.shape)).sum(), y

    return jax.jit(jax.value_and_grad(value, has_aux=True))(x)

  chex.assert_trees_all_close(
    value_and_grad(lambda x: layers.max_pool(x, size)),
    value_and_grad(lambda x: nn.max_pool(x, (size, size), strides=(size, size))),
  )


def test_ties_share_the_gradient():
  window = jnp.array([[1.0, 3.0], [3.0, 3.0]])[None, :, :, None]
  grad = jax.jit(jax.grad(lambda x: layers.max_pool(x, 2).sum()))(window)
  close(grad[0, :, :, 0], [[0.0, 1 / 3], [1 / 3, 1 / 3]])


def test_ties_before_the_relu_share_the_gradient_after_it(formulation):
  """A constant image: every window ties, above zero in one feature and below in the other."""
  x, kernel = jnp.ones((1, 6, 6, 1)), jnp.ones((3, 3, 1, 2)) * jnp.array([1.0, -1.0])

  @jax.jit
  def both(x):
    y, vjp = jax.vjp(lambda x: nn.relu(layers.convolve_max_pool(x, kernel, 2)), x)
    return y, vjp(jnp.ones_like(y))[0]

  y, gradient = both(x)
  np.testing.assert_allclose(y, jnp.broadcast_to(jnp.array([9.0, 0.0]), (1, 2, 2, 2)))
  overlaps = np.array([1, 2, 3, 3, 2, 1])  # of the 3-windows at 4 positions over 6 pixels
  expected = np.outer(overlaps, overlaps) / 4
  close(gradient[0, :, :, 0], expected)


def test_max_pool_differentiates_in_both_modes_and_twice():
  x = normal(0, 1, 4, 5, 2)

  def value(x):
    return (layers.max_pool(x, 2) ** 3).sum()

  grad = jax.jit(jax.grad(value))
  close(jax.jit(jax.jacfwd(value))(x), grad(x))
  direction = normal(1, *x.shape)
  _, forward_over_reverse = jax.jvp(grad, (x,), (direction,))
  reverse_over_reverse = jax.jit(jax.grad(lambda x: jnp.vdot(grad(x), direction)))(x)
  close(forward_over_reverse, reverse_over_reverse)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_conv_pool_is_conv_then_pool(formulation, padding):
  x = normal(0, 2, 10, 9, 3)
  fused = layers.ConvPool(4, (3, 3), padding, pool_size=2, bias_init=nn.initializers.normal())
  conv = layers.Conv(4, (3, 3), padding=padding)
  variables = jax.jit(fused.init)(jax.random.key(0), x)

  def fused_value(variables, x):
    return (nn.relu(fused.apply(variables, x)) ** 2).sum()

  def value(variables, x):
    return (layers.max_pool(nn.relu(conv.apply(variables, x)), 2) ** 2).sum()

  close(
    jax.jit(jax.value_and_grad(fused_value, (0, 1)))(variables, x),
    jax.jit(jax.value_and_grad(value, (0, 1)))(variables, x),
  )


def test_dtype_of_the_arithmetic(formulation):
  layer, x = layers.ConvPool(4, (3, 3), pool_size=2, dtype=jnp.bfloat16), normal(0, 2, 6, 6, 3)
  variables = jax.jit(layer.init)(jax.random.key(0), x)
  chex.assert_type(jax.tree.leaves(variables), jnp.float32)
  chex.assert_type(jax.jit(layer.apply)(variables, x), jnp.bfloat16)
