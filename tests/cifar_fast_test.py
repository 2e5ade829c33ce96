"""The command that trains within a budget and attacks: what it counts, and that it goes on."""

import json

import numpy as np
import pytest

from benchmarks import cifar_fast
from robust_opt.errors import InputError
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import overrides


class FakeVerdict:
  def __init__(self, count):
    self.broken_by = np.resize([-1, -1, 1, 0], count)  # two robust, one fooled, one wrong


def small():
  config = config_lib.digits()
  changes = ["training.epochs=2", "data.test_examples=250", "weights.average=0.9"]
  overrides.apply_all(config, changes)
  config.set.box = config_lib.PIXEL_BOX
  return config


@pytest.fixture
def attacked(monkeypatch):
  """The first logits and the ids of every part that is attacked."""
  parts = []

  def autoattack(logits_fn, x, y, u, *, ids, **kwargs):
    parts.append((np.asarray(logits_fn(x[:5])), ids.tolist()))
    return FakeVerdict(len(y))

  monkeypatch.setattr(cifar_fast.ro, "autoattack", autoattack)
  monkeypatch.setattr(cifar_fast, "PART", 100)
  return parts


@pytest.mark.slow
def test_another_call_attacks_what_the_first_has_trained(attacked, tmp_path, monkeypatch):
  monkeypatch.setattr(cifar_fast, "FLOATS", 1000)  # several files
  begun = cifar_fast.run(tmp_path, small(), train_s=1000.0, budget_s=0.0)
  assert (begun["attacked"], begun["training"]["epochs"], len(attacked)) == (0, 2, 0)
  done = cifar_fast.run(tmp_path, small(), train_s=1000.0, budget_s=1000.0)
  assert [ids[0] for _, ids in attacked] == [0, 100, 200]
  assert (done["attacked"], done["clean"], done["robust"]) == (250, 188, 126)
  assert done["training"] == begun["training"]
  assert json.loads((tmp_path / "result.json").read_text()) == done
  assert "126 under AutoAttack, 50.40 % (95 %: 44.2" in cifar_fast.words(done)
  other = small()
  other.seed = 5
  with pytest.raises(InputError, match="is of another config: seed: 0 -> 5"):
    cifar_fast.run(tmp_path, other, train_s=1000.0, budget_s=1000.0)


@pytest.mark.slow
def test_training_has_as_many_epochs_as_fit(attacked, tmp_path, monkeypatch):
  epoch = cifar_fast._epoch
  monkeypatch.setattr(cifar_fast, "_epoch", lambda *args: (epoch(*args)[0], 10.0))
  config = small()
  config.training.epochs = 9
  done = cifar_fast.run(tmp_path, config, train_s=39.0, budget_s=1000.0)
  assert done["training"]["epochs"] == 3
  assert done["training"]["seconds"] == 30.0
  assert done["config"]["training"]["epochs"] == 9
  with pytest.raises(InputError, match=r"an epoch takes 10\.0 s"):
    cifar_fast.run(tmp_path / "other", small(), train_s=5.0, budget_s=1000.0)
