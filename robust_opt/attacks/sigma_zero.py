"""sigma-zero, a minimal-norm attack that changes few entries.

  few = ro.sets.L0(x[0].size, box=(0.0, 1.0))             # any number of entries, within the box
  delta, fooled = sigma_zero(few)(keys, logits_fn, x, y)  # keys [B], x [B, *S], y [B]
  counts = jax.vmap(few.norm)(delta[fooled])

Results, precision and edge cases are those of minimal.py.
"""

import jax
import jax.numpy as jnp
import optax

from robust_opt import losses
from robust_opt.arrays import expand_like
from robust_opt.attacks.hyperplanes import (
  Smallest,
  bounds_of,
  check_counts,
  cosine,
  first_smallest,
  gradient,
  misclassified,
  smaller,
  within,
)
from robust_opt.attacks.precision import widened
from robust_opt.attacks.support import check_support
from robust_opt.attacks.types import AttackResult, MinimalAttack
from robust_opt.errors import InputError
from robust_opt.precision import measured
from robust_opt.sets import L0, projections
from robust_opt.types import Array, LogitsFn


def sigma_zero(
  u: L0,
  num_steps: int = 1000,
  step_size: tuple[float, float] = (1.0, 0.1),
  sigma: float = 1e-3,
  first_threshold: float = 0.3,
  threshold_change: float = 0.01,
) -> MinimalAttack:
  """Adam on the margin and a smooth count of the entries; small entries are set to 0.

    minimize over delta   max(-margin(x + delta), 0) + mean over entries of
                          delta_j^2 / (delta_j^2 + sigma)

  The gradient is divided by its largest entry. After every step entries below a threshold become 0;
  the threshold rises by threshold_change * step size after a success and falls as much after a
  failure. The step size decreases along half a cosine. Source: Cina et al. 2025 (arXiv 2402.01879),
  algorithm 1.

  Args:
    u: L0 with a finite box, in which x must lie.
    num_steps: >= 1, one gradient each.
    step_size: (first, last), of Adam, in the units of x.
    sigma: of the smooth count, > 0; smaller is sharper.
    first_threshold: in the units of x.
    threshold_change: in the units of x, for a step size of 1.

  Raises:
    InputError: another set, or a number out of range.
  """
  check_support("sigma_zero", u)
  check_counts(num_steps=num_steps)
  if not sigma > 0:
    raise InputError(f"sigma must be > 0, but was {sigma}.")
  norms, moments = jax.vmap(u.norm), optax.scale_by_adam()

  def too_low(logits: Array, y: Array) -> Array:
    return jnp.maximum(-losses.margin(logits, y), 0.0)

  @measured
  def attack(
    keys: Array, logits_fn: LogitsFn, x: Array, y: Array, start: Array | None = None
  ) -> AttackResult:
    del keys
    logits_fn, x, rounded = widened(logits_fn, jax.lax.stop_gradient(x))
    bounds = bounds_of(u, x)

    def step(
      carry: tuple[Array, optax.OptState, Array, Smallest], k: Array
    ) -> tuple[tuple[Array, optax.OptState, Array, Smallest], None]:
      delta, adam, threshold, smallest = carry
      g, _, fooled = gradient(too_low, logits_fn, x + delta, y)
      smallest = smaller(smallest, delta, norms(delta), fooled)
      g = g + 2 * sigma * delta / (delta**2 + sigma) ** 2 / delta[0].size
      change, adam = moments.update(jax.vmap(projections.over_largest)(g), adam)
      size = cosine(step_size, k / num_steps)
      delta = jnp.clip(delta - size * change, *bounds)
      threshold = threshold + threshold_change * size * jnp.where(fooled, 1.0, -1.0)
      threshold = jnp.clip(threshold, 0.0, 1.0)
      delta = jnp.where(jnp.abs(delta) < expand_like(threshold, x), 0.0, delta)
      return (delta, adam, threshold, smallest), None

    smallest = first_smallest(u, logits_fn, x, y, start)
    delta = smallest.delta
    threshold = jnp.full(x.shape[:1], first_threshold, x.dtype)
    carry = (delta, moments.init(delta), threshold, smallest)
    carry, _ = jax.lax.scan(step, carry, jnp.arange(num_steps, dtype=x.dtype))
    delta, _, _, smallest = carry
    fooled = misclassified(logits_fn, x + delta, y)
    return rounded(within(u, smaller(smallest, delta, norms(delta), fooled)))

  return attack
