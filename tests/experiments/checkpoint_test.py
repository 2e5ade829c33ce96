"""Checkpoints: whatever is damaged, what is restored is what was saved, or is said to be gone."""

import errno
import gc
import logging
import os
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh

from robust_opt.arrays import digest
from robust_opt.errors import RunError
from robust_opt.experiments.checkpoint import Checkpoints
from robust_opt.training import TrainState, sharding

# Orbax gives up on a damaged array while the others are still being read; what their callbacks then
# meet (a closed event loop) Python reports as "Exception ignored".
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ACCURACY = {10: 0.9, 20: 0.5, 30: 0.6, 40: 0.7}
WHOLE = {10, 30, 40}  # the last two, and the best


def state(step):
  key = jax.random.key(step)
  params = {"dense": {"kernel": jax.random.normal(key, (4, 3)), "bias": jnp.full(3, float(step))}}
  opt_state = optax.sgd(0.1, momentum=0.9).init(params)
  return TrainState(jnp.int32(step), params, {"batch_stats": {"mean": jnp.ones(3)}}, opt_state)


def is_whole(restored):
  return digest(restored) == digest(state(int(restored.step)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  directory = tmp_path_factory.mktemp("saved") / "checkpoints"
  checkpoints = Checkpoints(directory, keep=2)
  for step, accuracy in ACCURACY.items():
    checkpoints.save(state(step), accuracy)
  checkpoints.close()
  return directory


@pytest.fixture(scope="module", autouse=True)
def its_noise_stays_here():
  yield
  gc.collect()


@pytest.fixture
def copy(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / "checkpoints")


@pytest.fixture
def warned(caplog):
  caplog.set_level(logging.WARNING, logger="absl")
  return lambda: [
    r.getMessage()
    for r in caplog.records
    if r.pathname.endswith("robust_opt/experiments/checkpoint.py")
  ]


def reopened(directory, which="last"):
  """(restored state, best step) of a folder, opened anew."""
  checkpoints = Checkpoints(directory, keep=2)
  restored = checkpoints.restore(state(0), which)
  best = checkpoints.best_step()
  checkpoints.close()
  return restored, best


def test_last_ones_and_best_are_kept_and_survive_reopening(copy):
  assert {int(path.name) for path in copy.iterdir()} == WHOLE
  for which, step in (("last", 40), ("best", 10)):
    restored, best = reopened(copy, which)
    assert (int(restored.step), best) == (step, 10)
    assert is_whole(restored)


def test_later_saves_go_on_from_there(copy):
  checkpoints = Checkpoints(copy, keep=2)
  assert checkpoints.best_accuracy() == 0.9
  checkpoints.save(state(50), 0.95)
  checkpoints.save(state(60))  # between two evaluations: never the best
  checkpoints.save(state(60), 1.0)  # there already
  assert (checkpoints.best_step(), checkpoints.best_accuracy()) == (50, 0.95)
  assert {int(path.name) for path in copy.iterdir()} == {50, 60}
  checkpoints.close()


def test_no_best_where_nothing_is_or_was_measured(tmp_path, warned):
  assert reopened(tmp_path / "checkpoints") == (None, None)
  assert not warned()
  checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
  checkpoints.save(state(10))
  assert checkpoints.best_step() is None
  checkpoints.close()


def damages(content, rng):
  """name -> what becomes of a file; None: it is deleted."""
  yield "deleted", None
  yield "emptied", b""
  yield "cut", content[: len(content) // 2]
  yield "lengthened", content + b"\0"
  for _ in range(3):
    flipped = bytearray(content)
    flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    yield "flipped", bytes(flipped)


def kinds_of_files(directory):
  """A relative path of each file of the newest checkpoint."""
  newest = directory / "00000040"
  return sorted(path.relative_to(directory) for path in newest.rglob("*") if path.is_file())


@pytest.mark.slow
def test_damage_to_any_file_is_survived(saved, tmp_path, caplog):
  paths, rng = kinds_of_files(saved), random.Random(0)
  assert {path.parts[1] for path in paths} >= {"state", "metrics", "note", "_CHECKPOINT_METADATA"}
  fallen_back = 0
  for path in paths:
    for kind, content in damages((saved / path).read_bytes(), rng):
      caplog.clear()
      copy = shutil.copytree(saved, tmp_path / "work" / "checkpoints")
      if content is None:
        (copy / path).unlink()
      else:
        (copy / path).write_bytes(content)
      restored, best = reopened(copy)
      assert is_whole(restored), (path, kind)
      assert best == 10, (path, kind)
      step = int(restored.step)
      said = f"The checkpoint of step {40} is damaged" in caplog.text
      # Some files say nothing that matters; then the newest is used, and is what was saved.
      assert (step, said) in ((40, False), (30, True)), (path, kind, caplog.text)
      fallen_back += said
      shutil.rmtree(tmp_path / "work")
  assert fallen_back > len(paths)


def test_an_accuracy_that_was_changed_is_not_believed(copy, warned):
  (copy / "00000040" / "metrics" / "metrics").write_text('{"heldout_robust": 0.97}')
  restored, best = reopened(copy, "best")
  assert int(restored.step) == best == 10
  assert "accuracy" in warned()[0]


def test_a_set_aside_checkpoint_is_kept_elsewhere_and_its_step_can_be_saved_again(copy, warned):
  shutil.rmtree(copy / "00000040" / "state")
  checkpoints = Checkpoints(copy, keep=2)
  assert int(checkpoints.restore(state(0)).step) == 30
  assert (copy.parent / "damaged" / "00000040").is_dir()
  assert "damaged/00000040" in warned()[0]
  checkpoints.save(state(40), 0.7)
  checkpoints.close()
  restored, _ = reopened(copy)
  assert int(restored.step) == 40
  assert is_whole(restored)


def test_all_damaged_is_said_and_starts_from_the_beginning(copy, warned):
  for step in WHOLE:
    (copy / f"{step:08d}" / "state" / "manifest.ocdbt").write_bytes(b"\xff")
  restored, best = reopened(copy)
  assert restored is None
  assert best is None
  assert len(warned()) == len(WHOLE) + 1
  assert "starting from the beginning" in warned()[-1]


def test_a_reader_leaves_a_save_under_way_and_a_run_removes_what_a_killed_one_left(copy, caplog):
  unfinished = shutil.copytree(copy / "00000040", copy / "00000050.orbax-checkpoint-tmp")
  caplog.set_level(logging.WARNING, logger="absl")
  checkpoints = Checkpoints(copy, keep=2, read_only=True)
  for which, step in (("last", 40), ("best", 10)):
    restored = checkpoints.restore(state(0), which)
    assert is_whole(restored)
    assert int(restored.step) == step
  checkpoints.close()
  assert not [record for record in caplog.records if record.name == "absl"]
  assert logging.getLogger("absl").level == logging.WARNING
  assert unfinished.is_dir()
  assert int(reopened(copy)[0].step) == 40
  assert {int(path.name) for path in copy.iterdir()} == WHOLE


def test_restores_to_another_number_of_devices(copy):
  meshes = [Mesh(np.array(jax.devices()[:n]), (sharding.AXIS,)) for n in (1, jax.device_count())]
  for mesh in meshes:
    checkpoints = Checkpoints(copy, keep=2)
    restored = checkpoints.restore(sharding.replicate(state(0), mesh))
    assert is_whole(restored)
    for leaf in jax.tree.leaves(restored):
      assert leaf.sharding.is_equivalent_to(sharding.replicated(mesh), leaf.ndim)
    step = int(restored.step) + 10
    checkpoints.save(sharding.replicate(state(step), mesh), 0.1)
    checkpoints.close()


@pytest.mark.parametrize(
  "where", ["midway", *(pytest.param(w, marks=pytest.mark.slow) for w in ("before", "at the end"))]
)
def test_a_save_that_fails_is_one_sentence_and_leaves_the_others(copy, monkeypatch, where):
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  genuine = ocp.CheckpointManager.save

  def save(self, step, **kwargs):
    if where == "midway":
      (copy / f"{step:08d}.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    if where == "at the end":
      genuine(self, step, **kwargs)
    raise full

  checkpoints = Checkpoints(copy, keep=3)
  with monkeypatch.context() as patch:
    patch.setattr(ocp.CheckpointManager, "save", save)
    with pytest.raises(RunError, match=r"step 50 could not .*\(No space left.*is that of step 40"):
      checkpoints.save(state(50), 0.1)
  assert {int(path.name) for path in copy.iterdir()} == WHOLE
  checkpoints.save(state(50), 0.1)  # when there is room again
  checkpoints.close()
  restored, _ = reopened(copy)
  assert int(restored.step) == 50
  assert is_whole(restored)


def test_digest_sees_values_types_shapes_and_places():
  a, b = np.zeros(4, np.float32), np.zeros(4, np.int32)
  trees = [{"x": a}, {"y": a}, {"x": b}, {"x": a.reshape(2, 2)}, {"x": -a}, {"x": a[:3]}, {}]
  assert len({digest(tree) for tree in trees}) == len(trees)
  assert digest({"x": a}) == digest({"x": jnp.asarray(a)})
