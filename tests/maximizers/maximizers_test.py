"""Algorithm 1 against closed forms, and robustify as a transformation that composes."""

import collections
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec
from programs import equations
from rounding import assert_close, widest

import robust_opt as ro
from robust_opt.errors import InputError

SETS = {"linf": ro.LInf, "l2": ro.L2, "l1": ro.L1}
DUAL_ORDERS = {"linf": 1, "l2": 2, "l1": np.inf}
MARGIN_LOSSES = {
  "logistic": lambda margin: jax.nn.softplus(-margin),
  "hinge": lambda margin: jax.nn.relu(1 - margin),
  "exponential": lambda margin: jnp.exp(-margin),
  "softmax": lambda margin: ro.losses.cross_entropy(
    jnp.stack([margin, 0 * margin], -1), jnp.zeros(margin.shape, int)
  ),
}
EVERY_SET = pytest.mark.parametrize("name", list(SETS))
BATCH, NUM_ENTRIES, RADIUS = 16, 5, 0.3
pytestmark = pytest.mark.usefixtures("float64")
# Forward and back through 5 entries, 7 units, 3 classes and 16 examples, in up to four passes.
TERMS = 4 * 2 * (NUM_ENTRIES + 7 + 3 + BATCH)
close = functools.partial(assert_close, terms=TERMS, scale=1.0)


def linear_problem(batch=BATCH):
  """w [n], b [], x [B, n], y [B] in {-1, 1}; no example sits in the flat part of the hinge."""
  rng = np.random.default_rng(0)
  x, w = rng.normal(size=(batch, NUM_ENTRIES)), rng.normal(size=NUM_ENTRIES)
  y = np.where(x @ w + 0.2 > 0, 1, -1)
  x *= 0.9 / np.abs(x @ w + 0.2).max()
  return {"w": jnp.asarray(w), "b": jnp.asarray(0.2)}, jnp.asarray(x), jnp.asarray(y)


def margins(params, x, y):
  return y * (x @ params["w"] + params["b"])


def closed_form(phi, name, params, x, y, radius=RADIUS):
  """max over |delta|_p <= r of phi(y (w'(x + delta) + b)) = phi(y (w'x + b) - r |w|_q)."""
  return phi(margins(params, x, y) - radius * jnp.linalg.norm(params["w"], DUAL_ORDERS[name]))


def mlp_loss(params, x, y):
  """[B]; a tanh net for whatever has no closed form."""
  logits = jnp.tanh(x @ params["first"]) @ params["second"]
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)


def mlp_problem(batch=BATCH, seed=0):
  keys = jax.random.split(jax.random.key(seed), 4)
  params = {
    "first": jax.random.normal(keys[0], (NUM_ENTRIES, 7)),
    "second": jax.random.normal(keys[1], (7, 3)),
  }
  x = jax.random.uniform(keys[2], (batch, NUM_ENTRIES))
  return params, x, jax.random.randint(keys[3], (batch,), 0, 3)


# Closed forms.


@EVERY_SET
def test_the_ascent_step_is_exact_on_linear_models(name):
  """As is its gradient: robust training of linear models is regularization by the dual norm."""
  params, x, y = linear_problem()

  def robust(phi):
    return ro.robustify(lambda *args: phi(margins(*args)), ro.steepest(SETS[name](RADIUS)))

  def closed(phi):
    return functools.partial(closed_form, phi, name)

  def values_and_gradients(loss_of):
    values = lambda params: {m: loss_of(f)(params, x, y) for m, f in MARGIN_LOSSES.items()}  # noqa: E731
    return jax.jit(lambda params: (values(params), jax.jacrev(values)(params)))(params)

  ours, expected = map(values_and_gradients, (robust, closed))
  close(ours, expected)
  close(ours[0]["softmax"], ours[0]["logistic"])
  single = jax.tree.map(lambda a: a.astype(np.float32), (params, x))
  in_float32 = jax.jit(robust(MARGIN_LOSSES["hinge"]))(*single, np.asarray(y))
  assert_close(in_float32, expected[0]["hinge"], terms=4 * NUM_ENTRIES)


def test_frank_wolfe_steps_by_hand():
  params, x, y = mlp_problem()
  value_fn = lambda x: mlp_loss(params, x, y)  # noqa: E731
  gradient = jax.jit(jax.grad(lambda x: value_fn(x).sum()))
  u, delta = ro.L2(1.0), 0 * x
  ascent = jax.jit(u.steepest_ascent)
  for t in range(3):
    delta = delta + 2 / (t + 2) * (ascent(gradient(x + delta), x) - delta)
  ours, _ = jax.jit(lambda x: ro.ascend(ro.frank_wolfe(u), 3)(value_fn, None, x))(x)
  close(ours, delta)


def test_a_zero_gradient_is_reported_and_never_made_up():
  # A confident hinge: the loss is flat, so is the step; the margin itself still has a direction.
  params = {"w": jnp.array([1.0, 0.0]), "b": jnp.array(0.0)}
  x, y = jnp.array([[5.0, 0.0], [0.5, 0.0]]), jnp.ones(2)
  hinge = lambda x: MARGIN_LOSSES["hinge"](margins(params, x, y))  # noqa: E731
  delta, info = ro.steepest(ro.L2(0.25))(hinge, None, x)
  np.testing.assert_array_equal(delta, [[0, 0], [-0.25, 0]])
  np.testing.assert_array_equal(info.zero_gradient, [[True, False]])


@pytest.mark.parametrize(
  "maximizer",
  [
    ro.frank_wolfe(ro.L2(2.0)),
    ro.pgd(ro.L2(2.0), ro.L2(0.5), random_start=False, momentum=0.9),
    ro.projected(ro.L2(2.0), optax.adam(0.5)),
    ro.lbfgs(ro.L2(2.0)),
  ],
  ids=["frank_wolfe", "momentum", "projected", "lbfgs"],
)
def test_an_example_stays_where_its_gradient_is_zero(maximizer):
  # One climbs for ever, the other reaches a plateau in its first step.
  heights = jnp.array([100.0, 0.25])
  climb = lambda x: jnp.minimum(x.sum(-1), heights)  # noqa: E731
  (first, _), (last, info) = (
    jax.jit(lambda x, n=n: ro.ascend(maximizer, n)(climb, None, x))(jnp.zeros((2, 2)))
    for n in (1, 5)
  )
  np.testing.assert_array_equal(info.zero_gradient[:, 1], [False, True, True, True, True])
  assert not info.zero_gradient[:, 0].any()
  assert (first[1] != 0).all()
  np.testing.assert_array_equal(last[1], first[1])


def test_keys_of_both_forms_serve():
  x, climb = jnp.zeros((3, 2)), lambda x: x.sum(-1)
  started = ro.ascend(ro.pgd(ro.L2(1.0), ro.L2(0.1)), 2)
  for attack in (
    ro.restarts(started, 2),
    ro.noise(ro.LInf(0.1), extreme=True),
  ):
    run = jax.jit(functools.partial(attack, climb))
    np.testing.assert_array_equal(run(jax.random.PRNGKey(7), x)[0], run(jax.random.key(7), x)[0])
    each = jax.random.split(jax.random.key(7), 3)
    np.testing.assert_array_equal(run(jax.random.key_data(each), x)[0], run(each, x)[0])


def test_a_nan_is_seen():
  delta, info = ro.steepest(ro.LInf(0.1))(lambda x: x.sum(-1) * jnp.nan, None, jnp.ones((2, 3)))
  assert np.isnan(delta).all()
  assert np.isnan(info.value).all()
  assert not info.zero_gradient.any()


def test_noise_stays_where_the_gradient_is_zero():
  x, noise, key = jnp.full((4, 3), 0.5), ro.LInf(0.9), jax.random.key(0)
  step = ro.LInf(0.1, box=(0.0, 1.0))  # of its own, which the noise leaves
  delta, _ = ro.ascend(ro.noisy_step(noise, step), 1)(lambda x: 0 * x.sum(-1), key, x)
  np.testing.assert_array_equal(delta, noise.sample(key, x))
  assert (x + delta).max() > 1


def test_examples_by_name_are_refused():
  robust = ro.robustify(lambda params, x: x.sum(-1), ro.steepest(ro.L2(0.1)))
  with pytest.raises(InputError, match=r"positional argument 1 .* given 1 .* and \['x'\] by name"):
    robust({}, x=jnp.ones((2, 3)))


def test_a_random_start_needs_a_key():
  attack = ro.ascend(ro.pgd(ro.LInf(0.1), ro.LInf(0.01)), 2)
  with pytest.raises(InputError, match=r"needs a key"):
    attack(lambda x: x.sum(-1), None, jnp.ones((2, 3)))


def test_an_empty_batch_is_no_error():
  delta, info = ro.steepest(ro.L2(0.1))(lambda x: x.sum(-1), None, jnp.ones((0, 3)))
  chex.assert_shape(delta, (0, 3))
  chex.assert_shape(info, (1, 0))


# robustify.


@pytest.mark.parametrize(
  "name", ["l1", *(pytest.param(n, marks=pytest.mark.slow) for n in ("linf", "l2"))]
)
def test_danskin(name):
  """The value is the loss's at the maximizer, the gradient the loss's at the frozen maximizer."""
  params, x, y = mlp_problem()
  attack = ro.steepest(SETS[name](RADIUS, (0.0, 1.0)))
  delta = jax.jit(lambda x: attack(lambda x: mlp_loss(params, x, y), None, x)[0])(x)
  mean = lambda params, x, y: mlp_loss(params, x, y).mean()  # noqa: E731
  expected = jax.jit(jax.value_and_grad(mean, argnums=(0, 1)))(params, x + delta, y)
  robust = ro.robustify(mean, attack)  # a mean, where the ascent above saw a loss per example
  ours = jax.jit(jax.value_and_grad(robust, argnums=(0, 1)))(params, x, y)
  close(ours, expected)
  assert ours[0] > mean(params, x, y)
  per_example = jax.jit(ro.robustify(mlp_loss, attack))(params, x, y)
  close(per_example.mean(), expected[0])


def test_has_aux_argnum_and_keywords():
  params, x, y = mlp_problem()
  attack = ro.steepest(ro.L2(RADIUS))
  expected = ro.robustify(mlp_loss, attack)(params, x, y)

  def images_last(y, params, x, *, scale, name):
    """Docs."""
    assert name == "any object"
    return scale * mlp_loss(params, x, y), {"x": x}

  for argnum in (2, -1):
    robust = ro.robustify(images_last, attack, argnum=argnum, has_aux=True)
    value, aux = robust(y, params, x, scale=2.0, name="any object")
    close(value, 2 * expected)
    close(np.linalg.norm(aux["x"] - x, axis=-1), RADIUS)
    assert (robust.__name__, robust.__doc__) == ("images_last", "Docs.")
  first = ro.robustify(lambda x, y: mlp_loss(params, x, y), attack, argnum=0)(x, y)
  close(first, expected)


def test_keys_reach_the_start_and_the_loss():
  params, x, y = mlp_problem()
  attack = ro.ascend(ro.pgd(ro.L2(1.0), ro.L2(0.1)), 1)

  def noisy(params, x, y, noise_key):
    return mlp_loss(params, x + 0.1 * jax.random.normal(noise_key, x.shape), y)

  robust = jax.jit(ro.robustify(noisy, attack))
  noise = jax.random.key(5)
  one, same, other = (
    robust(params, x, y, noise, attack_key=jax.random.key(seed)) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(one, same)
  assert np.all(one != other)
  with pytest.raises(InputError, match="needs a key"):
    robust(params, x, y, noise)


def test_one_leaf_of_the_examples_is_perturbed():
  """J = m <w, x> + z, linear in x: its worst case adds r |m w|_1, and m and z stay as they are."""
  rng = np.random.default_rng(0)
  x, w, z = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 6), 6, 4))
  weight = np.array([1, 2, -3, 0])

  def linear(params, examples):
    (image, weight), offset = examples["inputs"], examples["offset"]
    return weight * (image @ params) + offset, examples

  robust = jax.jit(ro.robustify(linear, ro.steepest(ro.LInf(0.1)), has_aux=True, leaf="inputs/0"))
  examples = {"inputs": (x, weight), "offset": z}
  value, seen = robust(w, examples)
  close(value, weight * (x @ w) + z + 0.1 * np.abs(weight) * np.abs(w).sum())
  close(seen["inputs"][0] - x, 0.1 * np.sign(weight)[:, None] * np.sign(w))
  chex.assert_trees_all_equal((seen["inputs"][1], seen["offset"]), (weight, z))


def dots(jaxpr):
  """How often each output shape of a dot_general occurs, through scans and calls."""
  products = equations(jaxpr, "dot_general")
  return collections.Counter(product.outvars[0].aval.shape for product in products)


def test_the_ascent_computes_no_parameter_gradient():
  """Two layers: 2 products forward, 2 back to the input; the learner adds 2 + 1 + 2 of its own."""
  params, x, y = mlp_problem()
  robust = ro.robustify(lambda *args: mlp_loss(*args).mean(), ro.steepest(ro.L2(RADIUS)))
  forward = dots(jax.make_jaxpr(robust)(params, x, y).jaxpr)
  assert forward == {(BATCH, 7): 3, (BATCH, 3): 2, (BATCH, NUM_ENTRIES): 1}
  backward = dots(jax.make_jaxpr(jax.grad(robust))(params, x, y).jaxpr)
  of_parameters = {shape: n for shape, n in backward.items() if BATCH not in shape}
  assert sum(of_parameters.values()) == 2  # one product a layer: nothing of them in the ascent
  assert backward.total() == 9
  tangents = jax.make_jaxpr(lambda params: jax.jvp(lambda p: robust(p, x, y), (params,), (params,)))
  assert dots(tangents(params).jaxpr).total() == 9  # 6 of the value, 3 of the loss's tangent

  # Compiled and with a large first layer, the ascent costs what forward and input gradient cost.
  wide = {"first": jnp.ones((256, 512)), "second": jnp.ones((512, 3))}
  delta_of = lambda params, x: ro.steepest(ro.L2(1.0))(lambda x: mlp_loss(params, x, y), None, x)[0]  # noqa: E731
  cost = jax.jit(delta_of).lower(wide, jnp.ones((BATCH, 256))).compile().cost_analysis()
  assert cost["flops"] < 1.2 * 2 * (2 * BATCH * 256 * 512)


def test_second_derivatives_and_hessian_vector_products_exist():
  params, x, y = mlp_problem()
  robust = ro.robustify(
    lambda *args: mlp_loss(*args).mean(), ro.steepest(ro.L2(RADIUS, (0.0, 1.0)))
  )

  @jax.jit
  def hessian_vector(params):
    return jax.jvp(
      jax.grad(robust), (params, x, y), (params, 0 * x, np.zeros(y.shape, jax.dtypes.float0))
    )

  gradient, product = hessian_vector(params)
  chex.assert_tree_all_finite((gradient, product))

  def squared_gradient(params):
    return optax.tree.norm(jax.grad(robust)(params, x, y), squared=True)

  chex.assert_tree_all_finite(jax.jit(jax.grad(squared_gradient))(params))


def test_vmap_over_models():
  models = [mlp_problem(seed=seed)[0] for seed in range(3)]
  _, x, y = mlp_problem()
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
  robust = ro.robustify(lambda *a: mlp_loss(*a).mean(), ro.steepest(ro.L2(RADIUS, (0.0, 1.0))))
  gradient = jax.jit(jax.value_and_grad(robust))
  together = jax.jit(jax.vmap(gradient, in_axes=(0, None, None)))(stacked, x, y)
  alone = [gradient(params, x, y) for params in models]
  close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone))


# Eight devices.


def attacks():
  box = (0.0, 1.0)
  return {
    "steepest_l2_box": ro.steepest(ro.L2(RADIUS, box)),
    "pgd_l1_box": ro.ascend(ro.pgd(ro.L1(RADIUS, box), ro.L1(0.2, box), random_start=False), 2),
    "pgd_random": ro.ascend(ro.pgd(ro.L2(RADIUS, box), ro.L2(0.2, box)), 2),
  }


def robust_gradient(name):
  """(params, x, y, keys) -> (mean robust loss, gradient in params)."""
  robust = ro.robustify(lambda *args: mlp_loss(*args).mean(), attacks()[name])
  return lambda params, x, y, keys: jax.value_and_grad(robust)(params, x, y, attack_key=keys)


@pytest.mark.devices(8)
@pytest.mark.parametrize(
  ("name", "how"),
  [(name, "shard_map_checked") for name in attacks()]  # the strictest of all
  + [("pgd_random", "jit_over_mesh")],
)
def test_devices_agree_with_one(name, how):
  """The mean over eight devices is the single device's: every example keeps its own adversary."""
  params, x, y = mlp_problem()
  batch = (x, y, jax.random.split(jax.random.key(3), BATCH))
  gradient = robust_gradient(name)
  expected = _on_one_device(name)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  by_batch, everywhere = PartitionSpec("data"), PartitionSpec()

  def local(params, *batch):
    # Else it would sum the gradients of replicated parameters.
    params = jax.lax.pcast(params, "data", to="varying")
    return jax.lax.pmean(gradient(params, *batch), "data")

  if how == "jit_over_mesh":
    sharded = jax.device_put(batch, jax.NamedSharding(mesh, by_batch))
    ours = jax.jit(gradient)(params, *sharded)
  else:
    mapped = jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(everywhere, by_batch, by_batch, by_batch),
      out_specs=everywhere,
    )
    ours = jax.jit(mapped)(params, *batch)
  close(jax.device_get(ours), expected)


@functools.cache
def _on_one_device(name):
  params, x, y = mlp_problem()
  keys = jax.random.split(jax.random.key(3), BATCH)
  return jax.device_get(jax.jit(robust_gradient(name))(params, x, y, keys))


def divergence_problem(classes):
  rng = np.random.default_rng(classes)
  w, x = widest((rng.normal(size=(6, classes)), rng.random((4, 6))))
  return w, x, lambda z: ro.losses.kl_divergence(z @ w, x @ w)


def test_power_iteration_finds_the_direction_of_two_classes_in_one_step():
  """Of two classes the Hessian of the divergence has rank one: along w_0 - w_1."""
  w, x, divergence = divergence_problem(2)
  attack = ro.ascend(ro.power_iteration(ro.L2(0.3)), 1)
  delta, info = attack(divergence, jax.random.key(0), x)
  direction = (w[:, 0] - w[:, 1]) / np.linalg.norm(w[:, 0] - w[:, 1])
  close(np.abs(delta @ direction), 0.3)
  close(np.linalg.norm(delta, axis=1), 0.3)
  assert not info.zero_gradient.any()


def test_power_iteration_converges_to_the_first_eigenvector():
  w, x, divergence = divergence_problem(5)
  delta, _ = ro.ascend(ro.power_iteration(ro.L2(1.0)), 60)(divergence, jax.random.key(1), x)
  p = np.asarray(jax.nn.softmax(x @ w), np.float64)
  for i in range(4):
    hessian = w @ (np.diag(p[i]) - np.outer(p[i], p[i])) @ w.T
    first = np.linalg.eigh(hessian)[1][:, -1]
    assert abs(first @ delta[i]) > 0.999


def test_power_iteration_stays_where_nothing_curves():
  _, x, _ = divergence_problem(2)
  attack = ro.ascend(ro.power_iteration(ro.L2(1.0)), 2)
  delta, info = attack(lambda z: z.sum(-1), jax.random.key(0), x)
  np.testing.assert_array_equal(delta, 0)
  assert info.zero_gradient.all()
  with pytest.raises(ro.InputError, match="needs a key"):
    attack(lambda z: z.sum(-1), None, x)


def test_power_iteration_depends_on_each_key_alone():
  _, x, divergence = divergence_problem(3)
  keys = jax.random.split(jax.random.key(3), 4)
  attack = ro.ascend(ro.power_iteration(ro.L2(0.1)), 1)
  delta, _ = attack(divergence, keys, x)
  other, _ = attack(divergence, keys.at[0].set(jax.random.key(9)), x)
  np.testing.assert_array_equal(delta[1:], other[1:])
  assert np.abs(delta[0] - other[0]).max() > 1e-4
