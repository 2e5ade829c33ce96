"""Bounds of every node of a graph over U(x), for one image: intervals, and CROWN backwards.

  graph = tracing.trace(logits_fn, x.shape[1:], x.dtype)
  bounds = propagation.forward(graph, x, u, "crown")          # of every node; x [1, *S]
  estimate = propagation.upper(graph, bounds, x, u, a)        # of <a, logits>, a [1, C]

`forward` goes through the nodes in order and gives each an interval. With 'crown' the inputs of
nonlinear operations, which decide how tight these are relaxed, also get linear bounds from each
unit back to the image (`upper`), and the tighter of both; with 'ibp' only those that no relaxation
precedes. There are two backward passes per unit, in blocks that fit into memory.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_opt.certificates.graph import Graph
from robust_opt.certificates.operations import Affine, Interval, Piecewise
from robust_opt.certificates.rounding import Estimate, depth, gamma, inner, largest, total
from robust_opt.sets import Ball, LInf
from robust_opt.types import Array

METHODS = ("ibp", "crown", "alpha-crown")
Slopes = dict[int, Array]  # node -> [*shape], as for `Piecewise.pull_back`


class Bounds(NamedTuple):
  """Of a node's values over U(x), as the network computes them.

  Attributes:
    lower, upper: the interval.
    error: the value, as an affine function of those after the last nonlinear operations, is rounded
      by at most this much, pulling it back included.
    offset: the bias of that function.
    linear: the interval by linear bounds alone, which may be wider. CROWN chooses its slopes by it:
      those of other tools, which do not know the smaller interval, and seldom worse ones.
  """

  lower: Array
  upper: Array
  error: Array
  offset: Array
  linear: Interval


AllBounds = dict[int, Bounds]
Bound = Callable[..., Estimate]  # (a, slopes=None) -> an upper bound of <a, value of a node>
Tighten = Callable[[Bound, Graph, AllBounds], Bound]


def forward(
  graph: Graph,
  x: Array,
  u: Ball,
  method: str,
  block: int = 256,
  tighten: Tighten | None = None,
  max_units: int = 128,
) -> AllBounds:
  """The bounds of every node.

  Args:
    graph: the network.
    x: [1, *S], an image.
    u: of one radius, a number.
    method: 'ibp' for intervals, any other for CROWN.
    block: how many units are bounded at once, for memory.
    tighten: what else lowers the bounds of units, of up to `max_units` of each node: of those
      whose signs are the most open.
  """
  interval = enclosing_interval(x, u)
  bounds: AllBounds = {}
  bounded = set(graph.bounded)
  for index, node in graph.nodes.items():
    if isinstance(node.operation, Affine):
      bounds[index] = _affine_bounds(graph, bounds, index)
    else:
      if node.operation is not None:
        before = bounds[node.inputs[0]]
        interval = node.operation.interval(before.lower, before.upper)
      zero = jnp.zeros_like(x, shape=())
      bounds[index] = Bounds(*interval, zero, zero, interval)
    if index in bounded and _tighten(graph, index, u, method):
      of: Bound = functools.partial(upper, graph, bounds, x, u, target=index)
      linear = _every_unit(of, bounds[index], block)
      bounds[index] = _intersection(bounds[index], linear)
      if tighten and max_units and graph.mixing(index) == math.inf:
        of = tighten(of, graph, bounds)
        linear = _most_open_units(of, bounds[index], max_units, max(1, block // 4))
        bounds[index] = _intersection(bounds[index], linear)
  return bounds


def upper(
  graph: Graph,
  bounds: AllBounds,
  x: Array,
  u: Ball,
  a: Array,
  target: int | None = None,
  slopes: Slopes | None = None,
  to_intervals: bool = False,
) -> Estimate:
  """An upper bound over U(x) of <a, value of the target>: value + slack; by default of the logits.

  `to_intervals`: only through the affine operations behind the last nonlinear ones, whose values
  lie in their intervals; otherwise back to the image, through relaxations.
  """
  target = graph.output if target is None else target
  adjoints = {target: a}
  parts = [_charge(graph, bounds, target, a)]

  def add(index: int, pulled: Array) -> None:
    adjoints[index] = adjoints[index] + pulled if index in adjoints else pulled

  for index in _backwards(graph, target):
    if index not in adjoints:
      continue
    a, node = adjoints.pop(index), graph.nodes[index]
    if node.operation is None:
      parts.append(_over_set(a, bounds[index], x, u))
    elif isinstance(node.operation, Affine):
      like = [jax.ShapeDtypeStruct(graph.nodes[i].shape, graph.dtype) for i in node.inputs]
      pulled = jax.linear_transpose(node.operation.linear, *like)(a)
      for i, part in zip(node.inputs, pulled, strict=True):
        add(i, part)
    elif to_intervals:
      parts.append(_over_interval(a, bounds[index]))
    else:
      (i,) = node.inputs
      slope = Piecewise.adaptive(*bounds[i].linear) if slopes is None else slopes.get(index)
      part, estimate = node.operation.pull_back(a, *bounds[i][:2], slope)
      add(i, part)
      parts += [estimate, _charge(graph, bounds, i, part)]
  stacked = jax.tree.map(lambda *values: jnp.stack(values), *parts)
  rounding = gamma(len(parts) + 8, graph.dtype)
  absolute = jnp.sum(jnp.abs(stacked.value)) + jnp.sum(stacked.slack)
  return Estimate(jnp.sum(stacked.value), jnp.sum(stacked.slack) + rounding * absolute)


def _backwards(graph: Graph, target: int) -> Iterator[int]:
  return (index for index in sorted(graph.nodes, reverse=True) if index <= target)


def _charge(graph: Graph, bounds: AllBounds, index: int, a: Array) -> Estimate:
  """What the affine operations up to a node add to a bound: their biases and their rounding."""
  of_node, uses = bounds[index], graph.uses.get(index, 1)
  error = of_node.error
  if uses > 1:
    error = error + gamma(uses + 2, graph.dtype) * largest(of_node.lower, of_node.upper)
  return inner(a, jnp.broadcast_to(of_node.offset, a.shape), error)


def _affine_bounds(graph: Graph, bounds: AllBounds, index: int) -> Bounds:
  """L c + bias -+ |L| r for the intervals c -+ r of the inputs."""
  node = graph.nodes[index]
  operation = node.operation
  assert isinstance(operation, Affine)
  inputs = [bounds[i] for i in node.inputs]
  bias = jnp.zeros((), graph.dtype) if operation.bias is None else operation.bias
  full = lambda part: [jnp.broadcast_to(getattr(b, part), b.lower.shape) for b in inputs]  # noqa: E731
  error = operation.magnitude(*full("error"))
  offset = operation.linear(*full("offset")) + bias
  limits = jnp.finfo(graph.dtype)
  underflow = 2 * float(limits.tiny) / float(limits.eps)  # times u the smallest normal number
  size = operation.magnitude(*(largest(b.lower, b.upper) for b in inputs))
  size = size + jnp.abs(bias) + underflow
  roundings = operation.roundings(max(graph.uses[i] for i in node.inputs))
  error = error + gamma(roundings, graph.dtype) * size
  of_offset = operation.magnitude(*map(jnp.abs, full("offset"))) + jnp.abs(bias)
  error = error + gamma(2 * operation.terms, graph.dtype) * of_offset
  if operation.terms == 0:  # values move: exact
    lower, highest = (operation.linear(*full(end)) + bias for end in ("lower", "upper"))
    return Bounds(lower, highest, error, offset, (lower, highest))
  center = operation.linear(*((b.lower + b.upper) / 2 for b in inputs)) + bias
  spread = operation.magnitude(*((b.upper - b.lower) / 2 for b in inputs))
  spread = spread + gamma(2 * operation.terms + 8, graph.dtype) * size
  interval = center - spread, center + spread
  return Bounds(*interval, error, offset, interval)


def _tighten(graph: Graph, index: int, u: Ball, method: str) -> bool:
  """Whether a node gets linear bounds: always for CROWN, unless its interval is exact."""
  mixing = graph.mixing(index)
  if mixing == math.inf:
    return method != "ibp"
  return mixing > isinstance(u, LInf)


def _intersection(old: Bounds, linear: Interval) -> Bounds:
  lower, highest = jnp.maximum(old.lower, linear[0]), jnp.minimum(old.upper, linear[1])
  return old._replace(lower=lower, upper=highest, linear=linear)


def _every_unit(of: Bound, old: Bounds, block: int) -> Interval:
  """Linear bounds of all units of a node."""
  lower, highest = _bounds_of_units(of, old, jnp.arange(old.lower.size), block)
  return lower.reshape(old.lower.shape), highest.reshape(old.lower.shape)


def _most_open_units(of: Bound, old: Bounds, count: int, block: int) -> Interval:
  """The linear bounds of a node, tighter for the units whose signs are the most open."""
  shape, openness = old.lower.shape, jnp.minimum(-old.lower, old.upper).reshape(-1)
  ids = jax.lax.top_k(openness, min(count, openness.size))[1]
  lower, highest = (end.reshape(-1) for end in old.linear)
  found = _bounds_of_units(of, old, ids, block)
  lower, highest = lower.at[ids].max(found[0]), highest.at[ids].min(found[1])
  return lower.reshape(shape), highest.reshape(shape)


def _bounds_of_units(of: Bound, like: Bounds, ids: Array, block: int) -> Interval:
  """Linear bounds [K] of the units [K] of a node."""
  shape, units = like.lower.shape, like.lower.size

  def bounds_of(unit: Array) -> Interval:
    a = jax.nn.one_hot(unit, units, dtype=like.lower.dtype).reshape(shape)
    found = jax.vmap(of)(jnp.stack([a, -a]))
    of_a, of_minus_a = found.value + found.slack
    return -of_minus_a, of_a

  # Equal blocks, the last filled up with the first units: a remainder would be compiled apart.
  blocks = math.ceil(ids.size / block)
  equal = jnp.resize(ids, (blocks, math.ceil(ids.size / blocks)))
  lower, highest = jax.lax.map(jax.vmap(bounds_of), equal)
  return lower.reshape(-1)[: ids.size], highest.reshape(-1)[: ids.size]


def enclosing_interval(x: Array, u: Ball) -> Interval:
  """The smallest interval around U(x), widened by the rounding of x + delta."""
  # In every norm, |delta_i| <= radius.
  radius = jnp.asarray(u.radius, x.dtype)
  lower, highest = x - radius, x + radius
  if u.box is not None:
    lower, highest = jnp.clip(lower, *u.box), jnp.clip(highest, *u.box)
  lost = gamma(8, x.dtype) * largest(lower, highest)
  return lower - lost, highest + lost


def _over_interval(a: Array, bounds: Bounds) -> Estimate:
  """The largest <a, z> over an interval."""
  return inner(a, jnp.where(a > 0, bounds.upper, bounds.lower))


def _over_set(a: Array, bounds: Bounds, x: Array, u: Ball) -> Estimate:
  """The largest <a, x + delta> over U(x), both delta and x + delta rounded."""
  if isinstance(u, LInf):
    return _over_interval(a, bounds)
  clean = inner(a, x, gamma(10, x.dtype) * largest(bounds.lower, bounds.upper))
  delta = jax.lax.stop_gradient(u.steepest_ascent(a, x))  # Danskin: it need not be differentiated
  # No term is negative. The lengths of steps over l_2 and l_1 are sums over all entries.
  gain, roundings = total(a * delta), 4 * x.size + depth(x.size) + 20
  return clean + Estimate(gain, gamma(roundings, x.dtype) * gain)
