"""Attacks by ascending a loss of the logits: any inner maximiser, judged by whether it fools.

  attack = ascent(ro.ascend(ro.apgd("linf", 0.3, 100), 100, keep_best=True), losses.cross_entropy)
  found = attack(keys, logits_fn, x, y)

The ascent climbs the loss, and every example's best point is by the margin, so that an iterate that
fooled the net is never lost to a later one of higher loss.
"""

from collections.abc import Callable

import jax.numpy as jnp

from robust_opt import losses
from robust_opt.attacks.hyperplanes import rival_of_rank
from robust_opt.attacks.types import Found, LogitsAttack
from robust_opt.maximizers import Attack
from robust_opt.types import Array, LogitsFn, LossFn, Scored


def ascent(attack: Attack, loss: LossFn) -> LogitsAttack:
  """An untargeted attack: ascends loss(logits, y), [B].

  Args:
    attack: from maximizers.ascend or restarts, with keep_best.
    loss: cross_entropy, margin or dlr of robust_opt.losses.
  """

  def attacked(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> Found:
    def value_fn(x: Array) -> Scored:
      logits = logits_fn(x)
      return Scored(loss(logits, y), losses.margin(logits, y))

    return judged(attack(value_fn, keys, x)[0], logits_fn, x, y)

  return attacked


def targeted_ascent(
  attack: Attack, loss: Callable[[Array, Array, Array], Array], rank: int | Array
) -> LogitsAttack:
  """Ascends toward one wrong class; any wrong class counts.

  Args:
    attack: as for `ascent`.
    loss: targeted_dlr or targeted_margin, (logits, y, targets) -> [B].
    rank: the target's place among the wrong classes by their clean logits, 0 the largest; it may be
      traced, so that all targets share one program.

  Raises:
    InputError: from the attack: a rank that the logits do not have.
  """

  def attacked(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> Found:
    targets = rival_of_rank(logits_fn(x), y, rank)
    return ascent(attack, lambda logits, y: loss(logits, y, targets))(keys, logits_fn, x, y)

  return attacked


def judged(delta: Array, logits_fn: LogitsFn, x: Array, y: Array) -> Found:
  """What a perturbation did; 0 where the clean example is misclassified already."""
  lost = ~losses.correct(logits_fn(x), y)
  delta = jnp.where(lost.reshape(-1, *(1,) * (x.ndim - 1)), 0.0, delta)
  return Found(delta, lost | ~losses.correct(logits_fn(x + delta), y))
