"""Minimal-norm attacks: the smallest perturbation in a ball that changes the prediction.

  everywhere = ro.L2(math.inf, box=(0.0, 1.0))            # any size, within the box
  delta, fooled = deepfool(everywhere)(keys, logits_fn, x, y)  # keys [B], x [B, *S], y [B]
  norms = jax.vmap(everywhere.norm)(delta[fooled])         # compare these, not accuracies

DeepFool, DDN and fast minimum-norm; penalized.py has Carlini-Wagner and PDPGD, sigma_zero.py the
attack of that name, szegedy.py the box-constrained L-BFGS of Szegedy et al., fab.py the fast
adaptive boundary attack. `ro.minimal` runs several of them within one budget. Products are in full
float32 on every backend, unless jax.default_matmul_precision is set, as distances depend on them.
Examples do not interact. Nothing here is random: keys are ignored and only part of the common
signature. All but DeepFool take a perturbation to start from (`start=`, [B, *S]).

|  input                                  |  result                                        |
|  misclassified clean example            |  delta 0, fooled                               |
|  gradient 0 at every point tried        |  delta 0, not fooled, no NaN                   |
|  NaN or infinite logits                 |  count as misclassified, as in losses.correct  |
|  smallest delta longer than the radius  |  delta 0, not fooled                           |
"""

import functools

import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.arrays import where_examples
from robust_opt.attacks.hyperplanes import (
  Smallest,
  bounds_of,
  check_counts,
  closest_hyperplane,
  cosine,
  first_smallest,
  gradient,
  misclassified,
  of_size,
  rivals_by_rank,
  smaller,
  to_hyperplanes,
  within,
)
from robust_opt.attacks.precision import widened
from robust_opt.attacks.support import check_support
from robust_opt.attacks.types import AttackResult, LogitsAttack, MinimalAttack
from robust_opt.errors import InputError
from robust_opt.precision import measured
from robust_opt.sets import L0, L2, Ball
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


def ddn(
  u: L2,
  num_steps: int = 100,
  first_radius: float = 1.0,
  radius_change: float = 0.05,
  step_size: tuple[float, float] = (1.0, 0.01),
) -> MinimalAttack:
  """Decoupled direction and norm: ascent of the cross-entropy on a sphere whose radius follows.

    eps_k   = eps_{k-1} (1 - gamma) after a success, eps_{k-1} (1 + gamma) after a failure
    delta_k = the point of length eps_k along delta_{k-1} + alpha_k g / |g|_2

  alpha_k decreases along half a cosine. Source: Rony et al. 2019 (arXiv 1811.09600), algorithm 1.
  Differences: delta_k is the furthest point of ball and box, not one that the box shortens; pixels
  are not rounded to 256 levels.

  Args:
    u: L2 with a finite box, in which x must lie; its radius may be math.inf.
    num_steps: >= 1, one gradient each.
    first_radius: eps_0, where there is nothing to start from.
    radius_change: gamma, in (0, 1).
    step_size: (first, last) alpha, in the units of x.

  Raises:
    InputError: another set, or a number out of range.
  """
  check_support("ddn", u)
  check_counts(num_steps=num_steps)
  if not 0 < radius_change < 1:
    raise InputError(f"radius_change must be in (0, 1), but was {radius_change}.")
  norms = jax.vmap(u.norm)

  @measured
  def attack(
    keys: Array, logits_fn: LogitsFn, x: Array, y: Array, start: Array | None = None
  ) -> AttackResult:
    del keys
    logits_fn, x, rounded = widened(logits_fn, jax.lax.stop_gradient(x))
    bounds = bounds_of(u, x)

    def step(
      carry: tuple[Array, Array, Smallest], k: Array
    ) -> tuple[tuple[Array, Array, Smallest], None]:
      delta, radius, smallest = carry
      g, _, fooled = gradient(losses.cross_entropy, logits_fn, x + delta, y)
      smallest = smaller(smallest, delta, norms(delta), fooled)
      radius = radius * jnp.where(fooled, 1 - radius_change, 1 + radius_change)
      moved = delta + L2(cosine(step_size, k / num_steps)).steepest_ascent(g, x)
      delta = jnp.clip(of_size(u, radius).steepest_ascent(moved, x), *bounds)
      return (delta, radius, smallest), None

    smallest = first_smallest(u, logits_fn, x, y, start)
    length = norms(smallest.delta)
    carry = (smallest.delta, jnp.where(length > 0, length, first_radius), smallest)
    carry, _ = jax.lax.scan(step, carry, jnp.arange(num_steps, dtype=x.dtype))
    delta, _, smallest = carry
    fooled = misclassified(logits_fn, x + delta, y)
    return rounded(within(u, smaller(smallest, delta, norms(delta), fooled)))

  return attack


def fast_minimum_norm(
  u: Ball | L0,
  num_steps: int = 100,
  step_size: tuple[float, float] = (1.0, 1e-5),
  radius_change: tuple[float, float] = (0.05, 1e-4),
) -> MinimalAttack:
  """The fast minimum-norm attack: ascent in a ball that shrinks on success and grows on failure.

    eps_k   = (|delta|_p + -margin / |grad margin|_q) (1 + gamma_k)   until the prediction changes
            = eps_{k-1} (1 + gamma_k)                                 then, after a failure
            = min(eps_{k-1} (1 - gamma_k), smallest norm so far)      after a success
    delta_k = project onto the ball of radius eps_k of delta_{k-1} + alpha_k g / |g|_2

  alpha_k and gamma_k decrease along half a cosine. Over l_0, eps_0 is 1, there is no first case,
  and eps changes by at least one entry. Source: Pintor et al. 2021 (arXiv 2102.12827), algorithm 1.
  Differences: the projection is onto the intersection of ball and box, not onto one after the
  other; the first line has the factor 1 + gamma_k, without which a boundary that curves away is
  approached but never crossed.

  Args:
    u: LInf, L2, L1 or L0 with a finite box, in which x must lie; its radius may be math.inf.
    num_steps: >= 1, one gradient each.
    step_size: (first, last) alpha, a Euclidean length in the units of x, for every norm.
    radius_change: (first, last) gamma, fractions of the radius.

  Raises:
    InputError: another set, or a number out of range.
  """
  check_support("fast_minimum_norm", u)
  check_counts(num_steps=num_steps)
  norms = jax.vmap(u.norm)
  next_radius = _next_count if isinstance(u, L0) else functools.partial(_next_radius, u)

  @measured
  def attack(
    keys: Array, logits_fn: LogitsFn, x: Array, y: Array, start: Array | None = None
  ) -> AttackResult:
    del keys
    logits_fn, x, rounded = widened(logits_fn, jax.lax.stop_gradient(x))
    bounds = bounds_of(u, x)

    def step(
      carry: tuple[Array, Array, Smallest], k: Array
    ) -> tuple[tuple[Array, Array, Smallest], None]:
      delta, radius, smallest = carry
      g, margin, fooled = gradient(losses.margin, logits_fn, x + delta, y)
      smallest = smaller(smallest, delta, norms(delta), fooled)
      gamma, alpha = (cosine(ends, k / num_steps) for ends in (radius_change, step_size))
      radius = next_radius(radius, gamma, delta, g, margin, fooled, smallest.norm)
      moved = of_size(u, radius).project(delta + L2(alpha).steepest_ascent(g, x), x)
      return (jnp.clip(moved, *bounds), radius, smallest), None

    smallest = first_smallest(u, logits_fn, x, y, start)
    length = norms(smallest.delta)
    radius = jnp.maximum(length, 1.0) if isinstance(u, L0) else length
    steps = 1.0 + jnp.arange(num_steps, dtype=x.dtype)
    (delta, _, smallest), _ = jax.lax.scan(step, (smallest.delta, radius, smallest), steps)
    fooled = misclassified(logits_fn, x + delta, y)
    return rounded(within(u, smaller(smallest, delta, norms(delta), fooled)))

  return attack


def _next_radius(
  u: Ball,
  radius: Array,
  gamma: Array,
  delta: Array,
  g: Array,
  margin: Array,
  fooled: Array,
  smallest: Array,
) -> Array:
  """eps_k of `fast_minimum_norm`, [B]; g is the gradient of the margin, smallest the best norm."""
  steepness = jax.vmap(u.dual_norm)(g)
  away = jnp.where(steepness > 0, -margin / jnp.where(steepness > 0, steepness, 1.0), 0.0)
  estimate = (jax.vmap(u.norm)(delta) + jnp.maximum(away, 0.0)) * (1 + gamma)
  larger = jnp.where(smallest < jnp.inf, radius * (1 + gamma), estimate)
  return jnp.where(fooled, jnp.minimum(radius * (1 - gamma), smallest), larger)


def _next_count(
  count: Array,
  gamma: Array,
  delta: Array,
  g: Array,
  margin: Array,
  fooled: Array,
  smallest: Array,
) -> Array:
  """eps_k over l_0, whole numbers [B]."""
  del g, margin
  larger = jnp.maximum(count + 1, jnp.floor(count * (1 + gamma)))
  fewer = jnp.minimum(count - 1, jnp.floor(count * (1 - gamma)))
  most = delta[0].size
  return jnp.clip(jnp.where(fooled, jnp.minimum(fewer, smallest), larger), 0, most)
