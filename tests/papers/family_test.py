"""The study of all methods in small: its results, that it resumes, what it refuses."""

import dataclasses
import json

import pytest

from robust_opt.errors import InputError
from robust_opt.evaluation import phases
from robust_opt.experiments import methods
from robust_opt.papers import family
from robust_opt.studies import accuracy

pytestmark = pytest.mark.usefixtures("no_pictures")

PRESET = family.Preset(seeds=1, passes=4, examples=24, version="quick")


def options(workdir, **changed):
  usual = {"dataset": "digits", "preset": PRESET, "methods": ("standard", "trades")}
  return family.Options(workdir=workdir, **usual | changed)


@pytest.mark.parametrize("name", methods.ALL)
def test_the_budget_pays_for_the_epochs(name, tmp_path):
  preset = family.PRESETS["paper", "mnist"]
  config = family.config_of(options(tmp_path, preset=preset), name, 3)
  assert config.seed == 3
  spent = config.training.epochs * methods.ALL[name].passes
  assert abs(spent - preset.passes) <= methods.ALL[name].passes / 2


@pytest.mark.slow
def test_a_small_study(tmp_path, monkeypatch, capsys):
  few = (phases.apgd_ce(4),)
  monkeypatch.setitem(phases.VERSIONS, "quick", few)
  table = family.run(options(tmp_path / "study"))
  assert [row["method"] for row in table.rows] == ["standard", "trades"]
  for row in table.rows:
    assert len(row["clean"].seeds) == 1
    assert row["PGD-50"].mean <= row["clean"].mean + 0.1
    assert float(row["time of an update"]) > 0
  results = tmp_path / "study" / "results"
  shown = (results / "family.md").read_text()
  assert shown.strip() in capsys.readouterr().out
  assert "radius 0.15" in shown
  manifest = json.loads((results / "manifest.json").read_text())
  assert manifest["numbers"]["passes"] == 4
  assert str(tmp_path) not in json.dumps(manifest)
  measured = json.loads((results / "measured.json").read_text())
  assert {(m["method"], m["seed"]) for m in measured.values()} == {("standard", 1), ("trades", 1)}

  # Run again: nothing is trained or attacked, and the table is the same.
  def never(*_):
    raise AssertionError("it must not run again")

  monkeypatch.setattr(family, "attack", never)
  times = family.costs.side_by_side
  monkeypatch.setattr(family.costs, "side_by_side", never)
  monkeypatch.setattr(family.experiment.engine, "train", never)
  again = family.run(options(tmp_path / "study"))
  assert again.rows == table.rows

  # In another directory updates are timed again: it may be another machine.
  monkeypatch.setattr(family.costs, "side_by_side", times)

  # No network of a known file is trained.
  known = {"known": [results / "measured.json"]}
  fewer = options(tmp_path / "one", methods=("trades",), **known)
  assert [row["method"] for row in family.run(fewer).rows] == ["trades"]
  kept = json.loads((tmp_path / "one" / "results" / "measured.json").read_text())
  assert len(kept) == 1
  assert kept.items() <= measured.items()
  # Fewer methods in the same directory discard nothing.
  family.run(options(tmp_path / "study", methods=("trades",)))
  assert json.loads((results / "measured.json").read_text()) == measured
  # A network that is attacked or trained differently is another one.
  for changed in ({"examples": 25}, {"version": "standard"}, {"passes": 40}):
    other = dataclasses.replace(
      fewer, workdir=tmp_path / next(iter(changed)), preset=dataclasses.replace(PRESET, **changed)
    )
    with pytest.raises(AssertionError, match="it must not run again"):
      family.run(other)


def test_every_method_and_seed_is_another_net(tmp_path):
  given, digests = options(tmp_path), {"train": "a", "test": "b"}
  keys = {family.identity(given, name, seed, digests) for name in methods.ALL for seed in (1, 2)}
  assert len(keys) == 2 * len(methods.ALL)


@pytest.mark.parametrize("content", [None, "{", "[1]", '{"a": {"method": "pgd"}}'])
def test_a_file_that_is_no_measurement_is_refused(content, tmp_path):
  path = tmp_path / "measured.json"
  if content is not None:
    path.write_text(content)
  with pytest.raises(InputError, match=r"--known must name files .*measured\.json"):
    family.run(options(tmp_path / "study", known=[path]))
  assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("constant", ["PGD_STEPS", "PGD_RELATIVE_STEP"])
def test_a_net_under_another_attack_is_another_measurement(constant, monkeypatch, tmp_path):
  given = options(tmp_path), "robust", 1, {"train": "a", "test": "b"}
  usual = family.identity(*given)
  monkeypatch.setattr(accuracy, constant, 7)
  assert family.identity(*given) != usual


def test_an_override_of_what_a_method_sets_is_refused(tmp_path):
  given = options(tmp_path, override=("attack.warmup=0.5",))
  with pytest.raises(InputError, match="would have no effect"):
    family.config_of(given, "pgd", 1)


def test_what_is_refused(tmp_path):
  with pytest.raises(InputError, match=r"must be among standard, .* but magic is not"):
    family.run(options(tmp_path / "study", methods=("magic",)))
  assert not (tmp_path / "study").exists()
