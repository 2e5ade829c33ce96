"""Two processes that share an evaluation, joined over the loopback interface, against one alone."""

import json
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from processes import environment

from robust_opt.evaluation import verdict
from robust_opt.experiments import config, run
from robust_opt.studies.ensemble import SHARE

pytestmark = pytest.mark.usefixtures("no_pictures")

EXAMPLES, BATCH = 57, 16  # whose shares differ in size, and are no multiple of the batch
FLAGS = ("--norm=linf", "--radius=0.1", "--version=quick", f"--examples={EXAMPLES}", "--notrust")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """The work directory of a finished run."""
  workdir = tmp_path_factory.mktemp("run") / "digits"
  c = config.digits()
  c.model.name = "SoftmaxRegression"
  c.data.train_examples, c.data.test_examples = 300, EXAMPLES
  c.training.epochs, c.evaluation.sweep = 3, (0.0, 1.0)
  run.run(c, workdir)
  return workdir


def start(trained, output, *flags):
  given = [f"--workdir={trained}", f"--output={output}", f"--batch_size={BATCH}", *FLAGS, *flags]
  return subprocess.Popen(
    [sys.executable, "-m", "robust_opt.evaluate", *given],
    env=environment(devices=2) | {"JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def start_two(trained, output):
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{probe.getsockname()[1]}"
  flags = f"--coordinator={address}", "--num_processes=2"
  return [start(trained, output, *flags, f"--process_id={i}") for i in range(2)]


def finish(processes, seconds=600):
  """(stdout, stderr, code) of every process; none outlives this call."""
  try:
    return [(*process.communicate(timeout=seconds), process.returncode) for process in processes]
  finally:
    for process in processes:
      process.kill()
      process.communicate()


def run_two(trained, output, attempts=3):
  """Both processes' stdout; another port if somebody took the free one in between."""
  for _ in range(attempts):
    results = finish(start_two(trained, output))
    if not any("address already in use" in error.lower() for _, error, _ in results):
      assert [code for *_, code in results] == [0, 0], results[0][1] + results[1][1]
      return [said for said, *_ in results]
  pytest.fail(f"no free port in {attempts} attempts")


def kill_during(trained, output, batches):
  """Ends both processes when the second has saved so many batches of its share."""
  processes, parts = start_two(trained, output), output / "parts" / "process_1"
  while len(list(parts.glob("*.npz"))) < batches:
    assert all(process.poll() is None for process in processes), finish(processes)
    time.sleep(0.02)
  processes[1].send_signal(signal.SIGTERM)  # which ends it without waiting for the other
  assert processes[1].wait(timeout=60) == -signal.SIGTERM
  processes[0].kill()
  finish(processes)


@pytest.mark.slow
def test_two_processes_give_one_verdict_also_if_they_are_killed(trained, tmp_path):
  """Killed and started again, two processes give the verdict of one that was never stopped."""
  alone, two = tmp_path / "alone", tmp_path / "two"
  ((_, error, code),) = finish([start(trained, alone)])
  assert code == 0, error
  kill_during(trained, two, batches=2)
  assert not (two / "parts" / "process_1" / SHARE).exists()
  said, silent = run_two(trained, two)

  expected, stored = (verdict.load(folder / "verdict.npz") for folder in (alone, two))
  assert 0 < expected.robust_accuracy < expected.verdict.clean_accuracy < 1
  assert stored.verdict.names == expected.verdict.names
  np.testing.assert_array_equal(stored.verdict.prediction, expected.verdict.prediction)
  np.testing.assert_array_equal(stored.verdict.broken_by, expected.verdict.broken_by)
  assert stored.claim._replace(device="") == expected.claim._replace(device="")
  assert stored.claim.device.startswith("4 x ")

  # The first process alone speaks and writes; the costs are those of both.
  assert "remain correctly classified" in said
  assert "Everything about this evaluation" in said
  assert not [line for line in silent.splitlines() if "Gloo" not in line]
  assert {path.name for path in two.iterdir()} == {path.name for path in alone.iterdir()}
  ours, theirs = (json.loads((folder / "costs.json").read_text()) for folder in (two, alone))
  assert {n: c["lanes"] for n, c in ours.items()} == {n: c["lanes"] for n, c in theirs.items()}
