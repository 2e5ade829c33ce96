"""Runs of networks of other libraries, as a pair of pure functions."""

import sys
from pathlib import Path

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_opt as ro
from robust_opt import models
from robust_opt.errors import InputError
from robust_opt.evaluation import identity
from robust_opt.experiments import build, run
from robust_opt.experiments import config as config_lib

pytestmark = pytest.mark.usefixtures("no_pictures")

RECIPES = Path(__file__).parents[2] / "recipes"


def small_config(name):
  config = config_lib.digits()
  config_lib.choose(config, "model", name)
  config.data.train_examples, config.data.test_examples = 600, 60
  config.training.update(epochs=2, watch_examples=0)
  config.evaluation.sweep = (1.0,)
  config.evaluation.radii.update({"l2": 0.0, "l1": 0.0})
  return config


@pytest.fixture
def in_recipes(monkeypatch):
  """The recipes are the current directory, and their modules are imported anew."""
  monkeypatch.chdir(RECIPES)
  yield
  for name in ("nnx", "equinox_model", "haiku_model"):
    sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.usefixtures("in_recipes")
@pytest.mark.parametrize("library", ["nnx", "equinox_model", "haiku_model"])
def test_a_run_trains_saves_and_loads_a_net_of_another_library(library, tmp_path):
  summary = run.run(small_config(f"{library}:ForRuns"), tmp_path)
  net = ro.load_run(tmp_path)
  x, y = net.examples()
  assert int((net.predict(x) == y).sum()) == summary["results"][0]["correct"] > 30
  assert "class ForRuns" in net.definition
  assert "0x" not in net.definition.split("\n")[0]
  again = ro.load_run(tmp_path)
  ids = [identity.of_net(n.logits_fn, x, n.definition) for n in (net, again)]
  assert ids[0] == ids[1]
  with pytest.raises(InputError, match=r"has no nn\.Dense"):
    net.features_fn(x)


class Normalized:
  """With batch statistics, dropout and the arguments that a run supplies."""

  def __init__(self, num_classes, mean, std, rate=0.5):
    self.shape, self.mean, self.std, self.rate = num_classes, mean[0], std[0], rate

  def init(self, key, image_shape):
    weights = jax.random.normal(key, (int(np.prod(image_shape)), self.shape)) / 8
    return {"weights": weights}, {"mean": jnp.zeros(self.shape)}

  def apply(self, params, model_state, x, train, key):
    z = ((x - self.mean) / self.std).reshape(len(x), -1) @ params["weights"]
    if not train:
      return z - model_state["mean"], model_state
    if key is not None:
      z *= jax.random.bernoulli(key, 1 - self.rate, z.shape)
    return z - z.mean(0), {"mean": 0.9 * model_state["mean"] + 0.1 * z.mean(0)}


@pytest.mark.slow
def test_a_pair_of_functions_has_statistics_and_arguments_as_modules_do(tmp_path):
  sys.modules["of_this_test"] = sys.modules[__name__]
  try:
    config = small_config("of_this_test:Normalized")
    config.model.rate = 0.1
    run.run(config, tmp_path)
    net = ro.load_run(tmp_path)
  finally:
    del sys.modules["of_this_test"]
  assert np.abs(net.model_state["mean"]).max() > 0
  x, y = net.examples()
  assert (net.predict(x) == y).mean() > 0.5


def test_what_is_no_network():
  name = "my_nets:net"
  assert models.check(models.MLP(num_classes=2), name) == models.MLP(num_classes=2)
  transformed = hk.transform(lambda x: x)
  for other, words in (
    (transformed, "no such init"),
    (object(), "object that it gave has no such"),
  ):
    with pytest.raises(InputError, match=words):
      models.check(other, name)


def test_a_pair_of_functions_has_no_dtype_to_ascend_in():
  config = config_lib.digits()
  config.attack.dtype = "bfloat16"
  net = Normalized(10, (0.0,), (1.0,))
  with pytest.raises(InputError, match="needs a Linen module with an attribute dtype"):
    build._ascent_apply(config, net)
