"""How robust a network on CIFAR-10 becomes in five minutes: configs/cifar_fast.py, and AutoAttack.

  python -m benchmarks.cifar_fast --output=OUT [--train_s=300] [--budget_s=540]
      [--config=FILE] [--config.data.data_dir=DIR] [--config.KEY=VALUE ...]

Trains as many epochs as fit into --train_s seconds of updates, without compilation, at most as many
as the config says; nothing is measured on the way. Then attacks the test images in order, a
thousand at a time. OUT gets the weights, in files of at most 14 MB, and result.json, which is
written after the training and after every thousand images. The same command continues where
--budget_s stopped it, so that a second machine may attack what the first has trained. Nothing is
downloaded.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

import robust_opt as ro
from benchmarks import clock
from benchmarks.accelerator import machine
from robust_opt import models
from robust_opt.data import datasets
from robust_opt.errors import InputError
from robust_opt.evaluation.accuracy import logits_of
from robust_opt.evaluation.collection import pixels
from robust_opt.evaluation.outcome import ROBUST
from robust_opt.experiments import build, overrides
from robust_opt.experiments import config as config_lib
from robust_opt.experiments.assembly import Experiment, assemble, initial_run
from robust_opt.files import write_json
from robust_opt.sets import UncertaintySet
from robust_opt.statistics import accuracy_interval
from robust_opt.studies.sizing import epochs_that_fit
from robust_opt.training import evaluated
from robust_opt.types import LogitsFn, PyTree

CONFIG = str(Path(__file__).parents[1] / "configs" / "cifar_fast.py")
RESULT, WEIGHTS = "result.json", "weights-{}.npy"
PART, FLOATS = 1000, 3_500_000  # images of a call of AutoAttack, numbers in a file


def trained(config: ConfigDict, train_s: float) -> tuple[PyTree, dict[str, Any]]:
  """(parameters, batch statistics) and what their training took; `config` gets its epochs."""
  most = config.training.epochs
  with clock.compiling() as compiling:
    experiment = assemble(config)
    state, seconds = _epoch(experiment, experiment.state)
    fitting = epochs_that_fit(train_s, seconds, seconds, most)
    if not fitting:
      raise InputError(f"--train_s={train_s:g} is too little: an epoch takes {seconds:.1f} s.")
    if fitting < most:  # the schedule is of so many epochs: from the beginning
      config.training.epochs = fitting
      experiment = assemble(config, experiment.splits)
      state, seconds = _epoch(experiment, experiment.state)
    spent = [seconds]
    for _ in range(1, fitting):
      state, seconds = _epoch(experiment, state)
      spent.append(seconds)
  row = {"epochs": fitting, "seconds": sum(spent), "compile_s": compiling[0]}
  return evaluated(state), row


def _epoch(experiment: Experiment, state: Any) -> tuple[Any, float]:
  scan = experiment.compile(experiment.plan.num_steps)
  began = time.perf_counter()
  state, metrics = scan(state)
  loss = np.asarray(metrics.loss)
  if not np.isfinite(loss).all():
    raise InputError("The loss is no longer finite; lower --config.optimizer.learning_rate.")
  return state, time.perf_counter() - began


def save(folder: Path, weights: PyTree) -> None:
  """The arrays as one vector, in files of FLOATS numbers."""
  vector = np.asarray(ravel_pytree(weights)[0], np.float32)
  for i, start in enumerate(range(0, len(vector), FLOATS)):
    np.save(folder / WEIGHTS.format(i), vector[start : start + FLOATS])


def load(folder: Path, like: PyTree) -> PyTree:
  """What `save` has written, in the shapes of `like`."""
  vector, unravel = ravel_pytree(like)
  count = -(-len(vector) // FLOATS)
  parts = [np.load(folder / WEIGHTS.format(i)) for i in range(count)]
  return unravel(jnp.asarray(np.concatenate(parts)))


def run(folder: Path, config: ConfigDict, train_s: float, budget_s: float) -> dict[str, Any]:
  """Trains and attacks, or goes on; returns what result.json holds.

  Raises:
    InputError: the folder holds the result of another config, or --train_s is less than an epoch.
  """
  began = time.monotonic()
  config_lib.validate(config)
  splits = build.splits(config)
  start = initial_run(config, splits.train)
  result = _stored(folder, config)
  if result:
    weights = load(folder, evaluated(start.state))
  else:
    result = {"machine": machine.describe(), "config": config_lib.as_dict(config)}
    weights, result["training"] = trained(config, train_s)
    counts = dict.fromkeys(("attacked", "clean", "robust", "attack_s", "total_s"), 0)
    result |= {"date": time.strftime("%Y-%m-%d"), **counts}
    folder.mkdir(parents=True, exist_ok=True)
    save(folder, weights)

  before, longest = result["total_s"], 0.0
  logits_fn = logits_of(models.apply_of(start.net), *weights)
  u, count = build.own_set(config, splits.train.images), len(splits.test.labels)
  while True:
    result["total_s"] = before + time.monotonic() - began
    write_json(folder / RESULT, result)
    if result["attacked"] == count or time.monotonic() - began + longest > budget_s:
      return result
    attacking = time.monotonic()
    for key, number in _attack(logits_fn, splits.test, u, result["attacked"]).items():
      result[key] += number
    longest = time.monotonic() - attacking
    result["attack_s"] += longest
    print(words(result), flush=True)


def _stored(folder: Path, config: ConfigDict) -> dict[str, Any]:
  """The result so far, of the same config; {} if there is none."""
  if not (folder / RESULT).exists():
    return {}
  result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
  if changed := config_lib.differences(result["config"], config_lib.as_dict(config)):
    raise InputError(f"--output={folder} is of another config: {'; '.join(changed)}.")
  return result


def _attack(
  logits_fn: LogitsFn, test: datasets.Dataset, u: UncertaintySet, first: int
) -> dict[str, int]:
  """What becomes of PART test images from `first` on."""
  part = slice(first, first + PART)
  labels = test.labels[part].astype(np.int32)
  ids = np.arange(first, first + len(labels), dtype=np.int32)
  images = pixels(test.images[part])
  verdict = ro.autoattack(
    logits_fn, images, labels, u, ids=ids, channel_axis=-1, search_precision="tf32"
  )
  clean, robust = int(np.sum(verdict.broken_by != 0)), int(np.sum(verdict.broken_by == ROBUST))
  return {"attacked": len(labels), "clean": clean, "robust": robust}


def words(result: dict[str, Any]) -> str:
  """The result in a line."""
  count, training = result["attacked"], result["training"]
  interval = accuracy_interval([result["robust"] / count], count)
  return (
    f"{training['epochs']} epochs in {training['seconds']:.1f} s (compilation "
    f"{training['compile_s']:.1f} s); of {count:,} test images {result['clean']:,} correct, "
    f"{result['robust']:,} under AutoAttack, {100 * interval.mean:.2f} % (95 %: "
    f"{100 * interval.low:.2f} to {100 * interval.high:.2f}); {result['total_s']:.0f} s in all on "
    f"{result['machine']['device']}"
  )


def main() -> None:
  """Parses the command line, and runs."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument("--output", type=Path, required=True, help="a folder, new or to go on in")
  parser.add_argument("--config", default=CONFIG, help="as of robust_opt.main")
  parser.add_argument("--train_s", type=float, default=300.0, help="seconds of updates")
  parser.add_argument("--budget_s", type=float, default=540.0, help="no attack begins after it")
  args, changes = parser.parse_known_args()
  config = overrides.config_of(args.config, changes)
  run(args.output, config, args.train_s, args.budget_s)


if __name__ == "__main__":
  main()
