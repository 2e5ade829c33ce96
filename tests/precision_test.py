"""What proves something is computed in full precision, wherever XLA would round products.

Accelerators round the factors of a float32 product to fewer bits (TF32, bfloat16) unless told not
to. A CPU never does: the traced program has to say it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import equations

import robust_opt as ro
from robust_opt import models, precision
from robust_opt.attacks import fab, minimal, szegedy
from robust_opt.certificates import bounds, exact
from robust_opt.evaluation.accuracy import make_evaluate
from robust_opt.models.affine import layers_of
from robust_opt.theory.linear import counterparts, decay
from robust_opt.training import layerwise

pytestmark = pytest.mark.usefixtures("default_precision")
N, SIZE = 3, 64
IMAGES = jnp.zeros((N, 8, 8, 1))
INIT = (jax.random.key(0), IMAGES)
PRODUCTS = ("dot_general", "conv_general_dilated")
FULL = (jax.lax.Precision.HIGHEST,) * 2


def certify_net(function, method):
  net, labels = models.DigitsCNN(), (jnp.zeros(N, int),) if function is bounds.margins else ()
  shapes = jax.eval_shape(net.init, *INIT)
  variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
  return function(lambda x: net.apply(variables, x), IMAGES, *labels, ro.L2(0.1), method=method)


def linear(function, *extra):
  w, x, y = jnp.ones(SIZE), jnp.ones((N, SIZE)), jnp.ones(N)
  return function(w, jnp.array(0.0), x, y, *extra)


def decay_errors():
  x, y = jnp.ones((N, SIZE)), np.ones(N)
  return decay.errors(decay.logistic_path(x, y, np.array([0.1]), "adversary", 3), x, y, 0.1)


WEIGHTS = (jnp.ones((SIZE, 10)), jnp.zeros(10), jnp.ones((N, SIZE)), jnp.zeros(N, int))


def attacked(make, **settings):
  attack = make(ro.L2(1.0, box=(0.0, 1.0)), num_steps=2, **settings)
  net = lambda x: x.reshape(len(x), -1) @ WEIGHTS[0] + WEIGHTS[1]  # noqa: E731
  return attack(jax.random.split(jax.random.key(0), N), net, IMAGES, WEIGHTS[3])


def accuracy():
  def apply(params, model_state, x, *, train, key):
    return x.reshape(len(x), -1) @ params, model_state

  evaluate = make_evaluate(apply, ro.robust(), lambda r: ro.steepest(ro.L2(r)), N)
  data = ro.ArrayData(IMAGES, WEIGHTS[3])
  return evaluate(WEIGHTS[0], {}, data, jnp.float32(0.1), jax.random.key(0))


COMPUTATIONS = {
  "accuracy": accuracy,
  "deepfool": lambda: attacked(minimal.deepfool),
  "fast_minimum_norm": lambda: attacked(minimal.fast_minimum_norm),
  "szegedy": lambda: attacked(szegedy.szegedy, num_constants=1),
  "fab_minimal": lambda: attacked(fab.fab_minimal),
  "crown": lambda: certify_net(bounds.margins, "crown"),
  "ibp": lambda: certify_net(bounds.margins, "ibp"),
  "logit_bounds": lambda: certify_net(bounds.logit_bounds, "crown"),
  "linear_margin": lambda: exact.linear_margin(*WEIGHTS, ro.LInf(0.1)),
  "linear_distance": lambda: exact.linear_distance(*WEIGHTS, ro.L2),
  "margin_loss": lambda: linear(counterparts.margin_loss, ro.LInf(0.1)),
  "squared_loss": lambda: linear(counterparts.squared_loss, ro.LInf(0.1)),
  "squared_perturbation": lambda: linear(counterparts.squared_perturbation, ro.LInf(0.1)),
  "total_hinge_loss": lambda: linear(counterparts.total_hinge_loss, ro.LInf(0.1)),
  "total_hinge_perturbation": lambda: linear(counterparts.total_hinge_perturbation, ro.L2(0.1)),
  "least_squares": lambda: linear(counterparts.least_squares, "columns", 0.1),
  "least_squares_perturbation": lambda: linear(
    counterparts.least_squares_perturbation, "columns", 0.1
  ),
  "decay": decay_errors,
}


@pytest.mark.parametrize("name", list(COMPUTATIONS))
def test_no_product_is_rounded_to_fewer_bits(name):
  found = list(equations(jax.make_jaxpr(COMPUTATIONS[name])().jaxpr, *PRODUCTS))
  assert found
  assert all(equation.params["precision"] == FULL for equation in found)


def test_products_are_found_wherever_they_are():
  def looped(x):
    return jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(x, c), None), x, length=2)[0]

  (found,) = equations(jax.make_jaxpr(looped)(jnp.ones((2, 2))).jaxpr, *PRODUCTS)
  assert found.params["precision"] != FULL


def test_a_net_that_computes_in_fewer_bits_is_given_no_bounds():
  net = models.DigitsCNN(dtype=jnp.bfloat16)
  params = jax.tree.map(lambda s: jnp.zeros(s.shape), jax.eval_shape(net.init, *INIT)["params"])
  with pytest.raises(ro.InputError, match="computes in float32, but it computes in bfloat16"):
    ro.certify(lambda x: net.apply({"params": params}, x), IMAGES, jnp.zeros(N, int), ro.L2(0.1))
  # Its weights may be asked about, and its layers perturbed.
  assert layers_of(net, params)
  assert len(layerwise.shapes(net, (8, 8, 1))) == 4


@pytest.mark.parametrize("name", ["crown", "linear_margin", "linear_distance"])
def test_nothing_is_proved_in_fewer_bits(name):
  low = jnp.bfloat16
  weights, bias, x, y = WEIGHTS
  arguments = {
    "linear_margin": lambda: exact.linear_margin(weights, bias, x.astype(low), y, ro.LInf(0.1)),
    "linear_distance": lambda: exact.linear_distance(weights.astype(low), bias, x, y, ro.L2),
    "crown": lambda: ro.certify(lambda x: x[:, 0, :, 0], IMAGES.astype(low), y, ro.L2(0.1)),
  }
  with pytest.raises(ro.InputError, match="needs images and weights in float32, but was given bfl"):
    arguments[name]()


def test_the_precision_of_a_measurement_is_float32_unless_stated():
  assert precision.stated() == "float32"
  assert precision.stated("tf32") == "tf32"
  for given, name in {"highest": "float32", "float32": "float32", "high": "tf32"}.items():
    with jax.default_matmul_precision(given):
      assert precision.stated() == name
      assert precision.stated("bfloat16") == "bfloat16"
  for name, value in precision.PRODUCTS.items():
    with precision.products(name):
      assert jax.config.jax_default_matmul_precision == value
  with pytest.raises(ro.InputError, match="precision must be one of float32, tf32, bfloat16"):
    precision.stated("half")
