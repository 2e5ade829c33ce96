"""Attacks on nets whose logits have another type than the images: bfloat16, float16, float64.

An attack computes in the type of the images, or in float32 if that has fewer bits:

  def attack(keys, logits_fn, x, y):
    logits_fn, x, rounded = widened(logits_fn, x)
    ...
    return rounded(Found(delta, fooled))
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from robust_opt.precision import check_floating, wide
from robust_opt.types import Array, LogitsFn

T = TypeVar("T")


def widened(logits_fn: LogitsFn, x: Array) -> tuple[LogitsFn, Array, Callable[[T], T]]:
  """A net whose points and logits have one type, x in that type, and the way back to x's own.

  If x has fewer bits than float32, the net sees x + delta with delta rounded to x's type, and
  `rounded` rounds what the attack returns in the same way: what fooled the net is what is returned.

  Args:
    logits_fn: x [B, *S] -> logits [B, C], of any floating type.
    x: [B, *S]. The net takes points of this shape only.

  Returns:
    (logits_fn, x, rounded): points and logits of type `precision.wide(x.dtype)`, as x is;
    rounded(result) casts the floating-point arrays of a result, all deltas [B, *S], to x's type.

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
    check_floating(logits, "The net's logits")
    return logits.astype(dtype)

  def rounded(result: T) -> T:
    return jax.tree.map(lambda a: round_delta(a) if a.dtype == dtype else a, result)

  return net, wide_x, rounded
