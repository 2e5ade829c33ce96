"""Adversarial training compared with l_1 weight decay, on logistic regression.

  path = logistic_path(x, y, jnp.array([0.0, 0.1, 0.25]), "adversary")
  path.w, path.pull                                        # [3, n], [3]

Over the l_inf ball the exact worst case of the logistic loss is softplus(eps |w|_1 - y (w'x + b)):
the norm enters inside the loss, whereas weight decay adds it outside. So the penalty of the
adversary vanishes for examples with a large margin, and that of weight decay does not. Source:
Goodfellow, Shlens and Szegedy 2015 (arXiv 1412.6572), section 5.
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

  The pull is the derivative of the objective in |w|_1: the strength times the mean weight of the
  examples in the gradient. For decay it is the strength itself.
  """

  w: Array  # [R, n]
  b: Array  # [R]
  value: Array  # [R], of the objective
  pull: Array  # [R]


def objective(w: Array, b: Array, x: Array, y: Array, strength: Array, kind: str) -> Array:
  """The mean worst-case logistic loss, or the mean clean loss plus the penalty, [].

    adversary:  mean softplus(strength |w|_1 - y (w'x + b))
    decay:      mean softplus(-y (w'x + b)) + strength |w|_1

  w, b, x and y are as for counterparts.margin_loss; the strength [] is in the units of x.
  """
  if kind not in KINDS:
    raise InputError(f"kind must be one of {', '.join(KINDS)}, but was {kind!r}.")
  inside = strength if kind == "adversary" else 0.0
  loss = jnp.mean(counterparts.margin_loss(w, b, x, y, LInf(inside)))
  return loss if kind == "adversary" else loss + strength * jnp.sum(jnp.abs(w))


@jax.default_matmul_precision("highest")
def logistic_path(
  x: Array, y: Array, strengths: Array, kind: str, num_steps: int = 1000
) -> LogisticPath:
  """Minimizes the objective for all strengths [R] >= 0 at once, by full-batch Adam from 0.

  The learning rate falls to 0, since the minimum may be at a kink. There is no certificate;
  `solve.margin` has one, for small data.
  """
  optimizer = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
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
  """The exact fraction of examples that are misclassified somewhere in the l_inf ball, [R]."""
  margins = y * (path.w @ x.T + path.b[:, None])
  reach = radius * jnp.sum(jnp.abs(path.w), axis=1, keepdims=True)
  return jnp.mean(margins - reach <= 0, axis=1)
