"""Attacks and predictions in batches of few sizes, so that each program compiles once or twice.

for ids in split(remaining, batch_size):               # whole batches, then eighths
  padded = pad_to(ids, bucket(len(ids), batch_size))
  result = run_attack(make, axis, net, u, choice, key, padded, x[padded], y[padded])
classes = predictions(logits_fn, x, batch_size)
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import losses
from robust_opt.arrays import pad_to
from robust_opt.attacks.types import AttackResult, LogitsAttack
from robust_opt.evaluation import network
from robust_opt.keys import keys_of
from robust_opt.sets import UncertaintySet
from robust_opt.types import Array, LogitsFn

# (set, choice [] int32, channel axis of an example or None) -> attack, called under trace. The
# choice is a target's rank or the index of a loss. A compile-time constant, compared by identity.
MakeAttack = Callable[[Any, Array, int | None], LogitsAttack]


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
) -> AttackResult:
  """The attack on a batch: ids [B], from which its random numbers come, x [B, *S] and y [B].

  The net, from `network.as_argument`, and the set are arguments of the program: nets of one
  architecture and sets of one type share a compilation.
  """
  return make(u, choice, channel_axis)(keys_of(key, ids), net, x, y)


def split(ids: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
  """Splits ids into whole batches, then batches of an eighth; the last may be shorter."""
  small = bucket(1, batch_size)
  start = 0
  while start < len(ids):
    size = batch_size if len(ids) - start >= batch_size - small else small
    yield ids[start : start + size]
    start += size


def bucket(count: int, batch_size: int) -> int:
  """The size that a batch of `count` examples is padded to."""
  small = max(1, batch_size // 8)
  return small if count <= small else batch_size


def predictions(
  logits_fn: LogitsFn, x: np.ndarray, batch_size: int, put: Callable[[Any], Any] = jnp.asarray
) -> np.ndarray:
  """The predicted class of every image, [N] int32; -1 where a logit is inf or NaN.

  All batches have one size, so that the same image at the same index gives the same bits.
  """
  net = network.as_argument(logits_fn, x)
  classes = [
    np.asarray(_predict(net, put(pad_to(x[start : start + batch_size], batch_size))))
    for start in range(0, len(x), batch_size)
  ]
  return np.concatenate([np.zeros(0, np.int32), *classes])[: len(x)]


def plain_logits(logits_fn: LogitsFn, x: np.ndarray, batch_size: int) -> np.ndarray:
  """Logits [N, C] by calls without jit, which would freeze noise that the net draws in Python.

  The logits keep the net's dtype, which determines the allowed rounding. With N = 0 one call
  determines C.
  """
  # On devices other than a CPU, lower precision makes the rounding of products depend on the size.
  with jax.default_matmul_precision("highest"):
    starts = range(0, max(1, len(x)), batch_size)
    batches = [logits_fn(jnp.asarray(x[start : start + batch_size])) for start in starts]
    return np.concatenate([np.asarray(logits) for logits in batches])


@jax.jit
def _predict(net: LogitsFn, x: Array) -> Array:
  return losses.predicted(net(x))
