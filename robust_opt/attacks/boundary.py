"""Boundary Attack: a random walk along the decision boundary that needs only the predicted class.

  everywhere = ro.L2(math.inf, box=(0.0, 1.0))
  delta, fooled = boundary(everywhere)(keys, logits_fn, x, y)  # keys [B], x [B, *S], y [B]

Source: Brendel, Rauber and Bethge 2018 (arXiv 1712.04248), figure 2; for nets of labels alone, and
for what is returned where, as `hop_skip_jump`, which needs fewer queries for the same distance.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_opt.arrays import expand_like
from robust_opt.attacks.decisions import Problem, begin, folded, shrunk
from robust_opt.attacks.hyperplanes import (
  Smallest,
  check_counts,
  smaller,
  within,
)
from robust_opt.attacks.precision import widened
from robust_opt.attacks.support import check_support
from robust_opt.attacks.types import AttackResult, MinimalAttack
from robust_opt.keys import per_example
from robust_opt.precision import measured
from robust_opt.sets import L2
from robust_opt.types import Array, LogitsFn


class _State(NamedTuple):
  """The walk: the best point, and the relative lengths of both steps, [B]."""

  best: Smallest
  around: Array
  inward: Array


def boundary(
  u: L2, num_steps: int = 5000, num_starts: int = 50, num_halvings: int = 15
) -> MinimalAttack:
  """Random steps at the same distance from x, each followed by a step toward x.

    p = (delta + around |delta| v / |v|), scaled to the norm |delta|,   v normal
    q = (1 - inward) p                    kept if it fools

  `around` grows if p fools and shrinks otherwise, toward half of them; `inward` grows if q fools
  too, toward a third (ours: after every step; the paper's rule is left open). Each step takes two
  queries.

  Args:
    u: L2 with a finite box, in which x must lie; its radius may be math.inf.
    num_steps: >= 1.
    num_starts, num_halvings: of the start, as for `hop_skip_jump`.

  Raises:
    InputError: another set, or a number out of range.
  """
  check_support("boundary", u)
  check_counts(num_steps=num_steps, num_starts=num_starts, num_halvings=num_halvings)

  @measured
  def attack(
    keys: Array, logits_fn: LogitsFn, x: Array, y: Array, start: Array | None = None
  ) -> AttackResult:
    keys = per_example(keys, x.shape[0])
    logits_fn, x, rounded = widened(logits_fn, jax.lax.stop_gradient(x))
    problem, best = begin(u, logits_fn, x, y, keys, start, num_starts, num_halvings)

    def step(number: Array, state: _State) -> _State:
      return _step(problem, folded(keys, num_starts + number), state)

    length = jnp.full(x.shape[:1], 0.1, x.dtype)
    state = jax.lax.fori_loop(0, num_steps, step, _State(best, length, length))
    return rounded(within(u, state.best))

  return attack


def _step(problem: Problem, keys: Array, state: _State) -> _State:
  best, (lower, upper) = state.best, problem.bounds
  norm = jnp.where(jnp.isfinite(best.norm), best.norm, 0.0)

  def scaled(v: Array, to: Array) -> Array:
    return v * expand_like(to / jnp.maximum(problem.norms(v), jnp.finfo(v.dtype).tiny), v)

  v = jax.vmap(lambda key: jax.random.normal(key, lower.shape[1:], lower.dtype))(keys)
  moved = scaled(best.delta + scaled(v, state.around * norm), norm)
  around = jnp.clip(moved, lower, upper)
  inward = shrunk(problem.u, around, 1 - state.inward)
  fooled_around, fooled = problem.fooled(around), problem.fooled(inward)
  length = state.around * jnp.where(fooled_around, 1.1, 1 / 1.1)
  toward = state.inward * jnp.where(fooled, 1.1, jnp.where(fooled_around, 0.95, 1.0))
  best = smaller(best, inward, problem.norms(inward), fooled)
  return _State(best, jnp.minimum(length, 1.0), jnp.minimum(toward, 0.5))
