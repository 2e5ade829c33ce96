"""alpha-CROWN: optimizes the slopes of relaxations for each bound (Xu et al. 2021, 2011.13824).

  tighter = alpha.optimized(bound, graph, bounds, num_steps=20)
  tighter(a)     # an upper bound of <a, logits>, never looser than bound(a)

Every bound has slopes of its own: those of the logits, and those of nodes with few units, each for
its own bound (Xu et al. optimize all of them for the logits). Wider nodes keep the slopes of CROWN.
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

STEP = 0.25  # of Adam at first, in slopes between 0 and 1; a tenth of it in the end


def optimized(bound: Bound, graph: Graph, bounds: AllBounds, num_steps: int) -> Bound:
  """The smallest bound along `num_steps` steps of Adam on its slopes, projected onto [0, 1]."""
  optimizer = optax.adam(optax.exponential_decay(STEP, num_steps, 0.1))

  def of(a: Array) -> Estimate:
    def loss(slopes: Slopes) -> tuple[Array, Estimate]:
      found = bound(a, slopes=slopes)
      return found.value + found.slack, found

    def step(carry: Any, _: None) -> tuple[Any, None]:
      slopes, state, best = carry
      gradient, found = jax.grad(loss, has_aux=True)(slopes)
      updates, state = optimizer.update(gradient, state)
      moved = jax.tree.map(lambda s: jnp.clip(s, 0.0, 1.0), optax.apply_updates(slopes, updates))
      return (moved, state, smaller(best, found)), None

    slopes = _adaptive(graph, bounds)
    start = slopes, optimizer.init(slopes), bound(a)
    (slopes, _, best), _ = jax.lax.scan(step, start, None, num_steps)
    return smaller(best, bound(a, slopes=slopes))

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
