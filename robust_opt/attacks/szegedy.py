"""The first attack on deep nets: box-constrained L-BFGS (Szegedy et al. 2014).

delta, fooled = szegedy(ro.L2(math.inf, box=(0.0, 1.0)))(keys, logits_fn, x, y, targets)
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.arrays import where_examples
from robust_opt.attacks.hyperplanes import (
  Smallest,
  bounds_of,
  check_counts,
  none_yet,
  rivals_by_rank,
  smaller,
  within,
)
from robust_opt.attacks.precision import widened
from robust_opt.attacks.support import check_support
from robust_opt.attacks.types import AttackResult
from robust_opt.errors import InputError
from robust_opt.precision import measured
from robust_opt.sets import L2, projections
from robust_opt.types import Array, LogitsFn


class TargetedAttack(Protocol):
  """A LogitsAttack that takes the classes to be predicted instead, [B], as a last argument."""

  def __call__(
    self, keys: Array, logits_fn: LogitsFn, x: Array, y: Array, targets: Array | None = None
  ) -> AttackResult:
    """targets: None for the wrong class of the largest clean logit."""
    ...


def szegedy(
  u: L2,
  num_steps: int = 30,
  num_constants: int = 10,
  first_constant: float = 1.0,
  memory_size: int = 8,
  num_halvings: int = 12,
) -> TargetedAttack:
  """Box-constrained L-BFGS toward a target class, for the smallest perturbation in l_2.

    minimize over delta   c |delta|_2^2 + cross_entropy(logits(x + delta), target)
    subject to            x + delta in the box

  for num_constants values of c: ten times larger after a success and ten times smaller after a
  failure, then bisection, on a logarithmic scale, between the largest c that succeeded and the
  smallest that failed. The result is the smallest perturbation, over all iterates, for which the
  target is predicted. Source: Szegedy et al. 2014 (arXiv 1312.6199), section 4.1, which uses
  the perturbation at the extreme c that still succeeds, and writes c |r|.

  The box is enforced by projection (Bertsekas 1982, "Projected Newton methods"): pixels at a bound
  that the gradient pushes against are excluded from the quasi-Newton direction, and the line search
  (halving from 1, Armijo) follows the direction clipped to the box. The usual change of variables
  by a sigmoid has gradient 0 at pixels of exactly 0 or 1, which is most of a digit. The two-loop
  recursion is written out instead of taken from optax, since it must be applied to the gradient of
  the free pixels but learn from the whole gradient, and skip pairs of negative curvature.

  Args:
    u: L2 with a finite box, in which x must lie; its radius may be math.inf.
    num_steps: L-BFGS iterations for each c, >= 1; one gradient and a few forward passes each.
    num_constants: the number of values of c, >= 1.
    first_constant: the first c, in units of the loss per squared pixel distance.
    memory_size: the number of pairs that L-BFGS keeps, >= 1.
    num_halvings: the maximum number of halvings of the step length.

  Raises:
    InputError: another set, or a number out of range.
  """
  check_support("szegedy", u)
  check_counts(num_steps=num_steps, num_constants=num_constants, memory_size=memory_size)
  if not 0 < first_constant < math.inf:
    raise InputError(f"first_constant must be positive and finite, but was {first_constant}.")
  norms = jax.vmap(u.norm)

  @measured
  def attack(
    keys: Array, logits_fn: LogitsFn, x: Array, y: Array, targets: Array | None = None
  ) -> AttackResult:
    del keys
    logits_fn, x, rounded = widened(logits_fn, jax.lax.stop_gradient(x))
    bounds = bounds_of(u, x)
    clean = jax.lax.stop_gradient(logits_fn(x))
    targets = rivals_by_rank(clean, y)[0] if targets is None else targets

    def is_target(logits: Array) -> Array:
      return (jnp.argmax(logits, axis=-1) == targets) & ~losses.correct(logits, y)

    def minimize(constant: Array, smallest: Smallest) -> tuple[Array, Smallest]:
      def objective(delta: Array) -> tuple[Array, Array]:
        logits = logits_fn(x + delta)
        squares = jnp.sum(delta**2, axis=range(1, delta.ndim))
        return constant * squares + losses.cross_entropy(logits, targets), logits

      def step(carry: tuple[_Descent, Smallest], _: None) -> tuple[tuple[_Descent, Smallest], None]:
        descent, smallest = carry
        descent, logits = _lbfgs_step(objective, descent, bounds, num_halvings)
        delta = descent.previous_delta  # where the logits were computed
        return (descent, smaller(smallest, delta, norms(delta), is_target(logits))), None

      start = _start_descent(x, memory_size)
      (descent, smallest), _ = jax.lax.scan(step, (start, smallest), length=num_steps)
      hit = is_target(jax.lax.stop_gradient(logits_fn(x + descent.delta)))
      return hit, smaller(smallest, descent.delta, norms(descent.delta), hit)

    def try_constant(
      carry: tuple[Array, Array, Array, Smallest], _: None
    ) -> tuple[tuple[Array, Array, Array, Smallest], None]:
      constant, succeeded, failed, smallest = carry
      hit, smallest = minimize(constant, smallest)
      succeeded = jnp.where(hit, constant, succeeded)
      failed = jnp.where(hit, failed, constant)
      between = jnp.sqrt(succeeded) * jnp.sqrt(failed)
      wider = jnp.where(hit, 10.0 * constant, constant / 10.0)
      constant = jnp.where((succeeded > 0) & (failed < jnp.inf), between, wider)
      return (constant, succeeded, failed, smallest), None

    ones = jnp.ones(x.shape[:1], x.dtype)
    start = none_yet(x, ~losses.correct(clean, y))
    carry = (first_constant * ones, 0.0 * ones, jnp.inf * ones, start)
    (*_, smallest), _ = jax.lax.scan(try_constant, carry, length=num_constants)
    return rounded(within(u, smallest))

  return attack


class _Memory(NamedTuple):
  """The pairs of L-BFGS, newest first; an absent pair has inverse_curvature 0.

  Attributes:
    steps, changes: [B, m, *S], of delta and of the gradient.
    inverse_curvature: [B, m], 1 / <step, change>.
  """

  steps: Array
  changes: Array
  inverse_curvature: Array


class _Descent(NamedTuple):
  """The current and the previous point of a descent; all [B, *S] but the memory."""

  delta: Array
  previous_delta: Array
  previous_grad: Array
  memory: _Memory


def _start_descent(x: Array, memory_size: int) -> _Descent:
  zero = jnp.zeros_like(x)
  pairs = jnp.zeros((x.shape[0], memory_size, *x.shape[1:]), x.dtype)
  memory = _Memory(pairs, pairs, jnp.zeros(pairs.shape[:2], x.dtype))
  return _Descent(zero, zero, zero, memory)


def _lbfgs_step(
  objective: Callable[[Array], tuple[Array, Array]],
  descent: _Descent,
  bounds: projections.Bounds,
  num_halvings: int,
) -> tuple[_Descent, Array]:
  """One projected L-BFGS step: objective(delta [B, *S]) -> (value [B], logits [B, C]).

  Returns the new state and the logits at the old point. Where the line search fails, the example
  stays where it is and its pairs are dropped.
  """
  lower, upper = bounds

  def total(delta: Array) -> tuple[Array, tuple[Array, Array]]:
    value, logits = objective(delta)
    return jnp.sum(value), (value, logits)

  delta = descent.delta
  g, (value, logits) = jax.lax.stop_gradient(jax.grad(total, has_aux=True)(delta))
  # Before the first step the pair is (0, g), which has no curvature and is not remembered.
  memory = jax.vmap(_remember)(
    descent.memory, delta - descent.previous_delta, g - descent.previous_grad
  )
  pinned = ((delta <= lower) & (g > 0)) | ((delta >= upper) & (g < 0))
  free_g = jnp.where(pinned, 0.0, g)
  direction = jnp.where(pinned, 0.0, -jax.vmap(_times_inverse_hessian)(free_g, memory))

  def searching(carry: tuple[Array, Array, Array, Array]) -> Array:
    _, accepted, _, num_done = carry
    return jnp.any(~accepted) & (num_done <= num_halvings)

  def halve(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
    length, accepted, reached, num_done = carry
    tried = jnp.clip(delta + length * direction, lower, upper)
    predicted_change = jnp.sum(free_g * (tried - delta), axis=range(1, delta.ndim))
    tried_value = jax.lax.stop_gradient(objective(tried)[0])
    accept = ~accepted & (tried_value <= value + 1e-4 * predicted_change)
    reached = where_examples(accept, tried, reached)
    return length / 2, accepted | accept, reached, num_done + 1

  start = (jnp.ones((), delta.dtype), jnp.zeros(delta.shape[0], bool), delta, jnp.int32(0))
  _, accepted, reached, _ = jax.lax.while_loop(searching, halve, start)
  kept = memory._replace(
    inverse_curvature=jnp.where(accepted[:, None], memory.inverse_curvature, 0.0)
  )
  return _Descent(reached, delta, g, kept), logits


def _remember(memory: _Memory, step: Array, change: Array) -> _Memory:
  """Adds a pair of one example if its curvature is positive, which keeps the matrix definite."""
  curvature = jnp.sum(step * change)
  sound = curvature > 1e-6 * projections.l2_norm(step) * projections.l2_norm(change)
  inverse = 1.0 / jnp.where(sound, curvature, 1.0)
  newest = _Memory(step, change, inverse)
  return jax.tree.map(
    lambda old, new: jnp.where(sound, jnp.roll(old, 1, axis=0).at[0].set(new), old), memory, newest
  )


def _times_inverse_hessian(g: Array, memory: _Memory) -> Array:
  """The L-BFGS inverse Hessian times g, one example (Nocedal and Wright 2006, algorithm 7.4)."""

  def newest_to_oldest(q: Array, pair: _Memory) -> tuple[Array, Array]:
    a = pair.inverse_curvature * jnp.sum(pair.steps * q)
    return q - a * pair.changes, a

  def oldest_to_newest(r: Array, pair_and_a: tuple[_Memory, Array]) -> tuple[Array, None]:
    pair, a = pair_and_a
    b = pair.inverse_curvature * jnp.sum(pair.changes * r)
    return r + (a - b) * pair.steps, None

  q, a = jax.lax.scan(newest_to_oldest, g, memory)
  newest = jax.tree.map(lambda pairs: pairs[0], memory)
  exists = newest.inverse_curvature > 0
  square = newest.inverse_curvature * jnp.sum(newest.changes**2)
  # With an empty memory, a step of Euclidean length at most 1.
  first = 1.0 / jnp.maximum(1.0, projections.l2_norm(g))
  scale = jnp.where(exists, 1.0 / jnp.where(exists, square, 1.0), first)
  r, _ = jax.lax.scan(oldest_to_newest, scale * q, (memory, a), reverse=True)
  return r
