"""HopSkipJump: a minimal-norm attack that needs only the predicted class.

  everywhere = ro.L2(math.inf, box=(0.0, 1.0))
  delta, fooled = hop_skip_jump(everywhere)(keys, logits_fn, x, y)  # keys [B], x [B, *S], y [B]

Of the logits it uses only whether they are misclassified: a net that returns only labels is
`lambda x: jax.nn.one_hot(labels(x), num_classes)`. Source: Chen, Jordan and Wainwright 2020 (arXiv
1904.02144), algorithm 2.

|  input                                    |  result                                         |
|  misclassified clean example              |  delta 0, fooled                                |
|  no random image of the box fools         |  delta 0, not fooled                            |
|  smallest delta longer than the radius    |  delta 0, not fooled                            |
"""

import jax
import jax.numpy as jnp

from robust_opt.arrays import expand_like, where_examples
from robust_opt.attacks.decisions import Problem, begin, folded, onto_boundary
from robust_opt.attacks.hyperplanes import (
  Smallest,
  check_counts,
  within,
)
from robust_opt.attacks.precision import widened
from robust_opt.attacks.support import check_support
from robust_opt.attacks.types import AttackResult, MinimalAttack
from robust_opt.errors import InputError
from robust_opt.keys import per_example
from robust_opt.precision import measured
from robust_opt.sets import L1, Ball, LInf
from robust_opt.types import Array, LogitsFn


def hop_skip_jump(
  u: Ball,
  num_steps: int = 20,
  num_evaluations: int = 100,
  num_starts: int = 50,
  num_halvings: int = 15,
) -> MinimalAttack:
  """Steps along estimates of the boundary's normal, each back onto the boundary.

    normal  = sum over random v of (phi(delta + r v) - mean phi) v,   phi = 1 if fooled, else -1
    delta'  = delta + |delta|_p / sqrt(t) * normal, halved until it fools
    delta   = the point of the segment from 0 to delta' on the boundary, by bisection

  with num_evaluations * sqrt(t) directions v at step t; over l_inf the normal is replaced by its
  sign, and the segment by delta' clipped to smaller balls. In all about 2/3 num_evaluations *
  num_steps^1.5 forward passes.

  Args:
    u: LInf or L2 with a finite box, in which x must lie; its radius may be math.inf.
    num_steps: >= 1.
    num_evaluations: of the first step, >= 1.
    num_starts: random images that are tried for a first one that fools, >= 1.
    num_halvings: of a bisection and of a step, >= 1.

  Raises:
    InputError: another set, or a number out of range.
  """
  check_support("hop_skip_jump", u)
  if isinstance(u, L1):
    raise InputError("hop_skip_jump takes ro.LInf or ro.L2, not a L1.")
  check_counts(
    num_steps=num_steps,
    num_evaluations=num_evaluations,
    num_starts=num_starts,
    num_halvings=num_halvings,
  )

  @measured
  def attack(
    keys: Array, logits_fn: LogitsFn, x: Array, y: Array, start: Array | None = None
  ) -> AttackResult:
    keys = per_example(keys, x.shape[0])
    logits_fn, x, rounded = widened(logits_fn, jax.lax.stop_gradient(x))
    problem, smallest = begin(u, logits_fn, x, y, keys, start, num_starts, num_halvings)

    def step(carry: Smallest, t: Array) -> tuple[Smallest, None]:
      count = jnp.floor(num_evaluations * jnp.sqrt(t)).astype(jnp.int32)
      normal = _normal(problem, folded(keys, num_starts + t.astype(jnp.int32)), carry, t, count)
      moved = _jump(problem, carry, normal, t, num_halvings)
      return onto_boundary(problem, carry, moved, num_halvings), None

    steps = 1.0 + jnp.arange(num_steps, dtype=x.dtype)
    smallest, _ = jax.lax.scan(step, smallest, steps)
    return rounded(within(u, smallest))

  return attack


def _normal(problem: Problem, keys: Array, best: Smallest, t: Array, count: Array) -> Array:
  """A direction into the region that fools, [B, *S], of unit length in the norm."""
  lower, upper = problem.bounds
  # The paper's: a tenth of the box at first, then in proportion to the distance.
  width = jnp.max(upper - lower, axis=range(1, lower.ndim))
  radius = expand_like(jnp.where(t == 1, 0.1 * width, best.norm / best.delta[0].size), best.delta)

  def draw(key: Array) -> Array:
    if isinstance(problem.u, LInf):
      v = jax.random.uniform(key, best.delta.shape[1:], lower.dtype, -1.0, 1.0)
    else:
      v = jax.random.normal(key, best.delta.shape[1:], lower.dtype)
    return v / jnp.maximum(jnp.linalg.norm(v), jnp.finfo(lower.dtype).tiny)

  def evaluate(i: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    of_phi, of_v, of_both = sums
    moved = jnp.clip(best.delta + radius * jax.vmap(draw)(folded(keys, i)), lower, upper)
    v = (moved - best.delta) / radius  # as the box left it
    phi = jnp.where(problem.fooled(moved), 1.0, -1.0)
    return of_phi + phi, of_v + v, of_both + expand_like(phi, v) * v

  zero = jnp.zeros_like(best.delta)
  start = (jnp.zeros_like(best.norm), zero, zero)
  of_phi, of_v, of_both = jax.lax.fori_loop(0, count, evaluate, start)
  mean = of_phi / count
  # If all are on one side, there is nothing to subtract.
  baseline = jnp.where(jnp.abs(mean) < 1, mean, 0.0)
  estimate = of_both - expand_like(baseline, zero) * of_v
  return type(problem.u)(1.0).steepest_ascent(estimate, problem.x)


def _jump(problem: Problem, best: Smallest, normal: Array, t: Array, num_halvings: int) -> Array:
  """delta' of `hop_skip_jump`; delta where no step fools."""

  def halve(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    length, moved, done = carry
    tried = jnp.clip(best.delta + expand_like(length, normal) * normal, *problem.bounds)
    fooled = problem.fooled(tried) & ~done
    return length / 2, where_examples(fooled, tried, moved), done | fooled

  length = jnp.where(jnp.isfinite(best.norm), best.norm, 0.0) / jnp.sqrt(t)
  done = ~jnp.isfinite(best.norm) | (best.norm == 0)
  _, moved, _ = jax.lax.fori_loop(0, num_halvings, halve, (length, best.delta, done))
  return moved
