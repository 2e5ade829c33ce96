"""L-BFGS within an uncertainty set, the second inner solver of Shaham et al. (2015)."""

import jax
import jax.numpy as jnp
import optax

from robust_opt.arrays import where_examples
from robust_opt.maximizers.base import (
  AscentInfo,
  AscentState,
  Candidates,
  InnerMaximizer,
  better,
  per_example,
  scored,
  value_and_input_gradient,
)
from robust_opt.sets.base import UncertaintySet, check_set
from robust_opt.types import Array, ValueFn

# Step lengths of the line search, as fractions of the full step.
STEP_LENGTHS = (1.0, 0.25, 0.0625, 0.015625)


def lbfgs(u: UncertaintySet, memory_size: int = 10) -> InnerMaximizer:
  """Projected L-BFGS within a convex set, with a per-example line search.

    d = H grad, H the limited-memory estimate of -(Hessian)^-1,   s = steepest ascent in U(x)
    delta_{t+1} = the best of  delta_t,  project(delta_t + a d),  delta_t + a (s - delta_t)

  over a in STEP_LENGTHS. The value never decreases, and since the first s at a = 1 is the ascent
  step of Algorithm 1, the result is never below that of Algorithm 1. A step costs one input
  gradient and 2 len(STEP_LENGTHS) forward passes, and needs one value per example.

  The loss need not be concave, so H need not be positive; the direction to s, which always ascends,
  is the safeguard. H keeps memory_size differences of points and gradients. Sources: Shaham et al.
  2015, section 4; Nocedal and Wright (2006), algorithm 7.4 (optax).
  """
  check_set("lbfgs", u)
  estimate = optax.scale_by_lbfgs(memory_size)

  def init(key: Array | None, x: Array) -> AscentState:
    del key
    delta = jnp.zeros_like(x)
    return AscentState(delta, jax.vmap(estimate.init)(delta))

  def step(value_fn: ValueFn, state: AscentState, x: Array) -> tuple[AscentState, AscentInfo]:
    delta = state.delta
    info, grad = value_and_input_gradient(value_fn, x + delta)
    # optax minimizes -value_fn and returns H times its gradient.
    opposite, memory = jax.vmap(estimate.update)(-grad, state.memory, delta)
    toward = u.steepest_ascent(grad, x) - delta

    def value_of(candidate: Array) -> Array:
      return scored(value_fn(x + candidate), x).value

    def search(best: Candidates, length: Array) -> tuple[Candidates, None]:
      quasi_newton = u.project(delta - length * opposite, x)
      steepest = u.project(delta + length * toward, x)  # a no-op except for rounding
      best = better(best, (quasi_newton, value_of(quasi_newton)))
      return better(best, (steepest, value_of(steepest))), None

    here = (delta, per_example(info.value, x))
    (moved, _), _ = jax.lax.scan(search, here, jnp.array(STEP_LENGTHS, x.dtype))
    return AscentState(where_examples(info.zero_gradient, delta, moved), memory), info

  return InnerMaximizer(init, step)
