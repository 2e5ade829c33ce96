"""Extra training images: a fraction of every batch, whatever else a run does."""

import shutil

import jax
import numpy as np
import pytest
from images import write_class_folders
from main_test import SMALL, run_main

import robust_opt as ro
from robust_opt.data import datasets
from robust_opt.errors import InputError
from robust_opt.experiments import build, combinations, config, extra, streaming
from robust_opt.experiments import workdir as workdirs
from robust_opt.training import sharding
from robust_opt.training.scan import ids_of_steps

PLAN, KEY = ro.EpochPlan(24, 8, num_extra=15, extra_per_batch=5), jax.random.key(0)


def test_every_batch_has_its_share_and_both_parts_are_visited_evenly():
  assert PLAN.num_steps == 3  # of 8 images each, whatever their origin
  ids = np.asarray(ids_of_steps(PLAN, KEY, 0, 24))
  assert ids.shape == (24, 8)
  own, more = ids[:, :3].ravel(), ids[:, 3:].ravel() - 24
  np.testing.assert_array_equal(np.bincount(own), 3)  # 24 x 3 draws of 24 images
  np.testing.assert_array_equal(np.bincount(more), 8)  # 24 x 5 of 15
  assert len({tuple(part) for part in more.reshape(8, 15)}) == 8  # each pass in its own order
  for step in (1, 7):  # the examples of a step do not depend on where a scan begins
    np.testing.assert_array_equal(ids_of_steps(PLAN, KEY, step, 4), ids[step : step + 4])


def test_without_extra_images_a_plan_is_what_it_was():
  plain = ro.EpochPlan(24, 8)
  passes = np.asarray(ids_of_steps(plain, KEY, 0, 3))
  order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(KEY, 0), 0), 24)
  np.testing.assert_array_equal(passes.ravel(), order)


@pytest.mark.parametrize(("num_extra", "count"), [(15, 8), (4, 5), (0, 1)])
def test_a_plan_that_cannot_be(num_extra, count):
  with pytest.raises(InputError, match="extra_per_batch must be 0 to"):
    ro.EpochPlan(24, 8, num_extra=num_extra, extra_per_batch=count).check()


def digits_config(path, fraction=0.7):
  c = config.digits()
  c.data.train_examples, c.data.extra, c.data.extra_fraction = 300, str(path), fraction
  return c


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  """The digits that a run of 300 leaves out, named as in the files of Gowal et al."""
  path = tmp_path_factory.mktemp("extra") / "extra.npz"
  train = datasets.load("digits", "train")
  np.savez(path, image=train.images[300:], label=train.labels[300:])
  return path


def test_a_stream_has_the_same_batches(file):
  c = digits_config(file)
  splits = build.splits(c)
  data = extra.appended(splits.train, splits.extra_train)
  plan = extra.mixed(c, ro.EpochPlan(len(splits.train.labels), 32), splits.extra_train)
  assert plan == (270, 32, True, 1137, 22)
  stream = streaming.Stream(data, plan, KEY, 1e6, 0, sharding.data_mesh())
  for step in (0, 50):  # the second beyond the first pass of the file
    got, ids = stream.take(step, 2), np.asarray(ids_of_steps(plan, KEY, step, 2))
    np.testing.assert_array_equal(got.images, data.images[ids])
    np.testing.assert_array_equal(got.labels[:, 10:], splits.extra_train.labels[ids[:, 10:] - 270])


def test_the_training_set_itself_stays_and_is_read_without_the_file(file):
  c = digits_config(file)
  splits = build.splits(c)
  c.data.extra = "/nowhere.npz"
  alone = build.splits(c, with_extra=False)
  assert alone.extra_train is None
  assert datasets.fingerprint(splits.train) == datasets.fingerprint(alone.train)
  assert len(splits.train.labels) == 270


@pytest.mark.parametrize(
  ("arrays", "fraction", "message"),
  [
    (
      {"image": np.zeros((9, 8, 8, 1), np.uint8)},
      0.5,
      r"predicts, ro\.load_run\(WORKDIR\)\.predict",
    ),
    ({"image": np.zeros((9, 8, 8, 3), np.uint8), "label": np.arange(9)}, 0.5, r"\[8, 8, 3\], but"),
    ({"image": np.zeros((9, 8, 8, 1)), "label": np.arange(9)}, 0.5, "images float32 .* are uint8"),
    ({"image": np.zeros((9, 8, 8, 1), np.uint8), "label": np.arange(9) + 2}, 0.5, r"from 2 to 10"),
  ],
)
def test_files_that_do_not_fit(arrays, fraction, message, tmp_path):
  np.savez(tmp_path / "extra.npz", **arrays)
  with pytest.raises(InputError, match=rf"^--config\.data\.extra=.*{message}"):
    build.splits(digits_config(tmp_path / "extra.npz", fraction))


@pytest.mark.parametrize("fraction", [0.001, 0.99])
def test_fractions_of_no_whole_batch(fraction, file):
  c = digits_config(file, fraction)
  with pytest.raises(InputError, match=rf"extra_fraction={fraction} is \d+ of 32 images"):
    extra.mixed(c, ro.EpochPlan(270, 32), build.splits(c).extra_train)


def test_a_folder_of_images_takes_none(file, tmp_path):
  c = digits_config(file)
  c.data.name = str(write_class_folders(tmp_path / "images", ("ant", "bee"), 80, (8, 8)))
  with pytest.raises(InputError, match="needs a training set of arrays"):
    build.splits(c)


def test_configs_that_would_do_nothing_and_those_of_old(file):
  for c in (digits_config(""), digits_config(file, 0.0)):
    with pytest.raises(
      InputError, match=r"extra and --config\.data\.extra_fraction need each other"
    ):
      config.validate(c)
  assert not {"extra", "extra_fraction"} & config.as_dict(config.digits())["data"].keys()
  c = digits_config(file)
  assert config.as_dict(config.from_dict(config.as_dict(c))) == config.as_dict(c)
  config.choose(c, "attack", "recall")
  with pytest.raises(InputError, match=r"recall needs --config\.data\.extra="):
    combinations.check(c)


def test_the_file_may_move_and_its_content_is_compared(file, tmp_path):
  splits = build.splits(digits_config(file))
  workdirs.claim(tmp_path / "run", digits_config(file), splits)
  (tmp_path / "run" / "checkpoints" / "00000001").mkdir(parents=True)
  workdirs.check(tmp_path / "run", digits_config("/elsewhere.npz"))
  other = splits.extra_train._replace(labels=splits.extra_train.labels[::-1])
  with pytest.raises(InputError, match=r"data\.extra_train: \w+ -> \w+\.$"):
    workdirs.claim(tmp_path / "run", digits_config(file), splits._replace(extra_train=other))


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_bits_and_is_loaded_without_the_file(file, tmp_path, monkeypatch):
  more = [f"--config.data.extra={file}", "--config.data.extra_fraction=0.5"]
  more += ["--config.checkpoint.every_epochs=1"]
  workdir = tmp_path / "run"
  assert run_main(monkeypatch, *SMALL, *more, f"--workdir={workdir}") == 0
  whole = ro.load_run(workdir)
  (workdir / "summary.json").unlink()
  shutil.rmtree(max((workdir / "checkpoints").glob("[0-9]*")))
  assert run_main(monkeypatch, *SMALL, *more, f"--workdir={workdir}") == 0
  file.rename(tmp_path / "gone.npz")
  assert ro.load_run(workdir).sha256 == whole.sha256
  (tmp_path / "gone.npz").rename(file)
