"""Where the numbers of a run go besides metrics.jsonl: TensorBoard, Weights & Biases or MLflow.

  logger = open_logger("mlflow", workdir, resume_step=0, written=0, config={"seed": 0})
  logger.write(step, {"train/loss": 0.3})
  logger.close(failed=False)

`--config.logging` names one of LOGGERS. TensorBoard's events are written here, without TensorFlow.
The other two need their extra, and find server, project and account in their own environment
variables (WANDB_PROJECT, WANDB_MODE=offline, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...).
"""

import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from absl import logging
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from robust_opt import extras
from robust_opt.errors import InputError

Scalars = Mapping[str, float | int]


class Logger(Protocol):
  """Takes the scalars of one step after the other."""

  def write(self, step: int, values: Scalars) -> None:
    """Takes those of a step."""

  def close(self, failed: bool) -> None:
    """Ends the log; `failed`: the run was stopped, or it diverged."""


class EventFile:
  """TensorBoard's format, written by the caller's own thread, so that a full disk raises there."""

  def __init__(self, directory: Path, purge_step: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    now = time.time()
    # TensorBoard reads the files in the order of their names.
    name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"
    self._records = RecordWriter(str(directory / name))
    self._add(Event(wall_time=now, file_version="brain.Event:2"))
    # What earlier files hold from this step on is void.
    start = SessionLog(status=SessionLog.START)
    self._add(Event(wall_time=now, step=purge_step, session_log=start))

  def write(self, step: int, values: Scalars) -> None:
    """Writes the scalars of a step to the disk."""
    scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

  def close(self, failed: bool) -> None:
    """Closes the file."""
    del failed
    self._records.close()

  def _add(self, event: Event) -> None:
    self._records.write(event.SerializeToString())
    self._records.flush()


class Tracker:
  """A logger whose values leave this process: a failure ends the log, and training goes on.

  The numbers are in metrics.jsonl in any case. Steps that an earlier start has sent, and that a
  resumed run repeats, are not sent twice.
  """

  def __init__(
    self,
    name: str,
    send: Callable[[int, Scalars], None],
    finish: Callable[[bool], None],
    written: int,
  ) -> None:
    self._name, self._send, self._finish, self._written = name, send, finish, written
    self._working = True

  def write(self, step: int, values: Scalars) -> None:
    """Sends the scalars of a step."""
    if step > self._written:
      self._attempt(lambda: self._send(step, values))

  def close(self, failed: bool) -> None:
    """Says that the run has ended."""
    self._attempt(lambda: self._finish(failed))

  def _attempt(self, action: Callable[[], None]) -> None:
    if not self._working:
      return
    try:
      action()
    except Exception as error:  # of the network, the server or the disk
      self._working = False
      words = "%s failed (%s): it gets no more values; metrics.jsonl has all of them."
      logging.warning(words, self._name, (str(error) or type(error).__name__).splitlines()[0])


def open_logger(
  name: str, workdir: Path, resume_step: int, written: int, config: Mapping[str, Any]
) -> Logger:
  """The logger of a run, for its first start or a later one.

  Args:
    name: a key of LOGGERS.
    workdir: of the run; the logger has a folder of its name in it.
    resume_step: the step after which this start goes on.
    written: the last step of earlier starts, >= resume_step.
    config: the resolved config, shown beside the curves.

  Raises:
    InputError: it cannot be opened; the sentence has the reason.
    MissingExtraError: its package is not installed.
  """
  return LOGGERS[name](workdir, resume_step, written, config)


def _tensorboard(
  workdir: Path, resume_step: int, written: int, config: Mapping[str, Any]
) -> Logger:
  del written, config
  return EventFile(workdir / "tensorboard", resume_step + 1)


def _wandb(workdir: Path, resume_step: int, written: int, config: Mapping[str, Any]) -> Logger:
  """A run of Weights & Biases, whose ID is kept in the work directory."""
  del resume_step
  extras.require("wandb", "wandb")
  import wandb

  folder = workdir / "wandb"
  named = {"id": _kept(folder, lambda: uuid.uuid4().hex), "name": workdir.name}
  run = _opened(
    "wandb", lambda: wandb.init(dir=str(workdir), config=dict(config), resume="allow", **named)
  )
  return Tracker(
    "wandb",
    lambda step, values: run.log(dict(values), step=step),
    lambda failed: run.finish(exit_code=int(failed)),
    written,
  )


def _mlflow(workdir: Path, resume_step: int, written: int, config: Mapping[str, Any]) -> Logger:
  """A run of MLflow, whose ID is kept in the work directory; by default a local store in it."""
  del resume_step
  extras.require("mlflow", "mlflow")
  import mlflow
  from mlflow.entities import Metric, Param

  folder = workdir / "mlflow"
  given = mlflow.environment_variables.MLFLOW_TRACKING_URI.get()
  client = mlflow.MlflowClient(given or f"sqlite:///{folder.resolve()}/mlflow.db")

  def start() -> str:
    name = mlflow.environment_variables.MLFLOW_EXPERIMENT_NAME.get() or "robust_opt"
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    run_id = client.create_run(experiment, run_name=workdir.name).info.run_id
    params = [Param(key, str(value)[:500]) for key, value in config.items()]
    for first in range(0, len(params), 100):  # the most that one call takes
      client.log_batch(run_id, params=params[first : first + 100])
    return run_id

  run_id = _opened("mlflow", lambda: _kept(folder, start))

  def send(step: int, values: Scalars) -> None:
    now = int(1000 * time.time())
    metrics = [Metric(key, float(value), now, step) for key, value in values.items()]
    client.log_batch(run_id, metrics=metrics)

  def finish(failed: bool) -> None:
    client.set_terminated(run_id, "KILLED" if failed else "FINISHED")

  return Tracker("mlflow", send, finish, written)


def _kept(folder: Path, make: Callable[[], str]) -> str:
  """The ID in a folder, made at the first start."""
  path = folder / "run_id"
  folder.mkdir(parents=True, exist_ok=True)
  if not path.exists():
    path.write_text(make(), encoding="utf-8")
  return path.read_text(encoding="utf-8")


def _opened(name: str, attempt: Callable[[], Any]) -> Any:
  try:
    return attempt()
  except Exception as error:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise InputError(f"--config.logging={name} could not be opened: {reason}") from error


LOGGERS: Mapping[str, Callable[[Path, int, int, Mapping[str, Any]], Logger]] = {
  "tensorboard": _tensorboard,
  "wandb": _wandb,
  "mlflow": _mlflow,
}
