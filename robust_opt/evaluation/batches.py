"""Attacks and predictions in batches of few sizes, so that few programs are compiled.

  sizes = packing(batch_size(net, x), jax.default_backend())
  lanes, size = next_batch(pending, sizes)               # pending: Lanes of examples and targets
  padded = pad(lanes, size)
  result = run_lanes(make, axis, net, u, key, padded, x[padded.ids], y[padded.ids])
  classes = predictions(logits_fn, x, batch_size)

A lane is one example under one attack: for targeted attacks, one target of it.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import losses
from robust_opt.arrays import pad_to
from robust_opt.attacks.types import AttackResult, CountedResult, LogitsAttack
from robust_opt.evaluation import network
from robust_opt.keys import keys_of
from robust_opt.precision import products
from robust_opt.sets import UncertaintySet
from robust_opt.types import Array, LogitsFn

# (set, choice [] or [B] int32, channel axis of an example or None) -> attack, called under trace.
# The choice is the rank of each example's target or the index of a loss. A compile-time constant,
# compared by identity.
MakeAttack = Callable[[Any, Array, int | None], LogitsAttack | Callable[..., CountedResult]]

CPU_BATCH = 100
SMALLEST_BATCH, LARGEST_BATCH = 128, 4096  # on accelerators
_SMALLEST = 64  # of the batches of a remainder on accelerators
_ENOUGH_EXAMPLES = 1024  # for which a batch need not be larger
_MEMORY_SHARE = 1 / 3  # of a device's memory; the rest is for workspaces of convolutions
_FALLBACK_MEMORY = 8 * 2**30  # of a device that does not say how much it has
# What an attack holds beside the activations, in images: FAB's projections of both hyperplanes.
_IMAGES_HELD = 40
_ACTIVATIONS_HELD = 3  # times what the backward pass needs, for temporaries


class Lanes(NamedTuple):
  """Examples under attack, with a target each.

  Attributes:
    ids: [L] int32, the index of the example.
    ranks: [L] int32, the rank of its target class; 0 if the attack has none.
    streams: [L] int32, the number from which, with the id, its random numbers come.
  """

  ids: np.ndarray | Array
  ranks: np.ndarray | Array
  streams: np.ndarray | Array


class Packing(NamedTuple):
  """How lanes are packed into batches.

  Attributes:
    sizes: of batches, the largest first.
    ahead: whether a batch may hold all targets of an example, rather than the next one, to fill it.
  """

  sizes: tuple[int, ...]
  ahead: bool


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_attack(
  make: MakeAttack,
  channel_axis: int | None,
  net: LogitsFn,
  u: UncertaintySet,
  choice: Array,
  key: Array,
  ids: Array,
  x: Array,
  y: Array,
) -> AttackResult | CountedResult:
  """The attack on a batch: ids [B], from which its random numbers come, x [B, *S] and y [B].

  The net, from `network.as_argument`, and the set are arguments of the program: nets of one
  architecture and sets of one type share a compilation.
  """
  return make(u, choice, channel_axis)(keys_of(key, ids), net, x, y)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_lanes(
  make: MakeAttack,
  channel_axis: int | None,
  net: LogitsFn,
  u: UncertaintySet,
  key: Array,
  lanes: Lanes,
  x: Array,
  y: Array,
) -> AttackResult | CountedResult:
  """The attack on a batch of lanes, x [B, *S] and y [B] of their examples; as `run_attack`."""
  streams, ids = jnp.asarray(lanes.streams), jnp.asarray(lanes.ids)
  keys = jax.vmap(jax.random.fold_in)(keys_of(key, streams), ids)
  return make(u, jnp.asarray(lanes.ranks), channel_axis)(keys, net, x, y)


def packing(batch_size: int, backend: str, devices: int = 1) -> Packing:
  """Batches of at most batch_size.

  On a CPU the time of a batch is proportional to its size: whole batches, and batches of an eighth
  for the remainder, so that few programs are compiled. On an accelerator a small batch takes as
  long as one several times as large: few batches of nearly equal size, which share a program. There
  are four sizes to an octave, so that at most a fifth of a batch is padding.
  """
  if backend == "cpu":
    return Packing((batch_size, max(1, batch_size // 8)), ahead=False)
  octaves = range(max(1, (batch_size // _SMALLEST).bit_length()))
  sizes = {(batch_size * k // 8) >> octave for octave in octaves for k in (5, 6, 7, 8)}
  kept = {size for size in sizes if size >= _SMALLEST and size % devices == 0} | {batch_size}
  return Packing(tuple(sorted(kept, reverse=True)), ahead=True)


def next_batch(
  pending: Lanes,
  packing: Packing,
  used: frozenset[int] = frozenset(),
  few_break: bool = False,
) -> tuple[Lanes, int]:
  """The next lanes to run, in their order, and the size of their batch, which may be larger.

  Lanes of the lowest rank decide the size, and higher ranks only fill it; or all lanes, where few
  examples break, so that nearly all will run; split evenly, if the packing runs ahead. Pending
  lanes are ordered by rank.
  """
  count = len(pending.ids) if few_break else int(np.sum(pending.ranks == pending.ranks[0]))
  if packing.ahead:
    num_batches = -(-len(pending.ids) // packing.sizes[0])
    count = -(-len(pending.ids) // num_batches)
  size = padded_size(count, packing, used)
  return Lanes(*(column[:size] for column in pending)), size


def padded_size(count: int, packing: Packing, used: frozenset[int] = frozenset()) -> int:
  """The size of the batch for `count` lanes, which may be more than it takes.

  A size in `used`, whose program exists, is preferred over one of at least half of it.
  """
  largest, *_, smallest = (*packing.sizes, packing.sizes[-1])
  if not packing.ahead:
    return largest if count >= largest - smallest and count > smallest else smallest
  fitting = [size for size in packing.sizes if size >= count] or [largest]
  known = [size for size in fitting if size in used and size <= 2 * fitting[-1]]
  return min(known) if known else fitting[-1]


def lanes_of(ids: np.ndarray, num_targets: int, first_stream: int) -> Lanes:
  """Every target of every example, the first target of all of them first."""
  ranks = np.repeat(np.arange(num_targets, dtype=np.int32), len(ids))
  return Lanes(np.tile(ids.astype(np.int32), num_targets), ranks, first_stream + ranks)


def without(pending: Lanes, count: int, broken: np.ndarray) -> Lanes:
  """The lanes after the first `count`, without those of examples that are broken."""
  rest = Lanes(*(column[count:] for column in pending))
  keep = ~np.isin(rest.ids, broken)
  return Lanes(*(column[keep] for column in rest))


def pad(lanes: Lanes, size: int) -> Lanes:
  """Repeats the last lane, which ends no later than itself: padding keeps no batch running."""
  return Lanes(*(pad_to(np.asarray(column, np.int32), size) for column in lanes))


def default_batch_size(logits_fn: LogitsFn, x: np.ndarray, devices: int = 1) -> int:
  """The number of examples of a batch, for a net and images x [N, *S].

  On a CPU 100. On accelerators as many as fit into their memory, by what the backward pass of the
  net keeps of each example; a power of two for each device, in all from 128 to 4096, and no more
  than the data set needs. Over several devices, a multiple of 8 times their number, so that the
  eighth of a batch can be split as well.
  """
  unit = 8 * devices if devices > 1 else 1
  device = jax.local_devices()[0]
  if device.platform == "cpu":
    return -(-CPU_BATCH // unit) * unit
  memory = (device.memory_stats() or {}).get("bytes_limit", _FALLBACK_MEMORY)
  fit = devices * _MEMORY_SHARE * memory / bytes_of_example(logits_fn, x)
  needed = max(_ENOUGH_EXAMPLES, 2 ** math.ceil(math.log2(len(x))))
  size = min(fit, needed, LARGEST_BATCH)
  each = 2 ** math.floor(math.log2(max(size, SMALLEST_BATCH) / devices))
  return max(each * devices, unit)


def bytes_of_example(logits_fn: LogitsFn, x: np.ndarray) -> float:
  """About the memory that an attack holds for each example of x [N, *S]."""

  def kept(count: int) -> int:
    example = jax.ShapeDtypeStruct((count, *x.shape[1:]), jnp.float32)
    pullback = jax.eval_shape(lambda x: jax.vjp(logits_fn, x)[1], example)
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(pullback))

  try:
    activations = kept(2) - kept(1)
  except Exception:  # a net without a gradient, or whatever the user's function raises
    activations = 0
  return _ACTIVATIONS_HELD * activations + _IMAGES_HELD * 4 * math.prod(x.shape[1:])


def predictions(
  logits_fn: LogitsFn,
  x: np.ndarray,
  batch_size: int,
  put: Callable[[Any], Any] = jnp.asarray,
  precision: str | None = None,
) -> np.ndarray:
  """The predicted class of every image, [N] int32; -1 where a logit is inf or NaN.

  All batches have one size, so that the same image at the same index gives the same bits. Products
  have the precision `robust_opt.precision.stated(precision)`.
  """
  net = network.as_argument(logits_fn, x)
  with products(precision):
    classes = [_predict(net, put(batch)) for batch in _batches(x, batch_size)]
  return np.concatenate([np.zeros(0, np.int32), *map(np.asarray, classes)])[: len(x)]


def logits_of(
  logits_fn: LogitsFn,
  x: np.ndarray,
  batch_size: int,
  put: Callable[[Any], Any] = jnp.asarray,
  precision: str | None = None,
) -> np.ndarray:
  """The logits of every image, [N, C], N >= 1; batches and precision as of `predictions`."""
  net = network.as_argument(logits_fn, x)
  with products(precision):
    logits = [np.asarray(_logits(net, put(batch))) for batch in _batches(x, batch_size)]
  return np.concatenate(logits)[: len(x)]


def _batches(x: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
  """All images in batches of one size, the last one padded."""
  starts = range(0, len(x), batch_size)
  return (pad_to(x[start : start + batch_size], batch_size) for start in starts)


def margins(
  logits_fn: LogitsFn,
  x: np.ndarray,
  y: np.ndarray,
  batch_size: int,
  put: Callable[[Any], Any] = jnp.asarray,
) -> np.ndarray:
  """The margin of every image, [N] float32, as `losses.margin`: > 0 where the net is wrong.

  Products have the precision of the context, `robust_opt.precision.products`.
  """
  net = network.as_argument(logits_fn, x)
  pairs = zip(_batches(x, batch_size), _batches(y, batch_size), strict=True)
  reached = [np.asarray(_margin(net, put(images), put(labels))) for images, labels in pairs]
  return np.concatenate([np.zeros(0, np.float32), *reached])[: len(x)]


def seconds_compiling() -> float:
  """The seconds that JAX has spent on making programs so far, in this process."""
  return _compiling["seconds"]


def _count_compiling(event: str, duration_secs: float, **_: str | int) -> None:
  if event in _COMPILING:
    _compiling["seconds"] += duration_secs


_COMPILING = (
  "/jax/core/compile/jaxpr_to_mlir_module_duration",
  "/jax/core/compile/backend_compile_duration",
)
_compiling = {"seconds": 0.0}
jax.monitoring.register_event_duration_secs_listener(_count_compiling)


def plain_logits(logits_fn: LogitsFn, x: np.ndarray, batch_size: int) -> np.ndarray:
  """Logits [N, C] by calls without jit, which would freeze noise that the net draws in Python.

  The logits keep the net's dtype, which determines the allowed rounding. With N = 0 one call on an
  image of zeros determines C; a net that reshapes by -1 cannot take none.
  """
  images = x if len(x) else np.zeros((1, *x.shape[1:]), x.dtype)
  # On devices other than a CPU, lower precision makes the rounding of products depend on the size.
  with jax.default_matmul_precision("highest"):
    starts = range(0, len(images), batch_size)
    batches = [logits_fn(jnp.asarray(images[start : start + batch_size])) for start in starts]
    return np.concatenate([np.asarray(logits) for logits in batches])[: len(x)]


@jax.jit
def _predict(net: LogitsFn, x: Array) -> Array:
  return losses.predicted(net(x))


@jax.jit
def _logits(net: LogitsFn, x: Array) -> Array:
  return net(x)


@jax.jit
def _margin(net: LogitsFn, x: Array, y: Array) -> Array:
  return losses.margin(net(x), y)
