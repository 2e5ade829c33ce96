"""Certified robustness of small ReLU nets: interval bound propagation and CROWN.

  layers = from_params(net, params)                            # or a list of layers: layers.py
  result = certified(layers, x, y, "linf", 0.1, box=(0.0, 1.0))
  result.robust      # [B]: a proof that no point of the ball is misclassified; False proves nothing
  result.margins     # [B, C]: upper bounds of z_j - z_y over the ball, rounding included

  'ibp'    intervals, layer by layer: one pass, loose. The first affine layers and the last ones,
           with z_j - z_y, are bounded as one. Gowal et al. 2018 (arXiv 1810.12715), section 3.
  'crown'  linear bounds, from every layer back to the input; a backward pass for each unit of each
           hidden layer. Zhang et al. 2018 (arXiv 1811.00866), theorem 3.2.

CROWN's bounds are cut by the intervals at every layer, and so are never looser than they. Both are
exact, but for rounding, for a net without hidden layers. The linear maximum over the ball, with or
without a box, is the steepest ascent of the uncertainty set.

CROWN takes the memory of some 512 B copies of the largest layer: keep batches of large nets small.

The proofs hold for the net as it is computed, in the dtype of x and of the layers, in whatever
order it adds up, at every point x + delta rounded to that dtype. All rounding, of the net and of
the bounds, is bounded by the number of additions and the size of what is added up (`layers`): some
1e-5 of that size for layers of a few hundred inputs in float32. If margins are smaller, because the
classes share a large term, nothing is proved.

The proofs do NOT hold for a net that is computed in fewer bits. Accelerators round the factors of
float32 products unless told not to, as the bounds tell them: evaluate the net under
jax.default_matmul_precision("highest") too. Fast convolution algorithms (Winograd) round more.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.certify.exact import ball, check_precision
from robust_opt.errors import InputError
from robust_opt.models.affine import (
  AffineLayer,
  Conv,
  Dense,
  Layer,
  apply,
  gamma,
  inner_up,
  largest,
)
from robust_opt.sets import Box, Radius, UncertaintySet
from robust_opt.types import Array

_BLOCK = 256  # units that are bounded at once; bounds the memory, changes no result
_Interval = tuple[Array, Array]


class Certificate(NamedTuple):
  """What was proved of a batch.

  Attributes:
    robust: [B] bool, True where every point of the ball is proved to be classified as y. False
      where that could not be proved, which is not a proof of the contrary.
    margins: [B, C], upper bounds of z_j - z_y over the ball as the net computes it; 0 for j = y.
  """

  robust: Array
  margins: Array


def certified(
  layers: Sequence[Layer],
  x: Array,
  y: Array,
  norm: str,
  radius: Radius,
  box: Box | None = None,
  method: str = "crown",
) -> Certificate:
  """Whether all of {x + delta: |delta| <= radius} is proved to be classified as y.

  Compiled once for every structure and shape of the layers: their weights and the radius are
  arguments of what is compiled, and may change.

  Args:
    layers: a net, the last layer giving logits [B, C], C >= 2.
    x: [B, *S], pixels in [0, 1]; with a box it must lie in it.
    y: [B], integers; a label outside [0, C) is never certified.
    norm: 'linf', 'l2' or 'l1'.
    radius: [] or [B], >= 0, in the units of x; it may be traced.
    box: (low, high) that x + delta stays in: less to certify against.
    method: 'crown' or 'ibp'.

  Raises:
    InputError: of an unknown norm or method, a negative radius, x that is not floating point, or
      layers that do not give logits of at least 2 classes.
  """
  chex.assert_rank(y, 1)
  chex.assert_equal_shape_prefix((x, y), 1)
  x = x.astype(check_precision(x, layers))
  losses.check_classes(_check(layers, x, norm, radius, box, method))
  return _certified(tuple(layers), x, y, norm, radius, box, method)


@functools.partial(jax.jit, static_argnames=("norm", "box", "method"))
@jax.default_matmul_precision("highest")
def _certified(
  layers: Sequence[Layer],
  x: Array,
  y: Array,
  norm: str,
  radius: Radius,
  box: Box | None,
  method: str,
) -> Certificate:
  clean = apply(layers, x)
  upper = _upper_bound(layers, x, norm, radius, box, method)
  num_classes = clean.shape[-1]
  label = jax.nn.one_hot(y, num_classes, dtype=x.dtype)
  others = jnp.eye(num_classes, dtype=x.dtype)
  margins = jax.vmap(lambda other: upper(other - label), out_axes=1)(others)
  beaten = jnp.all((margins < 0) | (label > 0), axis=-1)
  # Nothing is proved of an example that is misclassified, or not finite, to begin with.
  return Certificate(beaten & losses.correct(clean, y), margins)


def logit_bounds(
  layers: Sequence[Layer],
  x: Array,
  norm: str,
  radius: Radius,
  box: Box | None = None,
  method: str = "crown",
) -> tuple[Array, Array]:
  """Bounds (lower [B, C], upper [B, C]) of every logit over the ball; arguments as for certified.

  For margins, `certified` is tighter than the difference of these. C may be 1: a net of one logit,
  whose sign decides.
  """
  x = x.astype(check_precision(x, layers))
  _check(layers, x, norm, radius, box, method)
  return _logit_bounds(tuple(layers), x, norm, radius, box, method)


@functools.partial(jax.jit, static_argnames=("norm", "box", "method"))
@jax.default_matmul_precision("highest")
def _logit_bounds(
  layers: Sequence[Layer], x: Array, norm: str, radius: Radius, box: Box | None, method: str
) -> tuple[Array, Array]:
  clean = apply(layers, x)
  upper = _upper_bound(layers, x, norm, radius, box, method)

  units = jnp.eye(clean.shape[-1], dtype=x.dtype)
  bound = lambda unit: _both_ways(upper, jnp.broadcast_to(unit, clean.shape))  # noqa: E731
  return jax.vmap(bound, out_axes=1)(units)


def _check(
  layers: Sequence[Layer], x: Array, norm: str, radius: Radius, box: Box | None, method: str
) -> jax.ShapeDtypeStruct:
  """The shape of the logits, if the arguments are such as bounds can be computed of."""
  ball(norm, radius, box)
  if method not in ("crown", "ibp"):
    raise InputError(f"method must be 'crown' or 'ibp', but was {method!r}.")
  out = jax.eval_shape(apply, layers, x)
  if out.ndim != 2 or out.shape[0] != x.shape[0]:
    raise InputError(f"the layers must end in logits [B, C], but end in the shape {out.shape}.")
  return out


def _upper_bound(
  layers: Sequence[Layer], x: Array, norm: str, radius: Radius, box: Box | None, method: str
) -> Callable[[Array], Array]:
  """The function a [B, C] -> an upper bound [B] of <a, logits> over the ball."""
  u = ball(norm, radius, box)
  intervals = _intervals(layers, x, u, norm, _enclosing_interval(x, radius, box), method)
  # The affine layers behind the last nonlinear one.
  last = max((k for k, layer in enumerate(layers) if not _is_affine(layer)), default=-1) + 1

  def upper(a: Array) -> Array:
    if last == 0:
      return _bound_from_input(layers, intervals, x, u, a)
    through_interval = _bound_from_interval(layers[last:], intervals[last:], a)
    if method == "ibp":
      return through_interval
    return jnp.minimum(through_interval, _bound_from_input(layers, intervals, x, u, a))

  return upper


def _intervals(
  layers: Sequence[Layer],
  x: Array,
  u: UncertaintySet,
  norm: str,
  interval: _Interval,
  method: str,
) -> list[_Interval]:
  """Bounds of the input of every layer, given those of the first."""
  intervals: list[_Interval] = []
  for k, layer in enumerate(layers):
    if not _is_affine(layer):
      before = layers[:k]
      if all(_is_affine(other) for other in before):
        # No relaxation so far: the exact bounds, also for 'ibp'.
        tighten = sum(isinstance(b, Dense | Conv) for b in before) > (norm == "linf")
      else:
        tighten = method == "crown"
      if tighten:
        lower, upper = _bounds_of_units(before, intervals, x, u, interval[0])
        interval = jnp.maximum(interval[0], lower), jnp.minimum(interval[1], upper)
    intervals.append(interval)
    interval = layer.interval(*interval)
  return intervals


def _bounds_of_units(
  layers: Sequence[Layer], intervals: list[_Interval], x: Array, u: UncertaintySet, like: Array
) -> _Interval:
  """Linear bounds of every output of the layers, each of the shape of `like` [B, *out]."""
  shape, units = like.shape, like[0].size

  def bounds_of(unit: Array) -> _Interval:
    a = jax.nn.one_hot(unit, units, dtype=x.dtype).reshape(shape[1:])
    a = jnp.broadcast_to(a, shape)
    return _both_ways(lambda a: _bound_from_input(layers, intervals, x, u, a), a)

  lower, upper = jax.lax.map(bounds_of, jnp.arange(units), batch_size=min(_BLOCK, units))
  return lower.T.reshape(shape), upper.T.reshape(shape)


def _both_ways(upper: Callable[[Array], Array], a: Array) -> _Interval:
  """From a function that bounds <a, ...> from above, both bounds of it."""
  of_a, of_minus_a = jax.vmap(upper)(jnp.stack([a, -a]))
  return -of_minus_a, of_a


def _bound_from_input(
  layers: Sequence[Layer], intervals: list[_Interval], x: Array, u: UncertaintySet, a: Array
) -> Array:
  """An upper bound [B] of <a, layers(x + delta)> over the ball, linear in x + delta."""
  a, constants = _pull_back(layers, intervals, a)
  # Both delta and x + delta are rounded.
  clean = inner_up(a, x, gamma(10, x.dtype) * largest(*intervals[0]))
  # No term is negative. The ascent sorts and sums up the entries, as does a norm that says whether
  # delta is inside.
  gain = jnp.sum(a * u.steepest_ascent(a, x), axis=range(1, x.ndim))
  gain *= 1 + gamma(4 * x[0].size + 20, x.dtype)
  return _add_up([clean, gain, *constants])


def _bound_from_interval(layers: Sequence[Layer], intervals: list[_Interval], a: Array) -> Array:
  """An upper bound [B] of <a, layers(z)> over lower <= z <= upper."""
  a, constants = _pull_back(layers, intervals, a)
  lower, upper = intervals[0]
  return _add_up([inner_up(a, jnp.where(a > 0, upper, lower)), *constants])


def _add_up(parts: list[Array]) -> Array:
  """An upper bound of the sum of [B] each."""
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


def _enclosing_interval(x: Array, radius: Radius, box: Box | None) -> _Interval:
  """The smallest box around the ball, which is the same for every norm, cut by the pixel box.

  And somewhat larger, by what may be lost where x + delta is rounded.
  """
  radius = jnp.asarray(radius, x.dtype)
  radius = radius.reshape(radius.shape + (1,) * (x.ndim - 1)) if radius.ndim else radius
  lower, upper = x - radius, x + radius
  if box is not None:
    lower, upper = jnp.clip(lower, *box), jnp.clip(upper, *box)
  lost = gamma(8, x.dtype) * largest(lower, upper)
  return lower - lost, upper + lost


def _is_affine(layer: Layer) -> bool:
  return isinstance(layer, AffineLayer)
