"""A study sized for a budget of wall time: the arithmetic, what is kept, and what is refused."""

import dataclasses
import json
import re

import pytest

from robust_opt import commands
from robust_opt.errors import InputError
from robust_opt.experiments import meter
from robust_opt.experiments.meter import Training
from robust_opt.papers.shaham2015 import study as shaham2015
from robust_opt.studies import sizing
from robust_opt.studies.options import Options, description, option
from robust_opt.studies.sizing import another_epoch, epochs_that_fit
from robust_opt.studies.study import Study

pytestmark = pytest.mark.usefixtures("no_pictures")


@dataclasses.dataclass(frozen=True)
class Preset:
  epochs: int = option("Of every training run.", low=1)
  seeds: int = option("Networks of each kind.", low=1)


class FakeStudy:
  """30 s for an attack, and trainings of 2 s an epoch and of 3 s, by a clock of its own.

  An epoch has 10 updates; the first one of each training takes `compiling` seconds longer.
  """

  def __init__(self, compiling=0.0):
    self.now, self.compiling, self.epochs, self.attacks = 0.0, compiling, [], 0

  def clock(self):
    return self.now

  def train(self, seconds, epochs):
    scans = [(10, seconds)] * epochs
    scans[0] = (10, seconds + self.compiling)
    self.now += sum(seconds for _, seconds in scans)
    meter.record(scans)

  def attack(self):
    self.attacks += 1
    self.now += 30.0
    return 0.5

  def __call__(self, options):
    with Study(options.workdir, description(options), work=10.0) as study:
      self.epochs.append(options.preset.epochs)
      self.train(2.0, options.preset.epochs)
      self.train(1.0, 3)
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


def test_an_epoch_more_takes_the_updates_that_it_adds():
  one = [Training(10, 9.0), Training(20, 9.0), Training(30, 9.0)]
  two = [Training(20, 0.5), Training(40, 0.25), Training(30, 0.1)]  # the last does not grow
  assert another_epoch(one, two) == 10 * 0.5 + 20 * 0.25


@pytest.mark.parametrize(
  ("scans", "expected"),
  [
    ([(10, 9.0), (10, 2.0)], Training(20, 0.2)),  # the first compiles
    ([(5, 9.0), (5, 9.0), (5, 1.0), (5, 2.0)], Training(20, 0.3)),
    ([(5, 9.0), (5, 9.0), (5, 2.0)], Training(15, 0.4)),
    ([(10, 9.0)], Training(10, 0.9)),  # nothing else is known
    ([(8, 9.0), (2, 1.0)], Training(10, 0.5)),
  ],
)
def test_updates_are_timed_when_all_is_compiled(scans, expected):
  with meter.metered() as trainings:
    meter.record(scans)
    meter.record([])  # nothing was left to train
    meter.record(scans, saving=0.5)
  meter.record(scans)  # nobody asks
  assert trainings == [expected, expected._replace(seconds_per_update=expected[1] + 0.5)]


# Dry runs


def test_attacks_are_paid_for_once_and_epochs_fill_the_rest(tmp_path, capsys):
  study = FakeStudy()
  # Dry runs take 35 + 7 = 42 s, and 0.95 (142 - 42) = 95 = 35 + 30 x 2.
  assert sized(study, options(tmp_path / "a"), 142.0) == 31
  assert (study.epochs, study.attacks, study.now) == ([1, 2], 1, 42.0)
  (line,) = capsys.readouterr().out.splitlines()  # nothing of the dry runs' own
  assert line == (
    "--budget_s=142: dry runs took 42.0 s; one epoch takes 35.0 s, every other 2.00 s; "
    "--epochs=31 of 100, in some 95 s."
  )
  assert sized(FakeStudy(), options(tmp_path / "b"), 1000.0) == 100  # the preset's
  # Compiling is no part of what another epoch takes: 45 + 17 = 62 s, and 95 = 45 + 25 x 2.
  assert sized(FakeStudy(compiling=5.0), options(tmp_path / "c"), 162.0) == 26


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
  assert sized(FakeStudy(), options(tmp_path / "study"), 77.0) == 1


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
  assert study.epochs == [31]
  assert study.attacks == 2  # of the dry run and of the study
  assert (tmp_path / "sizing.json").read_bytes() == written
  manifest = json.loads((tmp_path / "results" / "manifest.json").read_text())
  assert manifest["sizing"]["epochs"] == 31
  assert manifest["sizing"]["one_epoch_s"] == 35.0
  assert manifest["command"] == "python -m robust_opt.papers.fake --seeds=1 --epochs=31"


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
  assert study.epochs == [1, 2]


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
