"""The summary of a finished run: accuracies on the test set, and its figures."""

import platform
import resource
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

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
from robust_opt.experiments.build import measured_sets
from robust_opt.experiments.metrics import read_metrics, set_configs
from robust_opt.objectives import robust
from robust_opt.plots import runs, studies
from robust_opt.precision import products
from robust_opt.sets import Ball, UncertaintySet, words
from robust_opt.sets.scaling import scaled
from robust_opt.training import TrainState, evaluated, sharding, streams, take

_MOST_EXAMPLES = 10  # classes in examples.png


def _name(u: UncertaintySet) -> str:
  return u.name if isinstance(u, Ball) else type(u).__name__


def _radius(u: UncertaintySet) -> float:
  """In pixels; 1 for a set without one, which is then measured as it is."""
  return float(getattr(u, "radius", 1.0))


def evaluate_and_describe(
  experiment: Experiment, state: TrainState
) -> tuple[dict[str, Any], np.ndarray]:
  """Accuracies on the test set, with their counts, and where they come from.

  The second is [N] bool, the test examples that are correct until they are attacked over the run's
  own set.
  """
  config, splits = experiment.config, experiment.splits
  results, sweeps, fooled = _accuracies(experiment, state)
  against = config_lib.adversary(config)
  kind = f"robust training over {against}" if against else "standard training"
  if config.penalty.name != "none":
    kind += f" with {config.penalty.weight:g} {config.penalty.name}"
  epochs = tables.counted(config.training.epochs, "epoch")
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  packages = ("jax", "flax", "optax", "numpy")
  summary = {
    "title": f"{config.model.name} on {config.data.name}, {kind}, {epochs}",
    "results": results,
    "sweeps": sweeps,
    "step": int(state.step),
    "params_sha256": digest(evaluated(state)[0]),
    "train_examples": len(splits.train.labels),
    "heldout_examples": len(splits.heldout.labels),
    "data_sha256": {s.split: datasets.fingerprint(s) for s in (splits.train, splits.test)},
    "device": sharding.devices_in_words(),
    "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in packages},
    "peak_memory_mb": round(peak / (2**20 if sys.platform == "darwin" else 2**10)),
    "config": config_lib.as_dict(config),
  }
  return summary, fooled


def _accuracies(
  experiment: Experiment, state: TrainState
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], np.ndarray]:
  """The clean accuracy and that over every set; of every set a sweep over its radii; the fooled."""
  results: list[dict[str, Any]] = []
  sweeps = []
  fooled = np.zeros(0, bool)
  for u in measured_sets(experiment.config, experiment.set).values():
    out = experiment.evaluate(state, experiment.test, u, experiment.attack.evaluate)
    if u is experiment.set:
      fooled = np.asarray(out.clean_correct & ~out.robust_correct)
    clean: dict[str, Any] = {
      "set": None,
      "attack": None,
      "trained_on": False,
      "correct": int(out.clean_correct.sum()),
      "total": len(out.clean_correct),
      "zero_gradients": None,
    }
    attacked = clean | {
      "set": {"name": _name(u), "radius": _radius(u)},
      "attack": {"num_steps": experiment.attack.num_steps},
      "trained_on": u is experiment.set and config_lib.trains_robustly(experiment.config),
      "correct": int(out.robust_correct.sum()),
      "zero_gradients": int(out.zero_gradient.sum()),
    }
    results += [attacked] if results else [clean, attacked]
    known = {0.0: clean["correct"], _radius(u): attacked["correct"]}
    sweeps.append(_sweep(experiment, state, u, known) | {"total": clean["total"]})
  return results, sweeps, fooled


def _sweep(
  experiment: Experiment, state: TrainState, u: UncertaintySet, known: dict[float, int]
) -> dict[str, Any]:
  """Correct examples at multiples of the radius; without one, at the set alone."""
  try:
    scaled(u, 1.0)
    radii = [multiple * _radius(u) for multiple in experiment.config.evaluation.sweep]
  except InputError:
    radii = list(known)

  def at(radius: float) -> int:
    if radius in known:
      return known[radius]
    # A ball has the very number.
    v = type(u)(radius, u.box) if isinstance(u, Ball) else scaled(u, radius / _radius(u))
    out = experiment.evaluate(state, experiment.test, v, experiment.attack.evaluate)
    return int(out.robust_correct.sum())

  return {"norm": _name(u), "radii": radii, "correct": [at(radius) for radius in radii]}


def draw(
  workdir: Path,
  experiment: Experiment,
  state: TrainState,
  summary: dict[str, Any],
  fooled: np.ndarray,
) -> None:
  """The three pictures of a run; `fooled` as from `evaluate_and_describe`."""
  records, steps = read_metrics(workdir / "metrics.jsonl"), _steps(experiment)
  runs.training_curves(records, steps, workdir / "curves.png")
  label = f"{experiment.config.model.name}, {experiment.config.data.name}"
  panels = []
  attacked = zip(summary["results"][1:], summary["sweeps"], set_configs(summary), strict=True)
  for result, sweep, u in attacked:
    share = np.array(sweep["correct"]) / sweep["total"]
    interval = statistics.accuracy_interval([share], sweep["total"])
    curves = {label: {"radii": sweep["radii"], "interval": interval}}
    radius = result["set"]["radius"]
    title = f"{steps}, {words.box_in_words(u)}"
    panels.append({"title": title, "norm": sweep["norm"], "radius": radius, "curves": curves})
  studies.accuracy_against_radius([panels], workdir / "accuracy.png")
  _draw_examples(workdir / "examples.png", experiment, state, fooled)


def _draw_examples(
  path: Path, experiment: Experiment, state: TrainState, fooled: np.ndarray
) -> None:
  """Draws `examples_to_show` under the run's own attack; fooled: [N] bool, of the test set."""
  labels, config = experiment.splits.test.labels, experiment.config
  shown = examples_to_show(labels, fooled)
  test, (params, model_state) = jax.tree.map(np.asarray, (experiment.test, evaluated(state)))
  batch = take(jax.tree.map(jnp.asarray, test), jnp.asarray(shown, jnp.int32))
  attack = experiment.attack.evaluate(experiment.set)
  objective, key = robust(), streams(jax.random.key(config.seed)).evaluation  # as in evaluations
  with products():
    out = jax.jit(lambda p, s, b: perturb(experiment.apply, p, s, objective, attack, b, key))(
      params, model_state, batch
    )
  by = f"fooled by a {_steps(experiment)} over {words.threat_model(config.set.to_dict())}"
  title = f"{int(fooled.sum()):,} of {len(labels):,} test examples are {by}; one of each class"
  if not fooled.any():
    title = f"None of the {len(labels):,} test examples is {by}; one of each class"
  runs.example_grid(
    clean=np.asarray(batch.x),
    delta=np.asarray(out.delta),
    labels=np.asarray(batch.y),
    clean_predictions=np.argmax(np.asarray(out.clean_logits), axis=-1),
    robust_predictions=np.argmax(np.asarray(out.robust_logits), axis=-1),
    path=path,
    title=title,
  )


def examples_to_show(labels: np.ndarray, fooled: np.ndarray) -> np.ndarray:
  """The first index of each class among the fooled ones, or among all if there are none."""
  candidates = np.flatnonzero(fooled) if fooled.any() else np.arange(len(labels))
  _, first = np.unique(labels[candidates], return_index=True)
  return candidates[first[:_MOST_EXAMPLES]]


def _steps(experiment: Experiment) -> str:
  """The attack of the evaluations, in words."""
  count = experiment.attack.num_steps
  return "single step" if count == 1 else f"{count}-step attack"
