"""The networks of a study over seeds: how they are trained, and what evaluates them.

net = assembled(config, splits, keys, False, batch_size=100)
out = net.functions.evaluate(params, model_state, test, radius, keys, norm="l2", steps=50)
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from robust_opt import models
from robust_opt.evaluation import collection
from robust_opt.evaluation.accuracy import Evaluation, make_evaluate
from robust_opt.experiments import attacks, build, seeds
from robust_opt.experiments.assembly import Experiment, assemble
from robust_opt.maximizers import Attack, steepest
from robust_opt.objectives import robust
from robust_opt.sets import BALLS, Box
from robust_opt.training import ArrayData, TrainState
from robust_opt.types import ApplyFn, Array

PGD_RELATIVE_STEP = 0.1  # of the radius: 50 steps can cross the ball five times


class Functions(NamedTuple):
  """What evaluates networks of one architecture, compiled once for all of them."""

  apply: ApplyFn
  evaluate: Callable[..., Evaluation]  # all seeds
  logits_of: Callable[..., np.ndarray]  # one seed
  ascend: Callable[..., np.ndarray]  # one seed


class SeededNet(NamedTuple):
  """One row of the tables: its training, and what evaluates it over all seeds."""

  config: ConfigDict
  experiment: Experiment
  functions: Functions


@functools.cache
def functions_of(net: nn.Module, box: Box | None, batch_size: int, vmapped: bool) -> Functions:
  """Attacks of one step and of PGD-50 from the clean example, and the parts of a collection."""
  apply, objective = models.from_linen(net), robust()

  def evaluate(
    params: Any, model_state: Any, test: ArrayData, radius: Array, key: Array, norm: str, steps: int
  ) -> Evaluation:
    kind = attacks.pgd(num_steps=steps, relative_step=PGD_RELATIVE_STEP, random_start=False)

    def attack(radius: Array) -> Attack:
      return kind.evaluate(BALLS[norm](radius, box))

    evaluator = make_evaluate(apply, objective, attack, min(batch_size, len(test.labels)))
    return evaluator(params, model_state, test, radius, key)

  axes, static = (0, 0, None, None, 0), ("norm", "steps")
  return Functions(
    apply,
    seeds.over_seeds(evaluate, axes, vmapped=vmapped, static=static),
    collection.make_logits_of(apply, batch_size),
    collection.make_ascend(apply, objective, steepest, batch_size),
  )


def assembled(
  config: ConfigDict, splits: build.Splits, seed_keys: Array, vmapped: bool, batch_size: int
) -> SeededNet:
  """One kind of network, of all seeds."""
  module = build.model(config, splits.train)
  box = config.set.get("box")
  functions = functions_of(module, box, batch_size, vmapped)
  return SeededNet(config, assemble(config, splits, seed_keys, vmapped), functions)


def count_correct(net: SeededNet, test: ArrayData, keys: Array, state: TrainState) -> Array:
  """[S], the clean examples that the network of each seed classifies correctly."""
  weights, radius = (state.params, state.model_state), np.float32(0)
  evaluation = net.functions.evaluate(*weights, test, radius, keys, norm="linf", steps=1)
  return evaluation.clean_correct.sum(axis=1)
