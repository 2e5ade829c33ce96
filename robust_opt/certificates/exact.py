"""The exact worst case of a linear model, logits = x @ weights + bias.

  u = ro.LInf(0.1, box=(0.0, 1.0))
  worst = exact.linear_margin(weights, bias, x, y, u)              # [B]
  robust = worst < 0                                               # up to rounding
  distance = exact.linear_distance(weights, bias, x, y, ro.L2)     # [B]

Weights are [n, C] with n the number of entries of one example, C >= 2. The results are exact up to
the rounding of float32 and do not cover the rounding of the model itself: for a proof about the
model as computed use `bounds.certified([Flatten(), Dense(weights, bias)], ...)`, which is as tight.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.errors import InputError
from robust_opt.precision import check_floating
from robust_opt.sets import Ball, check_ball
from robust_opt.types import Array


@jax.default_matmul_precision("highest")
def linear_margin(weights: Array, bias: Array, x: Array, y: Array, u: Ball) -> Array:
  """The largest margin [B] over the set; an example is robust iff it is < 0, up to rounding.

    max over delta in U(x) of max over j != y of z_j(x + delta) - z_y(x + delta)
      = max over j != y of z_j(x) - z_y(x) + max over delta in U(x) of <w_j - w_y, delta>

  The set's steepest ascent attains the last maximum, with or without a box (Shaham et al. 2015,
  section 4).

  Args:
    weights, bias: [n, C] and [C].
    x: [B, *S] with n entries per example, in pixels of [0, 1], within the box of u.
    y: [B], integers; a label outside [0, C) gives NaN.
    u: an LInf, L2 or L1; its radius may be traced.

  Raises:
    InputError: u is another set, or the weights do not match x.
  """
  check_ball(u, "linear_margin")
  x, difference, margins = _differences(weights, bias, x, y)
  furthest = jax.vmap(lambda g: u.steepest_ascent(g, x), in_axes=1, out_axes=1)(difference)
  return losses.margin(margins + jnp.sum(difference * furthest, axis=-1), y)


@jax.default_matmul_precision("highest")
def linear_distance(weights: Array, bias: Array, x: Array, y: Array, ball: type[Ball]) -> Array:
  """The norm [B] of the smallest delta at which another class ties with the label, without a box.

    min over j != y of (z_y - z_j) / |w_j - w_y|_dual

  0 where another class wins or ties at x, inf where none can. Source: Moosavi-Dezfooli et al. 2016
  (arXiv 1511.04599), section 3, and Hoelder's inequality for the other norms.

  Args:
    weights, bias, x, y: as for linear_margin.
    ball: the class ro.LInf, ro.L2 or ro.L1, for its norm.

  Raises:
    InputError: ball is anything else, or the weights do not match x.
  """
  if not (isinstance(ball, type) and issubclass(ball, Ball)):
    raise InputError(f"linear_distance takes ro.LInf, ro.L2 or ro.L1, not {ball!r}.")
  _, difference, margins = _differences(weights, bias, x, y)
  lead = -margins
  length = jax.vmap(jax.vmap(ball.dual_norm))(difference)
  same = jnp.where(lead > 0, jnp.inf, lead)  # equal weights: no delta changes the lead
  distance = jnp.where(length > 0, lead / jnp.where(length > 0, length, 1.0), same)
  is_label = jnp.arange(lead.shape[-1]) == y[:, None]
  nearest = jnp.min(jnp.where(is_label, jnp.inf, distance), axis=-1)
  return jnp.maximum(nearest, 0.0)


def check_precision(x: Array, weights: Any = ()) -> Any:
  """The common type of x and the weights; an InputError if one has fewer bits than float32."""
  check_floating(x, "x")
  arrays = jax.tree.leaves((x, weights))
  for array in arrays:
    dtype = jnp.result_type(array)
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
      raise InputError(f"A certificate needs images and weights in float32, but was given {dtype}.")
  return jnp.result_type(*arrays)


def _differences(weights: Array, bias: Array, x: Array, y: Array) -> tuple[Array, Array, Array]:
  """x as [B, n], w_j - w_y [B, C, n], and z_j - z_y [B, C], NaN for a label that does not exist."""
  dtype = check_precision(x, weights)
  chex.assert_rank([weights, y], [2, 1])
  chex.assert_equal_shape_prefix((x, y), 1)
  x = x.reshape(x.shape[0], -1).astype(dtype)
  if weights.shape[0] != x.shape[-1]:
    raise InputError(
      f"weights must have one row for each of the {x.shape[-1]} entries of an example, but have "
      f"{weights.shape[0]}."
    )
  losses.check_classes(weights)
  # The weights are subtracted, not the logits, whose common part would add rounding.
  difference = weights.T[None] - weights.T[y][:, None]
  margins = jnp.einsum("bcn,bn->bc", difference, x) + (bias - bias[y][:, None])
  exists = (y >= 0) & (y < weights.shape[1])
  return x, difference, jnp.where(exists[:, None], margins, jnp.nan)
