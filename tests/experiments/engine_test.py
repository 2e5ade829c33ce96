"""One engine for one seed and for many."""

import functools

import chex
import jax
import numpy as np
import pytest
from rounding import assert_close

from robust_opt import models
from robust_opt.errors import DivergedError
from robust_opt.experiments import build, config, engine, seeds
from robust_opt.experiments.assembly import assemble

EPOCHS = 2


def small_config():
  c = config.digits()
  config.choose(c, "model", "MLP", widths=(16,))
  c.data.train_examples, c.data.test_examples, c.training.epochs = 285, 100, EPOCHS
  c.training.batch_size, c.optimizer.learning_rate = 32, 0.05
  return c


def seed_keys(*names):
  return jax.vmap(jax.random.key)(np.array(names))


def train(folder, experiment, names, points=2, epochs_per_call=1):
  told = []

  def count_correct(state):
    return jax.vmap(lambda leaf: leaf.size)(state.params["Dense_0"]["bias"])

  state = engine.train_seeds(
    folder,
    experiment,
    names,
    count_correct,
    points=points,
    epochs_per_call=epochs_per_call,
    timed=engine.nullcontext,
    progress=lambda *args, **kwargs: told.append((args, kwargs)),
  )
  return state, told


@pytest.mark.parametrize(
  ("backend", "convolutional", "faster"),
  [("cpu", False, False), ("cpu", True, False), ("gpu", False, True), ("gpu", True, False)],
)
def test_seeds_are_vmapped_where_that_is_faster(backend, convolutional, faster, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  assert seeds.vmap_is_faster(convolutional=convolutional) == faster


def test_an_attribute_that_is_a_list_has_seeds_too():
  lists, tuples = (
    seeds.initialize(models.MLP(widths=widths), seed_keys(0, 1), (8, 8, 1))
    for widths in ([4], (4,))
  )
  chex.assert_trees_all_equal(lists, tuples)


@pytest.mark.slow
def test_seeds_together_are_seeds_apart_and_each_is_its_own_run(tmp_path):
  c = small_config()
  splits, names = build.splits(c), (0, 1, 2)
  out = [
    train(tmp_path / str(vmapped), assemble(c, splits, seed_keys(*names), vmapped), names)
    for vmapped in (True, False)
  ]
  (together, told), (apart, _) = out
  assert together.step.shape == ()
  assert int(together.step) == int(apart.step) == EPOCHS * 8
  assert [args[0] for args, _ in told] == [1, 1]
  # Forward and back in the ascent and in the descent: 64 pixels, 16 units, 10 classes, 32 examples.
  close = functools.partial(assert_close, terms=4 * (64 + 16 + 10 + 32), steps=EPOCHS * 8)
  close(together, apart)
  curves = [seeds.curve(tmp_path / folder, names) for folder in ("True", "False")]
  assert curves[0] == curves[1] == {"steps": [4, 8, 12, 16], "correct": [[16] * 4] * 3}

  c.seed = 1
  alone = assemble(c, splits)
  state, _ = alone.compile(EPOCHS * 8)(alone.state)
  close(seeds.of_seed(together, 1)[0], state.params)


@pytest.mark.slow
def test_many_seeds_go_on_where_they_stopped(tmp_path):
  c, names = small_config(), (3, 4)
  splits = build.splits(c)
  whole, _ = train(tmp_path / "whole", assemble(c, splits, seed_keys(*names)), names)
  c.training.epochs = 1
  train(tmp_path / "parts", assemble(c, splits, seed_keys(*names)), names)
  c.training.epochs = EPOCHS
  resumed, told = train(tmp_path / "parts", assemble(c, splits, seed_keys(*names)), names)
  chex.assert_trees_all_equal(resumed, whole)
  assert told[0] == ((1, "1 of 2 epochs done before"), {"skipped": True})


def test_the_seed_whose_loss_is_no_number_is_named(tmp_path):
  c, names = small_config(), (3, 4)
  experiment = assemble(c, build.splits(c), seed_keys(*names))
  broken = jax.tree.map(lambda leaf: leaf.at[1].mul(np.nan), experiment.state.params)
  experiment = experiment._replace(state=experiment.state.replace(params=broken))
  with pytest.raises(DivergedError, match="The loss of seed 4 became nan at step 1; no checkpoint"):
    train(tmp_path / "run", experiment, names)
