"""One experiment from its config to its work directory; read `run` from top to bottom.

  summary = experiment.run(config, Path("runs/mnist_linf"))

The work directory holds config.json, metrics.jsonl, tensorboard/, checkpoints/, summary.json and
three pictures. The same call on the same directory goes on where it was stopped, to the same bits.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from robust_opt.errors import NotLearningError
from robust_opt.experiments import build, engine, initial
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import workdir as workdirs
from robust_opt.experiments.assembly import Experiment, assemble
from robust_opt.experiments.checkpoint import Checkpoints
from robust_opt.experiments.metrics import ProgressDisplay, read_metrics
from robust_opt.experiments.signals import signals_end_the_run
from robust_opt.experiments.summary import draw, evaluate_and_describe
from robust_opt.files import write_json
from robust_opt.training import TrainMetrics, TrainState, overfitting, progress


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
  """Trains, evaluates, and leaves everything in the work directory.

  Args:
    config: from configs/ or robust_opt.experiments.config.
    workdir: a new directory, or that of the same config and data, whose run is then resumed.

  Returns:
    The summary, as in summary.json.

  Raises:
    InputError: the config or its data cannot be used, or the directory holds another experiment.
    DivergedError: the loss is no longer finite; the last good checkpoint is kept.
    NotLearningError: training does not begin, and config.training.on_no_progress is "stop".
    PreemptedError: SIGTERM or Ctrl-C came; the state is saved.
    RunError: something could not be written; the checkpoints before it are kept.
  """
  config_lib.validate(config)
  workdirs.check(workdir, config)
  if is_finished(workdir):
    workdirs.claim(workdir, config, build.splits(config))
    logging.info("%s holds this run, finished; its summary is read.", workdir)
    return json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
  with signals_end_the_run():
    started = time.monotonic()
    experiment = assemble(config)
    first = initial.start(experiment) if workdirs.is_new(workdir) else None
    workdirs.claim(workdir, config, experiment.splits, first and first.sha256)
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
    restored, plan = checkpoints.restore(experiment.state), _plan(experiment)
    if restored is not None:
      logging.info("Resuming from the checkpoint of step %d.", int(restored.step))
      state = restored
    else:
      if first is None:  # all of its checkpoints are damaged
        first = initial.start(experiment)
        workdirs.claim(workdir, config, experiment.splits, first.sha256)
      state = first.state
    with RunLog(experiment, workdir, state, plan.total) as log:
      if not (log.stopped or log.stuck):
        state = engine.train(experiment, state, workdir, checkpoints, plan, log)
    not_learning = log.not_learning[-1] if log.not_learning else None
    if log.stuck and not_learning:
      raise NotLearningError(progress.in_words(not_learning, warmup="warmup" in config.attack))
    reported = "best" if log.stopped else config.evaluation.checkpoint
    if reported == "best":
      state = checkpoints.restore(experiment.state, "best") or state
    best = {"step": checkpoints.best_step(), "heldout_robust": checkpoints.best_accuracy()}
    checkpoints.close()

    detected = overfitting.detect(log.history)
    summary, fooled = evaluate_and_describe(experiment, state)
    summary |= {
      "best_checkpoint": best,
      "checkpoint": reported,
      "overfitting": detected and detected._asdict(),
      "not_learning": not_learning and not_learning._asdict(),
      "seconds_since_last_start": round(time.monotonic() - started, 1),
    }
    if jax.process_index() == 0:
      draw(workdir, experiment, state, summary, fooled)
      write_json(workdir / "summary.json", summary)  # last: it says that the run is finished
    return summary


def is_finished(workdir: Path) -> bool:
  """Whether the directory holds a run that has come to its end."""
  return (workdir / "summary.json").exists()


def _plan(experiment: Experiment) -> engine.Plan:
  """It measures after every epoch."""
  per_epoch, config = experiment.plan.num_steps, experiment.config
  return engine.Plan(
    total=config.training.epochs * per_epoch,
    scan=scan_length(per_epoch, experiment.max_steps),
    measure_every=per_epoch,
    save_every=config.checkpoint.every_epochs * per_epoch,
  )


def scan_length(steps_per_epoch: int, most: int) -> int:
  """Updates a scan: a divisor of the epoch where a large one exists, so that one shape compiles."""
  best = max(n for n in range(1, min(most, steps_per_epoch) + 1) if steps_per_epoch % n == 0)
  return best if 4 * best >= min(most, steps_per_epoch) else min(most, steps_per_epoch)


class RunLog:
  """The log of a run: its progress, its held-out accuracies, and what tells that it goes wrong."""

  stopped: bool  # whether the config wants no more of a training that overfits
  stuck: bool  # whether the config wants no more of a training that does not begin

  def __init__(self, experiment: Experiment, workdir: Path, state: TrainState, total: int) -> None:
    step, path = int(state.step), workdir / "metrics.jsonl"
    self._experiment, self._config, self._step = experiment, experiment.config, step
    records = read_metrics(path) if path.exists() else []
    self._records = [r for r in records if r["step"] <= step and "train/loss" in r]
    enabled = jax.process_index() == 0 and step < total
    self._display = ProgressDisplay(total, step, self._config.training.epochs, enabled=enabled)
    self._chance = progress.chance_of(
      experiment.splits.train.labels,
      experiment.splits.heldout.labels,
      cross_entropy=self._config.objective.get("loss", "cross_entropy") == "cross_entropy",
    )
    self._decide()

  def __enter__(self) -> Self:
    self._display.__enter__()
    return self

  def __exit__(self, *error: Any) -> None:
    self._display.__exit__(*error)

  def describe(self, metrics: TrainMetrics, seconds: float) -> engine.Values:
    """Of [num_steps]."""
    num_steps = len(metrics.loss)
    self._step += num_steps
    return {
      "train/loss": float(metrics.loss.mean()),
      "train/zero_gradients": int(metrics.zero_gradients.sum()),
      "train/examples_per_second": round(num_steps * self._config.training.batch_size / seconds, 1),
      "epoch": self._step / self._experiment.plan.num_steps,
    }

  def measure(self, state: TrainState) -> tuple[engine.Values, float]:
    """Accuracies on the held-out examples; the score is that under PGD where it is known.

    Single-step training may be robust to that single step only.
    """
    values = heldout_accuracies(self._experiment, state)
    own = values["heldout/robust_accuracy"]
    single = self._experiment.attack.num_steps == 1
    return values, values.get("heldout/pgd_accuracy", own) if single else own

  def tell(self, step: int, values: engine.Values, measured: bool) -> bool:
    """The bar or the log lines; a warning where overfitting begins, or training does not."""
    epoch = -(-step // self._experiment.plan.num_steps)
    self._display.steps(step, epoch, values["train/loss"], values["train/examples_per_second"])
    self._records.append(values)
    if measured:
      self._display.epoch(epoch, values)
      detected, stuck = overfitting.newly_detected(self.history), self.not_learning
      if detected is not None and not stuck[-1]:
        self._display.say(overfitting.in_words(detected))
      if stuck[-1] and not any(stuck[-2:-1]):
        warmup = "warmup" in self._config.attack
        self._display.say(progress.in_words(stuck[-1], warmup=warmup))
      self._decide()
    return self.stopped or self.stuck

  @property
  def history(self) -> list[overfitting.Epoch]:
    """The epochs so far that were watched."""
    return [
      overfitting.Epoch(
        loss,
        record["heldout/single_step_accuracy"],
        record["heldout/pgd_accuracy"],
        int(record["heldout/watched"]),
      )
      for loss, record in self._epochs()
      if "heldout/watched" in record
    ]

  @property
  def not_learning(self) -> list[progress.NotLearning | None]:
    """Of every epoch so far, whether training has not begun."""
    found, before = [], float("inf")
    for epoch, (loss, record) in enumerate(self._epochs(), 1):
      clean, zeros = record["heldout/clean_accuracy"], record["heldout/zero_gradients"]
      measured = progress.Measured(loss, float(clean), int(zeros))
      found.append(progress.detect(epoch, measured, self._chance, before))
      before = loss
    return found

  def _epochs(self) -> Iterator[tuple[float, engine.Values]]:
    """(training loss, the mean over its records; the record that has its measurements)."""
    losses = []
    for record in self._records:
      losses.append(record["train/loss"])
      if "heldout/clean_accuracy" in record:
        yield float(np.mean(losses)), record
        losses = []

  def _decide(self) -> None:
    training, stuck = self._config.training, self.not_learning
    overfits = overfitting.detect(self.history) is not None
    self.stopped = training.on_overfitting == "stop" and overfits
    self.stuck = training.on_no_progress == "stop" and bool(stuck and stuck[-1])


def heldout_accuracies(experiment: Experiment, state: TrainState) -> engine.Values:
  """On the held-out examples, under the run's own attack, and on the first under the other one."""
  u, attack = experiment.set, experiment.attack
  heldout = experiment.evaluate(state, experiment.heldout, u, attack.evaluate)
  values: engine.Values = {
    "heldout/clean_accuracy": float(heldout.clean_correct.mean()),
    "heldout/robust_accuracy": float(heldout.robust_correct.mean()),
    "heldout/zero_gradients": int(heldout.zero_gradient.sum()),
  }
  if experiment.watched is not None:
    other = experiment.evaluate(state, experiment.watched, u, experiment.other_attack)
    count = len(other.robust_correct)
    both = [float(other.robust_correct.mean()), float(heldout.robust_correct[:count].mean())]
    pgd, single = both if attack.num_steps == 1 else both[::-1]
    values |= {"heldout/pgd_accuracy": pgd, "heldout/single_step_accuracy": single}
    values["heldout/watched"] = count
  return values
