"""Minimal-norm attacks: the smallest perturbation that a classifier mistakes, with no radius given.

  attack = deepfool("l2")
  delta, found = attack(keys, logits_fn, x, y)        # keys [B], x [B, *S], y [B]
  norms = jax.vmap(projections.l2_norm)(delta[found])  # compare these, not accuracies

DeepFool and fast minimum-norm; the box-constrained L-BFGS of Szegedy et al. is in szegedy.py, and
the fast adaptive boundary attack, which is stronger, in fab.py. Examples do not mix, and nothing
here is drawn at random: the keys are taken so that all attacks are called alike.

|  input                            |  result                                            |
|  clean example misclassified      |  delta 0, found True                               |
|  gradient 0 wherever it looks     |  delta 0, found False, no NaN                      |
|  NaN or infinite logits           |  count as misclassified, as in losses.correct      |
"""

import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.attacks.hyperplanes import (
  DUAL_NORMS,
  NORMS,
  SETS,
  Smallest,
  check,
  closest_hyperplane,
  misclassified,
  none_found,
  over,
  rivals_by_rank,
  smaller,
  to_hyperplanes,
)
from robust_opt.attacks.precision import widened
from robust_opt.attacks.types import Minimal, MinimalAttack
from robust_opt.errors import InputError
from robust_opt.sets import Box, balls
from robust_opt.sets.base import box_bounds
from robust_opt.types import Array, LogitsFn


def deepfool(
  norm: str,
  box: Box = (0.0, 1.0),
  num_steps: int = 50,
  overshoot: float = 0.02,
  num_candidates: int | None = None,
) -> MinimalAttack:
  """DeepFool: steps onto the nearest linearised decision boundary until the label has changed.

    delta_{i+1} = delta_i + (1 + overshoot) s_i
    s_i the shortest step from x + delta_i onto the closest linearised decision boundary there

  Source: Moosavi-Dezfooli et al. 2016 (arXiv 1511.04599), algorithm 2, and section 3.3 for other
  norms. The paper knows no box; here every step is the shortest that stays in
  the box. The label is looked at after the overshoot of every step, not before. It ends when every
  example of the batch has ended.

  Args:
    norm: "linf", "l2" or "l1".
    box: (low, high) that x + delta stays in; x must lie in it. A wide one stands for none.
    num_steps: at most this many; two to five are usual.
    overshoot: how far past the boundary to step, as a share of the step.
    num_candidates: how many wrong classes to look at, those of the largest clean logits (one
      gradient each a step); None for all.

  Raises:
    InputError: for an unknown norm, a box that is no finite interval, or a number out of range.
  """
  check(norm, box, num_steps=num_steps)
  if num_candidates is not None and num_candidates < 1:
    raise InputError(f"num_candidates must be at least 1 or None, but was {num_candidates}.")

  def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> Minimal:
    del keys
    logits_fn, x, rounded = widened(logits_fn, jax.lax.stop_gradient(x))
    lower, upper = box_bounds(box, x)
    clean = jax.lax.stop_gradient(logits_fn(x))
    rivals = rivals_by_rank(clean, y)[:num_candidates]

    def going_on(carry: tuple[Array, Array, Array]) -> Array:
      _, found, num_done = carry
      return jnp.any(~found) & (num_done < num_steps)

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
      delta, found, num_done = carry
      w, gap = closest_hyperplane(norm, logits_fn, x + delta, y, rivals)
      shortest = to_hyperplanes(norm, w, gap, (lower - delta, upper - delta))
      moved = jnp.clip(delta + (1 + overshoot) * shortest, lower, upper)
      delta = jnp.where(over(found, x), delta, moved)
      return delta, found | misclassified(logits_fn, x + delta, y), num_done + 1

    start = (jnp.zeros_like(x), ~losses.correct(clean, y), jnp.zeros((), jnp.int32))
    delta, found, _ = jax.lax.while_loop(going_on, step, start)
    return rounded(Minimal(jnp.where(over(found, x), delta, 0.0), found))

  return attack


def fast_minimum_norm(
  norm: str,
  box: Box = (0.0, 1.0),
  num_steps: int = 100,
  step_size: tuple[float, float] = (1.0, 1e-5),
  radius_change: tuple[float, float] = (0.05, 1e-4),
) -> MinimalAttack:
  """The fast minimum-norm attack: climbs in a ball that shrinks on success and grows on failure.

    eps_k   = (|delta|_p + -margin / |grad margin|_q) (1 + gamma_k)   until the label has changed
            = eps_{k-1} (1 + gamma_k)                                 then, at a failure
            = min(eps_{k-1} (1 - gamma_k), smallest norm found)       at a success
    delta_k = project onto the ball of radius eps_k of delta_{k-1} + alpha_k g / |g|_2

  alpha_k and gamma_k fall along half a cosine. Source: Pintor et al. 2021 (arXiv 2102.12827),
  algorithm 1. It differs from the paper in two things. The projection is onto the ball and the box
  at once, not onto one after the other. The first line has its factor 1 + gamma_k, without which a
  boundary that bends away is approached for ever and never crossed.

  Args:
    norm: "linf", "l2" or "l1".
    box: (low, high) that x + delta stays in; x must lie in it. A wide one stands for none.
    num_steps: one gradient each.
    step_size: (first, last) alpha, a Euclidean length in the units of x, whatever the norm.
    radius_change: (first, last) gamma, shares of the radius.

  Raises:
    InputError: for an unknown norm, a box that is no finite interval, or a number out of range.
  """
  check(norm, box, num_steps=num_steps)
  norms, duals = jax.vmap(NORMS[norm]), jax.vmap(DUAL_NORMS[norm])

  def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> Minimal:
    del keys
    logits_fn, x, rounded = widened(logits_fn, jax.lax.stop_gradient(x))
    lower, upper = box_bounds(box, x)

    def beaten(x: Array) -> tuple[Array, tuple[Array, Array]]:
      logits = logits_fn(x)
      by = losses.margin(logits, y)
      return jnp.sum(by), (by, ~losses.correct(logits, y))

    def step(
      carry: tuple[Array, Array, Smallest], k: Array
    ) -> tuple[tuple[Array, Array, Smallest], None]:
      delta, radius, smallest = carry
      g, (by, fooled) = jax.lax.stop_gradient(jax.grad(beaten, has_aux=True)(x + delta))
      smallest = smaller(smallest, delta, norms(delta), fooled)

      gamma, alpha = (_cosine(ends, k / num_steps) for ends in (radius_change, step_size))
      steepness = duals(g)
      away = jnp.where(steepness > 0, -by / jnp.where(steepness > 0, steepness, 1.0), 0.0)
      estimate = (norms(delta) + jnp.maximum(away, 0.0)) * (1 + gamma)
      grown = jnp.where(smallest.norm < jnp.inf, radius * (1 + gamma), estimate)
      shrunk = jnp.minimum(radius * (1 - gamma), smallest.norm)
      radius = jnp.where(fooled, shrunk, grown)

      moved = delta + balls.L2(alpha).steepest_ascent(g, x)
      moved = SETS[norm](radius, box).project(moved, x)
      return (jnp.clip(moved, lower, upper), radius, smallest), None

    clean_fooled = misclassified(logits_fn, x, y)
    start = (jnp.zeros_like(x), jnp.zeros(x.shape[:1], x.dtype), none_found(x, clean_fooled))
    (delta, _, smallest), _ = jax.lax.scan(step, start, 1.0 + jnp.arange(num_steps, dtype=x.dtype))
    fooled = misclassified(logits_fn, x + delta, y)
    smallest = smaller(smallest, delta, norms(delta), fooled)
    return rounded(Minimal(smallest.delta, smallest.norm < jnp.inf))

  return attack


def _cosine(ends: tuple[float, float], progress: Array) -> Array:
  """From the first end to the last along half a cosine, progress in [0, 1]."""
  first, last = ends
  return last + (first - last) * (1 + jnp.cos(jnp.pi * progress)) / 2
