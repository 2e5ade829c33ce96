"""Certified robustness of small ReLU nets: interval bound propagation and CROWN.

  layers = from_params(net, params)                  # or a list of layers of models.affine
  certificate = certified(layers, x, y, ro.LInf(0.1, box=(0.0, 1.0)))
  certificate.robust    # [B], a proof that no point of U(x) is misclassified; False proves nothing

  'ibp'    intervals, layer by layer: one pass, loose. The leading affine layers are bounded as one,
           and so are the trailing ones with z_j - z_y. Gowal et al. 2018 (arXiv 1810.12715),
           section 3.
  'crown'  linear bounds from every layer back to the input; one backward pass per unit of each
           hidden layer. Zhang et al. 2018 (arXiv 1811.00866), theorem 3.2.

CROWN's bounds are intersected with the intervals at every layer, so they are never looser. Both are
exact up to rounding for a net without hidden layers. CROWN needs memory for about 512 B copies of
the largest layer: use small batches for large nets.

The proofs hold for the net as computed in the dtype of x and the layers, for any order of its sums,
at every point x + delta rounded to that dtype. The bound of the rounding (see models.affine) is
about 1e-5 of the size of the terms for layers of a few hundred inputs in float32; smaller margins
are not certified. The proofs do NOT hold for a net computed in fewer bits. Accelerators round the
factors of float32 products by default: evaluate the net under
jax.default_matmul_precision("highest"). Fast convolution algorithms (Winograd) round more.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.arrays import expand_like
from robust_opt.certify.exact import check_precision
from robust_opt.errors import InputError
from robust_opt.models import affine
from robust_opt.models.affine import AffineLayer, Conv, Dense, Layer, gamma, inner_up, largest
from robust_opt.sets import Ball, LInf, check_ball
from robust_opt.types import Array, Params

_BLOCK = 256  # units per batch: limits the memory, does not change the results
_Interval = tuple[Array, Array]


def from_params(net: Any, params: Params) -> list[Layer]:
  """`models.affine.layers_of` for proofs; an InputError also if the net computes in fewer bits."""
  layers = affine.layers_of(net, params)
  dtype = jnp.dtype(getattr(net, "dtype", jnp.float32))
  if jnp.finfo(dtype).bits < 32:
    raise InputError(
      f"from_params takes a net that computes in float32, but {type(net).__name__} computes in "
      f"{dtype}, whose rounding no bound covers."
    )
  return layers


class Certificate(NamedTuple):
  """The result for each example of a batch."""

  robust: Array  # [B] bool, a proof that all of U(x) is classified as y; False proves nothing
  margins: Array  # [B, C], upper bounds over U(x) of z_j - z_y as the net computes it; 0 for j = y


def certified(
  layers: Sequence[Layer], x: Array, y: Array, u: Ball, method: str = "crown"
) -> Certificate:
  """Whether x + delta is proved to be classified as y for every delta in U(x).

  Args:
    layers: a net, whose last layer returns logits [B, C], C >= 2.
    x: [B, *S], pixels in [0, 1], within the box of u.
    y: [B], integers; a label outside [0, C) is never certified.
    u: an LInf, L2 or L1; its radius may be traced. With a box the bounds are tighter.
    method: 'crown' or 'ibp'.

  Raises:
    InputError: u is another set, an unknown method, x is not floating point, or the layers do not
      end in logits of at least 2 classes.
  """
  chex.assert_rank(y, 1)
  chex.assert_equal_shape_prefix((x, y), 1)
  x = x.astype(check_precision(x, layers))
  losses.check_classes(_check(layers, x, u, "certified", method))
  return _certified(tuple(layers), x, y, u, method)


@functools.partial(jax.jit, static_argnames="method")
@jax.default_matmul_precision("highest")
def _certified(layers: Sequence[Layer], x: Array, y: Array, u: Ball, method: str) -> Certificate:
  clean = affine.apply(layers, x)
  upper = _upper_bound(layers, x, u, method)
  num_classes = clean.shape[-1]
  label = jax.nn.one_hot(y, num_classes, dtype=x.dtype)
  others = jnp.eye(num_classes, dtype=x.dtype)
  margins = jax.vmap(lambda other: upper(other - label), out_axes=1)(others)
  label_wins = jnp.all((margins < 0) | (label > 0), axis=-1)
  # A clean example that is misclassified, or whose logits are not finite, is not certified.
  return Certificate(label_wins & losses.correct(clean, y), margins)


def logit_bounds(
  layers: Sequence[Layer], x: Array, u: Ball, method: str = "crown"
) -> tuple[Array, Array]:
  """Bounds (lower [B, C], upper [B, C]) of every logit over U(x); arguments as for `certified`.

  Their differences are looser than the margins of `certified`. C may be 1.
  """
  x = x.astype(check_precision(x, layers))
  _check(layers, x, u, "logit_bounds", method)
  return _logit_bounds(tuple(layers), x, u, method)


@functools.partial(jax.jit, static_argnames="method")
@jax.default_matmul_precision("highest")
def _logit_bounds(layers: Sequence[Layer], x: Array, u: Ball, method: str) -> tuple[Array, Array]:
  clean = affine.apply(layers, x)
  upper = _upper_bound(layers, x, u, method)
  units = jnp.eye(clean.shape[-1], dtype=x.dtype)
  bound = lambda unit: _both_ways(upper, jnp.broadcast_to(unit, clean.shape))  # noqa: E731
  return jax.vmap(bound, out_axes=1)(units)


def _check(
  layers: Sequence[Layer], x: Array, u: Ball, who: str, method: str
) -> jax.ShapeDtypeStruct:
  """The shape of the logits; an InputError if no bounds can be computed."""
  check_ball(u, who)
  if method not in ("crown", "ibp"):
    raise InputError(f"method must be 'crown' or 'ibp', but was {method!r}.")
  out = jax.eval_shape(affine.apply, layers, x)
  if out.ndim != 2 or out.shape[0] != x.shape[0]:
    raise InputError(f"the layers must end in logits [B, C], but end in the shape {out.shape}.")
  return out


def _upper_bound(
  layers: Sequence[Layer], x: Array, u: Ball, method: str
) -> Callable[[Array], Array]:
  """The function a [B, C] -> an upper bound [B] of <a, logits> over U(x)."""
  intervals = _intervals(layers, x, u, method)
  nonlinear = [k for k, layer in enumerate(layers) if not isinstance(layer, AffineLayer)]
  last = nonlinear[-1] + 1 if nonlinear else 0  # the first of the trailing affine layers

  def upper(a: Array) -> Array:
    if last == 0:
      return _bound_from_input(layers, intervals, x, u, a)
    through_interval = _bound_from_interval(layers[last:], intervals[last:], a)
    if method == "ibp":
      return through_interval
    return jnp.minimum(through_interval, _bound_from_input(layers, intervals, x, u, a))

  return upper


def _intervals(layers: Sequence[Layer], x: Array, u: Ball, method: str) -> list[_Interval]:
  """Bounds of the input of every layer."""
  interval = _enclosing_interval(x, u)
  intervals: list[_Interval] = []
  for k, layer in enumerate(layers):
    if not isinstance(layer, AffineLayer):
      before, tighten = layers[:k], method == "crown"
      if all(isinstance(other, AffineLayer) for other in before):
        # No relaxation so far: the exact bounds, also for 'ibp'.
        tighten = sum(isinstance(b, Dense | Conv) for b in before) > isinstance(u, LInf)
      if tighten:
        lower, upper = _bounds_of_units(before, intervals, x, u, interval[0])
        interval = jnp.maximum(interval[0], lower), jnp.minimum(interval[1], upper)
    intervals.append(interval)
    interval = layer.interval(*interval)
  return intervals


def _bounds_of_units(
  layers: Sequence[Layer], intervals: list[_Interval], x: Array, u: Ball, like: Array
) -> _Interval:
  """Linear bounds of every output of the layers, both [B, *out] as `like`."""
  shape, units = like.shape, like[0].size

  def bounds_of(unit: Array) -> _Interval:
    a = jax.nn.one_hot(unit, units, dtype=x.dtype).reshape(shape[1:])
    a = jnp.broadcast_to(a, shape)
    return _both_ways(lambda a: _bound_from_input(layers, intervals, x, u, a), a)

  lower, upper = jax.lax.map(bounds_of, jnp.arange(units), batch_size=min(_BLOCK, units))
  return lower.T.reshape(shape), upper.T.reshape(shape)


def _both_ways(upper: Callable[[Array], Array], a: Array) -> _Interval:
  """(lower, upper) of <a, ...> from a function that bounds it from above."""
  of_a, of_minus_a = jax.vmap(upper)(jnp.stack([a, -a]))
  return -of_minus_a, of_a


def _bound_from_input(
  layers: Sequence[Layer], intervals: list[_Interval], x: Array, u: Ball, a: Array
) -> Array:
  """An upper bound [B] of <a, layers(x + delta)> over U(x), linear in x + delta."""
  a, constants = _pull_back(layers, intervals, a)
  # Both delta and x + delta are rounded.
  clean = inner_up(a, x, gamma(10, x.dtype) * largest(*intervals[0]))
  # No term is negative. The steepest ascent sums the entries, as does the norm of delta.
  gain = jnp.sum(a * u.steepest_ascent(a, x), axis=range(1, x.ndim))
  gain *= 1 + gamma(4 * x[0].size + 20, x.dtype)
  return _add_up([clean, gain, *constants])


def _bound_from_interval(layers: Sequence[Layer], intervals: list[_Interval], a: Array) -> Array:
  """An upper bound [B] of <a, layers(z)> over lower <= z <= upper."""
  a, constants = _pull_back(layers, intervals, a)
  lower, upper = intervals[0]
  return _add_up([inner_up(a, jnp.where(a > 0, upper, lower)), *constants])


def _add_up(parts: list[Array]) -> Array:
  """An upper bound of the sum of the parts, each [B]."""
  stacked = jnp.stack(parts, axis=-1)
  return inner_up(jnp.ones_like(stacked), stacked)


def _pull_back(
  layers: Sequence[Layer], intervals: list[_Interval], a: Array
) -> tuple[Array, list[Array]]:
  """(a' [B, *in], constants c_i [B]), <a, layers(z)> <= <a', z> + sum c_i on the intervals."""
  constants = []
  for layer, (lower, upper) in reversed(list(zip(layers, intervals))):
    a, constant = layer.pull_back(a, lower, upper)
    constants.append(constant)
  return a, constants


def _enclosing_interval(x: Array, u: Ball) -> _Interval:
  """The smallest interval around U(x), widened by the rounding of x + delta."""
  # In every norm, |delta_i| <= radius.
  radius = expand_like(jnp.asarray(u.radius, x.dtype), x)
  lower, upper = x - radius, x + radius
  if u.box is not None:
    lower, upper = jnp.clip(lower, *u.box), jnp.clip(upper, *u.box)
  lost = gamma(8, x.dtype) * largest(lower, upper)
  return lower - lost, upper + lost
