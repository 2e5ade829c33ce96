"""The attacks that AutoAttack runs one after the other, and the versions that combine them.

phases = phases_of("standard", logits_fn, u)
phases = (pgd_phase("pgd-50", losses.cross_entropy, num_steps=50, relative_step=0.1),)
for name, phase, part in plan("standard", logits_fn, u): ...      # of a union, in every set
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from robust_opt import losses
from robust_opt.attacks import white_box
from robust_opt.attacks.boundary import boundary
from robust_opt.attacks.fab import counting_fab
from robust_opt.attacks.hop_skip_jump import hop_skip_jump
from robust_opt.attacks.masks import masked
from robust_opt.attacks.patch import counting_patch
from robust_opt.attacks.sparse_rs import counting_sparse_rs
from robust_opt.attacks.square import counting_square
from robust_opt.attacks.support import check_support
from robust_opt.attacks.types import (
  CountedAttack,
  CountedResult,
  LogitsAttack,
  MinimalAttack,
  passes,
)
from robust_opt.errors import InputError
from robust_opt.evaluation import network
from robust_opt.evaluation.batches import MakeAttack
from robust_opt.maximizers import Attack, apgd, ascend, grid_search, pgd, restarts
from robust_opt.maximizers.apgd import apgd_shrinking_l1
from robust_opt.maximizers.grid import NUM_ROTATIONS, NUM_TRANSLATIONS
from robust_opt.sets import L0, L1, L2, Ball, LInf, Masked, Patch, Transforms, UncertaintySet, Union
from robust_opt.types import Array, LogitsFn, LossFn


class Phase(NamedTuple):
  """One attack of the ensemble.

  Attributes:
    name: as in AutoAttack.
    attack: its name in `attacks.support.SUPPORT`, which lists the sets that it takes.
    make: (set, rank of each example's target [B], channel axis of an example or None) -> attack.
      If its result has `passes` (`attacks.types.CountedResult`), they are added up.
    num_targets: the number of target classes, at most all wrong ones; 0: untargeted.
    gradients: whether it needs the gradients of the network.
  """

  name: str
  attack: str
  make: MakeAttack
  num_targets: int = 0
  gradients: bool = True


def apgd_attack(u: Ball, num_steps: int) -> Attack:
  """APGD as in AutoAttack: keeps the best point by score; over l_1 it starts in larger balls."""
  if isinstance(u, L1):
    return apgd_shrinking_l1(u, num_steps, keep_best=True)
  return apgd(u, num_steps, keep_best=True)


def apgd_ce(num_steps: int, l1_restarts: int = 1, fresh_noise: bool = False) -> Phase:
  """APGD on the cross-entropy."""

  def make(u: Ball, rank: Array, channel_axis: int | None) -> CountedAttack:
    del rank, channel_axis
    attack = apgd_attack(u, num_steps)
    if isinstance(u, L1) and l1_restarts > 1:
      attack = restarts(attack, l1_restarts)
    return white_box.counting_ascent(attack, losses.cross_entropy, fresh_noise)

  return Phase("apgd-ce", "apgd", make)


def apgd_dlr(num_steps: int, fresh_noise: bool = False) -> Phase:
  """APGD on the DLR loss."""

  def make(u: Ball, rank: Array, channel_axis: int | None) -> CountedAttack:
    del rank, channel_axis
    return white_box.counting_ascent(apgd_attack(u, num_steps), losses.dlr, fresh_noise)

  return Phase("apgd-dlr", "apgd", make)


def apgd_t(num_steps: int, num_targets: int) -> Phase:
  """APGD on the targeted DLR loss."""

  def make(u: Ball, rank: Array, channel_axis: int | None) -> CountedAttack:
    del channel_axis
    return white_box.counting_targeted_ascent(apgd_attack(u, num_steps), losses.targeted_dlr, rank)

  return Phase("apgd-t", "apgd", make, num_targets)


def fab_t(num_steps: int, num_targets: int) -> Phase:
  """FAB toward target classes."""

  def make(u: Ball, rank: Array, channel_axis: int | None) -> CountedAttack:
    del channel_axis
    return counting_fab(u, num_steps=num_steps, target_rank=rank)

  return Phase("fab-t", "fab", make, num_targets)


def square_phase(num_queries: int) -> Phase:
  """Square Attack."""

  def make(u: Ball, rank: Array, channel_axis: int | None) -> CountedAttack:
    del rank
    search = counting_square(u, num_queries, channel_axis=channel_axis)

    def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> CountedResult:
      result = search(keys, logits_fn, x, y)
      # And the clean logits.
      return CountedResult(result.delta, result.fooled, passes(jnp.max(result.queries) + 1, 0))

    return attack

  return Phase("square", "square", make, gradients=False)


def pgd_phase(
  name: str, loss: LossFn, num_steps: int, relative_step: float, num_restarts: int = 1
) -> Phase:
  """PGD from random starts on any set with a projection; every example keeps its best point.

  Args:
    name: of the phase.
    loss: (logits [B, C], y [B]) -> [B], to be maximized.
    num_steps: of each run.
    relative_step: the length of a step as a fraction of the radius of a ball, in l_inf over l_inf
      and Euclidean over l_2 and l_1; for any other set, of the set's steepest ascent.
    num_restarts: the number of runs.
  """

  def make(u: UncertaintySet, rank: Array, channel_axis: int | None) -> CountedAttack:
    del rank, channel_axis
    attack = ascend(pgd(u, _step_set(u, relative_step)), num_steps, keep_best=True)
    return white_box.counting_ascent(
      restarts(attack, num_restarts) if num_restarts > 1 else attack, loss
    )

  return Phase(name, "pgd", make)


def grid_phase(
  num_rotations: int = NUM_ROTATIONS, num_translations: int = NUM_TRANSLATIONS
) -> Phase:
  """The worst of a grid of rotations and translations (`ro.grid_search`)."""

  def make(u: Transforms, rank: Array, channel_axis: int | None) -> CountedAttack:
    del rank, channel_axis
    search = white_box.ascent(grid_search(u, num_rotations, num_translations), losses.margin)
    count = num_rotations * num_translations**2 + white_box.OTHER_PASSES

    def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> CountedResult:
      return CountedResult(*search(keys, logits_fn, x, y), passes(count, 0))

    return attack

  return Phase("grid", "grid_search", make, gradients=False)


def sparse_rs_phase(num_queries: int) -> Phase:
  """Sparse-RS, without gradients."""

  def make(u: L0, rank: Array, channel_axis: int | None) -> CountedAttack:
    del rank, channel_axis
    return counting_sparse_rs(u, num_queries)

  return Phase("sparse-rs", "sparse_rs", make, gradients=False)


def patch_phase(num_places: int, num_steps: int) -> Phase:
  """PGD in squares at several places."""

  def make(u: Patch, rank: Array, channel_axis: int | None) -> CountedAttack:
    del rank, channel_axis
    return counting_patch(u, num_places, num_steps)

  return Phase("patch", "patch", make)


def decision_phase(name: str, minimal: Callable[..., MinimalAttack]) -> Phase:
  """A minimal-norm attack that needs only labels: `hop_skip_jump` or `boundary`, by its name."""

  def make(u: Ball, rank: Array, channel_axis: int | None) -> LogitsAttack:
    del rank, channel_axis
    return minimal(u)

  return Phase(name.replace("_", "-"), name, make, gradients=False)


class _Scaled(UncertaintySet):
  """{factor * delta: delta in U(x)}; steepest ascent only."""

  def __init__(self, u: UncertaintySet, factor: float) -> None:
    self._u, self._factor = u, factor

  def steepest_ascent(self, grad: Array, x: Array) -> Array:
    return self._factor * self._u.steepest_ascent(grad, x)


def _step_set(u: UncertaintySet, factor: float) -> UncertaintySet:
  if isinstance(u, Ball):
    return (LInf if isinstance(u, LInf) else L2)(factor * u.radius)
  return _Scaled(u, factor)


# Built once: a phase is a compile-time constant, compared by identity. AutoAttack also restarts its
# first attack over l_1, but then tries only five targets there, not nine.
_STANDARD = (apgd_ce(100, l1_restarts=5), apgd_t(100, 9), fab_t(100, 9), square_phase(5000))
_SHORT = (apgd_t(25, 4)._replace(name="apgd-t-25"), square_phase(250)._replace(name="square-250"))
VERSIONS: dict[str, tuple[Phase, ...]] = {
  "standard": _STANDARD,
  "rand": (apgd_ce(100, fresh_noise=True), apgd_dlr(100, fresh_noise=True)),
  "quick": (apgd_ce(50), apgd_t(50, 3)),
  "pgd": (
    pgd_phase("pgd-ce", losses.cross_entropy, 100, relative_step=0.1, num_restarts=5),
    pgd_phase("pgd-margin", losses.margin, 100, relative_step=0.02, num_restarts=5),
  ),
  "grid": (grid_phase(),),
  "sparse": (
    pgd_phase("pgd-ce", losses.cross_entropy, 100, relative_step=0.1, num_restarts=5),
    sparse_rs_phase(5000),
  ),
  "patch": (patch_phase(20, 50),),
  "labels": (
    decision_phase("hop_skip_jump", hop_skip_jump),
    decision_phase("boundary", boundary),
  ),
  "adaptive": (_STANDARD[0], *_SHORT, *_STANDARD[1:]),  # the first three are adaptive.CORE
}
# For sets that are not balls; "pgd" for any other.
_VERSION_OF: dict[type[UncertaintySet], str] = {Transforms: "grid", L0: "sparse", Patch: "patch"}


def phases_of(
  version: str | tuple[Phase, ...], logits_fn: LogitsFn, u: UncertaintySet
) -> tuple[Phase, ...]:
  """The phases of a version by name.

  Raises:
    InputError: an unknown version, or one that does not take this kind of network or this set.
  """
  if isinstance(version, str):
    if version not in VERSIONS:
      raise InputError(f"version must be one of {', '.join(VERSIONS)}, but was {version!r}.")
    if (version == "rand") != isinstance(logits_fn, network.Randomized):
      raise InputError(
        f'version="rand" is for a ro.Randomized (--draws) and the other versions are for '
        f"deterministic networks, but version was {version!r} for a {type(logits_fn).__name__}."
      )
  phases = VERSIONS[version] if isinstance(version, str) else version
  if version == "labels" and not isinstance(u, L2):
    phases = phases[:1]  # Boundary Attack is one over l_2
  for phase in phases:
    try:
      check_support(phase.attack, u)
    except InputError as error:
      better = _version_of(u)
      if isinstance(u, Ball) or better == version or not isinstance(u, UncertaintySet):
        raise
      what = "every set with a projection" if better == "pgd" else type(u).__name__
      words = f'{str(error)[:-1]}; version="{better}" attacks {what}.'
      raise InputError(words) from error
  return phases


class Step(NamedTuple):
  """One phase of an evaluation: its name in the verdict, the attacks, and the set they search."""

  name: str
  phase: Phase
  u: UncertaintySet


def plan(
  version: str | tuple[Phase, ...], logits_fn: LogitsFn, u: UncertaintySet
) -> tuple[Step, ...]:
  """The phases of a version; over a union those of each of its sets, in turn.

  Cheap attacks come first in every set, so that the dear ones meet few examples. A set that is not
  a ball is attacked by a version of its own, "pgd" if it has none; a masked ball as the ball. Names
  are those of the phases, and over a union of the sets as well: "apgd-ce l2".

  Raises:
    InputError: as `phases_of`.
  """
  if isinstance(u, Union) and version == "adaptive":
    raise InputError(
      'version="adaptive" takes a single ball, not a union of sets; "standard" takes both.'
    )
  if not isinstance(u, Union):
    return tuple(Step(phase.name, phase, u) for phase in _phases_over(version, logits_fn, u))
  steps = []
  for part, label in zip(u.sets, labels(u), strict=True):
    of_part = version if isinstance(_unmasked(part), Ball) else _version_of(part)
    phases = _phases_over(of_part, logits_fn, part)
    steps.append([Step(f"{phase.name} {label}", phase, part) for phase in phases])
  in_turn = itertools.chain.from_iterable(itertools.zip_longest(*steps))
  return tuple(step for step in in_turn if step is not None)


def _phases_over(
  version: str | tuple[Phase, ...], logits_fn: LogitsFn, u: UncertaintySet
) -> tuple[Phase, ...]:
  """The phases of a version; over a masked ball those of the ball, which see only the region."""
  if not isinstance(_unmasked(u), Ball) or u is _unmasked(u):
    return phases_of(version, logits_fn, u)
  phases = phases_of(version, logits_fn, _unmasked(u))
  return tuple(phase._replace(make=_within_mask(phase.make)) for phase in phases)


def _unmasked(u: UncertaintySet) -> UncertaintySet:
  return u.u if isinstance(u, Masked) else u


@functools.cache  # a compile-time constant, compared by identity
def _within_mask(make: MakeAttack) -> MakeAttack:
  def made(u: Masked, choice: Array, channel_axis: int | None) -> Callable[..., Any]:
    attack: Callable[..., Any] = make(u.u, choice, channel_axis)
    return masked(attack, u)

  return made


def _version_of(u: UncertaintySet) -> str:
  """The version for a set that is not a ball."""
  return _VERSION_OF.get(type(u), "pgd")


def labels(u: Union) -> list[str]:
  """A name for each of the sets: its norm or class, numbered if there are several such."""
  parts = map(_unmasked, u.sets)
  names = [part.name if isinstance(part, Ball) else type(part).__name__ for part in parts]
  return [
    name if names.count(name) == 1 else f"{name}-{names[: index + 1].count(name)}"
    for index, name in enumerate(names)
  ]
