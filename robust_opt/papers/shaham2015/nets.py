"""The nets of a study over seeds and what is measured of them; no flags.

A Net is one row of the paper's tables: how it is trained, and what evaluates it, for all seeds.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from robust_opt import models
from robust_opt.arrays import digest
from robust_opt.data import datasets
from robust_opt.errors import InputError
from robust_opt.evaluation import autoattack, collection
from robust_opt.evaluation.accuracy import Evaluation, logits_of, make_evaluate
from robust_opt.experiments import build, seeds
from robust_opt.experiments import config as config_lib
from robust_opt.experiments.assembly import Experiment, assemble
from robust_opt.maximizers import Attack
from robust_opt.objectives import robust
from robust_opt.training import ArrayData, TrainState
from robust_opt.types import ApplyFn, Array

PGD_RELATIVE_STEP = 0.1  # of the radius: 50 steps can cross the ball five times


class Net(NamedTuple):
  """One row of the tables: its training, and what evaluates it over all seeds."""

  config: ConfigDict
  experiment: Experiment
  functions: "Functions"


class Functions(NamedTuple):
  """What evaluates nets of one architecture, compiled once for all of them."""

  apply: ApplyFn
  evaluate: Callable[..., Evaluation]  # all seeds
  logits_of: Callable[..., np.ndarray]  # one seed
  ascend: Callable[..., np.ndarray]  # one seed


@functools.cache
def functions_of(net: nn.Module, box: bool, batch_size: int, vmapped: bool) -> Functions:
  """Attacks of one step and of PGD-50 from the clean example, and the parts of a collection."""
  config = config_lib.base()
  config.uncertainty.box, config.attack.relative_step = box, PGD_RELATIVE_STEP
  apply, objective = models.from_linen(net), robust()

  def evaluate(
    params: Any, model_state: Any, test: ArrayData, radius: Array, key: Array, norm: str, steps: int
  ) -> Evaluation:
    def attack(radius: Array) -> Attack:
      u = build.uncertainty_set(config, norm, radius)
      return build.evaluation_attack(config, u, steps)

    evaluator = make_evaluate(apply, objective, attack, min(batch_size, len(test.labels)))
    return evaluator(params, model_state, test, radius, key)

  return Functions(
    apply=apply,
    evaluate=seeds.over_seeds(
      evaluate, (0, 0, None, None, 0), vmapped=vmapped, static=("norm", "steps")
    ),
    logits_of=collection.make_logits_of(apply, batch_size),
    ascend=collection.make_ascend(
      apply,
      objective,
      lambda norm, radius: build.attack(config, build.uncertainty_set(config, norm, radius), 1),
      batch_size,
    ),
  )


def assembled(
  config: ConfigDict, splits: build.Splits, seed_keys: Array, *, vmapped: bool, batch_size: int
) -> Net:
  """One kind of net, of all seeds."""
  experiment = assemble(config, splits, seed_keys, vmapped)
  module = build.model(config, splits.train)
  return Net(config, experiment, functions_of(module, config.uncertainty.box, batch_size, vmapped))


def count_correct(net: Net, test: ArrayData, keys: Array, state: TrainState) -> Array:
  """[S], the clean examples that each seed's net classifies correctly."""
  out = net.functions.evaluate(
    state.params, state.model_state, test, np.float32(0), keys, norm="linf", steps=0
  )
  return out.clean_correct.sum(axis=1)


def sweep(
  net: Net, state: TrainState, norm: str, steps: int, test: ArrayData, keys: Array
) -> dict[str, Any]:
  """Each seed's accuracy against the radius, attacked by its own gradient."""
  config = net.config.evaluation
  radii = [multiple * config.radii[norm] for multiple in config.sweep]
  outs = [
    net.functions.evaluate(
      state.params,
      state.model_state,
      test,
      np.float32(radius),
      keys,
      norm=norm,
      steps=steps if radius else 1,  # all attacks are the clean example there
    )
    for radius in radii
  ]
  counts = [(out.robust_correct.sum(axis=1), out.zero_gradient.sum(axis=1)) for out in outs]
  correct, zeros = (np.stack([np.asarray(c) for c in column], axis=1) for column in zip(*counts))
  return {
    "radii": radii,
    "correct": correct.tolist(),
    "zero_gradients": zeros.tolist(),
    "total": len(test.labels),
  }


def autoattacked(
  net: Net, weights: tuple[Any, Any], norm: str, test: datasets.Dataset, count: int
) -> dict[str, Any]:
  """How many of the first test examples stand under AutoAttack at the radius of that norm."""
  verdict = autoattack.autoattack(
    logits_of(net.functions.apply, *weights),
    collection.pixels(test.images[:count]),
    test.labels[:count].astype(np.int32),
    norm=norm,
    radius=net.config.evaluation.radii[norm],
  )
  broken = {
    name: int((verdict.broken_by == place).sum()) for place, name in enumerate(verdict.names)
  }
  return {"total": len(verdict.broken_by), "broken": broken}


def verified_collection(
  path: Path, net: Net, weights: tuple[Any, Any], test: datasets.Dataset
) -> collection.Collection:
  """The collection of one baseline, made if there is none of it, and checked in either case."""
  sha256 = digest(weights)
  logits_of = functools.partial(net.functions.logits_of, *weights)
  if not path.exists() or collection.load(path).net != sha256:
    radii = net.config.evaluation.radii.to_dict()
    ascend = functools.partial(net.functions.ascend, *weights)
    found = collection.collect(logits_of, ascend, test.images, test.labels, radii, sha256)
    collection.save(found, path)
  loaded = collection.load(path)
  try:
    collection.verify(loaded, logits_of, test.images, test.labels, sha256)
  except InputError as error:
    raise InputError(f"{path}: {error} Delete it to have it made again.") from error
  return loaded


def scores(
  examples: collection.Collection,
  nets: dict[str, Net],
  weights: dict[str, tuple[Any, Any]],
  test: datasets.Dataset,
) -> dict[str, Any]:
  """How many each net of one seed gets right: clean, and by norm of the collection."""
  out: dict[str, Any] = {"test_total": len(test.labels), "nets": {}}
  out["totals"] = {norm: int((examples.norms == norm).sum()) for norm in config_lib.NORMS}
  rounded = collection.rounded(examples.images)
  for name, net in nets.items():
    logits_of = functools.partial(net.functions.logits_of, *weights[name])
    clean = collection.correct(logits_of, collection.pixels(test.images), test.labels)
    out["nets"][name] = {"clean": int(clean.sum())}
    for kind, images in (("collection", examples.images), ("rounded", rounded)):
      right = collection.correct(logits_of, images, examples.labels)
      out["nets"][name][kind] = {
        norm: int(right[examples.norms == norm].sum()) for norm in config_lib.NORMS
      }
  return out


def sample(
  examples: collection.Collection, net: Net, weights: tuple[Any, Any], count: int = 10
) -> dict[str, Any]:
  """For the figures: of each norm one example a class where there is one, and what the net says."""
  rows = {}
  for norm in config_lib.NORMS:
    mine = np.flatnonzero(examples.norms == norm)
    _, first = np.unique(examples.labels[mine], return_index=True)
    chosen = mine[first][:count]
    images = examples.images[chosen]
    rows[norm] = {
      "name": norm,
      "images": images,
      "labels": examples.labels[chosen],
      "predictions": net.functions.logits_of(*weights, images).argmax(axis=1),
    }
  return rows
