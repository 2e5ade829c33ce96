"""An adversary against l_1 weight decay, on logistic regression: where each of them switches off.

  found = logistic_path(x, y, jnp.array([0.0, 0.1, 0.25]), "adversary")
  found.w, found.pull                                      # [3, n], [3]

Over the l_inf ball the exact worst case of the logistic loss is softplus(eps |w|_1 - y (w'x + b)):
the norm enters within the loss, where weight decay adds it outside. So the adversary lets go of an
example once its margin is won, and decay never lets go. Source: Goodfellow, Shlens and Szegedy 2015
(arXiv 1412.6572), section 5.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from robust_opt.errors import InputError
from robust_opt.sets import LInf
from robust_opt.theory.linear import counterparts
from robust_opt.types import Array

KINDS = ("adversary", "decay")


class LogisticPath(NamedTuple):
  """Solutions for R strengths.

  Attributes:
    w: [R, n].
    b: [R].
    value: [R], of the objective.
    pull: [R], derivative of the objective in |w|_1: the strength times the mean weight that the
      examples still have. Of decay it is the strength itself.
  """

  w: Array
  b: Array
  value: Array
  pull: Array


def objective(w: Array, b: Array, x: Array, y: Array, strength: Array, kind: str) -> Array:
  """Mean of the logistic loss at its worst case, or that of the clean loss plus the penalty; [].

    adversary:  mean softplus(strength |w|_1 - y (w'x + b))
    decay:      mean softplus(-y (w'x + b)) + strength |w|_1

  Args:
    w: [n].
    b: [].
    x: [N, n].
    y: [N], -1 or 1.
    strength: [], of the adversary the radius of the l_inf ball, in the units of x.
    kind: of KINDS.

  Raises:
    InputError: of another kind, a negative strength, or labels other than -1 and 1.
  """
  if kind not in KINDS:
    raise InputError(f"kind must be one of {', '.join(KINDS)}, but was {kind!r}.")
  inside = strength if kind == "adversary" else 0.0
  loss = jnp.mean(counterparts.margin_loss(w, b, x, y, LInf(inside)))
  return loss if kind == "adversary" else loss + strength * jnp.sum(jnp.abs(w))


@jax.default_matmul_precision("highest")
def logistic_path(
  x: Array,
  y: Array,
  strengths: Array,
  kind: str,
  num_steps: int = 1000,
  learning_rate: float = 0.05,
) -> LogisticPath:
  """Minimises the objective for every strength at once, by Adam on the whole data from 0 on.

  The rate falls to 0, as a minimum with kinks needs it; no certificate (`solve.margin` has one, for
  small data).

  Args:
    x: [N, n].
    y: [N], -1 or 1.
    strengths: [R], >= 0.
    kind: of KINDS.
    num_steps: gradients.
    learning_rate: of the first.
  """
  optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
  x, y = jnp.asarray(x), jnp.asarray(y, jnp.asarray(x).dtype)

  def solve(strength: Array) -> LogisticPath:
    def loss(params: tuple[Array, Array]) -> Array:
      return objective(*params, x, y, strength, kind)

    def body(carry: tuple, _: None) -> tuple[tuple, None]:
      params, state = carry
      updates, state = optimizer.update(jax.grad(loss)(params), state)
      return (optax.apply_updates(params, updates), state), None

    start = (jnp.zeros(x.shape[1], x.dtype), jnp.zeros((), x.dtype))
    ((w, b), _), _ = jax.lax.scan(body, (start, optimizer.init(start)), length=num_steps)
    margins = y * (x @ w + b) - strength * jnp.sum(jnp.abs(w))
    weights = jax.nn.sigmoid(-margins) if kind == "adversary" else jnp.ones_like(margins)
    return LogisticPath(w, b, loss((w, b)), strength * jnp.mean(weights))

  return jax.jit(jax.vmap(solve))(jnp.asarray(strengths, x.dtype))


@jax.default_matmul_precision("highest")
def errors(path: LogisticPath, x: Array, y: Array, radius: Array | float) -> Array:
  """Share of examples misclassified within the l_inf ball of that radius, exactly: [R].

  Args:
    path: from logistic_path.
    x: [N, n].
    y: [N], -1 or 1.
    radius: [], 0 for the clean examples.
  """
  margins = y * (path.w @ x.T + path.b[:, None])
  reach = radius * jnp.sum(jnp.abs(path.w), axis=1, keepdims=True)
  return jnp.mean(margins - reach <= 0, axis=1)
