"""Minimal-norm attacks: the smallest perturbation in a ball that changes the prediction.

  everywhere = ro.L2(math.inf, box=(0.0, 1.0))            # any size, within the box
  delta, fooled = deepfool(everywhere)(keys, logits_fn, x, y)  # keys [B], x [B, *S], y [B]
  norms = jax.vmap(everywhere.norm)(delta[fooled])         # compare these, not accuracies

DeepFool and fast minimum-norm. szegedy.py has the box-constrained L-BFGS of Szegedy et al., fab.py
the stronger fast adaptive boundary attack. Products are in full float32 on every backend, unless
jax.default_matmul_precision is set, as distances depend on them. Examples do not interact. Nothing
here is random: keys are ignored and only part of the common signature.

|  input                                  |  result                                        |
|  misclassified clean example            |  delta 0, fooled                               |
|  gradient 0 at every point tried        |  delta 0, not fooled, no NaN                   |
|  NaN or infinite logits                 |  count as misclassified, as in losses.correct  |
|  smallest delta longer than the radius  |  delta 0, not fooled                           |
"""

import dataclasses

import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.arrays import where_examples
from robust_opt.attacks.hyperplanes import (
  Smallest,
  bounds_of,
  check_counts,
  closest_hyperplane,
  misclassified,
  none_yet,
  rivals_by_rank,
  smaller,
  to_hyperplanes,
  within,
)
from robust_opt.attacks.precision import widened
from robust_opt.attacks.support import check_support
from robust_opt.attacks.types import AttackResult, LogitsAttack
from robust_opt.errors import InputError
from robust_opt.precision import measured
from robust_opt.sets import L2, Ball
from robust_opt.types import Array, LogitsFn


def deepfool(
  u: Ball,
  num_steps: int = 50,
  overshoot: float = 0.02,
  num_candidates: int | None = None,
) -> LogitsAttack:
  """DeepFool: steps onto the nearest linearized decision boundary until the prediction changes.

    delta_{i+1} = delta_i + (1 + overshoot) s_i
    s_i the shortest step from x + delta_i onto the closest linearized decision boundary there

  Source: Moosavi-Dezfooli et al. 2016 (arXiv 1511.04599), algorithm 2, and section 3.3 for other
  norms. The paper has no box; here every step is the shortest one within the box. The prediction is
  checked after the overshoot of every step, not before it. The attack runs until every example of
  the batch is misclassified.

  Args:
    u: LInf, L2 or L1 with a finite box, in which x must lie; its radius may be math.inf.
    num_steps: the maximum number of steps, >= 1; two to five are typical.
    overshoot: past the boundary, as a fraction of the step.
    num_candidates: the number of wrong classes to consider, by their clean logits; each costs a
      gradient per step; None for all.

  Raises:
    InputError: another set, or a number out of range.
  """
  check_support("deepfool", u)
  check_counts(num_steps=num_steps)
  if num_candidates is not None and num_candidates < 1:
    raise InputError(f"num_candidates must be at least 1 or None, but was {num_candidates}.")

  @measured
  def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> AttackResult:
    del keys
    logits_fn, x, rounded = widened(logits_fn, jax.lax.stop_gradient(x))
    lower, upper = bounds_of(u, x)
    clean = jax.lax.stop_gradient(logits_fn(x))
    rivals = rivals_by_rank(clean, y)[:num_candidates]

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
      _, fooled, step_number = carry
      return jnp.any(~fooled) & (step_number < num_steps)

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
      delta, fooled, step_number = carry
      w, gap = closest_hyperplane(u, logits_fn, x + delta, y, rivals)
      shortest = to_hyperplanes(u, w, gap, (lower - delta, upper - delta))
      moved = jnp.clip(delta + (1 + overshoot) * shortest, lower, upper)
      delta = where_examples(fooled, delta, moved)
      return delta, fooled | misclassified(logits_fn, x + delta, y), step_number + 1

    start = (jnp.zeros_like(x), ~losses.correct(clean, y), jnp.zeros((), jnp.int32))
    delta, fooled, _ = jax.lax.while_loop(unfinished, step, start)
    norm = jnp.where(fooled, jax.vmap(u.norm)(delta), jnp.inf)
    return rounded(within(u, Smallest(delta, norm)))

  return attack


def fast_minimum_norm(
  u: Ball,
  num_steps: int = 100,
  step_size: tuple[float, float] = (1.0, 1e-5),
  radius_change: tuple[float, float] = (0.05, 1e-4),
) -> LogitsAttack:
  """The fast minimum-norm attack: ascent in a ball that shrinks on success and grows on failure.

    eps_k   = (|delta|_p + -margin / |grad margin|_q) (1 + gamma_k)   until the prediction changes
            = eps_{k-1} (1 + gamma_k)                                 then, after a failure
            = min(eps_{k-1} (1 - gamma_k), smallest norm so far)      after a success
    delta_k = project onto the ball of radius eps_k of delta_{k-1} + alpha_k g / |g|_2

  alpha_k and gamma_k decrease along half a cosine. Source: Pintor et al. 2021 (arXiv 2102.12827),
  algorithm 1. Differences: the projection is onto the intersection of ball and box, not onto one
  after the other; the first line has the factor 1 + gamma_k, without which a boundary that curves
  away is approached but never crossed.

  Args:
    u: LInf, L2 or L1 with a finite box, in which x must lie; its radius may be math.inf.
    num_steps: >= 1, one gradient each.
    step_size: (first, last) alpha, a Euclidean length in the units of x, for every norm.
    radius_change: (first, last) gamma, fractions of the radius.

  Raises:
    InputError: another set, or a number out of range.
  """
  check_support("fast_minimum_norm", u)
  check_counts(num_steps=num_steps)
  norms, duals = jax.vmap(u.norm), jax.vmap(u.dual_norm)

  @measured
  def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> AttackResult:
    del keys
    logits_fn, x, rounded = widened(logits_fn, jax.lax.stop_gradient(x))
    lower, upper = bounds_of(u, x)

    def total_margin(x: Array) -> tuple[Array, tuple[Array, Array]]:
      logits = logits_fn(x)
      margin = losses.margin(logits, y)
      return jnp.sum(margin), (margin, ~losses.correct(logits, y))

    def step(
      carry: tuple[Array, Array, Smallest], k: Array
    ) -> tuple[tuple[Array, Array, Smallest], None]:
      delta, radius, smallest = carry
      g, (margin, fooled) = jax.lax.stop_gradient(jax.grad(total_margin, has_aux=True)(x + delta))
      smallest = smaller(smallest, delta, norms(delta), fooled)

      gamma, alpha = (_cosine(ends, k / num_steps) for ends in (radius_change, step_size))
      steepness = duals(g)
      away = jnp.where(steepness > 0, -margin / jnp.where(steepness > 0, steepness, 1.0), 0.0)
      estimate = (norms(delta) + jnp.maximum(away, 0.0)) * (1 + gamma)
      larger = jnp.where(smallest.norm < jnp.inf, radius * (1 + gamma), estimate)
      shrunk = jnp.minimum(radius * (1 - gamma), smallest.norm)
      radius = jnp.where(fooled, shrunk, larger)

      moved = delta + L2(alpha).steepest_ascent(g, x)
      moved = dataclasses.replace(u, radius=radius).project(moved, x)
      return (jnp.clip(moved, lower, upper), radius, smallest), None

    start = (
      jnp.zeros_like(x),
      jnp.zeros(x.shape[:1], x.dtype),
      none_yet(x, misclassified(logits_fn, x, y)),
    )
    (delta, _, smallest), _ = jax.lax.scan(step, start, 1.0 + jnp.arange(num_steps, dtype=x.dtype))
    fooled = misclassified(logits_fn, x + delta, y)
    return rounded(within(u, smaller(smallest, delta, norms(delta), fooled)))

  return attack


def _cosine(ends: tuple[float, float], progress: Array) -> Array:
  """From the first end to the last along half a cosine, progress in [0, 1]."""
  first, last = ends
  return last + (first - last) * (1 + jnp.cos(jnp.pi * progress)) / 2
