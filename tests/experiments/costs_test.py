"""Updates that are timed: they are the methods' own, in turns, and counted as updates."""

import numpy as np
import pytest

from robust_opt.data import datasets
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import costs, methods


@pytest.fixture(scope="module")
def train():
  whole = datasets.load("digits", "train")
  return whole._replace(images=whole.images[:320], labels=whole.labels[:320])


def configs(*names):
  made = {name: config_lib.digits() for name in names}
  for name, config in made.items():
    methods.ALL[name].apply(config)
    config_lib.choose(config, "model", "MLP")
  return made


def test_every_config_has_a_time_for_every_repeat(train):
  found = costs.side_by_side(configs("standard", "robust"), train, steps=2, repeats=3)
  assert list(found) == ["standard", "robust"]
  for cost in found.values():
    assert len(cost.seconds) == 3
    assert min(cost.seconds) > 0
    assert cost.first > 2 * min(cost.seconds)  # it compiles
  assert costs.ratio(found["robust"], found["standard"]) > 0


def test_times_are_taken_in_turns_and_divided_by_the_updates(train, monkeypatch):
  """Against a clock that says which run was timed: a call of the n-th run takes n seconds."""
  made = configs("standard", "free")
  order = []

  def updates_of(config, train, steps):
    return config.attack.name

  def timed(run):
    order.append(run)
    return {"none": 1.0, "free": 2.0}[run]

  monkeypatch.setattr(costs, "_updates_of", updates_of)
  monkeypatch.setattr(costs, "_timed", timed)
  found = costs.side_by_side(made, train, steps=5, repeats=3)
  assert order == ["none", "free"] * 4
  assert found["standard"] == costs.Cost(1.0, (1 / 5,) * 3)
  replays = made["free"].attack.num_replays
  np.testing.assert_allclose(found["free"].seconds, 2 / 5 / replays)
  assert costs.ratio(found["free"], found["standard"]) == pytest.approx(2 / replays)
  # Load that doubles both of a pair changes nothing.
  assert costs.ratio(costs.Cost(0.0, (3.0, 30.0, 3.0)), costs.Cost(0.0, (1.0, 10.0, 2.0))) == 3.0
