"""Certified robustness of networks: interval bound propagation, CROWN and alpha-CROWN.

  certificate = ro.certify(logits_fn, x, y, ro.LInf(2 / 255, box=(0.0, 1.0)))
  certificate.certified.mean()     # [N], proofs that no point of U(x) is misclassified

  'ibp'          intervals, operation by operation: one pass, loose. Gowal et al. 2018
                 (arXiv 1810.12715).
  'crown'        linear bounds of every unit back to the image; two backward passes per unit before
                 a nonlinearity. Zhang et al. 2018 (arXiv 1811.00866), theorem 3.2.
  'alpha-crown'  the same for all images; then, of those that are left, for each bound of the logits
                 and of max_units units per layer the slopes of the relaxations are optimized. Xu et
                 al. 2021 (arXiv 2011.13824). Left are images that CROWN does not certify and that
                 APGD does not break.

CROWN's bounds are intersected with the intervals, so they are never looser. All are exact up to
rounding for a network without nonlinear operations.

The proofs hold for the network as computed in the dtype of x, for any order of its sums, at every
point x + delta rounded to that dtype. The part of a margin that allows for this is its slack, about
1e-5 of the size of the terms for layers of a few hundred inputs in float32. The proofs do NOT hold
for a network computed in fewer bits: accelerators round the factors of float32 products by default,
so evaluate it under jax.default_matmul_precision("highest"). Fast convolution algorithms (Winograd)
round more. Weights that the network computes from others, as batch normalization does, are taken as
right to four units in the last place.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import losses, maximizers
from robust_opt.certificates import propagation, tracing
from robust_opt.certificates.alpha import optimized, smaller
from robust_opt.certificates.exact import check_precision
from robust_opt.certificates.graph import Graph
from robust_opt.certificates.rounding import Estimate
from robust_opt.errors import InputError
from robust_opt.evaluation import network
from robust_opt.precision import check_floating
from robust_opt.sets import Ball, check_ball
from robust_opt.types import Array, LogitsFn

# Numbers in the largest array of the backward passes: what a CPU's caches, or a GPU's memory, hold.
_CPU_MEMORY, _MEMORY = 2**20, 2**27
_ATTACK_STEPS = 30  # of APGD


class Margins(NamedTuple):
  """Lower bounds of z_y - z_j over U(x), as the network computes it."""

  bounds: Array  # [B, C]; 0 for j = y
  slack: Array  # [B, C], what they would be larger by without an allowance for rounding


class Certificate(NamedTuple):
  """The result for each of N images.

  Attributes:
    certified: [N] bool, a proof that all of U(x) is classified as y; False proves nothing.
    margins: [N], lower bounds over U(x) of z_y - max over j != y of z_j. With 'alpha-crown' those
      of CROWN for images that needed no tighter ones.
    slack: [N], the part of these bounds that allows for rounding.
    method: 'ibp', 'crown' or 'alpha-crown'.
    set: U.
  """

  certified: np.ndarray
  margins: np.ndarray
  slack: np.ndarray
  method: str
  set: Ball


def certify(
  logits_fn: LogitsFn,
  x: np.ndarray | Array,
  y: np.ndarray | Array,
  u: Ball,
  method: str = "crown",
  *,
  batch_size: int = 20,
  num_steps: int = 20,
  max_units: int = 128,
) -> Certificate:
  """Which images the network is proved to classify as y at every x + delta, delta in U(x).

  The bounds are compiled once for networks of one architecture (of arrays in a `Partial` or a
  module, or a function whose code and constants stay) and images of one shape.

  Args:
    logits_fn: x [B, *S] -> logits [B, C], C >= 2, each image by itself: affine operations, ReLU,
      leaky ReLU, abs, sigmoid, tanh, clipping, maxima.
    x: [N, *S], pixels in [0, 1], within the box of u, at least float32.
    y: [N], integers; a label outside [0, C) is never certified.
    u: an LInf, L2 or L1, of one radius or [N]. With a box the bounds are tighter.
    method: 'ibp', 'crown' or 'alpha-crown'.
    batch_size: images at a time; affects memory and speed. 'alpha-crown' fills up its last batch.
    num_steps: of the optimizer of 'alpha-crown'.
    max_units: of each layer, whose bounds 'alpha-crown' optimizes too: those whose signs are the
      most open. Each costs as much as a logit; 0 for the logits alone.

  Raises:
    InputError: u is another set, an unknown method, images or networks in fewer bits than float32,
      or the network has an operation whose bounds are not known, which is named.
  """
  check_ball(u, "certify")
  _check_method(method)
  x, y = np.asarray(x), np.asarray(y)
  check_precision(jnp.asarray(x[:0]))
  if y.shape != x.shape[:1] or len(x) == 0:
    raise InputError(
      f"There must be as many labels as images, and one at least, but the shapes are {x.shape} and "
      f"{y.shape}."
    )
  net = network.as_argument(logits_fn, x)
  radii = np.broadcast_to(np.asarray(u.radius, x.dtype), x.shape[:1])
  size = min(batch_size, len(x))

  def of_images(program: Callable[..., Any], ids: np.ndarray, *args: Any) -> list[np.ndarray]:
    """program(net, x, y, u, *args) of these images, in batches of one size."""
    outputs = []
    for first in range(0, len(ids), size):
      batch = np.resize(ids[first : first + size], size)
      result = program(net, x[batch], y[batch], type(u)(radii[batch], u.box), *args)
      outputs.append(jax.tree.map(lambda a: np.asarray(a)[: len(ids) - first], result))  # noqa: B023
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]

  fast = "crown" if method == "alpha-crown" else method
  right, margins, slack = of_images(_certify, np.arange(len(x)), fast, 0, 0)
  left = np.flatnonzero(right & ~(margins > 0)) if fast != method else np.arange(0)
  if left.size:
    left = left[of_images(_resists, left)[0]]
  if left.size:
    _, tighter, its_slack = of_images(_certify, left, method, num_steps, max_units)
    better = tighter > margins[left]
    margins[left[better]], slack[left[better]] = tighter[better], its_slack[better]
  return Certificate(right & (margins > 0), margins, slack, method, u)


@jax.jit
def _resists(net: LogitsFn, x: Array, y: Array, u: Ball) -> tuple[Array]:
  """Whether APGD finds no point of U(x) that is misclassified, [B]."""
  with jax.default_matmul_precision("highest"):
    value = lambda x: losses.margin(net(x), y)  # noqa: E731
    delta, _ = maximizers.apgd(u, _ATTACK_STEPS, keep_best=True)(value, jax.random.key(0), x)
    return (losses.correct(net(x + delta), y),)


@functools.partial(jax.jit, static_argnames=("method", "num_steps", "max_units"))
def _certify(
  net: LogitsFn, x: Array, y: Array, u: Ball, method: str, num_steps: int, max_units: int
) -> tuple[Array, Array, Array]:
  """Whether the clean image is classified correctly, its margin and slack, [B] each."""
  found = margins(net, x, y, u, method, num_steps, max_units)
  with jax.default_matmul_precision("highest"):
    right = losses.correct(net(x), y)
  others = jnp.where(jnp.arange(found.bounds.shape[-1]) == y[:, None], jnp.inf, found.bounds)
  worst = jnp.argmin(others, axis=-1, keepdims=True)
  take = lambda a: jnp.take_along_axis(a, worst, axis=-1)[:, 0]  # noqa: E731
  return right, take(others), take(found.slack)


def margins(
  logits_fn: LogitsFn,
  x: Array,
  y: Array,
  u: Ball,
  method: str = "crown",
  num_steps: int = 20,
  max_units: int = 128,
) -> Margins:
  """The bounds behind `certify`, of a batch: a pure function, for jit, with the same arguments."""

  def of_one(graph: Graph, x: Array, u: Ball, block: int, y: Array) -> Estimate:
    logits = graph.nodes[graph.output]
    losses.check_classes(jax.ShapeDtypeStruct(logits.shape, graph.dtype))
    num_classes = logits.shape[-1]
    label = jax.nn.one_hot(y, num_classes, dtype=x.dtype)
    directions = jnp.eye(num_classes, dtype=x.dtype) - label
    return _upper(graph, x, u, method, directions[:, None], block, num_steps, max_units)

  found = _of_each(of_one, logits_fn, x, u, method, y)
  return Margins(-(found.value + found.slack), found.slack)


def logit_bounds(
  logits_fn: LogitsFn,
  x: Array,
  u: Ball,
  method: str = "crown",
  num_steps: int = 20,
  max_units: int = 128,
) -> tuple[Array, Array]:
  """Bounds (lower [B, C], upper [B, C]) of every logit over U(x); arguments as for `certify`.

  A pure function of a batch. Their differences are looser than its margins. C may be 1.
  """

  def of_one(graph: Graph, x: Array, u: Ball, block: int) -> Estimate:
    units = jnp.eye(graph.nodes[graph.output].shape[-1], dtype=x.dtype)[:, None]
    directions = jnp.concatenate([units, -units])
    return _upper(graph, x, u, method, directions, block, num_steps, max_units)

  found = _of_each(of_one, logits_fn, x, u, method)
  above, minus_below = jnp.split(found.value + found.slack, 2, axis=-1)
  return -minus_below, above


def _check_method(method: str) -> None:
  if method not in propagation.METHODS:
    names = ", ".join(map(repr, propagation.METHODS))
    raise InputError(f"method must be one of {names}, but was {method!r}.")


def _of_each(
  of_one: Callable[..., Estimate], logits_fn: LogitsFn, x: Array, u: Ball, method: str, *args: Array
) -> Estimate:
  """of_one(graph, x [1, *S], u, block, *args) of every image of a batch."""
  check_ball(u, "certify")
  _check_method(method)
  check_precision(x)
  logits = check_floating(jax.eval_shape(logits_fn, x), "The net's logits")
  x = jnp.asarray(x, jnp.promote_types(x.dtype, logits))
  with jax.default_matmul_precision("highest"):
    graph = tracing.trace(logits_fn, x.shape[1:], x.dtype)
    widest = max(math.prod(node.shape) for node in graph.nodes.values())
    memory = _CPU_MEMORY if jax.default_backend() == "cpu" else _MEMORY
    block = int(np.clip(memory // (len(x) * widest), 1, 512))

    def of_image(x: Array, radius: Array, *args: Array) -> Estimate:
      return of_one(graph, x[None], type(u)(radius, u.box), block, *args)

    radii = jnp.broadcast_to(jnp.asarray(u.radius, x.dtype), x.shape[:1])
    return jax.vmap(of_image)(x, radii, *args)


def _upper(
  graph: Graph,
  x: Array,
  u: Ball,
  method: str,
  directions: Array,
  block: int,
  num_steps: int,
  max_units: int,
) -> Estimate:
  """Upper bounds over U(x) of <a, logits>, [K], for the directions a [K, 1, C]."""
  tighten = functools.partial(optimized, num_steps=num_steps) if method == "alpha-crown" else None
  bounds = propagation.forward(graph, x, u, method, block, tighten, max_units)
  of = functools.partial(propagation.upper, graph, bounds, x, u)
  found = jax.vmap(functools.partial(of, to_intervals=True))(directions)
  if method == "ibp":
    return found
  found = smaller(found, jax.vmap(of)(directions))
  if method == "crown":
    return found
  return smaller(found, jax.vmap(optimized(of, graph, bounds, num_steps))(directions))
