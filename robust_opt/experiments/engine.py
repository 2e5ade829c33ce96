"""The training loop, of one seed or of several: `train`.

  state = engine.train(experiment, state, workdir, checkpoints, plan, log)

It stops for SIGTERM and Ctrl-C, for a loss that is not finite, or when the log says so. The same
call after a stop goes on to the same bits.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import tables
from robust_opt.errors import DivergedError
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import meter
from robust_opt.experiments.assembly import Experiment
from robust_opt.experiments.checkpoint import Checkpoints
from robust_opt.experiments.metrics import MetricWriter
from robust_opt.experiments.signals import preempted, signal_flag
from robust_opt.training import TrainMetrics, TrainState
from robust_opt.types import Array

Values = dict[str, float | int]


class Plan(NamedTuple):
  """The steps of a training."""

  total: int  # updates in all
  scan: int  # at most so many in one call of a compiled scan
  measure_every: int  # a scan ends at every multiple of it, and `Log.measure` is called
  save_every: int  # a checkpoint is saved at every multiple of it, and after the last step


class Log(Protocol):
  """What a training tells, and what it measures on the way."""

  def describe(self, metrics: TrainMetrics, seconds: float) -> Values:
    """What is written of the updates of one scan."""

  def measure(self, state: TrainState) -> tuple[Values, float | None]:
    """What is written of a state, and the score that chooses the best checkpoint, if any."""

  def tell(self, step: int, values: Values, measured: bool) -> bool:
    """Shows the progress; returns whether training should stop here."""


def train(
  experiment: Experiment,
  state: TrainState,
  workdir: Path,
  checkpoints: Checkpoints,
  plan: Plan,
  log: Log,
  timed: Callable[[], AbstractContextManager[None]] = nullcontext,
  seeds: Sequence[int] = (),
) -> TrainState:
  """The state after the last step of the plan, from this one on.

  Args:
    experiment: from `assemble`.
    state: to go on from.
    workdir: gets metrics.jsonl, and the folder of the logger of the config.
    checkpoints, plan, log: of the run.
    timed: a context around every scan with what follows it.
    seeds: of a stacked state, to be named in messages.

  Raises:
    DivergedError: a loss or a parameter is no longer finite; the last good checkpoint is kept.
    PreemptedError: SIGTERM or Ctrl-C came; the state is saved.
    RunError: something could not be written.
  """
  step, leader = int(state.step), jax.process_index() == 0
  with (
    signal_flag() as stop_requested,
    _writer(experiment, workdir, step) if leader else nullcontext() as writer,
  ):
    enough, scans, saving = False, [], 0.0
    while step < plan.total and not enough:
      num_steps = min(plan.scan, plan.measure_every - step % plan.measure_every, plan.total - step)
      scan = experiment.compile(num_steps)  # so that the clock sees the updates alone
      with timed():
        began = time.monotonic()
        state, metrics = scan(state)
        metrics = jax.tree.map(np.asarray, metrics)
        seconds = time.monotonic() - began
        _stop_if_diverged(metrics.loss, state, step, checkpoints, seeds)
        step += num_steps
        values, score = log.describe(metrics, seconds), None
        measured = step % plan.measure_every == 0
        if measured:
          more, score = log.measure(state)
          values |= more
        enough = log.tell(step, values, measured)
        if writer is not None:
          writer.write(step, values)
        scans.append((num_steps, time.monotonic() - began))
        stop = stop_requested()
        due = measured and (step % plan.save_every == 0 or step == plan.total)
        if due or stop or (score is not None and score > checkpoints.best_accuracy()):
          began = time.monotonic()
          checkpoints.save(state, score)
          saving = time.monotonic() - began
      # At the end the flag is read once more: a signal may have come while the state was saved.
      if not stop and step == plan.total:
        stop = stop_requested()
      if stop:
        words = f"stopped at step {step} of {plan.total} and saved"
        raise preempted(stop, f"{words}; the same command goes on from there")
  meter.record(scans, saving / plan.save_every)
  return state


def _writer(experiment: Experiment, workdir: Path, step: int) -> MetricWriter:
  config = experiment.config
  described = config_lib.flattened(config_lib.as_dict(config))
  return MetricWriter(workdir, step, config.logging, described)


def _stop_if_diverged(
  losses: np.ndarray,
  state: TrainState,
  step: int,
  checkpoints: Checkpoints,
  seeds: Sequence[int],
) -> None:
  """Raises if a loss, [num_steps] or [S, num_steps], or a parameter is not finite."""
  bad = np.argwhere(~np.isfinite(losses))
  leaves = jax.tree.leaves((state.params, state.model_state))
  if len(bad):
    whose = f" of seed {seeds[bad[0, 0]]}" if seeds else ""
    what = f"The loss{whose} became {losses[tuple(bad[0])]} at step {step + int(bad[0, -1]) + 1}"
  elif not all(bool(jnp.isfinite(leaf).all()) for leaf in leaves):
    what = f"The parameters became infinite or NaN at step {step + losses.shape[-1]}"
  else:
    return
  raise DivergedError(
    f"{what}; {checkpoints.last_words()}. A smaller --config.optimizer.learning_rate may help."
  )


def train_seeds(
  folder: Path,
  experiment: Experiment,
  names: Sequence[int],
  count_correct: Callable[[TrainState], Array],
  *,
  points: int,
  epochs_per_call: int,
  timed: Callable[[], AbstractContextManager[None]],
  progress: Callable[..., None],
) -> TrainState:
  """A stacked state to the last epoch of its config, from the newest checkpoint in the folder on.

  Args:
    folder: gets checkpoints/ and metrics.jsonl, with every seed's curve.
    experiment: of several seeds.
    names: the S seeds, which name the metrics.
    count_correct: state -> [S], clean test examples that are classified correctly.
    points: how often an epoch the curve is taken, at most.
    epochs_per_call: between two checkpoints.
    timed: as of `train`.
    progress: (epochs, words, skipped=) is called at every checkpoint.
  """
  folder.mkdir(parents=True, exist_ok=True)
  checkpoints = Checkpoints(folder / "checkpoints", keep=1)
  state = checkpoints.restore(experiment.state) or experiment.state
  per_epoch, epochs = experiment.plan.num_steps, experiment.config.training.epochs
  segment = per_epoch // max(n for n in range(1, points + 1) if per_epoch % n == 0)
  plan = Plan(epochs * per_epoch, segment, segment, epochs_per_call * per_epoch)
  if done := int(state.step) // per_epoch:
    progress(done, f"{done} of {tables.counted(epochs, 'epoch')} done before", skipped=True)
  log = _SeedsLog(names, count_correct, plan, per_epoch, done, progress)
  state = train(experiment, state, folder, checkpoints, plan, log, timed, names)
  checkpoints.close()
  return state


@dataclasses.dataclass
class _SeedsLog:
  """The log of `train_seeds`: every seed's loss, zero gradients and clean test accuracy."""

  seeds: Sequence[int]
  count_correct: Callable[[TrainState], Array]
  plan: Plan
  per_epoch: int
  reported: int  # epochs
  progress: Callable[..., None]

  def describe(self, metrics: TrainMetrics, seconds: float) -> Values:
    """Of [S, num_steps]."""
    del seconds
    values: Values = {}
    losses, zeros = jnp.mean(metrics.loss, axis=1), metrics.zero_gradients.sum(axis=1)
    for name, loss, zero in zip(self.seeds, losses, zeros, strict=True):
      values |= {f"seed{name}/loss": float(loss), f"seed{name}/zero_gradients": int(zero)}
    return values

  def measure(self, state: TrainState) -> tuple[Values, None]:
    """Of the test set; nothing is chosen by it."""
    correct = zip(self.seeds, np.asarray(self.count_correct(state)), strict=True)
    return {f"seed{name}/test_correct": int(count) for name, count in correct}, None

  def tell(self, step: int, values: Values, measured: bool) -> bool:
    """At the steps of checkpoints."""
    if measured and (step % self.plan.save_every == 0 or step == self.plan.total):
      epoch, epochs = step // self.per_epoch, self.plan.total // self.per_epoch
      loss, correct = (
        np.mean([values[f"seed{name}/{what}"] for name in self.seeds])
        for what in ("loss", "test_correct")
      )
      words = f"epoch {epoch}/{epochs}, loss {loss:.4f}, {correct:.1f} right on the test set"
      self.progress(epoch - self.reported, words)
      self.reported = epoch
    return False
