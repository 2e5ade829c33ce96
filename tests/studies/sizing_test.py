"""A study sized for a budget of wall time: the arithmetic, what is kept, and what is refused."""

import dataclasses
import json
import re

import pytest

from robust_opt import commands
from robust_opt.errors import InputError
from robust_opt.papers.shaham2015 import study as shaham2015
from robust_opt.studies import sizing
from robust_opt.studies.options import Options, description, option
from robust_opt.studies.sizing import epochs_that_fit
from robust_opt.studies.study import Study


@dataclasses.dataclass(frozen=True)
class Preset:
  epochs: int = option("Of every training run.", low=1)
  seeds: int = option("Networks of each kind.", low=1)


class FakeStudy:
  """Takes 30 s for an attack and 2 s an epoch, by a clock of its own."""

  def __init__(self, first_costs=0.0):
    self.now, self.first_costs, self.epochs, self.attacks = 0.0, first_costs, [], 0

  def clock(self):
    return self.now

  def attack(self):
    self.attacks += 1
    self.now += 30.0
    return 0.5

  def __call__(self, options):
    with Study(options.workdir, description(options), work=10.0) as study:
      self.epochs.append(options.preset.epochs)
      self.now += 2.0 * options.preset.epochs + self.first_costs
      self.first_costs = 0.0
      study.progress(5.0, "trained")
      path = options.workdir / "net" / "attack.json"
      study.once("attack", path, str(options.preset.epochs), self.attack, work=5.0)
    study.publish({}, study.manifest("robust_opt.papers.fake", {}))


def options(workdir, epochs=100, seeds=1):
  return Options(dataset="digits", workdir=workdir, preset=Preset(epochs, seeds))


def sized(study, given, budget_s):
  return sizing.sized(given, study, budget_s, study.clock).preset.epochs


# The arithmetic


@pytest.mark.parametrize(
  ("left", "first", "slope", "most", "epochs"),
  [
    (100.0, 10.0, 10.0, 50, 10),  # 10 + 9 x 10 = 100
    (99.0, 10.0, 10.0, 50, 9),
    (100.0, 10.0, 10.0, 7, 7),  # the preset's
    (10.0, 10.0, 10.0, 50, 1),
    (19.5, 10.0, 10.0, 50, 1),
    (9.5, 10.0, 10.0, 50, 0),  # not even one
    (10.0, 10.0, 0.0, 50, 50),  # an epoch takes no time that can be measured
    (10.0, 10.0, -1.0, 50, 50),
    (100.0, 10.0, 10.0, 1, 1),
  ],
)
def test_the_largest_number_of_epochs_that_fits(left, first, slope, most, epochs):
  assert epochs_that_fit(left, first, slope, most) == epochs


@pytest.mark.parametrize("slope", [0.25, 1.0, 3.0])
def test_one_epoch_more_does_not_fit(slope):
  for left in range(20, 60):
    epochs = epochs_that_fit(left, 16.0, slope, 1000)
    assert 16 + (epochs - 1) * slope <= left < 16 + epochs * slope


# Dry runs


def test_attacks_are_paid_for_once_and_epochs_fill_the_rest(tmp_path, capsys):
  study = FakeStudy()
  # Dry runs take 32 + 4 + 6 = 42 s, and 0.95 (142 - 42) = 95 = 32 + 31.5 x 2.
  assert sized(study, options(tmp_path / "a"), 142.0) == 32
  assert (study.epochs, study.attacks, study.now) == ([1, 2, 3], 1, 42.0)
  (line,) = capsys.readouterr().out.splitlines()  # nothing of the dry runs' own
  assert line == (
    "--budget_s=142: dry runs took 42.0 s; one epoch takes 32.0 s, every other 2.00 s; "
    "--epochs=32 of 100, in some 94 s."
  )
  assert sized(FakeStudy(), options(tmp_path / "b"), 1000.0) == 100  # the preset's
  # Compiled in the first dry run alone, 10 s are part of what one epoch takes.
  assert sized(FakeStudy(first_costs=10.0), options(tmp_path / "c"), 152.0) == 27


def test_a_preset_of_one_epoch_needs_one_dry_run(tmp_path):
  study = FakeStudy()
  assert sized(study, options(tmp_path, epochs=1), 100.0) == 1
  assert study.epochs == [1]


def test_a_budget_without_room_for_one_epoch_is_refused(tmp_path):
  study = FakeStudy()
  with pytest.raises(InputError, match=re.escape("--budget_s=50 is too little for dry runs")):
    sized(study, options(tmp_path / "study"), 50.0)
  assert study.epochs == [1]
  assert not (tmp_path / "study").exists()
  # Between the first dry run and the last.
  with pytest.raises(InputError, match=r"the dry runs have taken 42\.0 s"):
    sized(FakeStudy(), options(tmp_path / "study"), 70.0)
  assert sized(FakeStudy(), options(tmp_path / "study"), 74.0) == 1


# What is kept


def test_the_same_command_measures_nothing_again_and_the_manifest_says_what_it_was(
  tmp_path, monkeypatch
):
  monkeypatch.setattr("sys.argv", ["it", "--budget_s=142", "--seeds=1", f"--workdir={tmp_path}"])
  study = FakeStudy()
  study(sizing.sized(options(tmp_path), study, 142.0, study.clock))
  written = (tmp_path / "sizing.json").read_bytes()
  study.epochs.clear()
  study(sizing.sized(options(tmp_path), study, 142.0, study.clock))
  assert study.epochs == [32]
  assert study.attacks == 2  # of the dry run and of the study
  assert (tmp_path / "sizing.json").read_bytes() == written
  manifest = json.loads((tmp_path / "results" / "manifest.json").read_text())
  assert manifest["sizing"]["epochs"] == 32
  assert manifest["sizing"]["one_epoch_s"] == 32.0
  assert manifest["command"] == "python -m robust_opt.papers.fake --seeds=1 --epochs=32"


def test_a_study_sized_for_something_else_is_refused(tmp_path):
  study = FakeStudy()
  sized(study, options(tmp_path), 142.0)
  with pytest.raises(InputError, match=r"sized for other flags.*budget_s: 142\.0 -> 150\.0"):
    sized(study, options(tmp_path), 150.0)
  with pytest.raises(InputError, match=r"sized for other flags.*seeds: 1 -> 2"):
    sized(study, options(tmp_path, seeds=2), 142.0)
  (tmp_path / "sizing.json").write_text("{")
  with pytest.raises(InputError, match=r"sizing\.json cannot be read"):
    sized(study, options(tmp_path), 142.0)
  assert study.epochs == [1, 2, 3]


def test_a_directory_of_another_kind_is_refused_before_a_dry_run(tmp_path):
  study = FakeStudy()
  study(options(tmp_path / "begun"))
  with pytest.raises(InputError, match="was begun without --budget_s"):
    sized(study, options(tmp_path / "begun"), 142.0)
  (tmp_path / "letters").mkdir()
  (tmp_path / "letters" / "a.txt").touch()
  with pytest.raises(InputError, match="holds something else"):
    sized(study, options(tmp_path / "letters"), 142.0)
  assert study.epochs == [100]


def test_the_epochs_of_a_recipe_are_the_most_that_a_study_of_it_trains(tmp_path):
  preset = shaham2015.PRESETS["paper", "mnist"]
  paper = shaham2015.Options(dataset="mnist", workdir=tmp_path, preset=preset)
  assert preset.epochs == 0
  assert paper.epochs == 120
  assert sizing.with_epochs(paper, 7).epochs == 7


# The whole


@pytest.mark.slow
def test_a_study_of_digits_is_sized_archived_and_resumed(tmp_path, monkeypatch, capsys):
  given = shaham2015.Options(
    dataset="digits",
    workdir=tmp_path / "study",
    preset=shaham2015.Preset(seeds=1, epochs=5, pgd_examples=10, points=1, epochs_per_call=5),
    override=("model.name=MLP", "data.train_examples=320", "evaluation.sweep=(0.0, 1.0)"),
  )
  file = tmp_path / "study.zip"
  commands.run_sized(given, shaham2015.run, budget_s=3600.0, archive_file=str(file))
  assert "--epochs=5 of 5" in capsys.readouterr().out
  manifest = json.loads((tmp_path / "study" / "results" / "manifest.json").read_text())
  assert manifest["sizing"]["epochs"] == manifest["numbers"]["epochs"] == 5
  first = file.read_bytes()

  def refuse(*_):
    raise AssertionError("measured again")

  monkeypatch.setattr(sizing, "measure", refuse)
  commands.run_sized(given, shaham2015.run, budget_s=3600.0, archive_file=str(file))
  assert len(file.read_bytes()) == pytest.approx(len(first), rel=0.01)
