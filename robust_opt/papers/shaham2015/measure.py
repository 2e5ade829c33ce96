"""What is measured of the networks of a study, for all seeds or for one; JSON values.

examples = verified_collection(path, nets["baseline"], weights["baseline"], test)
counts = collection_counts(examples, nets, weights, test)          # of one seed
sweep = radius_sweep(nets["l2"], state, "l2", 1, data, keys)       # of all seeds
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from robust_opt.arrays import digest
from robust_opt.data import datasets
from robust_opt.errors import InputError
from robust_opt.evaluation import autoattack, collection
from robust_opt.evaluation.accuracy import logits_of
from robust_opt.papers.shaham2015.nets import SeededNet
from robust_opt.sets import BALLS
from robust_opt.training import ArrayData, TrainState
from robust_opt.types import Array

Weights = tuple[Any, Any]  # parameters and batch statistics of one seed


def radius_sweep(
  net: SeededNet, state: TrainState, norm: str, steps: int, data: ArrayData, keys: Array
) -> dict[str, Any]:
  """The number of correct examples of each seed against the radius, attacked by its own gradient.

  `state` is stacked, of all seeds, and `keys` holds one of each seed.
  """
  config, weights = net.config.evaluation, (state.params, state.model_state)
  radii = [multiple * config.radii[norm] for multiple in config.sweep]
  evaluate = functools.partial(net.functions.evaluate, *weights, data, norm=norm)
  evaluations = [
    # At radius 0 every attack is the clean example.
    evaluate(np.float32(radius), keys, steps=steps if radius else 1)
    for radius in radii
  ]
  return {
    "radii": radii,
    "correct": _counts([e.robust_correct for e in evaluations]),
    "zero_gradients": _counts([e.zero_gradient for e in evaluations]),
    "total": len(data.labels),
  }


def _counts(masks: list[Array]) -> list[list[int]]:
  """[S, K] from K masks [S, N]."""
  return np.stack([np.asarray(mask.sum(axis=1)) for mask in masks], axis=1).tolist()


def broken_by_autoattack(
  net: SeededNet, weights: Weights, norm: str, test: datasets.Dataset, count: int
) -> dict[str, Any]:
  """How many of the first test examples each attack of AutoAttack breaks, at the norm's radius."""
  verdict = autoattack.autoattack(
    logits_of(net.functions.apply, *weights),
    collection.pixels(test.images[:count]),
    test.labels[:count].astype(np.int32),
    BALLS[norm](net.config.evaluation.radii[norm], box=(0.0, 1.0)),
  )
  broken = {name: int((verdict.broken_by == i).sum()) for i, name in enumerate(verdict.names)}
  return {"total": len(verdict.broken_by), "broken": broken}


def verified_collection(
  path: Path, net: SeededNet, weights: Weights, test: datasets.Dataset
) -> collection.Collection:
  """The collection of one baseline, verified; made first if the file has none of it."""
  sha256 = digest(weights)
  logits_of = functools.partial(net.functions.logits_of, *weights)
  if not path.exists() or collection.load(path).net != sha256:
    radii, box = net.config.evaluation.radii, net.config.set.get("box")
    balls = [BALLS[norm](radius, box) for norm, radius in radii.to_dict().items()]
    ascend = functools.partial(net.functions.ascend, *weights)
    examples = collection.collect(logits_of, ascend, test.images, test.labels, balls, sha256)
    collection.save(examples, path)
  loaded = collection.load(path)
  try:
    collection.verify(loaded, logits_of, test.images, test.labels, sha256)
  except InputError as error:
    raise InputError(f"{path}: {error} Delete it to make it again.") from error
  return loaded


def collection_counts(
  examples: collection.Collection,
  nets: dict[str, SeededNet],
  weights: dict[str, Weights],
  test: datasets.Dataset,
) -> dict[str, Any]:
  """How many examples each network of one seed classifies correctly: clean, and by norm."""
  out: dict[str, Any] = {"test_total": len(test.labels), "nets": {}}
  out["totals"] = {norm: int((examples.norms == norm).sum()) for norm in BALLS}
  rounded = collection.rounded(examples.images)
  for name, net in nets.items():
    logits_of = functools.partial(net.functions.logits_of, *weights[name])
    clean = collection.correct(logits_of, collection.pixels(test.images), test.labels)
    out["nets"][name] = {"clean": int(clean.sum())}
    for kind, images in (("collection", examples.images), ("rounded", rounded)):
      right = collection.correct(logits_of, images, examples.labels)
      out["nets"][name][kind] = {norm: int(right[examples.norms == norm].sum()) for norm in BALLS}
  return out


def sample(
  examples: collection.Collection, net: SeededNet, weights: Weights, count: int = 10
) -> dict[str, Any]:
  """For the figures: of each norm one example of each class, with the network's predictions."""
  rows = {}
  for norm in BALLS:
    of_norm = np.flatnonzero(examples.norms == norm)
    _, first = np.unique(examples.labels[of_norm], return_index=True)
    ids = of_norm[first][:count]
    rows[norm] = {
      "name": norm,
      "images": examples.images[ids],
      "labels": examples.labels[ids],
      "predictions": net.functions.logits_of(*weights, examples.images[ids]).argmax(axis=1),
    }
  return rows
