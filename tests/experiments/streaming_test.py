"""Data larger than the device: the same examples, in the same steps, from the host."""

import itertools
import json
import sys

import chex
import jax
import numpy as np
import pytest
from absl import flags
from images import write_class_folders
from main_test import SMALL, run_main

from robust_opt.data import datasets
from robust_opt.experiments import streaming
from robust_opt.experiments.workdir import read_inputs
from robust_opt.training import ArrayData, EpochPlan, sharding, take
from robust_opt.training.scan import ids_of_steps

pytestmark = pytest.mark.usefixtures("no_pictures")

PLAN, KEY = EpochPlan(40, 8), jax.random.key(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_class_folders(tmp_path_factory.mktemp("images"), ("ant", "bee"), 25, (6, 5))


def stream_of(data, limit=1e6, workers=0):
  return streaming.Stream(data, PLAN, KEY, limit, workers, sharding.data_mesh())


@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_a_stream_has_the_examples_of_the_data_on_the_device(folder, kind):
  data = datasets.load(str(folder), "train", decode=False)
  whole = ArrayData(np.asarray(data.images), data.labels)
  stream = stream_of(data if kind == "files" else data._replace(images=whole.images))
  for step, num_steps in [(0, 3), (3, 3), (6, 2), (1, 3)]:  # across an epoch, and back again
    got = stream.take(step, num_steps)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, stream.shapes(num_steps))
    ids = ids_of_steps(PLAN, KEY, step, num_steps)
    for row, of_step in zip(ids, range(num_steps)):
      part = jax.tree.map(lambda a, n=of_step: np.asarray(a[n]), got)
      chex.assert_trees_all_equal(take(part, np.arange(8)), take(whole, row))


@pytest.mark.slow
def test_worker_processes_decode_the_same(folder, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["main"])
  flags.FLAGS(["main"])  # Grain's workers read them
  images = datasets.load(str(folder), "train", decode=False).images
  ids = np.arange(32).reshape(4, 8)[::-1]
  batches = list(streaming.read_batches(images, ids, workers=2))
  np.testing.assert_array_equal(np.stack(batches), np.asarray(images)[ids])


def test_images_are_decoded_only_as_far_as_they_are_read(folder, monkeypatch):
  images = datasets.load(str(folder), "train", decode=False).images
  read = []
  genuine = type(images).__getitem__
  monkeypatch.setattr(type(images), "__getitem__", lambda s, i: read.append(i) or genuine(s, i))
  next(streaming.read_batches(images, np.zeros((1000, 2), int), workers=0))
  assert len(read) < 200


def test_the_limit_is_a_quarter_of_the_memory_that_the_device_tells(monkeypatch):
  assert streaming.device_limit(1000) == 1000
  stats = {"bytes_limit": 400}
  monkeypatch.setattr(type(jax.devices()[0]), "memory_stats", lambda self: stats, raising=False)
  assert streaming.device_limit(0) == 100
  stats.clear()
  assert streaming.device_limit(0) == float("inf")


@pytest.mark.parametrize(("limit", "steps"), [(7200, 5), (10, 1), (float("inf"), 2**62 // 1440)])
def test_two_calls_fit_the_limit(folder, limit, steps):
  data = datasets.load(str(folder), "train", decode=False)  # 8 images of 6 x 5 x 3 in a batch
  assert stream_of(data, limit).max_steps == steps


@pytest.mark.slow
def test_a_streamed_run_is_the_run_in_memory(folder, tmp_path, monkeypatch):
  arguments = [
    *itertools.filterfalse(lambda a: "examples" in a, SMALL),
    f"--config.data.name={folder}",
    "--config.training.batch_size=8",
    "--config.data.holdout=0.2",
    "--config.training.steps_per_scan=1",
  ]
  runs = {}
  for name, limit in {"memory": 0, "streamed": 2000}.items():
    more = [f"--config.data.max_device_bytes={limit}", f"--workdir={tmp_path / name}"]
    assert run_main(monkeypatch, *arguments, *more) == 0
    runs[name] = streaming_summary(tmp_path / name)
  results, losses = zip(*runs.values())
  assert results[0] == results[1]
  assert len(losses[0]) == 8
  np.testing.assert_allclose(*losses, rtol=1e-4, atol=1e-6)
  assert read_inputs(tmp_path / "memory")["data"] == read_inputs(tmp_path / "streamed")["data"]


def streaming_summary(workdir):
  summary = json.loads((workdir / "summary.json").read_text())
  records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  losses = [record["train/loss"] for record in records]
  return (summary["results"], summary["sweeps"]), losses
