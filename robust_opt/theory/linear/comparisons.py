"""Comparisons: robust least squares with the lasso, Algorithm 1 with its certified optimum.

both = paths(x, y, np.geomspace(0.01, 1.0, 12))               # both.robust == both.lasso
run = algorithm1_gap(x, y, ro.LInf(0.1), jax.random.key(0))   # run.gap [epochs + 1] falls to 0
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import maximizers
from robust_opt.errors import InputError
from robust_opt.sets import Ball
from robust_opt.theory.linear import counterparts, solve
from robust_opt.types import Array

_Pair = tuple[Array, Array]


class Paths(NamedTuple):
  """Coefficients of two problems with the same solutions."""

  radii: np.ndarray  # [R], of the noise on each column
  strengths: np.ndarray  # [R], lambda = r |Xw + b - y|_2 at the robust solution of each radius
  robust: np.ndarray  # [R, n], of robust least squares with column-wise noise
  lasso: np.ndarray  # [R, n], of the lasso of each strength
  gap: float  # the largest relative duality gap


class Algorithm1Run(NamedTuple):
  """Convergence of Algorithm 1 to the certified optimum.

  The gap [epochs + 1] is the exact robust objective before the first and after every epoch, minus
  the certified lower bound of its minimum.
  """

  gap: np.ndarray
  optimum: solve.Solution  # of the solver
  w: np.ndarray  # [n], the final weights
  b: float  # the final intercept


def paths(x: np.ndarray, y: np.ndarray, radii: np.ndarray) -> Paths:
  """Robust least squares for every radius, and the lasso of the corresponding strength.

  Column-wise noise of radius r has the optimality condition X'e / |e|_2 + r g = 0 with
  e = Xw + b - y and g a subgradient of |w|_1: that of the lasso with lambda = r |e|_2 (Xu,
  Caramanis and Mannor 2010). The radii [R] are > 0, and small enough that the residual is not 0.
  """
  x, y = np.asarray(x, float), np.asarray(y, float)
  robust = [solve.least_squares(x, y, "columns", float(r)) for r in radii]
  strengths = np.array([r * np.linalg.norm(x @ s.w + s.b - y) for r, s in zip(radii, robust)])
  lasso = [solve.lasso(x, y, float(strength)) for strength in strengths]
  robust_w, lasso_w = (np.stack([s.w for s in solutions]) for solutions in (robust, lasso))
  gap = max(s.gap / s.value for s in robust + lasso)
  return Paths(np.asarray(radii), strengths, robust_w, lasso_w, gap)


def algorithm1_loss(w: Array, b: Array, x: Array, y: Array) -> Array:
  """The plain logistic loss [N] of a linear score, for `robustify`; y is -1 or 1."""
  return counterparts.logistic(y * (x @ w + b))


def algorithm1_gap(
  x: np.ndarray,
  y: np.ndarray,
  u: Ball,
  key: Array,
  num_epochs: int = 200,
  batch_size: int = 8,
  learning_rate: float = 0.5,
) -> Algorithm1Run:
  """Algorithm 1 on robust logistic regression: its objective minus the certified optimum.

  Every update takes one steepest ascent step to the edge of the ball and one descent step in w, b
  at the perturbed batch (Shaham et al. 2015, algorithm 1). For a linear score the ascent is exact,
  so this is stochastic subgradient descent on the exact robust counterpart. It starts at 0, and the
  learning rate falls linearly to 0, as a nonsmooth objective needs. x, y and u are as for
  `solve.margin`. The key shuffles; the incomplete last batch of an epoch is dropped.
  """
  if not 1 <= batch_size <= len(y):
    raise InputError(f"batch_size must be from 1 to {len(y)}, but was {batch_size}.")
  x, y = np.asarray(x, float), np.asarray(y, float)
  optimum = solve.margin(x, y, u)
  inputs, labels = jnp.asarray(x, float), jnp.asarray(y, float)
  attack = maximizers.steepest(u)
  robust_loss = maximizers.robustify(algorithm1_loss, attack, argnum=2)
  num_batches = len(y) // batch_size

  def update(params: _Pair, batch: _Pair) -> tuple[_Pair, None]:
    rows, step = batch

    def objective(params: _Pair) -> Array:
      return jnp.mean(robust_loss(*params, inputs[rows], labels[rows]))

    return jax.tree.map(lambda p, g: p - step * g, params, jax.grad(objective)(params)), None

  def epoch(params: _Pair, key_and_steps: _Pair) -> tuple[_Pair, _Pair]:
    key, steps = key_and_steps
    rows = jax.random.permutation(key, len(y))[: num_batches * batch_size]
    params, _ = jax.lax.scan(update, params, (rows.reshape(num_batches, batch_size), steps))
    return params, params

  steps = jnp.linspace(learning_rate, 0.0, num_epochs * num_batches, endpoint=False)
  start = (jnp.zeros(inputs.shape[1], inputs.dtype), jnp.zeros((), inputs.dtype))
  schedule = (jax.random.split(key, num_epochs), steps.reshape(num_epochs, num_batches))
  _, (w, b) = jax.jit(lambda start, schedule: jax.lax.scan(epoch, start, schedule))(start, schedule)

  trail = [(np.zeros(inputs.shape[1]), 0.0), *zip(np.asarray(w, float), np.asarray(b, float))]
  values = [solve.margin_objective(w, float(b), x, y, u) for w, b in trail]
  gap = np.array(values) - (optimum.value - optimum.gap)
  return Algorithm1Run(gap, optimum, trail[-1][0], float(trail[-1][1]))
