"""Every method by name: its config, its update, and what it costs."""

import functools
import re
from pathlib import Path

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import programs
import pytest
from rounding import rounding

import robust_opt as ro
from robust_opt import models
from robust_opt.errors import InputError
from robust_opt.experiments import build, combinations, config, methods, overrides
from robust_opt.sets import tangents
from robust_opt.training import init_state, take


def configured(name):
  c = config.digits()
  c.set.box = config.PIXEL_BOX
  c.training.epochs = 6
  methods.ALL[name].apply(c)
  config.validate(c)
  return c


def parts(name):
  """(step, state, batch) of a net of two layers on a hundred digits."""
  c = configured(name)
  c.training.batch_size = 100
  data = build.datasets.load("digits", "train")
  batch = take(ro.ArrayData(data.images, data.labels), jnp.arange(100, dtype=jnp.int32))
  net = models.MLP(widths=(16,))
  params, model_state = models.init(net, jax.random.key(0), (8, 8, 1))
  optimizer = build.optimizer(c, 5)
  images = data.images[:200]
  u, memory = build.own_set(c, images), build.memory(c, data._replace(images=images))
  step = build.update(c, net, optimizer, u, images.shape[1:], 5)
  return step, init_state(params, model_state, optimizer, memory), batch


@functools.cache
def traced(name):
  """(jaxpr of an update, state before, state after and metrics), these as shapes."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tangents, "_NUM_STEPS", 10)  # of the planes, whose shapes alone are asked for
    step, state, batch = parts(name)
  jaxpr, out = jax.make_jaxpr(step, return_shape=True)(state, batch, jax.random.key(0))
  return jaxpr.jaxpr, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, state)), out


SLOW = {"layerwise": [pytest.mark.slow]}


@pytest.mark.parametrize(
  "name", [pytest.param(name, marks=SLOW.get(name, [])) for name in methods.ALL]
)
def test_an_update_of_every_method_keeps_shapes_and_types_of_the_state(name):
  """As a scan needs it."""
  _, before, (after, metrics) = traced(name)
  same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), after, before)
  assert all(jax.tree.leaves(same))
  assert metrics.loss.shape == ()


def multiply_adds(name):
  """Of the matrix products of an update, as it is traced."""

  def count(jaxpr, times=1):
    total = 0
    for eqn in jaxpr.eqns:
      length = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
      if eqn.primitive.name == "dot_general":
        total += times * programs.multiply_adds(eqn)
      inside = list(jax.extend.core.jaxprs_in_params(eqn.params))
      if eqn.primitive.name == "cond":  # an update in two takes either branch
        length = 1 / len(inside)
      total += sum(count(jaxpr, times * length) for jaxpr in inside)
    return total

  return count(traced(name)[0])


def passes(name):
  """Forward and backward passes of an update; standard training's is 1."""
  return multiply_adds(name) / multiply_adds("standard")


# The line search of L-BFGS is a loop of unknown length. Tangent planes are computed beside the net.
UNCOUNTED = ("szegedy", "free", "manifold_tangent")
# Where one backward pass gives the gradients of x and of theta.
BOTH_GRADIENTS = ("recall", "gradient_penalty", "layer_jacobian")


@pytest.mark.parametrize("name", [name for name in methods.ALL if name not in UNCOUNTED])
def test_the_budget_counts_what_an_update_does(name):
  """`passes` is what the table calls equal.

  A pass with a gradient of x and none of theta has nearly as many products as one of theta alone;
  one with both has 0.41 of one more.
  """
  expected = methods.ALL[name].passes + (0.41 if name in BOTH_GRADIENTS else 0.0)
  assert passes(name) == pytest.approx(expected, rel=0.09)


def test_a_replay_of_free_training_costs_hardly_more_than_a_standard_update():
  assert 1 < passes("free") / methods.REPLAYS <= 1.5


def test_the_family_of_configs_has_every_method():
  family = overrides.module_of(str(Path(__file__).parents[2] / "configs" / "mnist.py"))
  names = re.findall(r"^\|  (\w+) +\|.*\| +([\d.]+) +\|$", family.__doc__, re.MULTILINE)
  assert [name for name, _ in names] == [*methods.ALL, "few_labels"]
  for name, passes in names:
    made = family.get_config(name)
    config.validate(made)
    combinations.check(made)
    if name in methods.ALL:
      assert float(passes) == methods.ALL[name].passes
  with pytest.raises(InputError, match=r"must have one of standard, .* but had 'tradez'"):
    family.get_config("tradez")


def test_the_table_of_the_documentation():
  """Its links lead to definitions, every method has a row, and the passes are those of ALL."""
  docs = Path(__file__).parents[2] / "docs"
  text = (docs / "methods.md").read_text(encoding="utf-8")
  for path, name in re.findall(r'\]\(([^)#:\s]+)(?: "(\w+)")?\)', text):
    source = (docs / path).read_text(encoding="utf-8")
    assert not name or re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), (path, name)
  rows = [row for row in text.splitlines() if 'experiments/methods.py "' in row]
  linked = []
  for row in rows:
    names = re.findall(r'experiments/methods\.py "(\w+)"', row)
    expected = [methods.ALL[name].passes / methods.ALL[name].updates for name in names]
    assert list(map(float, re.findall(r"[\d.]+", row.split(" | ")[3]))) == expected, row
    assert all(f"`mnist.py:{name}`" in row for name in names if name != "robust"), row
    linked += names
  assert sorted(linked) == sorted(methods.ALL.keys() - {"standard"})


def test_names_are_functions():
  assert all(getattr(methods, name) is method.apply for name, method in methods.ALL.items())


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("robust", "edge"),
    ("fast", "inside"),
    ("n_fgsm", "beyond"),
    ("pgd", "inside"),
    ("standard", "nowhere"),
  ],
)
def test_where_an_adversary_goes(name, expected):
  """Of a linear function: to the edge, from a random start not all the way, beyond by noise."""
  c = configured(name)
  g = np.random.default_rng(0).normal(size=(4, 30)).astype(np.float32)
  delta, _ = build.attack(c).train(ro.LInf(0.1))(
    lambda x: (x * g).sum(-1), jax.random.key(0), jnp.zeros((4, 30))
  )
  farthest, size = np.abs(delta).max(), np.abs(delta)
  if expected == "nowhere":
    np.testing.assert_array_equal(delta, 0)
  elif expected == "edge":
    np.testing.assert_allclose(delta, 0.1 * np.sign(g), rtol=rounding(terms=4))
  elif expected == "inside":
    assert farthest <= 0.1 * (1 + rounding(terms=4))
    assert ((delta * g) > 0).mean() > 0.6
  else:
    noise = delta - 0.1 * np.sign(g)
    assert 0.1 < farthest <= 0.3 * (1 + rounding(terms=4))
    assert np.abs(noise).max() <= 0.2 * (1 + rounding(terms=4))
    assert np.abs(noise).std() > 0.03
    assert size.min() < 0.1
