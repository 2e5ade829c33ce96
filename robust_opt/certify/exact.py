"""The exact worst case of a linear model, logits = x @ weights + bias.

  worst = exact.linear_margin(weights, bias, x, y, "linf", 0.1, box=(0.0, 1.0))  # [B]
  robust = worst < 0                                       # but for rounding
  distance = exact.linear_distance(weights, bias, x, y, "l2")                    # [B]

x [B, *S] is flattened, weights are [n, C] with n the number of entries of one example, bias is [C].
Any number of classes from 2 on. Everything is exact up to the rounding of float32, and says nothing
about the rounding of the model: logits that are large beside their differences round away from each
other, and an example that is robust by less is misclassified. What is proved of the model as it is
computed is `bounds.certified([Flatten(), Dense(weights, bias)], ...)`, which is as tight.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.errors import InputError
from robust_opt.precision import check_floating
from robust_opt.sets import BALLS, Box, Radius, UncertaintySet, projections
from robust_opt.types import Array

_BALLS = BALLS
_DUAL_NORMS = {"linf": projections.l1_norm, "l2": projections.l2_norm, "l1": projections.linf_norm}


@jax.default_matmul_precision("highest")
def linear_margin(
  weights: Array,
  bias: Array,
  x: Array,
  y: Array,
  norm: str,
  radius: Radius,
  box: Box | None = None,
) -> Array:
  """The largest margin that an adversary can reach; < 0 iff an example is robust, but for rounding.

    max over delta in U(x) of max over j != y of z_j(x + delta) - z_y(x + delta)
      = max over j != y of z_j(x) - z_y(x) + max over delta in U(x) of <w_j - w_y, delta>

  The two maxima commute, so that this is exact for any number of classes: it says whether ANY
  class can win. Without a box the last maximum is radius * |w_j - w_y| in the dual norm; with one
  it is attained at the set's steepest ascent (Shaham et al. 2015, section 4).

  Args:
    weights: [n, C].
    bias: [C].
    x: [B, *S], of n entries each; with a box it must lie in it.
    y: [B], integers; a label outside [0, C) gives NaN.
    norm: 'linf', 'l2' or 'l1'.
    radius: [] or [B], in the units of x (pixels in [0, 1]); it may be traced.
    box: (low, high) that x + delta stays in.

  Returns:
    [B]; with radius 0 the clean margin.

  Raises:
    InputError: of an unknown norm, a negative radius, or weights that do not fit x.
  """
  u = ball(norm, radius, box)
  x, difference, margins = _differences(weights, bias, x, y)
  furthest = jax.vmap(lambda g: u.steepest_ascent(g, x), in_axes=1, out_axes=1)(difference)
  return losses.margin(margins + jnp.sum(difference * furthest, axis=-1), y)


@jax.default_matmul_precision("highest")
def linear_distance(weights: Array, bias: Array, x: Array, y: Array, norm: str) -> Array:
  """The length of the shortest delta at which another class ties with the label, without a box.

    min over j != y of (z_y - z_j) / |w_j - w_y|_dual

  A model is robust at every radius below it and at none above it. Source: Moosavi-Dezfooli et al.
  2016 (arXiv 1511.04599), section 3, and Hoelder's inequality for the other norms.

  Args:
    weights: [n, C].
    bias: [C].
    x: [B, *S], of n entries each.
    y: [B], integers; a label outside [0, C) gives NaN.
    norm: of the length, 'linf', 'l2' or 'l1'.

  Returns:
    [B]; 0 where another class wins or ties already, inf where none ever can.

  Raises:
    InputError: of an unknown norm, or weights that do not fit x.
  """
  _check_norm(norm)
  _, difference, margins = _differences(weights, bias, x, y)
  lead = -margins
  length = jax.vmap(jax.vmap(_DUAL_NORMS[norm]))(difference)
  same = jnp.where(lead > 0, jnp.inf, lead)  # equal weights: no delta changes the lead
  distance = jnp.where(length > 0, lead / jnp.where(length > 0, length, 1.0), same)
  is_label = jnp.arange(lead.shape[-1]) == y[:, None]
  nearest = jnp.min(jnp.where(is_label, jnp.inf, distance), axis=-1)
  return jnp.maximum(nearest, 0.0)


def ball(norm: str, radius: Radius, box: Box | None) -> UncertaintySet:
  """The uncertainty set of a norm by its name; InputError of any other name."""
  _check_norm(norm)
  return _BALLS[norm](radius, box)


def check_precision(x: Array, weights: Any = ()) -> Any:
  """The common type of x and the weights, float32 or more.

  Raises:
    InputError: x is not floating point, or an array has fewer bits than float32: nothing is proved
      in so few.
  """
  check_floating(x, "x")
  arrays = jax.tree.leaves((x, weights))
  for array in arrays:
    dtype = jnp.result_type(array)
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
      raise InputError(f"A certificate needs images and weights in float32, but was given {dtype}.")
  return jnp.result_type(*arrays)


def _differences(weights: Array, bias: Array, x: Array, y: Array) -> tuple[Array, Array, Array]:
  """x as [B, n], w_j - w_y [B, C, n], and z_j - z_y [B, C], NaN for a label that does not exist.

  Of the differences of the weights, so that what the classes share does not add to the rounding.
  """
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
  difference = weights.T[None] - weights.T[y][:, None]
  margins = jnp.einsum("bcn,bn->bc", difference, x) + (bias - bias[y][:, None])
  exists = (y >= 0) & (y < weights.shape[1])
  return x, difference, jnp.where(exists[:, None], margins, jnp.nan)


def _check_norm(norm: str) -> None:
  if norm not in _BALLS:
    raise InputError(f"norm must be 'linf', 'l2' or 'l1', but was {norm!r}.")
