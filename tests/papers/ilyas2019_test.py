"""The study of robust and non-robust features in small: its results, and that it resumes."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from robust_opt.data import constructed
from robust_opt.errors import InputError
from robust_opt.experiments import build
from robust_opt.papers import ilyas2019
from robust_opt.studies.study import Study

pytestmark = pytest.mark.usefixtures("no_pictures")

PRESET = ilyas2019.Preset(
  seeds=1,
  epochs=2,
  examples=200,
  tested=24,
  trained_radius=0.5,
  radius=1.5,
  tested_radius=0.4,
  inversion_steps=10,
  inversion_step=10.0,
  attack_steps=12,
)


def options(workdir, **changed):
  preset = dataclasses.replace(PRESET, **changed)
  return ilyas2019.Options(dataset="digits", workdir=workdir, preset=preset)


def test_sets_are_made_of_the_right_nets(tmp_path):
  given = options(tmp_path)
  for name, (kind, net) in {
    "D_R": ("inverted", "robust"),
    "D_NR": ("inverted", "standard"),
    "D_rand": ("random", "standard"),
    "D_det": ("deterministic", "standard"),
  }.items():
    construction = ilyas2019._construction(given, name)
    assert construction.kind == kind
    assert construction.source["workdir"].endswith(f"nets/{net}")
    settings = construction.settings
    if kind == "inverted":
      assert settings == constructed.Settings(0.0, num_steps=10, step=10.0)
    else:
      assert settings == constructed.Settings(1.5, num_steps=12, step=0.3)


@pytest.mark.parametrize("name", ["trained_radius", "radius", "tested_radius", "inversion_step"])
def test_a_radius_that_cannot_be_meant_is_refused_before_anything_is_made(name, tmp_path):
  with pytest.raises(InputError, match=f"--{name} must be > 0, in pixels, but was 0"):
    ilyas2019.run(options(tmp_path / "study", **{name: 0.0}))
  if name != "inversion_step":
    with pytest.raises(InputError, match=f"--{name}=8 allows every image .* be < 8 .* 8 x 8 x 1"):
      ilyas2019.run(options(tmp_path / "study", **{name: 8.0}))
  assert not (tmp_path / "study").exists()


def test_the_original_is_as_large_as_the_constructed_sets(tmp_path):
  seen = []

  def run(config, workdir):
    seen.append(len(build.splits(config).train.labels))
    raise StopIteration

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ilyas2019.experiment, "run", run)
    given = options(tmp_path)
    study = Study(tmp_path, {}, work=1.0)
    with pytest.raises(StopIteration):
      ilyas2019._train_on(given, study, "original", 1)
  assert seen == [PRESET.examples]


@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10"])
def test_every_base_config_is_valid_and_keeps_what_is_overridden(dataset, tmp_path):
  given = ilyas2019.Options(
    dataset=dataset,
    workdir=tmp_path,
    preset=ilyas2019.PRESETS["paper", dataset],
    override=("training.batch_size=50",),
  )
  config = ilyas2019.config_of(given, 3)
  assert (config.seed, config.data.name, config.training.batch_size) == (3, dataset, 50)
  assert config.attack.name == "none"
  assert (config.set.name, config.set.box) == ("L2", (0.0, 1.0))
  with pytest.raises(InputError, match=r"--override=training\.epochs=3 would have no effect"):
    ilyas2019.config_of(dataclasses.replace(given, override=("training.epochs=3",)), 1)


def test_claims_are_decided_by_paired_differences():
  def runs(clean, robust):
    return [{"clean": c, "robust": r} for c, r in zip(clean, robust, strict=True)]

  measured = {
    "original": runs([0.99, 0.98, 0.99], [0.10, 0.11, 0.10]),
    "D_R": runs([0.9, 0.9, 0.9], [0.50, 0.52, 0.51]),
    "D_NR": runs([0.9, 0.9, 0.9], [0.12, 0.10, 0.11]),
    "D_rand": runs([0.6, 0.62, 0.61], [0.0, 0.0, 0.0]),
    "D_det": runs([0.05, 0.06, 0.05], [0.0, 0.0, 0.0]),
  }
  rows = ilyas2019.claims_table(measured).rows
  assert [row["holds here"] for row in rows[:3]] == ["yes", "yes", "yes"]
  assert rows[3]["holds here"] != "yes"
  assert rows[0]["difference (points)"] == "+40.67"


@pytest.mark.slow
def test_a_small_study(tmp_path, monkeypatch, capsys):
  table = ilyas2019.run(options(tmp_path / "study"))
  assert [row["learnt from"] for row in table.rows] == list(ilyas2019.SETS)
  assert all(len(row["clean"].seeds) == 1 for row in table.rows)
  results = tmp_path / "study" / "results"
  assert (results / "sets.md").read_text().strip() in capsys.readouterr().out
  for name in ("sets.png", "gaussian.png"):
    picture = np.asarray(Image.open(results / name).convert("RGB"))
    assert min(picture.shape[:2]) > 200
    assert picture.std() > 5
  manifest = json.loads((results / "manifest.json").read_text())
  assert manifest["cards"]["D_R"]["kind"] == "inverted"
  assert str(tmp_path) not in json.dumps(manifest)

  def never(*_):
    raise AssertionError("it must not run again")

  monkeypatch.setattr(ilyas2019, "_evaluate", never)
  monkeypatch.setattr(ilyas2019.experiment.engine, "train", never)
  monkeypatch.setattr(ilyas2019.construct, "_shard", never)
  assert ilyas2019.run(options(tmp_path / "study")).rows == table.rows
