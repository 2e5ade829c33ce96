"""From a config to its update: each key does what it says."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from rounding import rounding

import robust_opt as ro
from robust_opt import losses, models
from robust_opt.data.datasets import load
from robust_opt.errors import InputError
from robust_opt.experiments import build, config, run, updates
from robust_opt.sets import tangents
from robust_opt.training import init_state, penalties, take

NET = models.MLP(widths=(16,))


def digits(count=40):
  data = load("digits", "train")
  ids = jnp.arange(count, dtype=jnp.int32)
  return data.images, take(ro.ArrayData(data.images, data.labels), ids)


def after(changes, steps=1):
  """The state after some updates of the digits' config, so changed, and the loss of the last."""
  c = config.digits()
  c.update_from_flattened_dict(changes)
  config.validate(c)
  images, batch = digits()
  params, model_state = models.init(NET, jax.random.key(0), (8, 8, 1))
  optimizer = build.optimizer(c, 5)
  step = jax.jit(updates.make(c, NET, optimizer, images, 5))
  state = init_state(params, model_state, optimizer, updates.memory(c, images))
  for i in range(steps):
    state, metrics = step(state, batch, jax.random.key(i))
  return state, float(metrics.loss)


def test_the_adversary_keeps_to_the_tangent_planes():
  c = config.digits()
  c.uncertainty.name, c.uncertainty.radius = "l2", 0.5
  c.uncertainty.tangents, c.uncertainty.tangent_rank = "local_pca", 3
  images, batch = digits()
  g = np.random.default_rng(0).normal(size=batch.x.shape).astype(np.float32)
  attack = updates.training_attack(c, NET, images, 5)
  delta, _ = attack(lambda x: (x * g).sum((1, 2, 3)), jax.random.key(0), batch.x)
  basis = tangents.fit("local_pca", images, 3, c.seed)(batch.x).reshape(len(g), 3, -1)
  flat = np.asarray(delta).reshape(len(g), -1)
  within = np.einsum("bd,bdn->bn", np.einsum("bn,bdn->bd", flat, basis), basis)
  # Products over 64 pixels, onto three directions and back, and a norm.
  np.testing.assert_allclose(flat, within, atol=rounding(terms=3 * 64))
  np.testing.assert_allclose(np.linalg.norm(flat, axis=1), 0.5, rtol=rounding(terms=3 * 64))


def test_a_hidden_adversary_is_worse_than_one_of_the_input():
  _, input_alone = after({"uncertainty.radius": 0.05})
  _, every_layer = after({"uncertainty.radius": 0.05, "uncertainty.hidden_radius": 0.1})
  assert every_layer > input_alone + 0.05


@pytest.mark.parametrize("name", penalties.__all__)
def test_a_penalty_by_name_is_paid_by_weight(name):
  """The loss grows by the weight times a number, and the learner brings that number down."""
  c = {"attack.num_steps": 0, "penalty.name": name}
  _, free = after(c)
  _, once = after(c | {"penalty.weight": 0.5})
  _, twice = after(c | {"penalty.weight": 1.0})
  assert once > free
  np.testing.assert_allclose(twice - free, 2 * (once - free), rtol=1e-3)


@pytest.mark.parametrize("name", ["operator_norm", "layer_jacobian"])
def test_a_penalty_makes_layers_shorter(name):
  quiet = {"attack.num_steps": 0, "penalty.name": name}
  lengths = []
  for weight in (0.0, 0.02):
    state, _ = after(quiet | {"penalty.weight": weight}, steps=100)
    lengths.append(sum(float(jnp.sum(w**2)) for w in jax.tree.leaves(state.params)))
  assert lengths[1] < 0.9 * lengths[0]


def test_no_penalty_of_a_net_whose_layers_are_unknown():
  c = config.digits()
  c.penalty.weight = 1.0
  net = models.MadryCNN()
  params, model_state = models.init(net, jax.random.key(0), (8, 8, 1))
  images, batch = digits(4)
  optimizer = build.optimizer(c, 5)
  step = updates.make(c, net, optimizer, images, 5)
  state = init_state(params, model_state, optimizer, updates.memory(c, images))
  with pytest.raises(InputError, match="but was given MadryCNN"):
    jax.eval_shape(step, state, batch, jax.random.key(0))


def test_what_is_recalled_is_remembered_for_every_training_image():
  state, _ = after({"attack.name": "recall"})
  images, _ = digits()
  chex.assert_shape(state.memory, (len(images), 8))


@pytest.mark.slow
def test_a_recalled_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
  """What was remembered is part of the checkpoint: the same bits as a run that never stopped."""

  def configured(epochs):
    c = config.digits()
    c.attack.name, c.training.epochs, c.training.watch_examples = "recall", epochs, 0
    c.dataset.train_examples, c.evaluation.sweep = 400, (0.0,)
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
  c.dataset.labels, c.training.epochs, c.training.watch_examples = 50, 4, 0
  c.objective = config.ConfigDict({"name": "virtual", "alpha": 1.0})
  c.attack.name, c.uncertainty.name, c.uncertainty.radius = "power_iteration", "l2", 1.0
  c.evaluation.sweep = (0.0,)
  summary = run.run(c, tmp_path / "run")
  assert summary["results"][0]["correct"] / summary["results"][0]["total"] > 0.7
  assert summary["train_examples"] > 1000


@pytest.mark.parametrize("name", ["uniform_noise", "random_signs"])
def test_noise_is_blind_and_no_robust_training(name):
  c = config.digits()
  c.attack.name, c.uncertainty.radius = name, 0.25
  attack = build.attack(c, ro.LInf(0.25), 1)
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
  for loss in config.LOSSES:
    c.objective = ConfigDict({"name": "robust", "loss": loss})
    out, _ = updates.objective(c).outer(lambda x: (x, {}), logits, logits, y)
    chex.assert_trees_all_close(out, getattr(losses, loss)(logits, y))


def test_a_bound_on_columns_holds_after_every_update():
  c = config.digits()
  c.optimizer.max_column_norm, c.optimizer.learning_rate = 0.5, 1.0
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
  c.dataset.holdout = 0.01
  images = {}
  for start, count in ((0, 700), (700, 0), (0, 0)):
    c.dataset.train_start, c.dataset.train_examples = start, count
    splits = build.splits(c)
    both = (splits.train.images, splits.heldout.images)
    images[start, count] = {image.tobytes() for part in both for image in part}
  assert len(images[0, 700]) == 700
  assert images[0, 700] | images[700, 0] == images[0, 0]
  assert len(images[0, 700] & images[700, 0]) <= 1  # digits holds an image twice, perhaps
  c.dataset.train_start = 10**6
  with pytest.raises(InputError, match="train_start=1000000 leaves none"):
    build.splits(c)
