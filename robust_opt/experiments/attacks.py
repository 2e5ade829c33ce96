"""The attacks that `config.attack` names: how a run finds its adversarial examples.

  attack = attacks.ATTACKS["pgd"](num_steps=7)
  attack.train(u)                                  # set -> Attack, for the update
  attack.evaluate(u)                               # set -> Attack, for accuracies

|  name             |  its keys beside those of `Ascent`           |  to evaluate       |
|  none             |  (standard training)                         |  steepest          |
|  steepest         |  (one step, Algorithm 1)                     |  itself            |
|  pgd              |  num_steps, relative_step, random_start      |  its best points   |
|  frank_wolfe      |  num_steps                                   |  its best points   |
|  lbfgs            |  num_steps                                   |  its best points   |
|  power_iteration  |  num_steps                                   |  PGD of as many    |
|  n_fgsm           |                                              |  steepest          |
|  layerwise        |  hidden_radius                               |  steepest          |
|  uniform_noise    |  only every, warmup                          |  steepest          |
|  random_signs     |  only every, warmup                          |  steepest          |
|  free             |  num_replays, and none of `Ascent`           |  PGD of as many    |
|  recall           |  none of `Ascent`                            |  steepest          |

To evaluate, an attack ascends the cross-entropy, whatever the training ascends; of one step it is
`steepest`, and of more every example's best point counts.
"""

import dataclasses
from typing import ClassVar

from robust_opt import maximizers
from robust_opt.errors import InputError
from robust_opt.maximizers import Attack, InnerMaximizer
from robust_opt.sets import L1, L2, Ball, LInf, UncertaintySet
from robust_opt.sets.base import Radius


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingAttack:
  """What all attacks of a config share.

  Attributes:
    is_adversary: whether it depends on the loss; else it is a control.
    one_pass: whether the update finds delta by its own backward pass (training/free.py).
    random: whether it can leave the clean example where the gradient is 0.
  """

  is_adversary: ClassVar[bool] = True
  one_pass: ClassVar[bool] = False
  random: ClassVar[bool] = False

  def train(self, u: UncertaintySet) -> Attack:
    """The attack of an update over a set."""
    raise NotImplementedError

  def evaluate(self, u: UncertaintySet) -> Attack:
    """The attack of a measurement over a set."""
    return maximizers.steepest(u)

  @property
  def evaluation_steps(self) -> int:
    """Input gradients of `evaluate`."""
    return 1

  def other(self, u: UncertaintySet) -> Attack:
    """Not trained against: PGD-10 beside one step, one step beside more."""
    if self.evaluation_steps > 1:
      return maximizers.steepest(u)
    return _best(_pgd(u, 0.25, random_start=True), 10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sometimes(TrainingAttack):
  """Attributes:
  every: attack every k-th update; the others train on the clean batch.
  warmup: share of the training in which the set grows from radius 0.
  """

  every: int = 1
  warmup: float = 0.0

  def __post_init__(self) -> None:
    check("every", self.every, self.every >= 1, "an integer >= 1")
    check("warmup", self.warmup, 0 <= self.warmup <= 1, "a share of the training in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ascent(Sometimes):
  """Attributes:
  dtype: of the network while it is attacked: float32, bfloat16 or float16.
  train_mode: attack the network in train mode, with dropout and batch statistics (the authors').
  """

  dtype: str = "float32"
  train_mode: bool = False

  def __post_init__(self) -> None:
    super().__post_init__()
    allowed = ("float32", "bfloat16", "float16")
    check("dtype", self.dtype, self.dtype in allowed, f"one of {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standard(TrainingAttack):
  """No adversary; it is evaluated by one step, as the robust networks of the paper are."""

  is_adversary = False

  def train(self, u: UncertaintySet) -> Attack:
    """The clean example."""
    return maximizers.ascend(maximizers.frank_wolfe(u), 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steepest(Ascent):
  """Algorithm 1 of Shaham et al. 2015: one steepest-ascent step to the edge of the set."""

  def train(self, u: UncertaintySet) -> Attack:
    """One step."""
    return maximizers.steepest(u)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps(Ascent):
  """Several steps of a maximizer.

  Attributes:
    num_steps: input gradients.
    least_steps: fewer would be another attack: none, or the first step, which is `steepest`.
  """

  least_steps: ClassVar[int] = 1
  num_steps: int = 1

  def __post_init__(self) -> None:
    super().__post_init__()
    fewer = {1: "none: name=none", 2: "one: name=steepest"}[self.least_steps]
    words = f"an integer >= {self.least_steps} ({fewer})"
    check("num_steps", self.num_steps, self.num_steps >= self.least_steps, words)

  def maximizer(self, u: UncertaintySet) -> InnerMaximizer:
    """What is run to train."""
    raise NotImplementedError

  def evaluation_maximizer(self, u: UncertaintySet) -> InnerMaximizer:
    """What is run to evaluate."""
    return self.maximizer(u)

  def train(self, u: UncertaintySet) -> Attack:
    """The last point counts."""
    return maximizers.ascend(self.maximizer(u), self.num_steps)

  def evaluate(self, u: UncertaintySet) -> Attack:
    """The best point counts."""
    if self.num_steps == 1:
      return maximizers.steepest(u)
    return _best(self.evaluation_maximizer(u), self.num_steps)

  @property
  def evaluation_steps(self) -> int:
    """As many."""
    return self.num_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class PGD(Steps):
  """Attributes:
  num_steps: input gradients.
  relative_step: length of a step, relative to the radius.
  random_start: start from a sample of the set rather than from the clean example.
  """

  num_steps: int = 7
  relative_step: float = 0.25
  random_start: bool = True

  def __post_init__(self) -> None:
    super().__post_init__()
    share = self.relative_step
    check("relative_step", share, 0 < share <= 2, "a fraction of the radius, 0 < step <= 2")

  @property
  def random(self) -> bool:  # type: ignore[override]
    """As the start."""
    return self.random_start

  def maximizer(self, u: UncertaintySet) -> InnerMaximizer:
    """PGD."""
    return _pgd(u, self.relative_step, self.random_start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrankWolfe(Steps):
  """Conditional gradient."""

  num_steps: int = 7
  least_steps = 2

  def maximizer(self, u: UncertaintySet) -> InnerMaximizer:
    """Conditional gradient."""
    return maximizers.frank_wolfe(u)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LBFGS(Steps):
  """Projected L-BFGS."""

  num_steps: int = 5
  least_steps = 2

  def maximizer(self, u: UncertaintySet) -> InnerMaximizer:
    """Projected L-BFGS."""
    return maximizers.lbfgs(u)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PowerIteration(Steps):
  """Along the dominant direction of the Hessian, for the objectives trades and virtual."""

  random = True

  def maximizer(self, u: UncertaintySet) -> InnerMaximizer:
    """Power iteration."""
    return maximizers.power_iteration(u)

  def evaluation_maximizer(self, u: UncertaintySet) -> InnerMaximizer:
    """PGD: the cross-entropy is not flat where power iteration starts."""
    return _pgd(u, 0.25, random_start=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NFGSM(Ascent):
  """One step from noise in twice the set, never projected."""

  random = True

  def train(self, u: UncertaintySet) -> Attack:
    """One step."""
    return maximizers.ascend(maximizers.noisy_step(scaled(u, 2), u), 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layerwise(Sometimes):
  """One step that moves the input of every layer (training/layerwise.py).

  Attributes:
    hidden_radius: of the l_inf balls of the hidden layers, in the units of their activations.
  """

  hidden_radius: float

  def train(self, u: UncertaintySet) -> Attack:
    """One step; u is the product of the set of images and those of the layers."""
    return maximizers.steepest(u)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformNoise(Sometimes):
  """A random point of the set, the control of adversarial training."""

  is_adversary = False

  def train(self, u: UncertaintySet) -> Attack:
    """Blind."""
    return maximizers.noise(u)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomSigns(Sometimes):
  """The furthest point of the set in the direction of random signs; blind as well."""

  is_adversary = False

  def train(self, u: UncertaintySet) -> Attack:
    """Blind."""
    _refuse_l1("random_signs", u)
    return maximizers.noise(u, extreme=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Free(TrainingAttack):
  """Every backward pass moves theta and delta, on a batch that is replayed num_replays times."""

  one_pass = True
  num_replays: int = 4

  def __post_init__(self) -> None:
    check("num_replays", self.num_replays, self.num_replays >= 1, "an integer >= 1")

  def evaluate(self, u: UncertaintySet) -> Attack:
    """PGD of as many steps."""
    if self.num_replays == 1:
      return maximizers.steepest(u)
    return _best(_pgd(u, 0.25, random_start=False), self.num_replays)

  @property
  def evaluation_steps(self) -> int:
    """As many as replays."""
    return self.num_replays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recall(TrainingAttack):
  """Algorithm 1 in the directions that the example's last visit left, one bit a pixel."""

  one_pass = True

  def train(self, u: UncertaintySet) -> Attack:
    """Found by the update itself; only checked here."""
    _refuse_l1("recall", u)
    return maximizers.steepest(u)


ATTACKS: dict[str, type[TrainingAttack]] = {
  "none": Standard,
  "steepest": Steepest,
  "pgd": PGD,
  "frank_wolfe": FrankWolfe,
  "lbfgs": LBFGS,
  "power_iteration": PowerIteration,
  "n_fgsm": NFGSM,
  "layerwise": Layerwise,
  "uniform_noise": UniformNoise,
  "random_signs": RandomSigns,
  "free": Free,
  "recall": Recall,
}


def scaled(u: UncertaintySet, factor: Radius, *, box: bool = True) -> UncertaintySet:
  """The set with `factor` times its radii.

  Args:
    u: a set with a field radius, radius_2, magnitude, ...
    factor: [], may be traced.
    box: whether the box is kept.

  Raises:
    InputError: the set has no such field.
  """
  fields = [field.name for field in dataclasses.fields(u)]  # type: ignore[arg-type]
  radii = [name for name in fields if name.startswith(("radius", "magnitude"))]
  if not radii:
    raise InputError(
      f"{type(u).__name__} has no radius to scale: pgd, n_fgsm, free and warmup need one; "
      f"steepest and frank_wolfe do not."
    )
  changes = {name: factor * getattr(u, name) for name in radii}
  if not box and "box" in fields:
    changes["box"] = None
  return dataclasses.replace(u, **changes)  # type: ignore[type-var]


def step_set(u: UncertaintySet, share: float) -> UncertaintySet:
  """The set of one projected step whose length is a share of the radius.

  Over l_2 and l_1 it is an l_2 ball without the box: the projection knows of the box, and gradient
  steps climb to the maximum.
  """
  if isinstance(u, Ball):
    return (LInf if isinstance(u, LInf) else L2)(share * u.radius)
  return scaled(u, share, box=False)


def check(key: str, value: object, allowed: bool, words: str) -> None:
  """InputError unless the value of a key of config.attack is allowed."""
  if not allowed:
    raise InputError(f"--config.attack.{key} must be {words}, but was {value!r}.")


def _pgd(u: UncertaintySet, share: float, random_start: bool) -> InnerMaximizer:
  return maximizers.pgd(u, step_set(u, share), random_start=random_start)


def _best(maximizer: InnerMaximizer, num_steps: int) -> Attack:
  return maximizers.ascend(maximizer, num_steps, keep_best=True)


def _refuse_l1(name: str, u: UncertaintySet) -> None:
  if isinstance(u, L1):
    raise InputError(
      f"--config.attack.name={name} has signs alone, and over l_1 signs name no largest pixel: "
      f"--config.set.name must be another than L1."
    )
