"""The study of all methods in small: what it leaves, that it resumes, what it refuses."""

import json

import pytest

from robust_opt import ensemble, methods
from robust_opt.errors import InputError
from robust_opt.papers import family


def options(workdir, **changed):
  numbers = family.Numbers(seeds=2, passes=4, examples=24, version="quick")
  return family.Options(
    "digits", workdir, numbers, **{"chosen": ("standard", "free", "trades")} | changed
  )


@pytest.mark.parametrize("name", methods.ALL)
def test_the_budget_pays_for_the_epochs(name, tmp_path):
  numbers = family.PRESETS["paper", "mnist"]
  config = family.config_of(options(tmp_path)._replace(numbers=numbers), name, 3)
  assert config.seed == 3
  spent = config.training.epochs * methods.ALL[name].passes
  assert abs(spent - numbers.passes) <= methods.ALL[name].passes / 2


@pytest.mark.slow
def test_a_small_study(tmp_path, monkeypatch, capsys):
  few = (ensemble._apgd_ce(4),)
  monkeypatch.setitem(ensemble.VERSIONS, "quick", few)
  table = family.run(options(tmp_path / "study"))
  assert [row["method"] for row in table.rows] == ["standard", "free", "trades"]
  for row in table.rows:
    assert len(row["clean"].seeds) == 2
    assert row["PGD-50"].mean <= row["clean"].mean + 0.1
    assert float(row["time of an update"]) > 0
  results = tmp_path / "study" / "results"
  shown = (results / "family.md").read_text()
  assert shown.strip() in capsys.readouterr().out
  assert "radius 0.15" in shown
  manifest = json.loads((results / "manifest.json").read_text())
  assert manifest["numbers"]["passes"] == 4
  assert str(tmp_path) not in json.dumps(manifest)

  # Again: nothing is trained or attacked anew, and the table is the same.
  def never(*_):
    raise AssertionError("it was done before")

  monkeypatch.setattr(family, "attack", never)
  monkeypatch.setattr(family.experiment, "train", never)
  again = family.run(options(tmp_path / "study"))
  assert again.rows == table.rows


def test_what_is_refused(tmp_path):
  with pytest.raises(InputError, match=r"must be of standard, .* but magic is none"):
    family.run(options(tmp_path / "study", chosen=("magic",)))
  assert not (tmp_path / "study").exists()
