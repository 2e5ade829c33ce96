"""One experiment from its config to its work directory; read `run` from top to bottom.

  summary = experiment.run(config, Path("runs/mnist_linf"))

The work directory holds config.json, metrics.jsonl, tensorboard/, checkpoints/, summary.json and
three pictures. The same call on the same directory goes on where it was stopped, to the same bits.
"""

import json
import platform
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from robust_opt import tables
from robust_opt.arrays import digest
from robust_opt.data import datasets
from robust_opt.errors import DivergedError, PreemptedError
from robust_opt.evaluation.accuracy import perturb
from robust_opt.experiments import build
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import workdir as workdirs
from robust_opt.experiments.assembly import Experiment, assemble
from robust_opt.experiments.checkpoint import Checkpoints
from robust_opt.experiments.metrics import MetricWriter, ProgressDisplay, read_metrics
from robust_opt.files import write_json
from robust_opt.objectives import robust
from robust_opt.plots import figures
from robust_opt.sets import BALLS
from robust_opt.training import TrainState, evaluated_params, overfitting, sharding, take


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
    PreemptedError: SIGTERM came; the state is saved.
    RunError: something could not be written; the checkpoints before it stand.
  """
  config_lib.validate(config)
  workdirs.check(workdir, config)
  if is_finished(workdir):
    workdirs.check_inputs(workdir, build.splits(config))
    logging.info("%s holds this run, finished: here is what it found.", workdir)
    return json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
  with _sigterm_ends_the_run():
    return _run(config, workdir)


def is_finished(workdir: Path) -> bool:
  """Whether the directory holds a run that has come to its end."""
  return (workdir / "summary.json").exists()


def _run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
  started = time.monotonic()
  experiment = assemble(config)
  workdirs.claim(workdir, config, experiment.splits)

  checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
  restored = checkpoints.restore(experiment.state)
  state = experiment.state if restored is None else restored
  if restored is not None:
    logging.info("Resuming from the checkpoint of step %d.", int(state.step))
  state, history = train(config, workdir, experiment, state, checkpoints)
  reported = "best" if _stops(config, history) else config.evaluation.checkpoint
  if reported == "best":
    state = checkpoints.restore(experiment.state, "best") or state
  best = {"step": checkpoints.best_step(), "heldout_robust": checkpoints.best_accuracy()}
  checkpoints.close()

  summary = evaluate_and_describe(config, experiment, state)
  summary["best_checkpoint"] = best
  summary["checkpoint"] = reported
  detected = overfitting.detect(history)
  summary["overfitting"] = None if detected is None else detected._asdict()
  summary["seconds_since_last_start"] = round(time.monotonic() - started, 1)
  if jax.process_index() == 0:
    draw(config, workdir, experiment, state, summary)
    write_json(workdir / "summary.json", summary)  # last: it says that the run is finished
  return summary


def train(
  config: ConfigDict,
  workdir: Path,
  experiment: Experiment,
  state: TrainState,
  checkpoints: Checkpoints,
) -> tuple[TrainState, list[overfitting.Epoch]]:
  """Updates the state to the last epoch, logging, evaluating and saving on the way.

  Returns:
    The state, and what was watched after every epoch.
  """
  per_epoch, epochs = experiment.steps_per_epoch, config.training.epochs
  total, step = epochs * per_epoch, int(state.step)
  leader = jax.process_index() == 0
  log = _log(workdir, step)
  with (
    _sigterm_flag() as stop_requested,
    MetricWriter(workdir, step) if leader else nullcontext() as writer,
    ProgressDisplay(total, step, epochs, enabled=leader and step < total) as display,
  ):
    while step < total and not _stops(config, _watched(log)):
      epoch, position = divmod(step, per_epoch)
      num_steps = min(experiment.steps_per_scan, per_epoch - position)
      state, values = _scan(config, experiment, state, step, num_steps, checkpoints)
      step += num_steps
      values["epoch"] = step / per_epoch
      display.steps(step, epoch + 1, values["train/loss"], values["train/examples_per_second"])
      robust = None
      if step % per_epoch == 0:
        values |= _heldout(config, experiment, state)
        # Whoever trains against one step may stand that step alone: PGD chooses the best.
        own = values["heldout/robust_accuracy"]
        robust = values.get("heldout/pgd_accuracy", own) if config.attack.num_steps <= 1 else own
        display.epoch(epoch + 1, values)
      log.append(values)
      if robust is not None:
        detected = overfitting.newly_detected(_watched(log))
        if detected is not None:
          display.say(overfitting.in_words(detected))
      if writer is not None:
        writer.write(step, values)
      stop = stop_requested()
      due = robust is not None and (
        (epoch + 1) % config.checkpoint.every_epochs == 0
        or step == total
        or robust > checkpoints.best_accuracy()
      )
      if due or stop:
        checkpoints.save(state, robust)
      # At the end the flag is asked once more: nobody would hear of what came while it was saved.
      if stop or (step == total and stop_requested()):
        raise PreemptedError(
          f"SIGTERM: stopped at step {step} of {total} and saved; "
          f"the same command goes on from there."
        )
  return state, _watched(log)


def _scan(
  config: ConfigDict,
  experiment: Experiment,
  state: TrainState,
  step: int,
  num_steps: int,
  checkpoints: Checkpoints,
) -> tuple[TrainState, dict[str, float | int]]:
  """The next updates, and what the log says of them."""
  scan = experiment.scan(num_steps)  # compiled, so that the clock sees the updates alone
  began = time.monotonic()
  state, metrics = scan(state)
  losses = np.asarray(metrics.loss)
  seconds = time.monotonic() - began
  _stop_if_diverged(losses, state, step, checkpoints)
  return state, {
    "train/loss": float(losses.mean()),
    "train/zero_gradients": int(np.asarray(metrics.zero_gradients).sum()),
    "train/examples_per_second": round(num_steps * config.training.batch_size / seconds, 1),
  }


def _heldout(
  config: ConfigDict, experiment: Experiment, state: TrainState
) -> dict[str, float | int]:
  """Accuracies on the held-out examples, under the run's own attack."""
  heldout = experiment.evaluate(
    state, config.uncertainty.name, experiment.heldout, config.uncertainty.radius
  )
  values = {
    "heldout/clean_accuracy": float(heldout.clean_correct.mean()),
    "heldout/robust_accuracy": float(heldout.robust_correct.mean()),
    "heldout/zero_gradients": int(heldout.zero_gradient.sum()),
  }
  if experiment.watch is not None:
    other = experiment.watch(state)
    both = [float(other.mean()), float(heldout.robust_correct[: len(other)].mean())]
    names = ("heldout/pgd_accuracy", "heldout/single_step_accuracy")
    values |= dict(zip(names, both if config.attack.num_steps <= 1 else both[::-1]))
    values["heldout/watched"] = len(other)
  return values


def _watched(records: Sequence[Mapping[str, Any]]) -> list[overfitting.Epoch]:
  """The epochs among the records of a log, the loss of each the mean over its records."""
  epochs, losses = [], []
  for record in records:
    losses.append(record["train/loss"])
    if "heldout/watched" in record:
      single, pgd, count = (
        record[f"heldout/{name}"] for name in ("single_step_accuracy", "pgd_accuracy", "watched")
      )
      epochs.append(overfitting.Epoch(float(np.mean(losses)), single, pgd, count))
    if "heldout/clean_accuracy" in record:
      losses = []
  return epochs


def _log(workdir: Path, step: int) -> list[Mapping[str, Any]]:
  """The records of the updates before a step."""
  path = workdir / "metrics.jsonl"
  records = read_metrics(path) if path.exists() else []
  return [record for record in records if record["step"] <= step and "train/loss" in record]


def _stops(config: ConfigDict, history: list[overfitting.Epoch]) -> bool:
  """Whether the config wants no more of a training that overfits."""
  return config.training.on_overfitting == "stop" and overfitting.detect(history) is not None


def evaluate_and_describe(
  config: ConfigDict, experiment: Experiment, state: TrainState
) -> dict[str, Any]:
  """Accuracies on the test set, with their counts, and where they come from."""
  own, own_radius = config.uncertainty.name, config.uncertainty.radius
  trained_on = config_lib.trains_robustly(config)
  steps = max(1, config.attack.num_steps)
  radii = {**config.evaluation.radii.to_dict(), **({own: own_radius} if trained_on else {})}
  radii = {norm: radius for norm, radius in radii.items() if radius or norm == own}
  results: list[dict[str, Any]] = []
  sweeps = []
  for norm in sorted(radii, key=lambda n: (n != own, list(BALLS).index(n))):
    at_radius = experiment.evaluate(state, norm, experiment.test, radii[norm])
    total = len(at_radius.clean_correct)
    if not results:
      clean = int(at_radius.clean_correct.sum())
      results.append(
        {
          "set": None,
          "attack": None,
          "trained_on": False,
          "correct": clean,
          "total": total,
          "zero_gradients": None,
        }
      )
    results.append(
      {
        "set": {"name": norm, "radius": radii[norm]},
        "attack": {"num_steps": steps},
        "trained_on": trained_on and norm == own,
        "correct": int(at_radius.robust_correct.sum()),
        "total": total,
        "zero_gradients": int(at_radius.zero_gradient.sum()),
      }
    )
    swept = [multiple * radii[norm] for multiple in config.evaluation.sweep]
    known = {0.0: results[0]["correct"], radii[norm]: results[-1]["correct"]}
    correct = [
      known[r]
      if r in known
      else int(experiment.evaluate(state, norm, experiment.test, r).robust_correct.sum())
      for r in swept
    ]
    sweeps.append({"norm": norm, "radii": swept, "correct": correct, "total": total})
  against = config_lib.adversary(config)
  kind = f"robust training over {against}" if against else "standard training"
  if config.penalty.weight:
    kind += f" with {config.penalty.weight:g} {config.penalty.name}"
  return {
    "title": f"{config.model.name} on {config.dataset.name}, {kind}, "
    + tables.counted(config.training.epochs, "epoch"),
    "results": results,
    "sweeps": sweeps,
    "step": int(state.step),
    "params_sha256": digest(evaluated_params(state)),
    "train_examples": len(experiment.splits.train.labels),
    "heldout_examples": len(experiment.splits.heldout.labels),
    "data_sha256": {
      split.split: datasets.fingerprint(split)
      for split in (experiment.splits.train, experiment.splits.test)
    },
    "device": sharding.devices_in_words(),
    "versions": {
      "python": platform.python_version(),
      **{name: metadata.version(name) for name in ("jax", "flax", "optax", "numpy")},
    },
    "peak_memory_mb": _peak_memory_mb(),
    "config": config_lib.as_dict(config),
  }


def draw(
  config: ConfigDict,
  workdir: Path,
  experiment: Experiment,
  state: TrainState,
  summary: dict[str, Any],
) -> None:
  """The three pictures of a run."""
  figures.training_curves(read_metrics(workdir / "metrics.jsonl"), workdir / "curves.png")
  sweeps = [
    {
      "norm": sweep["norm"],
      "radii": sweep["radii"],
      "accuracy": np.array(sweep["correct"]) / sweep["total"],
      "radius": result["set"]["radius"],
      "label": f"{config.model.name}, {config.dataset.name}",
    }
    for result, sweep in zip(summary["results"][1:], summary["sweeps"], strict=True)
  ]
  figures.accuracy_against_radius(sweeps, workdir / "accuracy.png")
  _draw_examples(config, workdir / "examples.png", experiment, state)


def _draw_examples(
  config: ConfigDict, path: Path, experiment: Experiment, state: TrainState, count: int = 8
) -> None:
  """The first test example of each of the first classes, under the run's own attack."""
  labels = experiment.splits.test.labels
  present = np.unique(labels)[:count]
  index = np.array([np.flatnonzero(labels == label)[0] for label in present], np.int32)
  local = jax.tree.map(np.asarray, (experiment.test, evaluated_params(state), state.model_state))
  test, params, model_state = local
  batch = take(jax.tree.map(jnp.asarray, test), jnp.asarray(index))
  attack = build.evaluation_attack(
    config, config.uncertainty.name, config.uncertainty.radius, max(1, config.attack.num_steps)
  )
  objective, key = robust(), jax.random.key(config.seed)
  ball = tables.ball_name(config.uncertainty.name, config.uncertainty.radius)
  out = jax.jit(lambda p, s, b: perturb(experiment.apply, p, s, objective, attack, b, key))(
    params, model_state, batch
  )
  figures.example_grid(
    clean=np.asarray(batch.x),
    delta=np.asarray(out.delta),
    labels=np.asarray(batch.y),
    clean_predictions=np.argmax(np.asarray(out.clean_logits), axis=-1),
    robust_predictions=np.argmax(np.asarray(out.robust_logits), axis=-1),
    path=path,
    title=f"{ball} (pixels in [0, 1])",
  )


def _stop_if_diverged(
  losses: np.ndarray, state: TrainState, step: int, checkpoints: Checkpoints
) -> None:
  """Raises if a loss is not finite, or the parameters after the last of them are not."""
  bad = np.flatnonzero(~np.isfinite(losses))
  leaves = jax.tree.leaves((state.params, state.model_state))
  if bad.size:
    what = f"The loss became {losses[bad[0]]} at step {step + int(bad[0]) + 1}"
  elif not all(bool(jnp.isfinite(leaf).all()) for leaf in leaves):
    what = f"The parameters became infinite or NaN at step {step + len(losses)}"
  else:
    return
  raise DivergedError(
    f"{what}; {checkpoints.last_words()}. A smaller --config.optimizer.learning_rate may help."
  )


@contextmanager
def _sigterm_ends_the_run() -> Iterator[None]:
  """Outside of training nothing is half-done that SIGTERM could lose."""

  def end(*_: object) -> None:
    raise PreemptedError(
      "SIGTERM: stopped outside of training, where nothing is lost; the same command goes on."
    )

  try:
    before = signal.signal(signal.SIGTERM, end)
  except ValueError:  # not the main thread: the signal is somebody else's business
    yield
    return
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


@contextmanager
def _sigterm_flag() -> Iterator[Callable[[], bool]]:
  """Within the block SIGTERM only raises a flag, on which all processes agree."""
  seen = []
  try:
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(True))
  except ValueError:  # not the main thread, as above
    yield lambda: False
    return

  def requested() -> bool:
    if jax.process_count() == 1:
      return bool(seen)
    return bool(multihost_utils.process_allgather(np.array(bool(seen))).any())

  try:
    yield requested
  finally:
    signal.signal(signal.SIGTERM, before)


def _peak_memory_mb() -> int:
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return round(peak / (2**20 if sys.platform == "darwin" else 2**10))
