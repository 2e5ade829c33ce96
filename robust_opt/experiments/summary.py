"""The summary of a finished run: accuracies on the test set, and its figures."""

import platform
import resource
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import statistics, tables
from robust_opt.arrays import digest
from robust_opt.data import datasets
from robust_opt.errors import InputError
from robust_opt.evaluation.accuracy import perturb
from robust_opt.experiments import config as config_lib
from robust_opt.experiments.assembly import Experiment
from robust_opt.experiments.attacks import scaled
from robust_opt.experiments.metrics import read_metrics
from robust_opt.objectives import robust
from robust_opt.plots import runs, studies
from robust_opt.sets import BALLS, Ball, UncertaintySet
from robust_opt.training import TrainState, evaluated_params, sharding, take


class Measured(NamedTuple):
  """A set that accuracies are measured over.

  Attributes:
    name: linf, l2, l1, or the set's own.
    radius: in pixels; 1 for a set without one, which is then measured as it is.
    set: of that radius.
    is_own: whether it is config.set.
  """

  name: str
  radius: float
  set: UncertaintySet
  is_own: bool


def measured_sets(experiment: Experiment) -> list[Measured]:
  """config.set, then the balls of config.evaluation.radii, of other norms and radii > 0."""
  own = experiment.set
  name = own.name if isinstance(own, Ball) else type(own).__name__
  radius = float(getattr(own, "radius", 1.0))
  box = getattr(own, "box", None)
  radii = experiment.config.evaluation.radii
  others = [
    Measured(norm, radii[norm], ball(radii[norm], box), is_own=False)
    for norm, ball in BALLS.items()
    if norm != name and radii.get(norm)
  ]
  return [Measured(name, radius, own, is_own=True), *others]


def evaluate_and_describe(experiment: Experiment, state: TrainState) -> dict[str, Any]:
  """Accuracies on the test set, with their counts, and where they come from."""
  config = experiment.config
  results: list[dict[str, Any]] = []
  sweeps = []
  for measured in measured_sets(experiment):
    at_radius = experiment.evaluate(
      state, experiment.test, measured.set, experiment.attack.evaluate
    )
    total, clean = len(at_radius.clean_correct), int(at_radius.clean_correct.sum())
    if not results:
      results.append(_result(None, None, False, clean, total, None))
    correct, zeros = (int(a.sum()) for a in (at_radius.robust_correct, at_radius.zero_gradient))
    described = {"name": measured.name, "radius": measured.radius}
    attack = {"num_steps": experiment.attack.num_steps}
    trained_on = measured.is_own and config_lib.trains_robustly(config)
    results.append(_result(described, attack, trained_on, correct, total, zeros))
    sweeps.append(_sweep(experiment, state, measured, clean, correct, total))
  against = config_lib.adversary(config)
  kind = f"robust training over {against}" if against else "standard training"
  if config.penalty.name != "none":
    kind += f" with {config.penalty.weight:g} {config.penalty.name}"
  return {
    "title": f"{config.model.name} on {config.data.name}, {kind}, "
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


def _result(
  described: dict[str, Any] | None,
  attack: dict[str, Any] | None,
  trained_on: bool,
  correct: int,
  total: int,
  zeros: int | None,
) -> dict[str, Any]:
  return {
    "set": described,
    "attack": attack,
    "trained_on": trained_on,
    "correct": correct,
    "total": total,
    "zero_gradients": zeros,
  }


def _sweep(
  experiment: Experiment,
  state: TrainState,
  measured: Measured,
  clean: int,
  correct: int,
  total: int,
) -> dict[str, Any]:
  """Correct examples at multiples of the radius; without one, at the set alone."""
  known = {0.0: clean, measured.radius: correct}
  try:
    scaled(measured.set, 1.0)
    radii = [multiple * measured.radius for multiple in experiment.config.evaluation.sweep]
  except InputError:
    radii = list(known)

  def at(radius: float) -> int:
    if radius in known:
      return known[radius]
    u = scaled(measured.set, radius / measured.radius)
    if isinstance(u, Ball):
      u = type(u)(radius, u.box)  # the very number
    out = experiment.evaluate(state, experiment.test, u, experiment.attack.evaluate)
    return int(out.robust_correct.sum())

  return {
    "norm": measured.name,
    "radii": radii,
    "correct": [at(radius) for radius in radii],
    "total": total,
  }


def draw(workdir: Path, experiment: Experiment, state: TrainState, summary: dict[str, Any]) -> None:
  """The three pictures of a run."""
  config = experiment.config
  runs.training_curves(read_metrics(workdir / "metrics.jsonl"), workdir / "curves.png")
  label = f"{config.model.name}, {config.data.name}"
  panels = [
    {
      "title": "",
      "norm": sweep["norm"],
      "radius": result["set"]["radius"],
      "curves": {label: {"radii": sweep["radii"], "interval": _interval(sweep)}},
    }
    for result, sweep in zip(summary["results"][1:], summary["sweeps"], strict=True)
  ]
  studies.accuracy_against_radius([panels], workdir / "accuracy.png")
  _draw_examples(workdir / "examples.png", experiment, state)


def _interval(sweep: Mapping[str, Any]) -> statistics.Interval:
  return statistics.accuracy_interval([np.array(sweep["correct"]) / sweep["total"]], sweep["total"])


def _draw_examples(path: Path, experiment: Experiment, state: TrainState, count: int = 8) -> None:
  """The first test example of each of the first classes, under the run's own attack."""
  config = experiment.config
  labels = experiment.splits.test.labels
  present = np.unique(labels)[:count]
  index = np.array([np.flatnonzero(labels == label)[0] for label in present], np.int32)
  local = jax.tree.map(np.asarray, (experiment.test, evaluated_params(state), state.model_state))
  test, params, model_state = local
  batch = take(jax.tree.map(jnp.asarray, test), jnp.asarray(index))
  attack = experiment.attack.evaluate(experiment.set)
  objective, key = robust(), jax.random.key(config.seed)
  out = jax.jit(lambda p, s, b: perturb(experiment.apply, p, s, objective, attack, b, key))(
    params, model_state, batch
  )
  runs.example_grid(
    clean=np.asarray(batch.x),
    delta=np.asarray(out.delta),
    labels=np.asarray(batch.y),
    clean_predictions=np.argmax(np.asarray(out.clean_logits), axis=-1),
    robust_predictions=np.argmax(np.asarray(out.robust_logits), axis=-1),
    path=path,
    title=f"{config_lib.set_in_words(config)} (pixels in [0, 1])",
  )


def _peak_memory_mb() -> int:
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return round(peak / (2**20 if sys.platform == "darwin" else 2**10))
