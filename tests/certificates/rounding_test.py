"""Certificates hold in floating point: what is certified is not misclassified, whatever rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_opt as ro
from robust_opt.certificates import exact
from robust_opt.certificates.rounding import depth, gamma, inner

SETS = {"linf": ro.LInf, "l2": ro.L2, "l1": ro.L1}
DUAL_ORDERS = {"linf": 1, "l2": 2, "l1": np.inf}
BATCH, ENTRIES, CLASSES = 128, 20, 3


def in_every_order(rng, x, kernel, bias):
  """x @ kernel + bias in float32, added up in four orders: [B, C] each."""
  yield np.asarray(jnp.asarray(x) @ kernel + bias)
  yield x @ kernel + bias
  order = rng.permutation(len(kernel))
  yield x[:, order] @ kernel[order] + bias
  total = np.tile(bias, (len(x), 1))
  for i in order:
    total = total + x[:, i : i + 1] * kernel[i]
  yield total


def sharing_weights(rng, shape, scale):
  """Weights whose classes share `scale` times what they differ by."""
  shared = scale * rng.normal(size=(shape[0], 1))
  return (rng.normal(size=shape) + shared).astype(np.float32)


def linear(kernel, bias, x):
  return x @ kernel + bias


def two_layers(first, offset, second, bias, x):
  return jax.nn.relu(x @ first + offset) @ second + bias


@pytest.mark.parametrize(
  ("norm", "box"),
  [
    ("linf", None),
    ("l1", (0.0, 1.0)),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (("linf", (0.0, 1.0)), ("l2", None))),
  ],
)
def test_no_certified_linear_example_is_misclassified(norm, box):
  """Just inside of its exact distance, by the worst delta toward every class."""
  found = []
  for scale in (0.0, 1e2, 1e4):
    rng = np.random.default_rng(int(scale))
    kernel, bias = sharing_weights(rng, (ENTRIES, CLASSES), scale), np.float32([0.3, 0.0, -0.1])
    x = rng.random((BATCH, ENTRIES)).astype(np.float32)
    y = np.argmax(x @ kernel + bias, axis=1).astype(np.int32)
    within = 1 - 10 ** rng.uniform(-7, -2, BATCH)
    distance = np.asarray(exact.linear_distance(kernel, bias, x, y, SETS[norm]))
    u = SETS[norm](np.float32(within * distance), box)
    robust = ro.certify(
      jax.tree_util.Partial(linear, kernel, bias), x, y, u, batch_size=BATCH
    ).certified
    fooled, ascent = np.zeros(BATCH, bool), jax.jit(u.steepest_ascent)
    for target in range(CLASSES):
      g = kernel.T[target] - kernel.T[y]
      x_adv = np.asarray(x + ascent(g, x))
      for logits in in_every_order(rng, x_adv, kernel, bias):
        fooled |= np.argmax(logits, axis=1) != y
    assert not np.any(robust & fooled)
    found.append((robust, fooled, 1 - within))
  (healthy, *_, slack), (_, fooled, _) = found[0], found[-1]
  assert np.all(healthy[slack > 1e-4])  # rounding costs less than this share of the radius
  assert box or np.sum(fooled) > 5  # there was something to be caught


@pytest.mark.parametrize("norm", list(SETS))
def test_no_certified_example_of_a_relu_net_is_misclassified(norm):
  """Where the net is linear within the ball its bounds are exact, and rounding alone is left."""
  rng = np.random.default_rng(3)
  width, batch = 12, 512
  first = (rng.normal(size=(ENTRIES, width)) / 4).astype(np.float32)
  second, bias = sharing_weights(rng, (width, CLASSES), 1e4), np.zeros(CLASSES, np.float32)
  offset = rng.normal(size=width).astype(np.float32)
  x = rng.random((batch, ENTRIES)).astype(np.float32)
  in_float64 = [a.astype(np.float64) for a in (x, first, offset, second)]
  hidden = np.maximum(in_float64[0] @ in_float64[1] + in_float64[2], 0)
  logits = hidden @ in_float64[3]
  y = np.argmax(logits, axis=1).astype(np.int32)
  rows = np.arange(batch)
  margins = logits - logits[rows, y][:, None]
  slopes = in_float64[3].T[None] - in_float64[3].T[y][:, None]  # [B, C, width]
  g = np.einsum("bcw,iw->bci", slopes * (hidden > 0)[:, None], in_float64[1])
  margins[rows, y] = -np.inf
  length = np.linalg.norm(g, DUAL_ORDERS[norm], axis=-1)
  nearest = np.argmin(-margins / np.where(length > 0, length, 1), axis=1)
  distance = -margins[rows, nearest] / length[rows, nearest]
  net = jax.tree_util.Partial(two_layers, first, offset, second, bias)
  for within in (1e-3, 1e-5):
    u = SETS[norm](np.float32((1 - within) * distance))
    robust = ro.certify(net, x, y, u, batch_size=batch).certified
    toward = jnp.asarray(g[rows, nearest], jnp.float32)
    x_adv = np.asarray(x + u.steepest_ascent(toward, x))
    fooled = np.zeros(batch, bool)
    for before in in_every_order(rng, x_adv, first, offset):
      for logits in in_every_order(rng, np.maximum(before, 0), second, bias):
        fooled |= np.argmax(logits, axis=1) != y
    assert not np.any(robust & fooled)
  assert np.sum(fooled) > 5


def test_an_inner_product_is_below_its_bound_in_any_order_and_by_little():
  rng = np.random.default_rng(4)
  terms = (rng.normal(size=(50, 1000)) * 10 ** rng.uniform(-3, 3, (50, 1000))).astype(np.float32)
  true = terms.astype(np.float64).sum(1)
  size = np.abs(terms.astype(np.float64)).sum(1)
  found = jax.vmap(inner)(jnp.ones((50, 1000)), terms)
  above = np.asarray(found.value + found.slack)
  assert np.all(above >= true)
  assert np.all(above - true <= 2.2 * gamma(depth(1000) + 16, jnp.float32) * size)
  assert depth(1000) == 4 + 63
  assert gamma(2**24, jnp.float32) == np.inf


def test_images_are_floating_point():
  x = np.zeros((2, 3), np.uint8)
  for run in (
    lambda: ro.certify(lambda x: x, x, np.zeros(2, int), ro.LInf(0.1)),
    lambda: exact.linear_margin(np.eye(3), np.zeros(3), x, np.zeros(2, int), ro.L2(0.1)),
  ):
    with pytest.raises(ro.InputError, match="x must be floating point, not uint8"):
      run()
