"""Auto-PGD: projected ascent that picks its step sizes by itself (Croce and Hein 2020, 2021).

attack = ro.apgd(ro.LInf(8 / 255, box=(0.0, 1.0)), num_steps=100, keep_best=True)
delta, info = attack(value_fn, keys, x)

A step evaluates one input gradient: an example that restarts from its best point takes the gradient
there from memory. Every example has step sizes and restarts of its own.

|  input                                  |  what happens                                          |
|  value_fn returns one number for all    |  InputError, in the first step                         |
|  the gradient is exactly 0              |  the example stays until it restarts from its best     |
|  a value is NaN                         |  the point is never what an example restarts from      |
|  NaN in a gradient                      |  delta becomes NaN: the caller must see it             |
|  radius 0                               |  delta stays 0                                         |
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import keys, precision
from robust_opt.arrays import expand_like, where_examples
from robust_opt.errors import InputError
from robust_opt.maximizers.base import (
  AscentInfo,
  AscentState,
  Attack,
  InnerMaximizer,
  after_steps,
  ascend,
  per_example,
  run_steps,
  value_and_input_gradient,
)
from robust_opt.sets import L1, Ball, check_ball, projections
from robust_opt.sets.base import Box, Radius
from robust_opt.types import Array, Stochastic, ValueFn

# Radii and shares of the steps of apgd_shrinking_l1.
STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))

_ENOUGH_INCREASES = 0.75  # rho of condition 1: the share of steps that should raise the value
_FIRST_SPARSITY = 0.2  # the l_1 step moves this share of the entries at first
_SPARSER = 1.5  # ... and later the entries of the best point divided by this
_STILL_AS_DENSE = 0.95  # above this ratio the sparsity has settled, and the l_1 step is shortened
_ROUNDING = 1e-5  # an entry below this share of the largest is 0
_SHORTER, _SHORTEST = 1.5, 0.1  # by this factor, but not below this share of the radius

# (key or None, x [B, *S]) -> (delta [B, *S], how many entries an l_1 step moves [B])
_Start = Callable[[Array | None, Array], tuple[Array, Array]]


class Best(NamedTuple):
  """The point of the highest value so far (x_max), the first of equals; value -inf before any.

  Attributes:
    delta: [B, *S].
    gradient: [B, *S], the input gradient there.
    value: [B].
  """

  delta: Array
  gradient: Array
  value: Array


class MomentumMemory(NamedTuple):
  """What l_inf and l_2 ascents remember.

  Attributes:
    num_taken: [], the number of steps so far.
    best: the point to restart from.
    previous: [B, *S], the delta before the current one, for the momentum.
    step_size: [B], eta, in the units of x.
    last_value: [B], the value at the point before.
    num_increases: [B], steps since the last checkpoint that raised the value.
    checkpoint_value: [B], the best value at the last checkpoint.
    reduced: [B] bool, whether the step size was halved at the last checkpoint.
  """

  num_taken: Array
  best: Best
  previous: Array
  step_size: Array
  last_value: Array
  num_increases: Array
  checkpoint_value: Array
  reduced: Array


class SparseMemory(NamedTuple):
  """What l_1 ascents remember.

  Attributes:
    num_taken: [], the number of steps so far.
    best: the point to restart from.
    step_size: [B], eta, the l_1 length of a step.
    sparsity: [B], k, how many entries a step moves, before it is rounded down.
  """

  num_taken: Array
  best: Best
  step_size: Array
  sparsity: Array


def apgd(
  u: Ball,
  num_steps: int,
  random_start: bool = True,
  momentum: float = 0.75,
  keep_best: bool = False,
) -> Attack:
  """Auto-PGD in the ball of a norm, alone or cut by a box.

  Over l_inf and l_2 (Croce and Hein 2020, arXiv 2003.01690, algorithm 1), with P the projection
  onto the set and d the steepest ascent of unit norm:

    z_{t+1} = P(x_t + eta d_t),   x_1 = z_1
    x_{t+1} = P(x_t + momentum (z_{t+1} - x_t) + (1 - momentum) (x_t - x_{t-1}))

  eta is 2 radius at first. At each of `checkpoints(num_steps)` it is halved, and the example goes
  on from its best point, if (1) fewer than 3/4 of the steps since the last checkpoint raised the
  value, or (2) eta was not halved at the last checkpoint and the best value is still the same.
  This is decided as soon as the value at the checkpoint is known; the algorithm as printed takes
  one step more and throws it away.

  Over l_1 (Croce and Hein 2021, arXiv 2103.01208, section 4) a step moves the k entries of largest
  |gradient|, each by eta / k, and is projected; there is no momentum. k is 1/5 of all entries and
  eta the radius at first. Every 4 % of the steps k becomes the number of non-zero entries of the
  best point / 1.5; if that is less than 0.95 of the last k, eta is the radius again and the example
  goes on from its best point, and if not, eta is divided by 1.5, down to radius / 10.

  P is the exact projection onto ball and box together, as the papers state the algorithms.
  AutoAttack's own code, over l_inf and l_2, shortens to the ball and then cuts by the box. The k
  entries of an l_1 step include those that the box holds. Where it holds all k of them, the step
  goes on to the largest entry that can move, and moves all entries up to that one, each by eta over
  their number (ours): otherwise the projection would undo the step.

  The gradients are those of value_fn's value. What an example restarts from is the best by value;
  `ascend(keep_best=True)` keeps, outside of all this, the best by score.

  Args:
    u: LInf, L2 or L1, of finite radius.
    num_steps: of the ascent, on which the checkpoints depend.
    random_start: whether to start from a sample of the set (needs a key: one, or one for every
      example) rather than from 0.
    momentum: alpha of algorithm 1, the weight of the new step against the last; 1 means none.
    keep_best: as in `ascend`.

  Raises:
    InputError: another set, or fewer than 0 steps; from the attack: a random start without a key,
      or a value_fn that returns one number for the whole batch.
  """
  return ascend(apgd_steps(u, num_steps, random_start, momentum), num_steps, keep_best)


def apgd_steps(
  u: Ball, num_steps: int, random_start: bool = True, momentum: float = 0.75
) -> InnerMaximizer:
  """The single steps of `apgd`, whose arguments these are; past num_steps nothing is adapted."""
  check_ball(u, "apgd")
  if num_steps < 0:
    raise InputError(f"num_steps must be >= 0, but was {num_steps}.")

  def start(key: Array | None, x: Array) -> tuple[Array, Array]:
    delta = jnp.zeros_like(x)
    if random_start:
      delta = u.sample(keys.required(key, "A random start"), x)
    sparsity = jnp.full(x.shape[:1], _FIRST_SPARSITY * np.prod(x.shape[1:]), jnp.float32)
    return u.project(delta, x), sparsity

  if isinstance(u, L1):
    return _sparse_ascent(u, num_steps, start)
  return _momentum_ascent(u, num_steps, start, momentum)


def apgd_shrinking_l1(
  u: L1, num_steps: int, random_start: bool = True, keep_best: bool = False
) -> Attack:
  """Auto-PGD over l_1 that begins in larger balls (Croce and Hein 2021, section 4, multi-epsilon).

  Three ascents follow one another, in 3, 2 and 1 times the radius, over 30, 30 and 40 % of the
  steps; each starts from the best point of the one before, projected onto its own ball. The
  AscentInfo lies ascent after ascent, value [num_steps, B]; what is returned is from the last.

  Args:
    u: the last ball.
    num_steps: of the three ascents together.
    random_start: whether the first ascent starts from a sample of the largest ball.
    keep_best: as in `ascend`, among the clean example and the points of the last ascent.
  """
  if not isinstance(u, L1):
    raise InputError(f"apgd_shrinking_l1 takes ro.L1, not {type(u).__name__}.")
  early = [round(share * num_steps) for _, share in STAGES[:-1]]
  lengths = [*early, num_steps - sum(early)]

  def attack(
    value_fn: ValueFn | Stochastic, key: Array | None, x: Array
  ) -> tuple[Array, AscentInfo]:
    maximizer = apgd_steps(_scaled(u, STAGES[0][0]), lengths[0], random_start)
    infos = []
    for (factor, _), length, next_length in zip(STAGES[1:], lengths[:-1], lengths[1:]):
      state, info = run_steps(maximizer, length, value_fn, key, x)
      infos.append(info)
      maximizer = _continued_l1(_scaled(u, factor), next_length, state.memory.best.delta)
      value_fn = after_steps(value_fn, length)
    delta, info = ascend(maximizer, lengths[-1], keep_best)(value_fn, key, x)
    return delta, jax.tree.map(lambda *parts: jnp.concatenate(parts), *infos, info)

  return attack


def checkpoints(num_steps: int) -> tuple[int, ...]:
  """w_1 < w_2 < ... <= num_steps, after which so many steps the step size is reconsidered.

  w_j = ceil(p_j num_steps) with p_0 = 0, p_1 = 0.22, and every period 0.03 shorter than the one
  before, but not shorter than 0.06. Source: Croce and Hein 2020, section 3.1.
  """
  periods = [22]  # in hundredths: as floats, 0.57 * 100 rounds up to 58
  while sum(periods) + max(periods[-1] - 3, 6) <= 100:
    periods.append(max(periods[-1] - 3, 6))
  return tuple(sorted({-(-int(p) * num_steps // 100) for p in np.cumsum(periods)} - {0}))


def _scaled(u: L1, factor: float) -> L1:
  return dataclasses.replace(u, radius=factor * u.radius)


def _momentum_ascent(u: Ball, num_steps: int, start: _Start, momentum: float) -> InnerMaximizer:
  windows = _windows(checkpoints(num_steps), num_steps)

  def init(key: Array | None, x: Array) -> AscentState:
    delta, _ = start(key, x)
    none = jnp.zeros(x.shape[:1], precision.wide(x.dtype))
    memory = MomentumMemory(
      num_taken=jnp.zeros((), jnp.int32),
      best=_no_best(delta),
      previous=delta,
      step_size=2 * _radii(u.radius, x),
      last_value=none + jnp.inf,  # the first value is no increase
      num_increases=none.astype(jnp.int32),
      checkpoint_value=none,
      reduced=none > 0,
    )
    return AscentState(delta, memory)

  def step(value_fn: ValueFn, state: AscentState, x: Array) -> tuple[AscentState, AscentInfo]:
    memory: MomentumMemory
    delta, memory = state
    info, here, best = _evaluate(value_fn, delta, memory.best, x)
    memory, restart = _reconsider(memory, here.value, best, windows)
    here = _where(restart, best, here)

    eta = dataclasses.replace(u, radius=memory.step_size, box=None)
    projected = u.project(here.delta + eta.steepest_ascent(here.gradient, x), x)
    carried = momentum * (projected - here.delta) + (1 - momentum) * (here.delta - memory.previous)
    mixed = u.project(here.delta + carried, x)
    moved = jnp.where(memory.num_taken == 0, projected, mixed)
    moved = jnp.where(_flat(here.gradient), here.delta, moved)  # the momentum alone is no ascent

    memory = memory._replace(
      num_taken=memory.num_taken + 1, best=best, previous=here.delta, last_value=here.value
    )
    return AscentState(moved, memory), info

  return InnerMaximizer(init, step)


def _reconsider(
  memory: MomentumMemory, value: Array, best: Best, windows: np.ndarray
) -> tuple[MomentumMemory, Array]:
  """The step sizes after the values [B] of a new point, and which examples restart, [B] bool."""
  window = _at(windows, memory.num_taken)
  at_checkpoint = window > 0
  increases = memory.num_increases + (value > memory.last_value)
  oscillates = increases < _ENOUGH_INCREASES * window
  no_better = ~memory.reduced & (best.value == memory.checkpoint_value)
  restart = at_checkpoint & (oscillates | no_better)
  starts_window = at_checkpoint | (memory.num_taken == 0)  # w_0 = 0
  memory = memory._replace(
    step_size=jnp.where(restart, memory.step_size / 2, memory.step_size),
    num_increases=jnp.where(at_checkpoint, 0, increases),
    checkpoint_value=jnp.where(starts_window, best.value, memory.checkpoint_value),
    reduced=jnp.where(at_checkpoint, restart, memory.reduced),
  )
  return memory, restart


def _sparse_ascent(u: L1, num_steps: int, start: _Start) -> InnerMaximizer:
  period = max(1, 4 * num_steps // 100)
  windows = _windows(tuple(range(period, num_steps + 1, period)), num_steps)

  def init(key: Array | None, x: Array) -> AscentState:
    delta, sparsity = start(key, x)
    memory = SparseMemory(
      num_taken=jnp.zeros((), jnp.int32),
      best=_no_best(delta),
      step_size=_radii(u.radius, x),
      sparsity=sparsity,
    )
    return AscentState(delta, memory)

  def step(value_fn: ValueFn, state: AscentState, x: Array) -> tuple[AscentState, AscentInfo]:
    memory: SparseMemory
    delta, memory = state
    info, here, best = _evaluate(value_fn, delta, memory.best, x)

    at_checkpoint = _at(windows, memory.num_taken) > 0
    sparsity = jnp.where(at_checkpoint, _num_entries(best.delta) / _SPARSER, memory.sparsity)
    restart = at_checkpoint & (sparsity < _STILL_AS_DENSE * memory.sparsity)
    longest = _radii(u.radius, x)
    shorter = jnp.maximum(memory.step_size / _SHORTER, _SHORTEST * longest)
    step_size = jnp.where(at_checkpoint, shorter, memory.step_size)
    step_size = jnp.where(restart, longest, step_size)
    here = _where(restart, best, here)

    free = here.gradient != 0
    if u.box is not None:
      free = _has_room(here.gradient, here.delta, x, u.box)
    ascent = jax.vmap(_sparse_step)(here.gradient, free, sparsity, step_size)
    moved = u.project(here.delta + ascent, x)
    return AscentState(moved, SparseMemory(memory.num_taken + 1, best, step_size, sparsity)), info

  return InnerMaximizer(init, step)


def _sparse_step(gradient: Array, free: Array, sparsity: Array, length: Array) -> Array:
  """Moves the entries of largest |gradient| by signs, all equally far, [*S]; ties move together.

  Args:
    gradient: [*S].
    free: [*S] bool, entries that can move in the direction of the gradient. The largest of them
      moves in any case, together with all that are larger: of those, which then lie at the box,
      the projection would else take what no step gives back.
    sparsity: [], how many entries, rounded down, so that it can fall to one; at least one.
    length: [], of the step in l_1.
  """
  magnitude = jnp.abs(gradient)
  falling = jnp.sort(magnitude.reshape(-1), descending=True)
  last = jnp.maximum(jnp.floor(sparsity).astype(jnp.int32), 1) - 1
  threshold = jnp.minimum(falling[last], jnp.max(jnp.where(free, magnitude, 0.0)))
  chosen = ~(magnitude < threshold)  # so said, a NaN is chosen, and seen
  share = length / jnp.maximum(jnp.sum(chosen & (gradient != 0)), 1)
  return jnp.where(chosen, share * jnp.sign(gradient), 0.0)


def _has_room(gradient: Array, delta: Array, x: Array, box: Box) -> Array:
  """Which entries can move in the direction of the gradient before they meet the box, [B, *S]."""
  bounds = (box[0] - x - delta, box[1] - x - delta)
  # The projection rounds: an entry at the box may lie an ulp from it.
  ulp = max(1e-6, float(jnp.finfo(x.dtype).eps))
  return projections.room(gradient, bounds) > ulp * (box[1] - box[0])


def _continued_l1(u: L1, num_steps: int, delta: Array) -> InnerMaximizer:
  """Auto-PGD over l_1 that starts from delta [B, *S] projected, and as sparse as that is."""

  def start(key: Array | None, x: Array) -> tuple[Array, Array]:
    del key
    inside = u.project(delta, x)
    return inside, _num_entries(inside) / _SPARSER

  return _sparse_ascent(u, num_steps, start)


def _evaluate(
  value_fn: ValueFn, delta: Array, best: Best, x: Array
) -> tuple[AscentInfo, Best, Best]:
  """What a step reports of delta, delta as a candidate, and the better of it and the best."""
  info, gradient = value_and_input_gradient(value_fn, x + delta)
  value = per_example(info.value, x).astype(precision.wide(x.dtype))
  here = Best(delta, gradient, value)
  return info, here, _where(here.value > best.value, here, best)  # a NaN is not greater


def _no_best(delta: Array) -> Best:
  no_value = jnp.full(delta.shape[:1], -jnp.inf, precision.wide(delta.dtype))
  return Best(delta, jnp.zeros_like(delta), no_value)


def _where(condition: Array, yes: Best, no: Best) -> Best:
  """Every example's choice by condition [B]."""
  return jax.tree.map(lambda a, b: where_examples(condition, a, b), yes, no)


def _flat(gradient: Array) -> Array:
  """Which examples have a gradient of exactly 0, [B, 1, ...]."""
  return expand_like(jnp.all(gradient == 0, axis=range(1, gradient.ndim)), gradient)


def _num_entries(delta: Array) -> Array:
  """How many entries of each example are not 0, [B] float32.

  The projection leaves roundings of 0, which must not pass for entries: the sparsity would settle.
  """
  magnitude = jnp.abs(delta)
  axes = tuple(range(1, delta.ndim))
  largest = jnp.max(magnitude, axis=axes, keepdims=True)
  return jnp.sum(magnitude > _ROUNDING * largest, axis=axes).astype(jnp.float32)


def _radii(radius: Radius, x: Array) -> Array:
  return jnp.broadcast_to(jnp.asarray(radius, precision.wide(x.dtype)), x.shape[:1])


def _windows(points: tuple[int, ...], num_steps: int) -> np.ndarray:
  """[num_steps + 1], at every checkpoint the steps since the one before; 0 where there is none."""
  windows = np.zeros(num_steps + 1, np.int32)
  windows[list(points)] = np.diff(points, prepend=0)
  return windows


def _at(windows: np.ndarray, num_taken: Array) -> Array:
  """windows[num_taken], and 0 beyond its end, where an index would stay at the last."""
  return jnp.asarray(windows).at[num_taken].get(mode="fill", fill_value=0)
