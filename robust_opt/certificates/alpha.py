"""alpha-CROWN: optimizes the slopes of relaxations for each bound (Xu et al. 2021, 2011.13824).

  tighter = alpha.optimized(bound, graph, bounds, num_steps=20)
  tighter(a)     # an upper bound of <a, logits>, that of CROWN or tighter but for rounding

Every bound has slopes of its own: those of the logits, and those of the units in hidden layers that
`propagation.forward` chooses, each for its own bound (Xu et al. optimize all of them for the
logits).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from robust_opt.certificates.graph import Graph
from robust_opt.certificates.operations import Piecewise
from robust_opt.certificates.propagation import AllBounds, Bound, Slopes
from robust_opt.certificates.rounding import Estimate
from robust_opt.types import Array

STEP, DECAY = 0.5, 0.9  # of Adam, in slopes between 0 and 1; from step to step


def optimized(bound: Bound, graph: Graph, bounds: AllBounds, num_steps: int) -> Bound:
  """The smallest bound along `num_steps` steps of Adam on its slopes, projected onto [0, 1]."""
  optimizer = optax.adam(optax.exponential_decay(STEP, 1, DECAY))

  def of(a: Array) -> Estimate:
    def value(slopes: Slopes) -> Array:
      return bound(a, slopes=slopes).value

    def step(carry: Any, _: None) -> tuple[Any, None]:
      slopes, state, best, least = carry
      current, gradient = jax.value_and_grad(value)(slopes)
      best = jax.tree.map(lambda s, b: jnp.where(current < least, s, b), slopes, best)
      updates, state = optimizer.update(gradient, state)
      slopes = jax.tree.map(lambda s, d: jnp.clip(s + d, 0.0, 1.0), slopes, updates)
      return (slopes, state, best, jnp.minimum(current, least)), None

    slopes = _adaptive(graph, bounds)
    if not slopes:
      return bound(a)
    start = slopes, optimizer.init(slopes), slopes, jnp.full_like(a, jnp.inf, shape=())
    (_, _, best, _), _ = jax.lax.scan(step, start, None, num_steps + 1)
    return bound(a, slopes=best)

  return of


def smaller(first: Estimate, second: Estimate) -> Estimate:
  """The smaller of two upper bounds."""
  is_first = ~(first.value + first.slack > second.value + second.slack)
  return jax.tree.map(lambda a, b: jnp.where(is_first, a, b), first, second)


def _adaptive(graph: Graph, bounds: AllBounds) -> Slopes:
  """The slopes of CROWN, of every relaxation that has some and lies before what is bounded."""
  return {
    index: Piecewise.adaptive(*bounds[node.inputs[0]].linear)
    for index, node in graph.nodes.items()
    if isinstance(node.operation, Piecewise) and index in bounds
  }
