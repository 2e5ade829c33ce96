"""Bounds of networks: sound against attacks, exact where they can be, compiled once."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_opt as ro
from robust_opt import losses, models
from robust_opt.certificates import bounds, exact, propagation, tracing

SETS = {"linf": ro.LInf, "l2": ro.L2, "l1": ro.L1}
UNIT = (0.0, 1.0)
BATCH = 5
# What bounds allow for rounding on these nets: some 300 roundings of sums of a size of up to 5.
ROUNDING = 300 * 5 * 2**-24


def normal(rng, *shape):
  """Weights that keep the size of what they are applied to, [*in, out]."""
  return (rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


logit_bounds = jax.jit(bounds.logit_bounds, static_argnames=("method", "num_steps"))


def partial(function, *weights):
  """A network whose weights are arguments of what is compiled."""
  return jax.tree_util.Partial(function, *weights)


def linear(first, second, bias, x):
  """One affine map, written as three."""
  return (2 * x.reshape(len(x), -1) - 1) @ first @ second + bias


@pytest.mark.parametrize(
  ("norm", "box"),
  [
    ("l2", UNIT),
    *(pytest.param("linf", box, marks=pytest.mark.slow) for box in (None, UNIT)),
    *(pytest.param("l1", box, marks=pytest.mark.slow) for box in (None, UNIT)),
    pytest.param("l2", None, marks=pytest.mark.slow),
  ],
)
def test_exact_without_nonlinear_operations(norm, box):
  rng, num_classes = np.random.default_rng(3), 4
  x = rng.random((BATCH, 2, 3)).astype(np.float32)
  y = rng.integers(0, num_classes, BATCH)
  first, second, bias = normal(rng, 6, 4), normal(rng, 4, num_classes), normal(rng, num_classes)
  u = SETS[norm](np.linspace(0, 0.5, BATCH, dtype=np.float32), box)
  weights, offset = 2 * first @ second, bias - np.sum(first @ second, axis=0)
  worst = exact.linear_margin(weights, offset, x, y, u)
  found = ro.certify(partial(linear, first, second, bias), x, y, u, "ibp")
  np.testing.assert_allclose(found.margins, -worst, rtol=ROUNDING, atol=ROUNDING)
  np.testing.assert_array_equal(found.certified, worst < 0)
  assert np.all((found.slack > 0) & (found.slack < ROUNDING))


def relu_net(kernel, x):
  return jax.nn.relu(x) @ kernel


def test_one_relu_by_hand():
  """z in [-0.2, 0.4]: below 2/3 (z + 0.2), and above z."""
  x, u = np.float32([[0.1]]), ro.LInf(0.3)
  net = partial(relu_net, np.float32([[1.0, -1.0]]))
  lower, upper = logit_bounds(net, x, u)
  # CROWN bounds relu(z) by [-0.2, 0.4]; the interval of its values is tighter from below.
  np.testing.assert_allclose(lower, [[0.0, -0.4]], atol=1e-5)
  np.testing.assert_allclose(upper, [[0.4, 0.0]], atol=1e-5)
  # relu(z) - 2 z >= -z: only the line through 0 knows that both parts are of one z.
  both = lambda x: jnp.concatenate([jax.nn.relu(x) - 2 * x, 0 * x], axis=-1)  # noqa: E731
  lower, upper = logit_bounds(jax.tree_util.Partial(both), x, u)
  np.testing.assert_allclose(lower[0, 0], -0.4, atol=1e-5)  # at z = 0.4, exact
  np.testing.assert_allclose(upper[0, 0], 2 / 3 * 0.2 + 4 / 3 * 0.2, atol=1e-5)  # at z = -0.2


def monotone(first, second, x):
  return jnp.tanh(jax.nn.sigmoid(jax.nn.leaky_relu(x.reshape(len(x), -1) @ first)) @ second)


def test_intervals_of_a_monotone_net_are_its_values_at_the_corners():
  rng = np.random.default_rng(0)
  net = partial(monotone, np.abs(normal(rng, 4, 6)), np.abs(normal(rng, 6, 3)))
  x = rng.random((BATCH, 2, 2)).astype(np.float32)
  u = ro.LInf(0.2, UNIT)
  lower, upper = logit_bounds(net, x, u, "ibp")
  np.testing.assert_allclose(lower, net(np.clip(x - 0.2, 0, 1)), atol=3e-5)
  np.testing.assert_allclose(upper, net(np.clip(x + 0.2, 0, 1)), atol=3e-5)


# Thousands of nets of one architecture: two residual hidden layers of several activations.
SIZES = ((4, 6), (6, 6), (6, 3))
ACTIVATIONS = {
  "relu": jax.nn.relu,
  "mixed": lambda z: jnp.concatenate(
    [jax.nn.leaky_relu(z[:, :2]), jax.nn.sigmoid(4 * z[:, 2:3]), jnp.tanh(z[:, 3:4]),
     jnp.clip(z[:, 4:5], -0.5, 0.5), jnp.max(z[:, 4:], axis=1, keepdims=True)], axis=1
  ),
}  # fmt: skip


def residual(activation, weights, x):
  (first, second, third), offsets = weights
  z = ACTIVATIONS[activation](x @ first + offsets[0])
  z = z + ACTIVATIONS[activation](z @ second + offsets[1])
  return z @ third


def points(key, u, x):
  """Corners of U(x) in random directions, and random points: [P, 1, n]."""
  directions = jax.random.normal(key, (24, *x.shape))
  corners = jax.vmap(lambda g: u.steepest_ascent(g, x))(directions)
  return x + jnp.concatenate([corners, jax.vmap(lambda k: u.sample(k, x))(jax.random.split(key))])


@functools.partial(jax.jit, static_argnames=("activation", "method"))
def certified_and_attacked(weights, x, keys, u, activation, method):
  """For every net its certified margin of its own prediction, and the least under attack."""

  def of_one(weights, x, key, radius):
    net = functools.partial(residual, activation, weights)
    x, ball = x[None], type(u)(radius, u.box)
    y = jnp.argmax(net(x), axis=-1)
    others = jnp.where(jnp.arange(3) == y[:, None], jnp.inf, 0.0)
    found = bounds.margins(net, x, y, ball, method, max_units=4)  # of 6
    proved = jnp.min(found.bounds + others)
    small = type(u)(0.999 * radius, u.box)
    value = lambda x: losses.margin(net(x), y)  # noqa: E731
    pgd = ro.ascend(ro.pgd(small, ro.L2(radius / 3)), 10)
    x_adv = x + pgd(value, key, x)[0]
    found = jax.vmap(value)(jnp.concatenate([points(key, small, x), x_adv[None]]))
    return proved, -jnp.max(found)

  return jax.vmap(of_one)(weights, x, keys, u.radius)


NETS = [("relu", "crown", "linf", None)]
NETS += [
  pytest.param(*case, marks=pytest.mark.slow)
  for case in (
    ("mixed", "crown", "linf", UNIT),
    ("mixed", "ibp", "l2", None),
    ("relu", "crown", "l1", UNIT),
    ("relu", "alpha-crown", "linf", UNIT),
  )
]


@pytest.mark.parametrize(("activation", "method", "norm", "box"), NETS)
def test_no_net_of_thousands_breaks_its_certificate(activation, method, norm, box):
  """By PGD, corners and random points at 0.999 of the radius."""
  count, rng = 4096, np.random.default_rng(1)
  kernels = tuple(np.stack([2 * normal(rng, *shape) for _ in range(count)]) for shape in SIZES)
  offsets = tuple(rng.normal(size=(count, 6)).astype(np.float32) / 2 for _ in range(2))
  x = rng.random((count, 4)).astype(np.float32)
  scale = {"linf": 0.1, "l2": 0.2, "l1": 0.4}[norm]
  u = SETS[norm](np.float32(scale * 10 ** rng.uniform(-1, 0.5, count)), box)
  keys = jax.random.split(jax.random.key(0), count)
  proved, attacked = certified_and_attacked((kernels, offsets), x, keys, u, activation, method)
  assert np.all(attacked >= proved)  # bounds hold where nothing is certified, too
  assert 0.2 < np.mean(proved > 0) < 0.9
  assert np.mean(attacked < 0) > 0.02


def two_relus(x):
  """1 - relu(-h - 0.1) against 0.9, where h = relu(z) - z / 2 >= 0; all at z = 4 x."""
  h = jax.nn.relu(4 * x) - 2 * x
  return jnp.concatenate([1 - jax.nn.relu(-h - 0.1), 0 * x + 0.9], axis=-1)


def test_alpha_crown_of_what_crown_leaves():
  """Slope 1/2 of the first ReLU gives h >= 0: the second is 0, and the margin 0.1, as it truly is.

  CROWN-Ada has slope 0 or 1, h >= -min(-l, u) / 2, and the chord of the second, which is higher.
  """
  x = np.float32([[0.0], [0.05], [-0.1], [0.4], [0.0]])
  y, u = np.array([0, 0, 0, 0, 1]), ro.LInf(0.25)
  certify = functools.partial(ro.certify, jax.tree_util.Partial(two_relus), x, y, u)
  crown, outer, inner = certify("crown"), *(certify("alpha-crown", max_units=k) for k in (0, 1))
  np.testing.assert_array_equal(crown.certified, [False, False, False, True, False])
  np.testing.assert_array_equal(inner.certified, [True, True, True, True, False])
  np.testing.assert_allclose(inner.margins[:4], 0.1, atol=1e-4)
  assert np.all(crown.margins <= outer.margins)
  assert np.all(outer.margins[:3] < 0.05)  # the chord is left
  # What CROWN proves is not proved again, nor what is misclassified.
  np.testing.assert_array_equal(inner.margins[3:], crown.margins[3:])


def test_crown_chooses_slopes_by_linear_bounds_alone():
  """For relu(z) >= slope z at z = -1: slope 1 if the linear upper bound is above 1, 0 else."""
  x, u, one = np.zeros((1, 1), np.float32), ro.LInf(1.0), jnp.ones((1, 1))

  @jax.jit
  def loss_below(linear):
    graph = tracing.trace(jax.nn.relu, (1,), jnp.float32)
    start, *rest = propagation.forward(graph, x, u, "ibp").values()
    start = start._replace(lower=-one, upper=0.9 * one, linear=(-one, linear * one))
    return propagation.upper(graph, dict(enumerate([start, *rest])), x, u, -one).value

  np.testing.assert_allclose([loss_below(1.2), loss_below(0.9)], [1, 0], atol=1e-5)


class Zoo(nn.Module):
  """Every layer that networks are made of."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3), strides=(2, 1))(x)
    x = nn.leaky_relu(nn.BatchNorm(use_running_average=True)(x))
    y = models.layers.overlapping_max_pool(x, 3, 2, 1)
    z = nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
    x = jnp.concatenate([y, z, nn.avg_pool(x, (2, 2), strides=(2, 2), padding="SAME")], axis=-1)
    x = x + jnp.abs(nn.Conv(12, (1, 1))(x))
    a, b = jnp.split(x, 2, axis=-1)
    x = jnp.minimum(a, 0.3) - jnp.stack([b, nn.relu6(b[..., ::-1])], axis=-1).mean(axis=-1)
    x = nn.sigmoid(x.transpose(0, 2, 1, 3)).sum(axis=1)
    return nn.Dense(3)(jnp.tanh(x).reshape(x.shape[0], -1)) / 2


def zoo():
  """A net with statistics of its own, and images."""
  rng = np.random.default_rng(5)
  x = rng.random((2, 6, 6, 2)).astype(np.float32)
  variables = Zoo().init(jax.random.key(0), x)
  draw = lambda leaf: leaf + 0.3 * rng.random(leaf.shape).astype(np.float32)  # noqa: E731
  return partial(Zoo().apply, jax.tree.map(draw, variables)), x


@pytest.mark.parametrize("method", ["ibp", pytest.param("crown", marks=pytest.mark.slow)])
def test_every_layer_is_walked(method):
  """At radius 0 the bounds are the logits; at others they contain what the net does."""
  net, x = zoo()
  bound = functools.partial(logit_bounds, method=method)
  for found in bound(net, x, ro.LInf(0.0, UNIT)):
    np.testing.assert_allclose(found, net(x), atol=2e-4)
  u = ro.LInf(0.05, UNIT)
  lower, upper = bound(net, x, u)
  signs = np.random.default_rng(0).choice([-1, 1], (500, *x.shape))
  logits = jax.jit(jax.vmap(net))(np.clip(x + 0.05 * signs, 0, 1).astype(np.float32))
  assert np.all((lower <= logits) & (logits <= upper))
  assert np.all(upper - lower < 40 * np.ptp(logits, axis=0))  # not vacuous


def test_a_second_call_compiles_nothing_and_sees_new_weights():
  rng = np.random.default_rng(0)
  x = rng.random((7, 5)).astype(np.float32)
  kernel = np.eye(5, 3, dtype=np.float32)
  y = np.argmax(x @ kernel, axis=1)
  certify = functools.partial(ro.certify, x=x, y=y, method="ibp", batch_size=4)
  before = bounds._certify._cache_size()
  assert certify(partial(relu_net, kernel), u=ro.LInf(0.0)).certified.all()
  assert not certify(partial(relu_net, -kernel), u=ro.LInf(0.0)).certified.any()
  assert not certify(partial(relu_net, kernel), u=ro.LInf(1.0)).certified.any()
  assert bounds._certify._cache_size() == before + 1
  found = certify(partial(relu_net, kernel), u=ro.LInf(0.01))
  alone = certify(partial(relu_net, kernel), x=x[6:], y=y[6:], u=ro.LInf(0.01))
  np.testing.assert_allclose(found.margins[6:], alone.margins, atol=1e-5)


def test_nothing_is_certified_of_what_is_not_right_to_begin_with():
  kernel, x = np.eye(3, dtype=np.float32), np.float32([[0.9, 0.5, 0.1], [0.2, 0.1, 0.8]])
  certify = lambda kernel, y, r: ro.certify(partial(relu_net, kernel), x, y, ro.L2(r), "ibp")  # noqa: E731
  assert certify(kernel, [0, 2], 0.0).certified.all()
  for labels in ([1, 0], [-1, -1], [3, 3]):
    assert not certify(kernel, labels, 0.0).certified.any()
  for value in (np.nan, np.inf):
    broken = kernel.copy()
    broken[0, 0] = value
    assert not certify(broken, [0, 2], 0.1).certified.any()
  assert not certify(0 * kernel, [0, 0], 0.0).certified.any()  # a tie
  assert not certify(kernel, [0, 2], np.inf).certified.any()


def test_what_cannot_be_bounded_is_named_in_a_sentence():
  x, y = np.zeros((2, 3), np.float32), np.zeros(2, int)
  refused = {
    r"operation (erf|erfc), which": lambda x: jax.nn.gelu(x, approximate=False),
    r"operation mul of several values that depend on the image": lambda x: x * x[:, ::-1],
    r"operation exp, which": jax.nn.softmax,
    r"operation convert_element_type, which": lambda x: x.astype(int).astype(x.dtype),
    r"operation div, which": lambda x: 1 / (2 + x),
    r"operation scan": lambda x: jax.lax.scan(lambda c, _: (c + 1, None), x, length=2)[0],
    r"computes in bfloat16": lambda x: x.astype(jnp.bfloat16).astype(jnp.float32),
    r"do not depend on the image": lambda x: jnp.ones((len(x), 2)),
    r"must return logits \[1, C\]": lambda x: x[:, 0],
  }
  for words, net in refused.items():
    with pytest.raises(ro.InputError, match=words):
      bounds.margins(net, x, y, ro.LInf(0.1))
  certify = functools.partial(ro.certify, lambda x: x, x, y)
  with pytest.raises(ro.InputError, match=r"certify takes ro.LInf, ro.L2 or .* not the string 'l'"):
    certify("l")
  with pytest.raises(ro.InputError, match=r"certify takes ro.LInf.*, not an L0"):
    certify(ro.sets.L0(2, 0.1))
  with pytest.raises(ro.InputError, match=r"method must be one of 'ibp', .*, but was 'milp'"):
    certify(ro.L2(0.1), method="milp")
  with pytest.raises(ro.InputError, match="as many labels as images"):
    ro.certify(lambda x: x, x, y[:1], ro.L2(0.1))
