"""From a config to its update: each key does what it says."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rounding import rounding

import robust_opt as ro
from robust_opt import losses, models
from robust_opt.data.datasets import load
from robust_opt.errors import InputError
from robust_opt.experiments import build, config, overrides, run
from robust_opt.sets import tangents
from robust_opt.training import init_state, penalties, take

pytestmark = pytest.mark.usefixtures("no_pictures")

NET = models.MLP(widths=(16,))


def digits(count=40):
  data = load("digits", "train")
  ids = jnp.arange(count, dtype=jnp.int32)
  return data.images, take(ro.ArrayData(data.images, data.labels), ids)


def step_of(c, net, images):
  u = build.own_set(c, images)
  return build.update(c, net, build.optimizer(c, 5), u, images.shape[1:], 5)


@functools.cache
def loss_after(*changes):
  """The loss of an update of the digits' config, so changed."""
  c = config.digits()
  overrides.apply_all(c, changes)
  config.validate(c)
  images, batch = digits()
  params, model_state = models.init(NET, jax.random.key(0), (8, 8, 1))
  step = jax.jit(step_of(c, NET, images))
  state = init_state(
    params, model_state, build.optimizer(c, 5), build.memory(c, load("digits", "train"))
  )
  return float(step(state, batch, jax.random.key(0))[1].loss)


@pytest.mark.parametrize(
  ("name", "said"),
  [("default", None), ("float32", "HIGHEST"), ("tf32", "HIGH"), ("bfloat16", "bf16[")],
)
def test_updates_are_computed_in_the_precision_of_the_config(name, said):
  c = config.digits()
  overrides.apply_all(c, [f"training.precision={name}"])
  config.validate(c)
  images, batch = digits(4)
  params, model_state = models.init(NET, jax.random.key(0), (8, 8, 1))
  state = init_state(params, model_state, build.optimizer(c, 5))
  jaxpr = jax.make_jaxpr(step_of(c, NET, images))(state, batch, jax.random.key(1))
  text = str(jaxpr)
  found = {*re.findall(r"Precision\.(\w+)", text), *re.findall(r"bf16\[", text)}
  assert found == ({said} if said else set())
  assert all(v.aval.dtype != jnp.bfloat16 for v in jaxpr.jaxpr.outvars)


@pytest.mark.slow
def test_attacks_at_one_step_are_different_updates():
  """A key that is set changes what is trained."""
  one = ["attack.num_steps=1"]
  changes = [
    ["attack.name=steepest"],
    ["attack.name=pgd", "attack.random_start=False", "attack.relative_step=0.01", *one],
    ["attack.name=pgd", "attack.relative_step=0.01", *one],
    ["attack.name=lbfgs", "attack.num_steps=2"],
    ["attack.name=frank_wolfe", "attack.num_steps=2"],
    ["attack.name=n_fgsm"],
    ["attack.name=none"],
  ]
  assert len({loss_after(*change) for change in changes}) == len(changes)


def test_the_adversary_keeps_to_the_tangent_planes():
  c = config.digits()
  planes = {"name": "local_pca", "rank": 3}
  config.choose(c, "set", "TangentAt", radius=0.5, basis_of=planes)
  config.validate(c)
  images, batch = digits()
  g = np.random.default_rng(0).normal(size=batch.x.shape).astype(np.float32)
  attack = build.training_attack(c, build.own_set(c, images), 5)
  delta, _ = attack(lambda x: (x * g).sum((1, 2, 3)), jax.random.key(0), batch.x)
  basis = tangents.fit("local_pca", images, 3, c.seed)(batch.x).reshape(len(g), 3, -1)
  flat = np.asarray(delta).reshape(len(g), -1)
  within = np.einsum("bd,bdn->bn", np.einsum("bn,bdn->bd", flat, basis), basis)
  # Products over 64 pixels, onto three directions and back, and a norm.
  np.testing.assert_allclose(flat, within, atol=rounding(terms=3 * 64))
  np.testing.assert_allclose(np.linalg.norm(flat, axis=1), 0.5, rtol=rounding(terms=3 * 64))


def test_a_hidden_adversary_is_worse_than_one_of_the_input():
  input_alone = loss_after("set.radius=0.05")
  hidden = "attack.name=layerwise", "attack.hidden_radius=0.1"
  assert loss_after("set.radius=0.05", *hidden) > input_alone + 0.05


SLOW_PENALTIES = [pytest.param(n, marks=pytest.mark.slow) for n in penalties.__all__[1:]]


@pytest.mark.parametrize("name", [penalties.__all__[0], *SLOW_PENALTIES])
def test_a_penalty_by_name_is_paid_by_weight(name):
  """The loss grows by the weight times a number."""
  free = loss_after("attack.name=none")
  once, twice = (
    loss_after("attack.name=none", f"penalty.name={name}", f"penalty.weight={weight}")
    for weight in (0.5, 1.0)
  )
  assert once > free
  np.testing.assert_allclose(twice - free, 2 * (once - free), rtol=1e-3)


def test_no_penalty_of_a_net_whose_layers_are_unknown():
  c = config.digits()
  config.choose(c, "penalty", "operator_norm", weight=1.0)
  net = models.MadryCNN()
  params, model_state = models.init(net, jax.random.key(0), (8, 8, 1))
  images, batch = digits(4)
  step = step_of(c, net, images)
  state = init_state(params, model_state, build.optimizer(c, 5))
  with pytest.raises(InputError, match="MadryCNN has no list of layers"):
    jax.eval_shape(step, state, batch, jax.random.key(0))


@pytest.mark.slow
def test_a_recalled_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
  """What was remembered is part of the checkpoint: the same bits as a run that never stopped."""

  def configured(epochs):
    c = config.digits()
    config.choose(c, "attack", "recall")
    c.training.epochs, c.training.watch_examples = epochs, 0
    c.data.train_examples, c.evaluation.sweep = 400, (0.0,)
    c.checkpoint.every_epochs = 1
    return c

  whole = run.run(configured(3), tmp_path / "whole")
  heldout, calls = run.heldout_accuracies, []

  def stopped(*args):
    calls.append(args)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return heldout(*args)

  monkeypatch.setattr(run, "heldout_accuracies", stopped)
  with pytest.raises(KeyboardInterrupt):
    run.run(configured(3), tmp_path / "parts")
  monkeypatch.setattr(run, "heldout_accuracies", heldout)
  assert run.run(configured(3), tmp_path / "parts")["params_sha256"] == (whole["params_sha256"])


@pytest.mark.slow
def test_few_labels_and_many_images(tmp_path):
  """Virtual adversarial training sees all images."""
  c = config.digits()
  c.data.labels, c.training.epochs, c.training.watch_examples = 50, 4, 0
  config.choose(c, "objective", "virtual", alpha=1.0)
  config.choose(c, "attack", "power_iteration")
  config.choose(c, "set", "L2", radius=1.0)
  c.evaluation.sweep = (0.0,)
  summary = run.run(c, tmp_path / "run")
  assert summary["results"][0]["correct"] / summary["results"][0]["total"] > 0.7
  assert summary["train_examples"] > 1000


@pytest.mark.parametrize("name", ["uniform_noise", "random_signs"])
def test_noise_is_blind_and_no_robust_training(name):
  c = config.digits()
  config.choose(c, "attack", name)
  attack = build.attack(c).train(ro.LInf(0.25))
  x = jnp.full((3, 4, 4, 1), 0.5)
  delta, info = attack(lambda x: x.sum(axis=(1, 2, 3)), jax.random.split(jax.random.key(0), 3), x)
  assert info.value.shape == (0, 3)
  corners = jnp.abs(delta) == 0.25
  assert bool(corners.all()) if name == "random_signs" else not bool(corners.any())
  assert 0 < int((delta > 0).sum()) < delta.size
  assert not config.trains_robustly(c)


def test_the_loss_of_an_objective_goes_by_its_name():
  c = config.digits()
  logits, y = jnp.array([[-1.0, -2.0, -3.0]]), jnp.array([1])
  for loss in losses.KINDS:
    config.choose(c, "objective", "robust", loss=loss)
    out, _ = build.objective(c, ro.LInf(0.1), 1).outer(lambda x: (x, {}), logits, logits, y)
    chex.assert_trees_all_close(out, getattr(losses, loss)(logits, y))


def test_a_bound_on_columns_holds_after_every_update():
  c = config.digits()
  c.weights.max_column_norm, c.optimizer.learning_rate = 0.5, 1.0
  optimizer = build.optimizer(c, 5)
  params = {"kernel": jnp.ones((4, 3)) * 0.1, "bias": jnp.zeros(3)}
  state = optimizer.init(params)
  for _ in range(3):
    grads = {"kernel": -jnp.ones((4, 3)), "bias": -jnp.ones(3)}
    changes, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, changes)
  norms = jnp.linalg.norm(params["kernel"], axis=0)
  np.testing.assert_allclose(norms, 0.5, rtol=rounding(terms=2 * 4 + 4))
  assert float(params["bias"].min()) > 1.0


def test_a_part_of_the_training_set():
  c = config.digits()
  c.data.holdout = 0.01
  images = {}
  for start, count in ((0, 700), (700, 0), (0, 0)):
    c.data.train_start, c.data.train_examples = start, count
    splits = build.splits(c)
    both = (splits.train.images, splits.heldout.images)
    images[start, count] = {image.tobytes() for part in both for image in part}
  assert len(images[0, 700]) == 700
  assert images[0, 700] | images[700, 0] == images[0, 0]
  assert len(images[0, 700] & images[700, 0]) <= 1  # digits holds an image twice, perhaps
  c.data.train_start = 10**6
  with pytest.raises(InputError, match="train_start=1000000 leaves none"):
    build.splits(c)
