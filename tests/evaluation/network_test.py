"""A user's network under jit: the weights of today, and nothing random that jit would freeze."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rounding import assert_close, rounding

import robust_opt as ro
from robust_opt.evaluation import batches, network, phases

RADIUS = 0.05
PHASES = (phases.apgd_ce(3),)
X = np.random.default_rng(0).uniform(0.2, 0.8, (24, 6)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
Y = (X @ W).argmax(axis=1)
# A product over 6 inputs, a softmax of 3 classes, and a mean.
TERMS = 6 + 2 * 3 + 16
ROUNDING = rounding(terms=TERMS)
close = functools.partial(assert_close, terms=TERMS, dtype=np.float32)

BALL = ro.LInf(RADIUS, box=(0.0, 1.0))
attack = functools.partial(ro.autoattack, u=BALL, version=PHASES, batch_size=8)


class Linear(nnx.Module):
  """[B, 6] -> [B, 3]."""

  def __init__(self) -> None:
    self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    self.w = nnx.Param(jnp.asarray(W))

  def __call__(self, x):
    return self.dropout(x @ self.w[...])


class Layers(eqx.Module):
  """[B, 6] -> [B, 3], with a function and a number among its leaves."""

  w: jax.Array
  activation: object = jnp.negative
  scale: float = -1.0

  def __call__(self, x):
    return self.activation(x @ self.w) * self.scale


def closure(params):
  return lambda x: x @ params["w"]


def inner_jit(params):
  def logits(x):
    return jax.jit(lambda x: x @ params["w"])(x)

  return logits


def literal(params):
  """The weights as Python numbers, which are literals of the trace and not its constants."""

  def logits(x):
    w = np.asarray(params["w"]).tolist()
    return sum(x[:, i : i + 1] * jnp.stack([jnp.float32(v) for v in w[i]]) for i in range(6))

  return logits


def partial_with_closure(params):
  return jax.tree_util.Partial(lambda scale, x: scale * (x @ params["w"]), jnp.ones(()))


FUNCTIONS = [closure, inner_jit, literal, partial_with_closure]


def clean_accuracy(verdict):
  return verdict.clean_accuracy


@pytest.mark.parametrize("make", FUNCTIONS)
def test_a_function_whose_weights_change_is_evaluated_anew(make):
  params = {"w": jnp.asarray(W)}
  net = make(params)
  before = attack(net, X, Y)
  params["w"] = jnp.asarray(-W)
  after = attack(net, X, Y)
  assert before.clean_accuracy == 1
  assert after.clean_accuracy == np.mean((X @ -W).argmax(axis=1) == Y) < 0.5
  params["w"] = jnp.asarray(W)
  np.testing.assert_array_equal(attack(net, X, Y).images, before.images)


def test_another_custom_gradient_is_compiled_anew():
  slope = {"value": jnp.ones(())}

  def net(x):
    @jax.custom_vjp
    def rounded(x):
      return jnp.round(x)

    rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (slope["value"] * g,))
    return rounded(x) @ W

  gradient = jax.jit(jax.grad(lambda x, net: jnp.sum(net(x)[:, 0])))
  for value in (1.0, 2.0):
    slope["value"] = jnp.asarray(value)
    found = gradient(X, network.as_argument(net, X))
    np.testing.assert_allclose(found, np.broadcast_to(value * W[:, 0], X.shape), rtol=ROUNDING)


def test_a_module_that_is_changed_in_place_is_evaluated_anew():
  net = Linear()
  net.eval()
  before = attack(net, X, Y)
  net.w[...] = jnp.asarray(-W)
  assert before.clean_accuracy == 1
  assert attack(net, X, Y).clean_accuracy < 0.5


@pytest.mark.parametrize("make", [lambda w: Layers(jnp.asarray(w)), lambda w: with_weights(w)])
def test_networks_of_one_architecture_share_a_compilation(make):
  first, second = (network.as_argument(make(w), X) for w in (W, -W))
  traces = []

  @jax.jit
  def program(net, x):
    traces.append(1)
    return net(x)

  close(program(first, X), X @ W)
  close(program(second, X), -X @ W)
  assert len(traces) == 1


def with_weights(w):
  net = Linear()
  net.eval()
  net.w[...] = jnp.asarray(w)
  return net


def test_a_network_that_is_trained_meanwhile_is_refused():
  params = {"w": jnp.asarray(W)}

  def train(progress):
    params["w"] = jnp.asarray(-W)

  with pytest.raises(ro.InputError, match="has changed during its evaluation"):
    attack(closure(params), X, Y, report=train)


def python_noise(x):
  return x @ W + np.random.default_rng().normal(size=(len(x), 3)).astype(np.float32)


def test_a_network_that_answers_at_random_is_refused_before_any_attack():
  told = []
  with pytest.raises(ro.InputError, match=r"network is random.*Randomized.*version=\"rand\""):
    attack(python_noise, X, Y, report=told.append)
  assert not told


def test_state_outside_of_the_arguments_is_refused():
  """Random only under a trace: two plain calls agree, but the compiled network is another one."""

  def net(x):
    return x @ W + (0.5 if isinstance(x, jax.core.Tracer) else 0.0) * jnp.arange(3.0)

  with pytest.raises(ro.InputError, match="not a pure function of the images"):
    attack(net, X, Y)


def test_a_jitted_function_with_old_weights_is_refused():
  """JAX keeps the first weights for the shapes that it has seen, and takes new ones for others."""
  params = {"w": jnp.asarray(W)}
  net = jax.jit(lambda x: x @ params["w"])
  assert attack(net, X, Y).clean_accuracy == 1
  params["w"] = jnp.asarray(-W)
  with pytest.raises(ro.InputError, match="weights that a jitted function closed over"):
    attack(net, X, Y)


def test_a_callback_to_another_function_is_another_network():
  model = [lambda a: np.asarray(a) @ W]

  def net(x):
    answer, shape = model[0], jax.ShapeDtypeStruct((*x.shape[:1], 3), jnp.float32)
    return jax.pure_callback(lambda a: answer(a).astype(np.float32), shape, x)

  assert np.mean(batches.predictions(net, X, 8) == Y) == 1
  model[0] = lambda a: -np.asarray(a) @ W
  assert np.mean(batches.predictions(net, X, 8) == Y) < 0.5


@pytest.mark.parametrize("masked", [-1e9, -1e30])
def test_logits_are_compared_where_they_decide(masked):
  logits = np.concatenate([X @ W, np.full((len(X), 1), masked, np.float32)], axis=1)
  shared = np.float32(1e4) + X @ W
  for z in (logits, X @ W, shared):
    assert network.compared(z, z * np.float32(1 + 2**-23))[0]
    noise = np.float32(0.05) * np.random.default_rng(2).normal(size=z.shape).astype(np.float32)
    assert not network.compared(z, z + noise)[0]
  assert not network.compared(X @ W, np.full_like(X @ W, np.nan))[0]


def test_a_leaf_without_a_hash():
  labels = {1, 2}
  net = jax.tree_util.Partial(lambda kept, x: x @ W * len(kept) / 2, labels)
  np.testing.assert_allclose(network.as_argument(net, X)(X), X @ W, rtol=1e-6)


def test_square_alone_needs_no_gradient():
  def net(x):
    shape = jax.ShapeDtypeStruct((*x.shape[:1], 3), jnp.float32)
    return jax.pure_callback(lambda a: np.asarray(a) @ W, shape, x)

  assert attack(net, X, Y, version=(phases.square_phase(3),)).clean_accuracy == 1


def test_low_precision_is_no_reason_to_refuse():
  deep = [jnp.asarray(np.linalg.qr(np.eye(6) + 0.1 * W @ W.T)[0], jnp.bfloat16) for _ in range(8)]

  def net(x):
    x = x.astype(jnp.bfloat16)
    for w in deep:
      x = jax.nn.gelu(x @ w) + x
    return (x @ W.astype(jnp.bfloat16)).astype(jnp.float32)

  assert network.as_argument(net, X).func.low_precision == jnp.bfloat16
  network.checked_logits(net, network.as_argument(net, X), X)


def noisy(x, key):
  return x @ W + 0.5 * jax.random.normal(key, (x.shape[0], 3))


def test_the_mean_of_draws_is_that_of_probabilities():
  net = jax.jit(ro.Randomized(noisy, jax.random.key(1), num_draws=7).__call__)
  noise = [noisy(0 * X[:1], key) for key in jax.random.split(jax.random.key(1), 7)]
  draws = [jax.nn.softmax(X @ W + each) for each in noise]
  close(jnp.exp(net(X)), np.mean(draws, axis=0))
  close(net(X[5:7])[1], net(X)[6])
  np.testing.assert_array_equal(net(X), net(X, jax.random.key(1)))
  assert np.abs(net(X) - net(X, jax.random.key(2))).max() > 0.01


@pytest.mark.slow
def test_every_step_of_the_attack_has_fresh_draws():
  values = []

  def recorded(x, key):
    jax.debug.callback(lambda k: values.append(tuple(np.asarray(k))), jax.random.key_data(key))
    return x @ W

  net = ro.Randomized(recorded, jax.random.key(1), num_draws=2)
  version = tuple(make(4, fresh_noise=True) for make in (phases.apgd_ce, phases.apgd_dlr))
  attack(net, X[:8], Y[:8], version=version)
  jax.effects_barrier()
  fixed = {
    tuple(k) for k in np.asarray(jax.random.key_data(jax.random.split(jax.random.key(1), 2)))
  }
  assert fixed < set(values)
  # Four steps and the comparison of points, two draws each, in each of two attacks.
  assert len(set(values) - fixed) >= 2 * 4 * 2


def test_versions_are_for_one_kind_of_network():
  random = ro.Randomized(noisy, jax.random.key(0), num_draws=2)
  for net, version in ((random, "quick"), (closure({"w": W}), "rand")):
    with pytest.raises(ro.InputError, match='version="rand" is for'):
      attack(net, X, Y, version=version)


def test_functions_that_cannot_be_traced_are_refused_with_the_remedy():
  trained = Linear()  # dropout is on: the key that it draws from is updated by every call
  cases = [lambda x: np.asarray(x) @ W, lambda x: jnp.asarray(np.tanh(np.array(x)) @ W), trained]
  for net in cases:
    with pytest.raises(
      ro.InputError, match=r"cannot trace its gradient .*torch_bridge.*model\.eval"
    ):
      attack(net, X, Y)


@pytest.mark.parametrize(
  ("outputs", "words"), [(lambda z: (z, z), "a tuple"), (lambda z: {"logits": z}, "a dict")]
)
def test_several_outputs_are_refused(outputs, words):
  with pytest.raises(ro.InputError, match=f"must return one array of logits .* returned {words}"):
    attack(lambda x: outputs(x @ W), X, Y)
