"""The recipes for CIFAR-10: their table, their configs, and an update of each at a small size."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_opt import models
from robust_opt.data import pipeline
from robust_opt.data.datasets import Dataset
from robust_opt.experiments import build, combinations, config, overrides
from robust_opt.training import evaluated, init_state
from robust_opt.types import Batch

FOLDER = Path(__file__).parents[2] / "configs"
FAMILY = overrides.module_of(str(FOLDER / "cifar.py"))
NAMES = list(FAMILY.RECIPES)


def test_the_table_has_every_recipe():
  assert re.findall(r"^\|  (\w+) +\|.*\|$", FAMILY.__doc__, re.MULTILINE)[1:] == NAMES


def test_every_recipe_fits_together_over_both_balls():
  for name in NAMES:
    for norm, u in (("", "LInf"), (",l2", "L2")):
      made = FAMILY.get_config(name + norm)
      config.validate(made)
      combinations.check(made)
      assert made.set.name == u
      assert made.set.radius == (8 if u == "LInf" else 128) / 255
      assert made.set.box == (0.0, 1.0)
      written = config.as_dict(made)
      assert config.as_dict(config.from_dict(written)) == written
  steps = [FAMILY.get_config(name).attack.relative_step for name in ("trades", "trades,l2")]
  assert steps == [0.25, 15 / 128]


def test_the_fast_config_is_that_of_the_family_in_half_precision():
  fast, own = overrides.load(str(FOLDER / "cifar_fast.py")), FAMILY.get_config("liet")
  fast, own = (config.flattened(config.as_dict(c)) for c in (fast, own))
  differing = {key for key in fast | own if fast.get(key) != own.get(key)}
  assert "training.precision" in differing
  parts = ("attack.", "model.", "objective.", "optimizer.", "schedule.", "set.", "weights.")
  assert not [key for key in differing if key.startswith(parts)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_makes_an_update(name):
  """On one stage or the smallest depth, at a sixteenth of the width: five images of 8 x 8."""
  made = FAMILY.get_config(name)
  small = "model.depth=10" if name == "wang2023" else "model.stage_sizes=(1,)"
  width = 1 if name == "wang2023" else 1 / 16
  overrides.apply_all(made, [small, f"model.width={width}", "training.batch_size=5"])
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
  train = Dataset(images, np.arange(5, dtype=np.int32), 10, "random", "train")
  net, optimizer = build.model(made, train), build.optimizer(made, 10)
  params, model_state = models.init(net, jax.random.key(0), images.shape[1:])
  u = build.own_set(made, images)
  step = jax.jit(build.update(made, net, optimizer, u, images.shape[1:], 10))
  state = init_state(params, model_state, optimizer, build.memory(made, train))
  batch = Batch(jnp.asarray(images / 255, jnp.float32), jnp.arange(5), jnp.arange(5))
  if mix := pipeline.mix(made.training.augment, 10, made.training.label_smoothing):
    x, y = mix(jax.random.split(jax.random.key(1), 5), batch.x, batch.y)
    batch = batch._replace(x=x, y=y)
  after, _ = step(state, batch, jax.random.key(2))  # some schedules begin at a rate of 0
  after, metrics = step(after, batch, jax.random.key(3))
  assert np.isfinite(metrics.loss)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(evaluated(after)))
  moved = jax.tree.map(lambda a, b: np.any(a != b), after.params, state.params)
  assert all(jax.tree.leaves(moved))
