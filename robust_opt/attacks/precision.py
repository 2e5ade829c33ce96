"""Attacks on nets whose logits have another dtype than the images: bfloat16, float16, float64.

An attack computes in the dtype of the images, or in float32 if that has fewer bits:

  def attack(keys, logits_fn, x, y):
    logits_fn, x, rounded = widened(logits_fn, x)
    ...
    return rounded(AttackResult(delta, fooled))
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from robust_opt.precision import check_floating, wide
from robust_opt.types import Array, LogitsFn

T = TypeVar("T")


def widened(logits_fn: LogitsFn, x: Array) -> tuple[LogitsFn, Array, Callable[[T], T]]:
  """A net whose inputs and logits have one dtype, x in that dtype, and the cast back to x's own.

  If x has fewer bits than float32, the net sees x + delta with delta rounded to x's dtype, and
  `rounded` rounds the attack's result in the same way, so that the delta returned is the one that
  fooled the net.

  The net takes only inputs of x's shape.

  Returns:
    (logits_fn, x, rounded): inputs, logits and x have the dtype `precision.wide(x.dtype)`;
    rounded(result) casts the floating-point arrays of a result, all deltas [B, *S], to x's dtype.

  Raises:
    InputError: x is not floating point; from the net: its logits are not.
  """
  x = jnp.asarray(x)
  dtype = wide(check_floating(x, "x"))
  wide_x = x.astype(dtype)

  def round_delta(delta: Array) -> Array:
    if dtype == x.dtype:
      return delta
    return ((wide_x + delta) - wide_x).astype(x.dtype)

  def net(points: Array, *key: Array) -> Array:
    narrow = points if dtype == x.dtype else x + round_delta(points - wide_x)
    logits = logits_fn(narrow, *key)
    bits = jnp.finfo(check_floating(logits, "The net's logits"))
    if bits.nmant >= jnp.finfo(dtype).nmant:
      return logits.astype(dtype)
    # XLA may skip the rounding to bfloat16 between float32 operations; a tie must stay a tie.
    return jax.lax.reduce_precision(logits.astype(dtype), bits.nexp, bits.nmant)

  def rounded(result: T) -> T:
    return jax.tree.map(lambda a: round_delta(a) if a.dtype == dtype else a, result)

  return net, wide_x, rounded
