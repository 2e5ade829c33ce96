"""The objective of certified training: the loss at the worst logits that intervals allow.

  objective = ro.ibp(ro.LInf(0.1, box=(0.0, 1.0)), alpha=0.5)
  step = ro.make_train_step(apply, optimizer, objective, attack)

|  attack              |  alpha  |  share  |  training                                           |
|  none                |  0.5    |  1      |  IBP, Gowal et al. 2018 (arXiv 1810.12715)          |
|  PGD                 |  < 1    |  1      |  MTL-IBP, De Palma et al. 2023 (arXiv 2305.13991)   |
|  PGD                 |  1      |  < 1    |  SABR, Mueller et al. 2022 (arXiv 2210.04871)       |

A network so trained is one that `ro.certify` proves robust. Training starts at a small radius that
grows (`ScheduledObjective`). Unlike those of a certificate, the bounds here leave rounding aside.
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.arrays import expand_like
from robust_opt.certificates import tracing
from robust_opt.certificates.graph import Graph
from robust_opt.certificates.operations import Affine
from robust_opt.checks import described
from robust_opt.errors import InputError
from robust_opt.objectives import RobustObjective, check_share, robust
from robust_opt.sets import LInf, UncertaintySet
from robust_opt.types import Array, Forward, LogitsFn, ModelState

Values = dict[int, Array]  # of nodes of a graph, by index

__all__ = ["ibp"]


def ibp(u: UncertaintySet, alpha: float = 0.5, share: float = 1.0) -> RobustObjective:
  """(1 - alpha) J(x', y) + alpha J(worst logits over a box, y), J the cross-entropy.

  The box is the part of U(x) within share * radius of x', or of the nearest point to x' that has
  all of it in U(x) but for the pixel box. With share 1 it is U(x). The worst logits are 0 for y and
  upper bounds of z_j - z_y over the box for the others, by interval bound propagation through the
  network in evaluation mode. The last linear layer is applied to z_j - z_y, not to each logit.
  Products in the bounds are of full float32. Under shard_map this needs check_vma=False.

  Args:
    u: an LInf, of one radius or [B], which may be traced.
    alpha: in [0, 1], may be traced; 0 is `ro.robust`, and 1 - alpha is kappa of Gowal et al.
    share: 0 < share <= 1, the share of the radius; tau of SABR.

  Raises:
    InputError: u is another set, or alpha or share is out of range; from the objective: y are no
      classes, or the network computes in fewer bits than float32 or has an operation whose bounds
      are not known, which is named.
  """
  if type(u) is not LInf:
    raise InputError(f"ibp takes ro.LInf, as in ro.LInf(0.1, box=(0.0, 1.0)), not {described(u)}.")
  check_share("alpha", alpha)
  check_share("share", share)
  if not share > 0:
    raise InputError(f"share must be > 0, but was {share}.")

  def outer(forward: Forward, x: Array, x_adv: Array, y: Array) -> tuple[Array, ModelState]:
    if y.ndim != 1 or not jnp.issubdtype(y.dtype, jnp.integer):
      raise InputError(
        f"ibp needs classes, integers [B], but the labels are {y.dtype} {list(y.shape)}."
      )
    logits, model_state = forward(x_adv)
    lower, upper = _box(u, x, x_adv, share)
    worst = worst_logits(lambda x: forward(x, train=False)[0], lower, upper, y)
    attacked, bounded = losses.cross_entropy(logits, y), losses.cross_entropy(worst, y)
    return (1 - alpha) * attacked + alpha * bounded, model_state

  return RobustObjective(robust().inner, outer)


def _box(u: LInf, x: Array, x_adv: Array, share: float) -> tuple[Array, Array]:
  """The ends of the box of `ibp`, [B, *S] each."""
  radius = expand_like(jnp.asarray(u.radius, x.dtype), x)
  room = (1 - share) * radius
  center = x + jnp.clip(x_adv - x, -room, room)
  lower, upper = center - share * radius, center + share * radius
  return (lower, upper) if u.box is None else (jnp.clip(lower, *u.box), jnp.clip(upper, *u.box))


def worst_logits(logits_fn: LogitsFn, lower: Array, upper: Array, y: Array) -> Array:
  """Upper bounds of z_j - z_y on boxes, up to rounding: [B, C], 0 for j = y.

  Args:
    logits_fn: as for `ro.certify`.
    lower, upper: the ends of the boxes, [B, *S].
    y: [B], integers.
  """
  graph = tracing.trace(logits_fn, lower.shape[1:], lower.dtype)
  losses.check_classes(jax.ShapeDtypeStruct(graph.nodes[graph.output].shape, graph.dtype))
  tail = _tail(graph)
  matrix = _matrix(graph, tail)

  def of_one(lower: Array, upper: Array, y: Array) -> Array:
    centers, spreads = _intervals(graph, lower[None], upper[None])
    logits = _apply(graph, tail, centers)[0]
    sizes = [
      jnp.sum(jnp.abs(rows - rows[y]) * spreads[index], axis=range(1, rows.ndim))
      for index, rows in matrix.items()
    ]
    return logits - logits[y] + sum(sizes)

  return jax.vmap(of_one)(lower, upper, y)


def _intervals(graph: Graph, lower: Array, upper: Array) -> tuple[Values, Values]:
  """Centers and half widths of the intervals of all nodes, of one image [1, *S]."""
  centers: Values = {}
  spreads: Values = {}
  for index, node in graph.nodes.items():
    before, around = ([values[i] for i in node.inputs] for values in (centers, spreads))
    if isinstance(node.operation, Affine):
      centers[index] = _value(node.operation, before)
      spreads[index] = node.operation.magnitude(*around)
      continue
    if node.operation is not None:
      (center,), (spread,) = before, around
      # Stacked: XLA for CPUs would compute the gradients of both over and over in its fusions.
      ends = jnp.stack([center - spread, center + spread])
      lower, upper = node.operation.interval(*ends)
    centers[index], spreads[index] = jnp.stack([(lower + upper) / 2, (upper - lower) / 2])
  return centers, spreads


def _tail(graph: Graph) -> list[int]:
  """The affine nodes that no nonlinear one follows, in order: the last linear layer."""
  tail, left = set(), [graph.output]
  while left:
    index = left.pop()
    node = graph.nodes[index]
    if isinstance(node.operation, Affine) and index not in tail:
      tail.add(index)
      left.extend(node.inputs)
  return sorted(tail)


def _apply(graph: Graph, tail: list[int], values: Values) -> Array:
  """The logits [1, C] from the values before the tail."""
  values = dict(values)
  for index in tail:
    node = graph.nodes[index]
    assert isinstance(node.operation, Affine)
    values[index] = _value(node.operation, [values[i] for i in node.inputs])
  return values[graph.output]


def _matrix(graph: Graph, tail: list[int]) -> Values:
  """The linear part of the tail: for each node before it, [C, 1, *shape]."""
  inputs = {i for index in tail for i in graph.nodes[index].inputs} - set(tail)
  zeros = {i: jnp.zeros(graph.nodes[i].shape, graph.dtype) for i in inputs or {graph.output}}
  logits, pull = jax.vjp(functools.partial(_apply, graph, tail), zeros)
  (matrix,) = jax.vmap(pull)(jnp.eye(logits.shape[-1], dtype=graph.dtype)[:, None])
  return matrix


def _value(affine: Affine, values: Iterable[Array]) -> Array:
  linear = affine.linear(*values)
  return linear if affine.bias is None else linear + affine.bias
