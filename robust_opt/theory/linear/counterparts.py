"""Exact robust counterparts of a linear score w'x + b, and the perturbations that attain them.

  margin_loss(w, b, x, y, ro.LInf(0.1))             # [N], y in {-1, 1}; Goodfellow's formula
  x + margin_perturbation(w, x, y, ro.LInf(0.1))    # the examples at which it is attained
  least_squares(w, b, x, y, "columns", 0.1)         # [], the objective of the square-root lasso

w [n], b [], x [N, n], y [N]; y is -1 or 1 for the margin and hinge losses. The set u is an LInf, L2
or L1 without a box, its radius r [] or [N] in the units of x; it may be traced. Anything else is an
InputError. The functions compose with jit, vmap and grad, and compute in the precision of their
input (float64 under jax.enable_x64). The derivative of a norm at 0 is 0, never NaN.

|  noise                                  |  worst case                                      |
|  |delta_i|_p <= r, every example        |  phi(y_i (w'x_i + b) - r |w|_q)                  |
|  the same, squared loss                 |  (|w'x_i + b - y_i| + r |w|_q)^2                 |
|  sum_i |delta_i|_p <= c, hinge          |  sum of hinges + c |w|_q, unless all have slack  |
|  |D|_F <= r, on the matrix x            |  |Xw + b - y|_2 + r |w|_2                        |
|  |d_j|_2 <= r_j, every column           |  |Xw + b - y|_2 + sum_j r_j |w_j|                |
|  |D_g|_F <= r_g, every group of columns |  |Xw + b - y|_2 + sum_g r_g |w_g|_2              |

1/p + 1/q = 1. Sources: Shaham et al. 2015 (arXiv 1511.05432), section on regularization; Xu,
Caramanis and Mannor 2009 (JMLR) and 2010 (IEEE Trans. Inf. Theory); Goodfellow, Shlens and Szegedy
2015 (arXiv 1412.6572).
"""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from robust_opt.errors import InputError
from robust_opt.sets import L2, Ball, Radius, check_ball
from robust_opt.sets.base import check_radius
from robust_opt.types import Array

Noise = str | np.ndarray  # 'frobenius', 'columns', or the group of every column, [n]


def logistic(margin: Array) -> Array:
  """log(1 + exp(-margin)): the cross-entropy of two classes with logits of difference margin."""
  return jax.nn.softplus(-margin)


def hinge(margin: Array) -> Array:
  """max(0, 1 - margin)."""
  return jnp.maximum(1.0 - margin, 0.0)


MARGIN_LOSSES: dict[str, Callable[[Array], Array]] = {
  "logistic": logistic,
  "hinge": hinge,
  "exponential": lambda margin: jnp.exp(-margin),
}


def dual_norm(w: Array, u: Ball) -> Array:
  """|w|_q, the largest <w, delta> over |delta|_p <= 1 in the norm p of u: [n] -> []."""
  return _length(w) if isinstance(u, L2) else u.dual_norm(w)  # with derivative 0 at 0


@jax.default_matmul_precision("highest")
def margin_loss(w: Array, b: Array, x: Array, y: Array, u: Ball, loss: str = "logistic") -> Array:
  """max over |delta_i|_p <= r of phi(y_i (w'(x_i + delta_i) + b)), [N].

    = phi(y_i (w'x_i + b) - r |w|_q)

  since phi is decreasing and the smallest y_i w'delta_i is -r |w|_q. For 'logistic' and LInf this
  is softplus(r |w|_1 - y (w'x + b)), Goodfellow et al. 2015, section 5, for either label (their
  printed formula holds for y = 1). phi is one of MARGIN_LOSSES.
  """
  check_loss(loss)
  _check(w, x, y, u, "margin_loss", signs=True)
  return MARGIN_LOSSES[loss](y * (x @ w + b) - u.radius * dual_norm(w, u))


def margin_perturbation(w: Array, x: Array, y: Array, u: Ball) -> Array:
  """The delta [N, n] that attains margin_loss for every loss: the steepest ascent along -y_i w."""
  _check(w, x, y, u, "margin_perturbation", signs=True)
  return u.steepest_ascent(-y[:, None] * w, x)


@jax.default_matmul_precision("highest")
def squared_loss(w: Array, b: Array, x: Array, y: Array, u: Ball) -> Array:
  """max over |delta_i|_p <= r of (w'(x_i + delta_i) + b - y_i)^2, [N]; y may be any numbers."""
  _check(w, x, y, u, "squared_loss")
  return (jnp.abs(x @ w + b - y) + u.radius * dual_norm(w, u)) ** 2


@jax.default_matmul_precision("highest")
def squared_perturbation(w: Array, b: Array, x: Array, y: Array, u: Ball) -> Array:
  """The delta [N, n] that attains squared_loss; where the residual is 0, that of a positive one."""
  _check(w, x, y, u, "squared_perturbation")
  away = jnp.where(x @ w + b >= y, 1.0, -1.0).astype(x.dtype)
  return u.steepest_ascent(away[:, None] * w, x)


@jax.default_matmul_precision("highest")
def total_hinge_loss(w: Array, b: Array, x: Array, y: Array, u: Ball) -> Array:
  """max over sum_i |delta_i|_p <= c of sum_i hinge(y_i (w'(x_i + delta_i) + b)), [].

    = sum_i hinge(m_i) + max(0, c |w|_q - max(0, min_i m_i - 1)),   m_i = y_i (w'x_i + b)

  The maximum is convex in the split of the budget c, and so attained where one example takes all of
  it. If any margin is <= 1 it is sum_i hinge(m_i) + c |w|_q, which is always the case for classes
  that no hyperplane separates: the robust SVM is the norm-regularized SVM (Xu, Caramanis and Mannor
  2009, theorem 3). The radius [] of u is the budget c that all examples share.
  """
  _check(w, x, y, u, "total_hinge_loss", signs=True)
  margins = y * (x @ w + b)
  slack = jnp.maximum(jnp.min(margins) - 1.0, 0.0)
  return jnp.sum(hinge(margins)) + jnp.maximum(u.radius * dual_norm(w, u) - slack, 0.0)


@jax.default_matmul_precision("highest")
def total_hinge_perturbation(w: Array, b: Array, x: Array, y: Array, u: Ball) -> Array:
  """The delta [N, n] that attains total_hinge_loss, nonzero only for the smallest margin."""
  _check(w, x, y, u, "total_hinge_perturbation", signs=True)
  weakest = jnp.argmin(y * (x @ w + b))
  budgets = jnp.where(jnp.arange(x.shape[0]) == weakest, u.radius, 0.0)
  return dataclasses.replace(u, radius=budgets).steepest_ascent(-y[:, None] * w, x)


@jax.default_matmul_precision("highest")
def least_squares(w: Array, b: Array, x: Array, y: Array, noise: Noise, radius: Radius) -> Array:
  """max over the noise D on the matrix of |(X + D) w + b - y|_2, [].

    = |Xw + b - y|_2 + sum_g r_g |w_g|_2

  over groups g of columns, with |D_g|_F <= r_g in each, and a radius [] or [G]. 'columns' makes
  every column a group: the square-root lasso (Xu, Caramanis and Mannor 2010, theorem 1).
  'frobenius' is one group of all. The intercept b carries no noise.
  """
  groups, radii = column_groups(noise, radius, x.shape[1])
  _check_shapes(w, x, y)
  return _length(x @ w + b - y) + jnp.sum(radii * _lengths(w, groups, len(radii)))


@jax.default_matmul_precision("highest")
def least_squares_perturbation(
  w: Array, b: Array, x: Array, y: Array, noise: Noise, radius: Radius
) -> Array:
  """The D [N, n] that attains least_squares, of rank one: u v' with |u|_2 = 1.

    u = (Xw + b - y) / |Xw + b - y|_2,   v_g = r_g w_g / |w_g|_2

  Where the residual is 0 every unit u attains it; u = (1, ..., 1) / sqrt(N) is taken.
  """
  groups, radii = column_groups(noise, radius, x.shape[1])
  _check_shapes(w, x, y)
  residual = x @ w + b - y
  length = _length(residual)
  along = jnp.where(length > 0, residual / jnp.where(length > 0, length, 1.0), x.shape[0] ** -0.5)
  norms = _lengths(w, groups, len(radii))[groups]
  scaled = radii[groups] * (w / jnp.where(norms > 0, norms, 1.0))
  return along[:, None] * jnp.where(norms > 0, scaled, 0.0)


def column_groups(noise: Noise, radius: Radius, num_columns: int) -> tuple[np.ndarray, Array]:
  """The group of every column, [n] integers, and the radius of every group, [G]."""
  named = {"frobenius": np.zeros(num_columns, int), "columns": np.arange(num_columns)}
  if isinstance(noise, str) and noise not in named:
    raise InputError(
      f"noise must be 'frobenius', 'columns' or the group of every column, but was {noise!r}."
    )
  groups = named[noise] if isinstance(noise, str) else np.asarray(noise)
  count = int(groups.max(initial=-1)) + 1
  if groups.shape != (num_columns,) or set(groups.tolist()) != set(range(count)):
    raise InputError(
      f"noise must name a group, 0, 1, ... without a gap, for each of the {num_columns} columns, "
      f"but was {groups}."
    )
  if np.shape(radius) not in ((), (count,)):
    raise InputError(
      f"radius must be one number or one for each of the {count} groups, but has the shape "
      f"{np.shape(radius)}."
    )
  check_radius("radius", radius)
  return groups, jnp.broadcast_to(jnp.asarray(radius), (count,))


def check_unboxed(u: Ball, who: str) -> None:
  """InputError unless u is an LInf, L2 or L1 without a box."""
  if check_ball(u, who).box is not None:
    raise InputError(f"{who} takes a set without a box, but its box was {u.box}.")


def check_loss(loss: str) -> None:
  """InputError unless the loss is one of MARGIN_LOSSES."""
  if loss not in MARGIN_LOSSES:
    raise InputError(f"loss must be one of {', '.join(MARGIN_LOSSES)}, but was {loss!r}.")


def _length(v: Array) -> Array:
  """The Euclidean norm, [n] -> [], with derivative 0 at 0."""
  return _lengths(v, np.zeros(v.shape[0], int), 1)[0]


def _lengths(v: Array, groups: np.ndarray, count: int) -> Array:
  """The Euclidean norm of every group of entries, [n] -> [G], scaled as that of projections."""
  largest = jax.lax.stop_gradient(jax.ops.segment_max(jnp.abs(v), groups, count))
  safe = jnp.where(largest > 0, largest, 1.0)
  squares = jax.ops.segment_sum((v / safe[groups]) ** 2, groups, count)
  return jnp.where(largest > 0, safe * jnp.sqrt(jnp.where(largest > 0, squares, 1.0)), 0.0)


def _check(w: Array, x: Array, y: Array, u: Ball, who: str, signs: bool = False) -> None:
  check_unboxed(u, who)
  _check_shapes(w, x, y)
  if signs and not isinstance(y, jax.core.Tracer) and not np.all(np.abs(np.asarray(y)) == 1):
    raise InputError(f"y must be -1 or 1, but holds {sorted(set(np.asarray(y).tolist()))[:5]}.")


def _check_shapes(w: Array, x: Array, y: Array) -> None:
  chex.assert_rank([w, x, y], [1, 2, 1])
  chex.assert_equal_shape_prefix((x, y), 1)
  if w.shape[0] != x.shape[1]:
    raise InputError(
      f"w must have one entry for each of the {x.shape[1]} columns of x, but has {w.shape[0]}."
    )
