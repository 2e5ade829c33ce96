"""Runs that are stopped, by any means and at any moment, end as if they had not been."""

import errno
import gc
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import processes
import pytest
from images import write_class_folders
from main_test import SMALL, run_main

from robust_opt.errors import InputError
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import metrics, overrides
from robust_opt.experiments import run as experiment
from robust_opt.experiments import workdir as workdirs
from robust_opt.experiments.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("no_pictures")

PROCESS = [sys.executable, "-m", "robust_opt.main"]
ROOT = Path(__file__).parents[2]
# Several scans an epoch, 5 + 5 + 1 steps, and a checkpoint after each.
TINY = [
  "--config.model.name=MLP",
  "--config.data.train_examples=400",
  "--config.training.epochs=16",
  "--config.training.steps_per_scan=5",
  "--config.checkpoint.every_epochs=1",
  "--config.evaluation.sweep=(0.0, 1.0)",
]


@pytest.fixture(scope="module", autouse=True)
def ctrl_c_is_not_ignored():
  """As it is by a test run in the background, which processes inherit."""
  if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def environment():
  """One device of the same backend."""
  return processes.environment() | {"COLUMNS": "100", "TERM": "xterm-256color"}


def run_on_a_terminal(arguments, env):
  """(exit code, everything the terminal was sent)."""
  leader, follower = pty.openpty()
  process = subprocess.Popen(
    [*PROCESS, *arguments], stdin=follower, stdout=follower, stderr=follower, cwd=ROOT, env=env
  )
  os.close(follower)
  sent = b""
  while True:
    ready, _, _ = select.select([leader], [], [], 0.2)
    if not ready and process.poll() is not None:
      break
    try:
      sent += os.read(leader, 1 << 16) if ready else b""
    except OSError:  # Linux says so when the last writer is gone
      break
  os.close(leader)
  return process.wait(), sent.decode()


@pytest.fixture(scope="module")
def unbroken(environment, tmp_path_factory):
  """(work directory, what its terminal showed) of a run that nobody stopped."""
  workdir = tmp_path_factory.mktemp("unbroken") / "run"
  code, sent = run_on_a_terminal([*TINY, f"--workdir={workdir}"], environment)
  assert code == 0, sent
  return workdir, sent


def run_and_stop(arguments, env, signals, rng):
  """(exit code, standard error) of a run stopped at a random moment, by a signal or by none.

  The moment is after some of its epochs, and then a part of the time that an epoch took.
  """
  process = subprocess.Popen(
    [*PROCESS, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, env=env
  )
  lines, epochs, after = [], [], rng.randrange(1, 5)
  for line in process.stderr:
    lines.append(line.decode())
    epochs += [time.monotonic()] if re.search(r"epoch \d+/\d+", lines[-1]) else []
    if signals and len(epochs) == after:
      time.sleep(rng.random() * (epochs[-1] - epochs[-2] if len(epochs) > 1 else 0.1))
      process.send_signal(signals.pop())
  process.stderr.close()
  return process.wait(), "".join(lines)


def comparable(workdir):
  """What must be the same to the bit, however the run came about."""
  summary = json.loads((workdir / "summary.json").read_text())
  keys = ("params_sha256", "step", "results", "sweeps", "best_checkpoint", "config")
  records = metrics.read_metrics(workdir / "metrics.jsonl")
  for record in records:
    del record["train/examples_per_second"]
  return {key: summary[key] for key in keys}, records


def stop_by_each(arguments, env, workdir, signals, rng):
  """Stops a run by each of the signals in turn; the standard errors."""
  told = []
  for sent in signals:
    code, err = run_and_stop([*arguments, f"--workdir={workdir}"], env, [sent], rng)
    assert code == (-sent if sent == signal.SIGKILL else CODES[sent][1]), err
    assert not (workdir / "summary.json").exists()
    told.append(err)
  return told


def run_to_the_end(arguments, env, workdir):
  """The standard error of a run that nobody stops."""
  code, err = run_and_stop([*arguments, f"--workdir={workdir}"], env, [], random.Random())
  assert code == 0, err
  return err


@pytest.mark.slow
def test_killed_and_terminated_runs_end_bit_identical(unbroken, environment, tmp_path):
  signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
  told = stop_by_each(TINY, environment, tmp_path / "run", signals, random.Random(0))
  told.append(run_to_the_end(TINY, environment, tmp_path / "run"))
  assert comparable(tmp_path / "run") == comparable(unbroken[0])
  steps = [r["step"] for r in comparable(tmp_path / "run")[1]]
  assert steps == sorted(set(steps))
  assert len(steps) == 16 * 3
  (sentence,) = (line for line in told[1].splitlines() if line.startswith("robust_opt: "))
  stopped = re.fullmatch(
    r"robust_opt: SIGTERM: stopped at step (\d+) of 176 and saved; the same command .*", sentence
  )
  assert f"Resuming from the checkpoint of step {stopped[1]}." in told[2]
  for err in told:
    assert "Traceback" not in err
    assert "\x1b" not in err
    assert "\r" not in err
  left = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
  assert all(re.fullmatch(r"\d{8}", name) for name in left)


@pytest.mark.slow
def test_a_killed_run_over_streamed_images_ends_bit_identical(environment, tmp_path):
  folder = write_class_folders(tmp_path / "images", ("ant", "bee", "cat"), 100, (8, 8), mode="L")
  arguments = [a for a in TINY if "train_examples" not in a]
  arguments += [
    f"--config.data.name={folder}",
    "--config.data.max_device_bytes=20000",
    "--config.data.workers=1",
    "--config.training.augment=('crop',)",
  ]
  reference, broken = tmp_path / "reference", tmp_path / "broken"
  run_to_the_end(arguments, environment, reference)
  signals = [signal.SIGKILL, signal.SIGTERM]
  stop_by_each(arguments, environment, broken, signals, random.Random(0))
  run_to_the_end(arguments, environment, broken)
  assert comparable(broken) == comparable(reference)


@pytest.mark.slow
def test_terminal_shows_a_steady_bar_and_the_table(unbroken):
  workdir, sent = unbroken
  text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sent)
  rows = [row.rstrip() for row in re.split(r"[\r\n]+", text)]
  bars = [row for row in rows if row.startswith("epoch ")]
  assert max(len(row) for row in rows if str(workdir) not in row) <= 100
  assert len({row.rindex("left") for row in bars}) == 1
  assert bars[-1].startswith("epoch 16/16")
  assert any(
    re.match(r" *l_inf 0\.1, 1 step \(training\) +\d+\.\d\d% +\d+ of 360", r) for r in rows
  )
  assert "Traceback" not in text
  assert "I1" not in text  # log lines give way to the bar


@pytest.mark.slow
def test_many_kills(tmp_path, environment):
  """With the convolutional network and Adam, six signals; also during start and end."""
  arguments = [a for a in TINY if "model" not in a and "sweep" not in a]
  arguments += [
    "--config.optimizer.name=adam",
    "--config.optimizer.learning_rate=0.02",
    "--config.training.augment=('crop',)",
    "--config.attack.name=pgd",
    "--config.attack.num_steps=3",
    "--config.evaluation.checkpoint=best",
  ]
  reference, broken = tmp_path / "reference", tmp_path / "broken"
  run_to_the_end(arguments, environment, reference)
  rng = random.Random(1)
  signals = [rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]) for _ in range(3)]
  stop_by_each(arguments, environment, broken, signals, rng)
  for _ in range(3):  # any moment from the start of the process on
    command, quiet = [*PROCESS, *arguments, f"--workdir={broken}"], subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, cwd=ROOT, env=environment)
    time.sleep(rng.uniform(0.5, 9))
    process.kill()
    process.wait()
  run_to_the_end(arguments, environment, broken)
  assert comparable(broken) == comparable(reference)


# In this process: moments that are chosen


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    workdir = tmp_path_factory.mktemp("small") / "run"
    assert run_main(patch, *SMALL, *MIDWAY, f"--workdir={workdir}") == 0
  return workdir


MIDWAY = ["--config.training.steps_per_scan=2", "--config.checkpoint.every_epochs=1"]


CODES = {signal.SIGTERM: ("SIGTERM", 143), signal.SIGINT: ("Ctrl-C", 130)}


# The second epoch's first scan, and the last of all.
@pytest.mark.slow
@pytest.mark.parametrize(
  ("last", "sent"),
  [
    (7, signal.SIGINT),
    (7, signal.SIGTERM),
    (10, signal.SIGTERM),
  ],
)
def test_a_signal_saves_where_it_comes(last, sent, small, tmp_path, monkeypatch, capfd):
  name, code = CODES[sent]
  before = signal.getsignal(signal.SIGINT)
  genuine = metrics.MetricWriter.write

  def write(self, step, values):
    genuine(self, step, values)
    if step == last:
      os.kill(os.getpid(), sent)

  workdir = tmp_path / "run"
  arguments = [*SMALL, *MIDWAY, f"--workdir={workdir}"]
  with monkeypatch.context() as patch:
    patch.setattr(metrics.MetricWriter, "write", write)
    assert run_main(patch, *arguments) == code
  assert capfd.readouterr().err.splitlines()[-1] == (
    f"robust_opt: {name}: stopped at step {last} of 10 and saved; "
    f"the same command goes on from there."
  )
  assert sorted(path.name for path in (workdir / "checkpoints").iterdir())[-1] == f"{last:08d}"
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  assert signal.getsignal(signal.SIGINT) == before
  assert run_main(monkeypatch, *arguments) == 0
  assert comparable(workdir) == comparable(small)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # checkpoint_test
def test_a_damaged_checkpoint_costs_time_alone(small, tmp_path, monkeypatch):
  workdir = shutil.copytree(small, tmp_path / "run")
  shutil.rmtree(workdir / "checkpoints" / "00000010" / "state")
  (workdir / "summary.json").unlink()
  assert run_main(monkeypatch, *SMALL, *MIDWAY, f"--workdir={workdir}") == 0
  assert comparable(workdir) == comparable(small)
  assert (workdir / "damaged" / "00000010").is_dir()
  gc.collect()


@pytest.mark.slow
def test_ctrl_c_before_the_first_checkpoint_leaves_the_directory_free(tmp_path, monkeypatch, capfd):
  said = []
  workdir = tmp_path / "run"
  arguments = [*SMALL, f"--workdir={workdir}"]
  with monkeypatch.context() as patch:
    patch.setattr(Checkpoints, "restore", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert run_main(patch, *arguments) == 130
  last = capfd.readouterr().err.splitlines()[-1]
  assert last.startswith("robust_opt: Ctrl-C: stopped outside of training")
  assert workdirs.stopped_early(workdir)
  with monkeypatch.context() as patch:
    patch.setattr(workdirs.logging, "info", lambda words, *_: said.append(words))
    assert run_main(patch, *arguments, "--config.seed=3") == 0
  assert any("without a checkpoint: starting over there" in words for words in said)
  assert json.loads((workdir / "config.json").read_text())["seed"] == 3
  assert run_main(monkeypatch, *arguments) == 2  # now it is another experiment's


def test_ctrl_c_before_a_run_is_a_sentence(monkeypatch, capfd):
  def load(path):
    raise KeyboardInterrupt

  monkeypatch.setattr(overrides, "load", load)
  assert run_main(monkeypatch, *SMALL) == 130
  assert capfd.readouterr().err.splitlines()[-1].startswith("robust_opt: Ctrl-C: stopped")


@pytest.mark.slow
def test_a_directory_without_a_checkpoint_is_free_for_another_config(tmp_path, monkeypatch, capfd):
  workdir = tmp_path / "run"
  diverges = [*SMALL, "--config.optimizer.learning_rate=1e38", f"--workdir={workdir}"]
  assert run_main(monkeypatch, *diverges) == 1
  assert run_main(monkeypatch, *SMALL, f"--workdir={workdir}") == 0
  assert [r["step"] for r in metrics.read_metrics(workdir / "metrics.jsonl")] == [5, 10]
  rate = json.loads((workdir / "config.json").read_text())["optimizer"]["learning_rate"]
  assert rate == config_lib.digits().optimizer.learning_rate


def test_a_directory_with_a_checkpoint_or_a_foreign_file_stays_another_s(small, tmp_path):
  config = config_lib.digits()
  workdir = shutil.copytree(small, tmp_path / "run")
  (workdir / "summary.json").unlink()
  assert not workdirs.stopped_early(workdir)
  with pytest.raises(InputError, match="another experiment"):
    workdirs.check(workdir, config)
  for path in workdir.glob("*.png"):
    path.unlink()
  shutil.rmtree(workdir / "checkpoints")
  assert workdirs.stopped_early(workdir)
  workdirs.check(workdir, config)
  (workdir / "thesis.tex").write_text("all my work")
  with pytest.raises(InputError, match="another experiment"):
    workdirs.check(workdir, config)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, monkeypatch, capfd):
  workdir = tmp_path / "run"
  arguments = [*SMALL, "--config.optimizer.learning_rate=1e38", f"--workdir={workdir}"]
  sentences = []
  for _ in range(2):
    assert run_main(monkeypatch, *arguments) == 1
    sentences.append(capfd.readouterr().err.splitlines()[-1])
  assert sentences[0] == sentences[1]
  assert re.match(r"robust_opt: The (loss|parameters) became .* at step \d+; no ch", sentences[0])
  assert "--config.optimizer.learning_rate" in sentences[0]
  assert not list((workdir / "checkpoints").iterdir())
  assert not (workdir / "summary.json").exists()
  assert metrics.read_metrics(workdir / "metrics.jsonl") == []


def test_parameters_that_are_no_numbers_are_not_saved(tmp_path, monkeypatch, capfd):
  """The loss of a step is that before its update: the last one of an epoch can spoil them."""
  genuine = experiment.assemble

  def assemble(config):
    built = genuine(config)

    def compile_scan(num_steps):
      def run(state):
        state, losses = built.compile(num_steps)(state)
        if int(state.step) == 10:  # the end of the second epoch
          state = state.replace(params=jax.tree.map(lambda p: p / 0, state.params))
        return state, losses

      return run

    return built._replace(compile=compile_scan)

  monkeypatch.setattr(experiment, "assemble", assemble)
  workdir = tmp_path / "run"
  assert run_main(monkeypatch, *SMALL, *MIDWAY, f"--workdir={workdir}") == 1
  said = capfd.readouterr().err.splitlines()[-1]
  assert "parameters became infinite or NaN at step 10; the last good checkpoint is that of" in said
  assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["00000005"]
  assert max(r["step"] for r in metrics.read_metrics(workdir / "metrics.jsonl")) < 10


@pytest.mark.parametrize("victim", ["metrics.jsonl", "summary.json"])
def test_a_disk_that_fills_up_is_one_sentence(victim, small, tmp_path, monkeypatch, capfd):
  workdir = shutil.copytree(small, tmp_path / "run")
  (workdir / "summary.json").unlink()
  genuine = os.fsync

  def fsync(descriptor):
    if f".{victim}." in os.readlink(f"/proc/self/fd/{descriptor}"):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    genuine(descriptor)

  monkeypatch.setattr(os, "fsync", fsync)
  assert run_main(monkeypatch, *SMALL, *MIDWAY, f"--workdir={workdir}") == 1
  captured = capfd.readouterr().err
  assert captured.splitlines()[-1] == (
    f"robust_opt: {workdir / victim} could not be written (No space left on device)."
  )
  assert "Traceback" not in captured
  assert not (workdir / "summary.json").exists()
  assert not list(workdir.glob(".*"))


def can_mount():
  command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
  try:
    return subprocess.run(command, capture_output=True).returncode == 0
  except OSError:
    return False


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="this machine does not let us mount a small disk")
def test_a_disk_that_is_really_full(environment, tmp_path):
  disk, kept = tmp_path / "disk", tmp_path / "kept"
  disk.mkdir()
  small = [*SMALL, "--config.training.epochs=60", "--config.checkpoint.keep=60", *MIDWAY]
  script = (
    f'mount -t tmpfs -o size=1m none {disk}; "$@" --workdir={disk}/run; code=$?; '
    f"cp -r {disk}/run {kept}; exit $code"
  )
  command = ["unshare", "-m", "sh", "-c", script, "sh", *PROCESS, *small]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
  assert done.returncode == 1, done.stderr
  assert "Traceback" not in done.stderr
  sentence = r"robust_opt: .* could not be written \(?.*No space left on device.*"
  assert re.fullmatch(sentence, done.stderr.splitlines()[-1])
  assert not (kept / "summary.json").exists()
  assert not list(kept.glob(".*"))
  steps = sorted(int(path.name) for path in (kept / "checkpoints").iterdir())
  assert len(steps) > 2
  config = config_lib.digits()
  config.model.name = "SoftmaxRegression"
  checkpoints = Checkpoints(kept / "checkpoints", keep=60)
  restored = checkpoints.restore(experiment.assemble(config).state)
  assert int(restored.step) == steps[-1]
  assert not (kept / "damaged").exists()
  checkpoints.close()
