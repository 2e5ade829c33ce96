"""Auto-PGD: projected ascent with adaptive step sizes (Croce and Hein 2020, 2021).

attack = ro.apgd(ro.LInf(8 / 255, box=(0.0, 1.0)), num_steps=100, keep_best=True)
delta, info = attack(value_fn, keys, x)

Each step evaluates one input gradient; an example that restarts from its best point uses the stored
gradient. Step sizes and restarts are per example.

|  input                                  |  result                                                |
|  value_fn returns one number for all    |  InputError, in the first step                         |
|  the gradient is exactly 0              |  the example does not move until its next restart      |
|  a value is NaN                         |  the example never restarts from that point            |
|  NaN in a gradient                      |  delta becomes NaN                                     |
|  radius 0                               |  delta stays 0                                         |
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import keys, precision
from robust_opt.arrays import where_examples
from robust_opt.checks import check_count, check_flag
from robust_opt.errors import InputError
from robust_opt.maximizers.base import (
  AnyValueFn,
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
from robust_opt.sets import L1, Ball, Box, Radius, check_ball, projections
from robust_opt.types import Array, ValueFn

# Radii and fractions of the steps of apgd_shrinking_l1.
STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))

_ALPHA = 0.75  # of algorithm 1, the weight of the new step against the last
_ENOUGH_INCREASES = 0.75  # rho of condition 1: the fraction of steps that should raise the value
_INITIAL_SPARSITY = 0.2  # fraction of the entries that the first l_1 steps move
_SPARSITY_DIVISOR = 1.5  # later k is the number of entries of the best point divided by this
_SETTLED_RATIO = 0.95  # above this ratio of new to old k the l_1 step is shortened
_ZERO_RATIO = 1e-5  # an entry below this fraction of the largest counts as 0
_STEP_DIVISOR, _SHORTEST_STEP = 1.5, 0.1  # of the l_1 step size; the minimum in units of the radius

# (key or None, x [B, *S]) -> (delta [B, *S], number of entries that an l_1 step moves [B])
_Start = Callable[[Array | None, Array], tuple[Array, Array]]


class Best(NamedTuple):
  """The point of the highest value so far (x_max), the first in a tie; -inf before the first."""

  delta: Array  # [B, *S]
  gradient: Array  # [B, *S], the input gradient there
  value: Array  # [B]


class MomentumMemory(NamedTuple):
  """The memory of l_inf and l_2 ascents."""

  num_taken: Array  # [], the number of steps so far
  best: Best  # the point to restart from
  previous: Array  # [B, *S], the delta before the current one, for the momentum
  step_size: Array  # [B], eta, in the units of x
  last_value: Array  # [B], the value at the point before
  num_increases: Array  # [B], steps since the last checkpoint that raised the value
  checkpoint_value: Array  # [B], the best value at the last checkpoint
  reduced: Array  # [B] bool, whether the step size was halved at the last checkpoint


class SparseMemory(NamedTuple):
  """The memory of l_1 ascents."""

  num_taken: Array  # [], the number of steps so far
  best: Best  # the point to restart from
  step_size: Array  # [B], eta, the l_1 length of a step
  sparsity: Array  # [B], k, the number of entries that a step moves, not yet rounded down


def apgd(u: Ball, num_steps: int, random_start: bool = True, keep_best: bool = False) -> Attack:
  """Auto-PGD in the ball of a norm, with or without a box.

  Over l_inf and l_2 (Croce and Hein 2020, arXiv 2003.01690, algorithm 1), with P the projection
  onto the set and d the steepest ascent of unit norm:

    z_{t+1} = P(x_t + eta d_t),   x_1 = z_1
    x_{t+1} = P(x_t + 0.75 (z_{t+1} - x_t) + 0.25 (x_t - x_{t-1}))

  eta starts at 2 radius. At each of `checkpoints(num_steps)` it is halved, and the example restarts
  from its best point, if (1) fewer than 3/4 of the steps since the last checkpoint raised the
  value, or (2) eta was not halved at the last checkpoint and the best value has not changed. The
  decision is made as soon as the value at the checkpoint is known; the published algorithm takes
  one more step and discards it.

  Over l_1 (Croce and Hein 2021, arXiv 2103.01208, section 4) a step moves the k entries of largest
  |gradient|, each by eta / k, and is projected; there is no momentum. k starts at 1/5 of all
  entries and eta at the radius. Every 4 % of the steps k becomes the number of non-zero entries of
  the best point / 1.5. If that is less than 0.95 of the last k, eta is reset to the radius and the
  example restarts from its best point; otherwise eta is divided by 1.5, down to radius / 10.

  P is the exact projection onto the ball and the box together, as the papers state the algorithms.
  AutoAttack's own code, over l_inf and l_2, projects onto the ball and then clips to the box. The k
  entries of an l_1 step include those at the box. If all k are, the step extends to the largest
  entry that can move, and moves all entries up to that one, each by eta over their number (our
  change): otherwise the projection would undo the step. Examples restart from the best point by
  value, while keep_best returns the best point by score.

  Args:
    u: LInf, L2 or L1, of finite radius.
    num_steps: of the ascent, on which the checkpoints depend.
    random_start: whether to start from a sample of the set (needs a key) rather than from 0.
    keep_best: as in `ascend`.

  Raises:
    InputError: another set, or fewer than 0 steps; from the attack: no key for a random start, or
      one value for the whole batch.
  """
  return ascend(apgd_steps(u, num_steps, random_start), num_steps, keep_best)


def apgd_steps(
  u: Ball, num_steps: int, random_start: bool = True, start_at: Array | None = None
) -> InnerMaximizer:
  """The maximizer that `apgd` runs, or one from start_at; past num_steps nothing is adapted."""
  check_ball(u, "apgd")
  check_count("num_steps", num_steps)
  check_flag("random_start", random_start)

  def start(key: Array | None, x: Array) -> tuple[Array, Array]:
    if start_at is not None:
      delta = u.project(start_at, x)
      return delta, _num_entries(delta) / _SPARSITY_DIVISOR
    delta = jnp.zeros_like(x)
    if random_start:
      delta = u.sample(keys.required(key, "A random start"), x)
    sparsity = jnp.full(x.shape[:1], _INITIAL_SPARSITY * np.prod(x.shape[1:]), jnp.float32)
    return u.project(delta, x), sparsity

  ascent = _sparse_ascent if isinstance(u, L1) else _momentum_ascent
  return ascent(u, num_steps, start)


def apgd_shrinking_l1(u: L1, num_steps: int, keep_best: bool = False) -> Attack:
  """Auto-PGD over l_1 that starts in larger balls (Croce and Hein 2021, section 4, multi-epsilon).

  Three consecutive ascents, in 3, 2 and 1 times the radius, take 30, 30 and 40 % of the steps. Each
  starts from the best point of the previous one, projected onto its own ball. AscentInfo is
  concatenated, value [num_steps, B]; delta comes from the last ascent, as does the best.
  """
  if not isinstance(u, L1):
    raise InputError(f"apgd_shrinking_l1 takes ro.L1, not {type(u).__name__}.")
  early = [round(share * num_steps) for _, share in STAGES[:-1]]
  lengths = [*early, num_steps - sum(early)]
  balls = [dataclasses.replace(u, radius=factor * u.radius) for factor, _ in STAGES]

  def attack(value_fn: AnyValueFn, key: Array | None, x: Array) -> tuple[Array, AscentInfo]:
    maximizer, infos = apgd_steps(balls[0], lengths[0]), []
    for ball, length, following in zip(balls[1:], lengths, lengths[1:]):
      state, info = run_steps(maximizer, length, value_fn, key, x)
      infos.append(info)
      maximizer = apgd_steps(ball, following, start_at=state.memory.best.delta)
      value_fn = after_steps(value_fn, length)
    delta, info = ascend(maximizer, lengths[-1], keep_best)(value_fn, key, x)
    return delta, jax.tree.map(lambda *parts: jnp.concatenate(parts), *infos, info)

  return attack


def checkpoints(num_steps: int) -> tuple[int, ...]:
  """The numbers of steps w_1 < w_2 < ... <= num_steps after which the step size may be halved.

  w_j = ceil(p_j num_steps) with p_0 = 0, p_1 = 0.22, and each period 0.03 shorter than the previous
  one, but at least 0.06. Source: Croce and Hein 2020, section 3.1.
  """
  periods = [22]  # in hundredths: as floats, 0.57 * 100 rounds up to 58
  while sum(periods) + max(periods[-1] - 3, 6) <= 100:
    periods.append(max(periods[-1] - 3, 6))
  return tuple(sorted({-(-int(p) * num_steps // 100) for p in np.cumsum(periods)} - {0}))


def _momentum_ascent(u: Ball, num_steps: int, start: _Start) -> InnerMaximizer:
  def init(key: Array | None, x: Array) -> AscentState:
    delta, _ = start(key, x)
    none = jnp.zeros(x.shape[:1], precision.wide(x.dtype))
    memory = MomentumMemory(
      num_taken=jnp.zeros((), jnp.int32),
      best=_no_best(delta),
      previous=delta,
      step_size=2 * _radii(u.radius, x),
      last_value=none + jnp.inf,  # the first value does not count as an increase
      num_increases=none.astype(jnp.int32),
      checkpoint_value=none,
      reduced=none > 0,
    )
    return AscentState(delta, memory)

  def step(value_fn: ValueFn, state: AscentState, x: Array) -> tuple[AscentState, AscentInfo]:
    memory: MomentumMemory
    delta, memory = state
    info, here, best = _evaluate(value_fn, delta, memory.best, x)
    window = _window(checkpoints(num_steps), num_steps, memory.num_taken)
    memory, restart = _reconsider(memory, here.value, best, window)
    here = _where(restart, best, here)

    eta = dataclasses.replace(u, radius=memory.step_size, box=None)
    projected = u.project(here.delta + eta.steepest_ascent(here.gradient, x), x)
    carried = _ALPHA * (projected - here.delta) + (1 - _ALPHA) * (here.delta - memory.previous)
    mixed = u.project(here.delta + carried, x)
    moved = jnp.where(memory.num_taken == 0, projected, mixed)
    flat = jnp.all(here.gradient == 0, axis=range(1, x.ndim))
    moved = where_examples(flat, here.delta, moved)  # momentum alone is not ascent

    memory = memory._replace(
      num_taken=memory.num_taken + 1, best=best, previous=here.delta, last_value=here.value
    )
    return AscentState(moved, memory), info

  return InnerMaximizer(init, step)


def _reconsider(
  memory: MomentumMemory, value: Array, best: Best, window: Array
) -> tuple[MomentumMemory, Array]:
  """Updates the step sizes after a new value [B]; also returns which examples restart, [B] bool."""
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


def _sparse_ascent(u: Ball, num_steps: int, start: _Start) -> InnerMaximizer:
  period = max(1, 4 * num_steps // 100)
  points = tuple(range(period, num_steps + 1, period))

  def init(key: Array | None, x: Array) -> AscentState:
    delta, sparsity = start(key, x)
    none_taken, longest = jnp.zeros((), jnp.int32), _radii(u.radius, x)
    return AscentState(delta, SparseMemory(none_taken, _no_best(delta), longest, sparsity))

  def step(value_fn: ValueFn, state: AscentState, x: Array) -> tuple[AscentState, AscentInfo]:
    memory: SparseMemory
    delta, memory = state
    info, here, best = _evaluate(value_fn, delta, memory.best, x)

    at_checkpoint = _window(points, num_steps, memory.num_taken) > 0
    sparsity = _num_entries(best.delta) / _SPARSITY_DIVISOR
    sparsity = jnp.where(at_checkpoint, sparsity, memory.sparsity)
    restart = at_checkpoint & (sparsity < _SETTLED_RATIO * memory.sparsity)
    longest = _radii(u.radius, x)
    shorter = jnp.maximum(memory.step_size / _STEP_DIVISOR, _SHORTEST_STEP * longest)
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
  """Moves the `sparsity` entries of largest |gradient| by equal amounts, [*S]; ties move together.

  The largest of the free entries, which can move along the gradient, always moves, together with
  all larger entries, which are at the box; otherwise the projection would undo the step.
  """
  magnitude = jnp.abs(gradient)
  falling = jnp.sort(magnitude.reshape(-1), descending=True)
  last = jnp.maximum(jnp.floor(sparsity).astype(jnp.int32), 1) - 1
  threshold = jnp.minimum(falling[last], jnp.max(jnp.where(free, magnitude, 0.0)))
  moves = ~(magnitude < threshold)  # true for NaN, so that it propagates
  size = length / jnp.maximum(jnp.sum(moves & (gradient != 0)), 1)
  return jnp.where(moves, size * jnp.sign(gradient), 0.0)


def _has_room(gradient: Array, delta: Array, x: Array, box: Box) -> Array:
  """Which entries can move in the direction of the gradient before they meet the box, [B, *S]."""
  bounds = (box[0] - x - delta, box[1] - x - delta)
  # The projection rounds: an entry at the box may lie an ulp from it.
  ulp = max(1e-6, float(jnp.finfo(x.dtype).eps))
  return projections.room(gradient, bounds) > ulp * (box[1] - box[0])


def _evaluate(
  value_fn: ValueFn, delta: Array, old: Best, x: Array
) -> tuple[AscentInfo, Best, Best]:
  """AscentInfo at delta, delta as a candidate, and the better of it and the old one."""
  info, gradient = value_and_input_gradient(value_fn, x + delta)
  value = per_example(info.value, x).astype(precision.wide(x.dtype))
  here = Best(delta, gradient, value)
  return info, here, _where(here.value > old.value, here, old)  # false for NaN


def _no_best(delta: Array) -> Best:
  no_value = jnp.full(delta.shape[:1], -jnp.inf, precision.wide(delta.dtype))
  return Best(delta, jnp.zeros_like(delta), no_value)


def _where(condition: Array, yes: Best, no: Best) -> Best:
  """Selects per example by condition [B]."""
  return jax.tree.map(lambda a, b: where_examples(condition, a, b), yes, no)


def _num_entries(delta: Array) -> Array:
  """The number of entries of each example that are not 0 up to rounding, [B] float32."""
  magnitude = jnp.abs(delta)
  axes = tuple(range(1, delta.ndim))
  largest = jnp.max(magnitude, axis=axes, keepdims=True)
  return jnp.sum(magnitude > _ZERO_RATIO * largest, axis=axes).astype(jnp.float32)


def _radii(radius: Radius, x: Array) -> Array:
  return jnp.broadcast_to(jnp.asarray(radius, precision.wide(x.dtype)), x.shape[:1])


def _window(points: tuple[int, ...], num_steps: int, num_taken: Array) -> Array:
  """At a checkpoint the number of steps since the previous one, elsewhere and past the end 0."""
  windows = np.zeros(num_steps + 1, np.int32)
  windows[list(points)] = np.diff(points, prepend=0)
  return jnp.asarray(windows).at[num_taken].get(mode="fill", fill_value=0)
