"""Attacks on a region: any attack on logits, on a net that sees the rest of the image as it was.

  u = ro.sets.Masked(ro.LInf(8 / 255, box=(0.0, 1.0)), mask)     # mask [*S] or [B, *S]
  delta, fooled = masked(square(u.u), u)(keys, logits_fn, x, y)  # delta is 0 outside of the mask

Gradients are 0 there, and queries have no effect there. So every attack over a ball is one over the
part of the ball within the mask, whose perturbations only lose what lies outside.
"""

import jax.numpy as jnp

from robust_opt.attacks.types import AttackResult, LogitsAttack
from robust_opt.sets import Masked
from robust_opt.types import Array, LogitsFn


def masked(attack: LogitsAttack, u: Masked) -> LogitsAttack:
  """The attack (keys, logits_fn, x, y), of which only the part within the mask of u is seen."""

  def attacked(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> AttackResult:
    outside = u.outside(x)
    result = attack(keys, lambda z, *key: logits_fn(jnp.where(outside, x, z), *key), x, y)
    return result._replace(delta=jnp.where(outside, 0.0, result.delta))

  return attacked
