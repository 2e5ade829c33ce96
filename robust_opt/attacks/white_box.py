"""Attacks by ascending a loss of the logits: any inner maximiser, judged by whether it fools.

  attack = ascent(ro.ascend(ro.apgd("linf", 0.3, 100), 100, keep_best=True), losses.cross_entropy)
  found = attack(keys, logits_fn, x, y)

The ascent climbs the loss, and every example's best point is by the margin, so that an iterate that
fooled the net is never lost to a later one of higher loss.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.attacks.hyperplanes import rival_of_rank
from robust_opt.attacks.precision import widened
from robust_opt.attacks.types import Found, LogitsAttack
from robust_opt.maximizers import Attack
from robust_opt.types import Array, LogitsFn, LossFn, Scored, Stochastic, ValueFn

NOISE = 0x6E6F6973  # folded into the first example's key: the stream of a net's own noise


def ascent(attack: Attack, loss: LossFn, fresh_noise: bool = False) -> LogitsAttack:
  """An untargeted attack: ascends loss(logits, y), [B].

  Args:
    attack: from maximizers.ascend or restarts, with keep_best.
    loss: cross_entropy, margin or dlr of robust_opt.losses.
    fresh_noise: whether the net takes a key, logits_fn(x, key), and every step a fresh one
      (expectation over transformation, `robust_opt.evaluation.network.Randomized`).
  """

  def attacked(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> Found:
    logits_fn, x, rounded = widened(logits_fn, x)

    def value_fn(x: Array, *key: Array) -> Scored:
      logits = logits_fn(x, *key)
      return Scored(loss(logits, y), losses.margin(logits, y))

    def at(step: Array | int) -> ValueFn:
      noise = jax.random.fold_in(jax.random.fold_in(keys[0], NOISE), step)
      return lambda x: value_fn(x, noise)

    delta, _ = attack(Stochastic(at) if fresh_noise else value_fn, keys, x)
    return rounded(judged(delta, logits_fn, x, y))

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
