"""The attacks that `config.attack` names: how a run finds its adversarial examples.

  attack = attacks.pgd(num_steps=7)
  attack.train(u)                                  # set -> Attack, for the update
  attack.evaluate(u)                               # set -> Attack, for accuracies

Their arguments, and the keys that they share (SOMETIMES, ASCENT), are the keys of config.attack.
To evaluate, an attack ascends the cross-entropy, whatever the training ascends; of one step it is
`steepest`, and of more every example's best point counts. free and power_iteration are evaluated by
PGD of as many steps.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from robust_opt import maximizers
from robust_opt.errors import InputError
from robust_opt.maximizers import Attack, InnerMaximizer
from robust_opt.sets import L1, L2, Ball, LInf, UncertaintySet
from robust_opt.sets.scaling import scaled

AttackOn = Callable[[UncertaintySet], Attack]
MaximizerOn = Callable[[UncertaintySet], InnerMaximizer]


class TrainingAttack(NamedTuple):
  """An attack of a config over any set."""

  train: AttackOn  # the attack of an update
  evaluate: AttackOn = maximizers.steepest  # the attack of a measurement
  num_steps: int = 1  # input gradients of `evaluate`
  random: bool = False  # whether it can leave the clean example where the gradient is 0


def none() -> TrainingAttack:
  """No adversary; it is evaluated by one step, as the robust networks of the paper are."""
  return TrainingAttack(lambda u: maximizers.ascend(maximizers.frank_wolfe(u), 0))


def steepest() -> TrainingAttack:
  """Algorithm 1 of Shaham et al. 2015: one steepest-ascent step to the edge of the set."""
  return TrainingAttack(maximizers.steepest)


def pgd(
  num_steps: int = 7, relative_step: float = 0.25, random_start: bool = True
) -> TrainingAttack:
  """Projected ascent; a step is `relative_step` of the radius long."""
  allowed, words = 0 < relative_step <= 2, "a fraction of the radius, 0 < step <= 2"
  _check("relative_step", relative_step, allowed, words)
  return _steps(_pgd(relative_step, random_start), num_steps)._replace(random=random_start)


def frank_wolfe(num_steps: int = 7) -> TrainingAttack:
  """Conditional gradient."""
  return _steps(maximizers.frank_wolfe, num_steps, least=2)


def lbfgs(num_steps: int = 5) -> TrainingAttack:
  """Projected L-BFGS."""
  return _steps(maximizers.lbfgs, num_steps, least=2)


def power_iteration(num_steps: int = 1) -> TrainingAttack:
  """Along the dominant direction of the Hessian, for the objectives trades and virtual."""
  train = _steps(maximizers.power_iteration, num_steps).train
  return _evaluated_by_pgd(train, num_steps)._replace(random=True)


def n_fgsm() -> TrainingAttack:
  """One step from noise in twice the set, never projected."""

  def train(u: UncertaintySet) -> Attack:
    return maximizers.ascend(maximizers.noisy_step(scaled(u, 2), u), 1)

  return TrainingAttack(train, random=True)


def layerwise(hidden_radius: float) -> TrainingAttack:
  """One step that moves the input of every layer, hidden ones in l_inf (training/layerwise.py)."""
  _check("hidden_radius", hidden_radius, hidden_radius > 0, "a number > 0")
  return TrainingAttack(maximizers.steepest)


def uniform_noise() -> TrainingAttack:
  """A random point of the set, the control of adversarial training."""
  return TrainingAttack(maximizers.noise)


def random_signs() -> TrainingAttack:
  """The furthest point of the set in the direction of random signs; a control as well."""
  return TrainingAttack(lambda u: maximizers.noise(_not_l1("random_signs", u), extreme=True))


def free(num_replays: int = 4) -> TrainingAttack:
  """Every backward pass moves theta and delta, on a batch that is replayed (training/free.py)."""
  _check("num_replays", num_replays, num_replays >= 1, "an integer >= 1")
  return _evaluated_by_pgd(maximizers.steepest, num_replays)


def recall() -> TrainingAttack:
  """Algorithm 1 in the directions that the example's last visit left (training/free.py)."""
  return TrainingAttack(lambda u: maximizers.steepest(_not_l1("recall", u)))


def liet(weight: float = 100.0, refresh: int = 20) -> TrainingAttack:
  """One step from label information, with a consistent prediction (training/liet.py).

  `weight` is that of the divergence in the last epoch; it grows linearly from epoch to epoch.
  """
  _check("weight", weight, 0 <= weight < math.inf, "a finite number >= 0")
  _check("refresh", refresh, refresh >= 1, "an integer >= 1")
  return TrainingAttack(maximizers.steepest)


SOMETIMES: dict[str, Any] = {
  "every": 1,  # attack every k-th update; the others train on the clean batch
  "warmup": 0.0,  # share of the training in which the set grows from radius 0
}
ASCENT = SOMETIMES | {
  "dtype": "float32",  # of the network while it is attacked; or bfloat16, float16
  "train_mode": False,  # attack the network in train mode, with dropout and batch statistics
}
# By name, with the shared keys.
ATTACKS: dict[str, tuple[Callable[..., TrainingAttack], dict[str, Any]]] = {
  **{f.__name__: (f, ASCENT) for f in (steepest, pgd, frank_wolfe, lbfgs, power_iteration, n_fgsm)},
  **{f.__name__: (f, SOMETIMES) for f in (layerwise, uniform_noise, random_signs)},
  "none": (none, {"warmup": 0.0}),  # for the objective ibp
  **{f.__name__: (f, {}) for f in (free, recall, liet)},
}
# Those that do not depend on the loss.
CONTROLS = ("none", "uniform_noise", "random_signs")
# Those whose update finds delta by its own backward pass.
ONE_PASS = ("free", "recall", "liet")


def not_trained_on(attack: TrainingAttack, u: UncertaintySet) -> Attack:
  """PGD-10 where training takes one step, one step where it takes more."""
  return maximizers.steepest(u) if attack.num_steps > 1 else _best(_pgd(0.25, True), 10, u)


def step_set(u: UncertaintySet, share: float) -> UncertaintySet:
  """The set of one projected step whose length is a share of the radius.

  Over l_2 and l_1 it is an l_2 ball without the box: the projection handles the box, and gradient
  steps reach the maximum.
  """
  if isinstance(u, Ball):
    return (LInf if isinstance(u, LInf) else L2)(share * u.radius)
  return scaled(u, share, box=False)


def _pgd(share: float, random_start: bool) -> MaximizerOn:
  return lambda u: maximizers.pgd(u, step_set(u, share), random_start=random_start)


def _steps(maximizer: MaximizerOn, num_steps: int, least: int = 1) -> TrainingAttack:
  """Training takes the last iterate, evaluation the best; fewer steps than `least` are refused."""
  fewer = {1: "none: name=none", 2: "one: name=steepest"}[least]
  _check("num_steps", num_steps, num_steps >= least, f"an integer >= {least} ({fewer})")
  best = functools.partial(_best, maximizer, num_steps) if num_steps > 1 else maximizers.steepest
  return TrainingAttack(lambda u: maximizers.ascend(maximizer(u), num_steps), best, num_steps)


def _evaluated_by_pgd(train: AttackOn, num_steps: int) -> TrainingAttack:
  return _steps(_pgd(0.25, random_start=False), num_steps)._replace(train=train)


def _best(maximizer: MaximizerOn, num_steps: int, u: UncertaintySet) -> Attack:
  return maximizers.ascend(maximizer(u), num_steps, keep_best=True)


def _check(key: str, value: object, allowed: bool, words: str) -> None:
  if not allowed:
    raise InputError(f"--config.attack.{key} must be {words}, but was {value!r}.")


def _not_l1(name: str, u: UncertaintySet) -> UncertaintySet:
  if isinstance(u, L1):
    raise InputError(
      f"--config.attack.name={name} has signs alone, and over l_1 signs name no largest pixel: "
      f"--config.set.name must be another than L1."
    )
  return u
