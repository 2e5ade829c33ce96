"""White-box attacks: any inner maximizer on a loss of the logits, as an attack on logits.

  attack = ascent(ro.apgd(ro.LInf(0.3), 100, keep_best=True), losses.cross_entropy)
  delta, fooled = attack(keys, logits_fn, x, y)

The maximizer ascends the loss, but keeps the point of the largest margin of every example, so that
an iterate that fools the net is not replaced by a later one of higher loss.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.arrays import expand_like
from robust_opt.attacks.hyperplanes import rival_of_rank
from robust_opt.attacks.precision import widened
from robust_opt.attacks.types import AttackResult, LogitsAttack
from robust_opt.maximizers import Attack
from robust_opt.types import Array, LogitsFn, LossFn, Scored, Stochastic, ValueFn

NOISE = 0x6E6F6973  # folded into the first example's key for the noise of the net


def ascent(attack: Attack, loss: LossFn, fresh_noise: bool = False) -> LogitsAttack:
  """An untargeted attack: ascends loss(logits, y), [B].

  Args:
    attack: from `ro.apgd`, `ro.ascend` or `ro.restarts`, with keep_best.
    loss: cross_entropy, margin or dlr of robust_opt.losses.
    fresh_noise: whether the net takes a key, logits_fn(x, key), and each step gets a new one
      (expectation over transformation, `ro.Randomized`).
  """

  def attacked(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> AttackResult:
    logits_fn, x, rounded = widened(logits_fn, x)

    def value_fn(x: Array, *key: Array) -> Scored:
      logits = logits_fn(x, *key)
      return Scored(loss(logits, y), losses.margin(logits, y))

    def at(step: Array | int) -> ValueFn:
      noise = jax.random.fold_in(jax.random.fold_in(keys[0], NOISE), step)
      return lambda x: value_fn(x, noise)

    delta, _ = attack(Stochastic(at) if fresh_noise else value_fn, keys, x)
    return rounded(_result(delta, logits_fn, x, y))

  return attacked


def targeted_ascent(
  attack: Attack, loss: Callable[[Array, Array, Array], Array], target_rank: int | Array
) -> LogitsAttack:
  """Ascends toward one wrong class per example; any wrong prediction counts.

  Args:
    attack: as for `ascent`.
    loss: targeted_dlr or targeted_margin, (logits, y, targets) -> [B].
    target_rank: the rank of the target among the wrong classes by their clean logits, 0 for the
      largest; it may be traced, so that all targets share one compilation.

  Raises:
    InputError: from the attack: a rank that the logits do not have.
  """

  def attacked(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> AttackResult:
    targets = rival_of_rank(logits_fn(x), y, target_rank)
    return ascent(attack, lambda logits, y: loss(logits, y, targets))(keys, logits_fn, x, y)

  return attacked


def _result(delta: Array, logits_fn: LogitsFn, x: Array, y: Array) -> AttackResult:
  """delta, set to 0 where the clean example is misclassified, and whether it fools the net."""
  misclassified = ~losses.correct(logits_fn(x), y)
  delta = jnp.where(expand_like(misclassified, x), 0.0, delta)
  return AttackResult(delta, misclassified | ~losses.correct(logits_fn(x + delta), y))
