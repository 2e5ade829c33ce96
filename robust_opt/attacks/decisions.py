"""What attacks share that see only whether a point fools the net: HopSkipJump, Boundary Attack.

problem = Problem(u, logits_fn, x, y, bounds_of(u, x))
best = random_start(problem, keys, first_smallest(u, logits_fn, x, y, None), num_starts)
best = onto_boundary(problem, best, best.delta, num_halvings)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_opt.arrays import expand_like
from robust_opt.attacks.hyperplanes import (
  Smallest,
  bounds_of,
  first_smallest,
  misclassified,
  smaller,
)
from robust_opt.sets import Ball, LInf
from robust_opt.sets.projections import Bounds
from robust_opt.types import Array, LogitsFn


class Problem(NamedTuple):
  """What all steps share."""

  u: Ball
  logits_fn: LogitsFn
  x: Array
  y: Array
  bounds: Bounds

  def fooled(self, delta: Array) -> Array:
    """Whether the perturbations [B, *S] fool the net, [B]."""
    return misclassified(self.logits_fn, self.x + delta, self.y)

  def norms(self, delta: Array) -> Array:
    """[B, *S] -> [B]."""
    return jax.vmap(self.u.norm)(delta)


def folded(keys: Array, number: Array | int) -> Array:
  """Other keys of the examples, [B], by a number."""
  return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def begin(
  u: Ball,
  logits_fn: LogitsFn,
  x: Array,
  y: Array,
  keys: Array,
  start: Array | None,
  num_starts: int,
  num_halvings: int,
) -> tuple[Problem, Smallest]:
  """The problem, and a point at the boundary from `start`, or else from a random image."""
  problem = Problem(u, logits_fn, x, y, bounds_of(u, x))
  best = random_start(problem, keys, first_smallest(u, logits_fn, x, y, start), num_starts)
  return problem, onto_boundary(problem, best, best.delta, num_halvings)


def random_start(problem: Problem, keys: Array, best: Smallest, num_starts: int) -> Smallest:
  """Takes the first of so many uniform images of the box that fools, where there is none yet."""
  return jax.lax.fori_loop(
    0, num_starts, lambda i, best: _try_random(problem, folded(keys, i), best), best
  )


def _try_random(problem: Problem, keys: Array, best: Smallest) -> Smallest:
  """Takes a uniform image of the box where it is the first one that fools."""
  lower, upper = problem.bounds
  share = jax.vmap(lambda key: jax.random.uniform(key, lower.shape[1:], lower.dtype))(keys)
  delta = lower + share * (upper - lower)
  first = problem.fooled(delta) & ~jnp.isfinite(best.norm)
  return smaller(best, delta, problem.norms(delta), first)


def shrunk(u: Ball, delta: Array, share: Array) -> Array:
  """The point at that share [B] of the way to delta [B, *S]."""
  if not isinstance(u, LInf):
    return expand_like(share, delta) * delta
  limit = expand_like(share * jax.vmap(u.norm)(delta), delta)
  return jnp.clip(delta, -limit, limit)


def onto_boundary(problem: Problem, best: Smallest, delta: Array, num_halvings: int) -> Smallest:
  """The smallest point that fools on the way to delta, by bisection, if it is the best so far."""

  def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
    inner, outer = ends
    middle = (inner + outer) / 2
    fooled = problem.fooled(shrunk(problem.u, delta, middle))
    return jnp.where(fooled, inner, middle), jnp.where(fooled, middle, outer)

  ends = jnp.zeros_like(best.norm), jnp.ones_like(best.norm)
  _, share = jax.lax.fori_loop(0, num_halvings, halve, ends)
  nearest = shrunk(problem.u, delta, share)
  return smaller(best, nearest, problem.norms(nearest), problem.fooled(nearest))
