"""Two processes that share a run, joined over the loopback interface, against one that is alone."""

import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from processes import environment
from rounding import assert_close

from robust_opt import models
from robust_opt.data import datasets
from robust_opt.experiments import build
from robust_opt.experiments import config as config_lib
from robust_opt.experiments.checkpoint import Checkpoints
from robust_opt.training import init_state

OVERRIDES = {
  "model.name": "MLP",
  "evaluation.sweep": "(1.0,)",
  "training.epochs": 2,
  "data.train_examples": 400,
  "data.test_examples": 50,
  "attack.name": "pgd",
  "attack.num_steps": 2,
  "checkpoint.every_epochs": 1,
}
STEPS = 2 * (360 // 32)


def start(workdir, devices, *flags):
  command = [sys.executable, "-m", "robust_opt.main", f"--workdir={workdir}", *flags]
  command += [f"--config.{key}={value}" for key, value in OVERRIDES.items()]
  # A random start would tell whether the draws of the two processes agree.
  command += ["--config.attack.random_start=True"]
  pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  env = environment(devices) | {"JAX_PLATFORMS": "cpu"}
  return subprocess.Popen(command, env=env, **pipe)


def finish(processes, seconds=600):
  """(stdout, stderr, code) of every process; none outlives this call."""
  try:
    return [(*process.communicate(timeout=seconds), process.returncode) for process in processes]
  finally:
    for process in processes:
      process.kill()
      process.communicate()


def run_two(workdir, attempts=3):
  """Both processes' results; another port if somebody took the free one in between."""
  for _ in range(attempts):
    with socket.socket() as probe:
      probe.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = f"--coordinator={address}", "--num_processes=2"
    processes = [start(workdir, 2, *flags, f"--process_id={i}") for i in range(2)]
    results = finish(processes)
    if not any("address already in use" in error.lower() for _, error, _ in results):
      return results
  pytest.fail(f"no free port in {attempts} attempts")


def final_state(workdir):
  config = config_lib.digits()
  config.model.name = "MLP"
  net = build.model(config, datasets.load("digits", "train"))
  params, model_state = models.init(net, jax.random.key(1), (8, 8, 1))
  template = init_state(params, model_state, build.optimizer(config, 1))
  checkpoints = Checkpoints(workdir / "checkpoints", keep=2)
  state = checkpoints.restore(template)
  checkpoints.close()
  return state


def summary(workdir):
  return json.loads((workdir / "summary.json").read_text())


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path):
  alone, two = tmp_path / "alone", tmp_path / "two"
  ((_, error, code),) = finish([start(alone, 4)])
  assert code == 0, error
  results = run_two(two)
  assert [code for *_, code in results] == [0, 0], results[0][1] + results[1][1]

  # The order of the sums across processes is its own: not the same bits, the same numbers.
  expected, state = final_state(alone), final_state(two)
  assert int(state.step) == STEPS
  # Two ascent gradients and one of the parameters, through 64 pixels, two layers and 32 examples.
  assert_close(state, expected, terms=3 * 2 * (64 + 128 + 64 + 32), steps=STEPS)
  assert [(r["set"], r["total"]) for r in summary(two)["results"]] == [
    (r["set"], r["total"]) for r in summary(alone)["results"]
  ]
  correct = [[r["correct"] for r in summary(where)["results"]] for where in (two, alone)]
  np.testing.assert_allclose(*correct, atol=1)
  assert summary(two)["device"].startswith("4 x ")

  # The first process alone speaks and writes.
  (said, *_), (silent, *_) = results
  assert "correct" in said
  assert "correct" not in silent  # Gloo says what it has to say
  steps = [json.loads(line)["step"] for line in (two / "metrics.jsonl").read_text().splitlines()]
  assert steps == sorted(set(steps))
  assert {p.name for p in two.iterdir()} == {p.name for p in alone.iterdir()}
  assert len(list((two / "tensorboard").iterdir())) == 1

  # Once more on the same directory: nothing is left to train, and the bits are those saved.
  before = summary(two)["params_sha256"]
  again = run_two(two)
  assert [code for *_, code in again] == [0, 0], again[0][1] + again[1][1]
  assert summary(two)["params_sha256"] == before
