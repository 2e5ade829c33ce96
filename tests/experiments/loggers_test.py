"""Loggers beside TensorBoard: what they are sent, over a resume, and when they fail."""

import contextlib
import logging
import sys
import types

import pytest

from robust_opt.errors import InputError, MissingExtraError
from robust_opt.experiments import config, loggers, metrics


def module(monkeypatch, name, **attributes):
  """A stand-in for a package, which extras.require finds."""
  found = types.ModuleType(name)
  vars(found).update(attributes, __spec__=types.SimpleNamespace())
  monkeypatch.setitem(sys.modules, name, found)


class Wandb:
  """The little of wandb that is used; `calls` has all of it."""

  def __init__(self):
    self.calls = []

  def init(self, **given):
    self.calls.append(("init", given))
    return self

  def log(self, values, step):
    self.calls.append((step, values))

  def finish(self, exit_code):
    self.calls.append(("finish", exit_code))


@pytest.fixture
def wandb(monkeypatch):
  found = Wandb()
  module(monkeypatch, "wandb", init=found.init)
  return found


class Mlflow:
  """The same of mlflow's client."""

  def __init__(self):
    self.calls, self.experiments = [], []

  def __call__(self, uri):
    self.uri = uri
    return self

  def get_experiment_by_name(self, name):
    known = name in self.experiments
    return types.SimpleNamespace(experiment_id=f"the {name}") if known else None

  def create_experiment(self, name):
    self.experiments.append(name)
    return f"the {name}"

  def create_run(self, experiment, run_name):
    self.calls.append(("run", experiment, run_name))
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

  def log_batch(self, run_id, metrics=(), params=()):
    self.calls += [(run_id, *metric) for metric in metrics]
    self.calls += [(run_id, *param) for param in params]

  def set_terminated(self, run_id, status):
    self.calls.append((run_id, status))


@pytest.fixture
def mlflow(monkeypatch):
  found = Mlflow()
  unset = types.SimpleNamespace(get=lambda: None)
  variables = types.SimpleNamespace(MLFLOW_TRACKING_URI=unset, MLFLOW_EXPERIMENT_NAME=unset)
  module(monkeypatch, "mlflow", MlflowClient=found, environment_variables=variables)
  entities = {"Metric": lambda key, value, time, step: (key, value, step), "Param": lambda *a: a}
  module(monkeypatch, "mlflow.entities", **entities)
  return found


def write(workdir, resume_step, steps, name, stop=False):
  with (
    contextlib.suppress(KeyboardInterrupt),
    metrics.MetricWriter(workdir, resume_step, name, {"seed": 3}) as writer,
  ):
    for step in steps:
      writer.write(step, {"train/loss": 1 / step})
    if stop:
      raise KeyboardInterrupt


def test_a_resumed_run_goes_on_in_the_run_of_wandb_and_repeats_no_step(tmp_path, wandb):
  write(tmp_path, 0, [1, 2, 3], "wandb", stop=True)
  write(tmp_path, 2, [3, 4], "wandb")
  (_, first), *sent, (_, second), last, finish = wandb.calls
  assert first == second  # its ID too
  assert first["config"] == {"seed": 3}
  assert (first["name"], first["dir"], first["resume"]) == (tmp_path.name, str(tmp_path), "allow")
  assert sent == [*((step, {"train/loss": 1 / step}) for step in (1, 2, 3)), ("finish", 1)]
  assert (last, finish) == ((4, {"train/loss": 0.25}), ("finish", 0))
  assert [r["step"] for r in metrics.read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
  assert not (tmp_path / "tensorboard").exists()


def test_a_resumed_run_goes_on_in_the_run_of_mlflow_and_repeats_no_step(tmp_path, mlflow):
  write(tmp_path, 0, [1, 2, 3], "mlflow", stop=True)
  write(tmp_path, 2, [3, 4], "mlflow")
  steps = [("r1", "train/loss", 1 / step, step) for step in (1, 2, 3, 4)]
  created = [("run", "the robust_opt", tmp_path.name), ("r1", "seed", "3")]
  ends = [("r1", "KILLED"), ("r1", "FINISHED")]
  assert mlflow.calls == [*created, *steps[:3], ends[0], steps[3], ends[1]]
  assert mlflow.uri == f"sqlite:///{tmp_path}/mlflow/mlflow.db"


def test_a_failure_ends_the_log_and_not_the_training(tmp_path, wandb, monkeypatch, caplog):
  def fail(*_, **__):
    raise ConnectionError("no route to host\nand more")

  monkeypatch.setattr(wandb, "log", fail)
  with caplog.at_level(logging.WARNING):
    write(tmp_path, 0, [1, 2], "wandb")
  assert caplog.messages == [
    "wandb failed (no route to host): it gets no more values; metrics.jsonl has all of them."
  ]
  assert len(metrics.read_metrics(tmp_path / "metrics.jsonl")) == 2


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_is_missing_or_cannot_be_opened_is_one_sentence(tmp_path, monkeypatch, name):
  def fail(**_):
    raise ValueError("no account")

  module(monkeypatch, "wandb", init=fail)
  with pytest.raises(InputError, match="logging=wandb could not be opened: no account"):
    loggers.open_logger("wandb", tmp_path, 0, 0, {})
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(MissingExtraError, match=rf"{name} is not installed.*\[{name}\]"):
    loggers.open_logger(name, tmp_path, 0, 0, {})


def test_the_logger_is_no_part_of_the_experiment():
  one, other = config.digits(), config.digits()
  other.logging = "mlflow"
  config.validate(other)
  plain = [config.as_dict(c) for c in (one, other)]
  assert "logging" not in plain[0]
  assert config.from_dict(plain[0]).logging == "tensorboard"
  assert config.differences(*plain) == []
  other.logging = "visdom"
  with pytest.raises(InputError, match="must be one of tensorboard, wandb, mlflow, but was 'vis"):
    config.validate(other)
