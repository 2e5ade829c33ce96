"""White-box attacks: any inner maximizer on a loss of the logits, as an attack on logits.

  attack = ascent(ro.apgd(ro.LInf(0.3), 100, keep_best=True), losses.cross_entropy)
  delta, fooled = attack(keys, logits_fn, x, y)

The maximizer ascends the loss, but keeps the point of the largest margin of every example, so that
an iterate that fools the net is not replaced by a later one of higher loss. It ends once every
example of the batch is misclassified by a margin that rounding cannot undo.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.arrays import expand_like
from robust_opt.attacks.hyperplanes import rival_of_rank
from robust_opt.attacks.precision import widened
from robust_opt.attacks.types import (
  AttackResult,
  CountedAttack,
  CountedResult,
  LogitsAttack,
  passes,
  uncounted,
)
from robust_opt.maximizers import Attack
from robust_opt.maximizers.base import steps_taken
from robust_opt.types import Array, LogitsFn, LossFn, Scored, Stochastic, ValueFn

NOISE = 0x6E6F6973  # folded into the first example's key for the noise of the net
# A margin above this share of the spread of the clean logits is enough: another program, batch size
# or precision of the products (TF32 changes logits by 0.3 %) gives the same prediction.
_ENOUGH = 0.05
OTHER_PASSES = 4  # the clean logits twice, those of the last point and of the result


def ascent(attack: Attack, loss: LossFn, fresh_noise: bool = False) -> LogitsAttack:
  """An untargeted attack: ascends loss(logits, y), [B].

  Args:
    attack: from `ro.apgd`, `ro.ascend` or `ro.restarts`, with keep_best.
    loss: cross_entropy, margin or dlr of robust_opt.losses.
    fresh_noise: whether the net takes a key, logits_fn(x, key), and each step gets a new one
      (expectation over transformation, `ro.Randomized`).
  """
  return uncounted(counting_ascent(attack, loss, fresh_noise))


def counting_ascent(attack: Attack, loss: LossFn, fresh_noise: bool = False) -> CountedAttack:
  """`ascent` that also counts the passes."""

  def attacked(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> CountedResult:
    logits_fn, x, rounded = widened(logits_fn, x)
    # Fresh noise may undo any margin.
    enough = None if fresh_noise else _ENOUGH * _spread(logits_fn(x))

    def value_fn(x: Array, *key: Array) -> Scored:
      logits = logits_fn(x, *key)
      return Scored(loss(logits, y), losses.margin(logits, y), enough)

    def at(step: Array | int) -> ValueFn:
      noise = jax.random.fold_in(jax.random.fold_in(keys[0], NOISE), step)
      return lambda x: value_fn(x, noise)

    delta, info = attack(Stochastic(at) if fresh_noise else value_fn, keys, x)
    result = rounded(_result(delta, logits_fn, x, y))
    return CountedResult(*result, passes(OTHER_PASSES, steps_taken(info)))

  return attacked


def targeted_ascent(
  attack: Attack, loss: Callable[[Array, Array, Array], Array], target_rank: int | Array
) -> LogitsAttack:
  """Ascends toward one wrong class per example; any wrong prediction counts.

  Args:
    attack: as for `ascent`.
    loss: targeted_dlr or targeted_margin, (logits, y, targets) -> [B].
    target_rank: the rank of the target among the wrong classes by their clean logits, 0 for the
      largest, [] or [B]; it may be traced, so that all targets share one compilation.

  Raises:
    InputError: from the attack: a rank that the logits do not have.
  """
  return uncounted(counting_targeted_ascent(attack, loss, target_rank))


def counting_targeted_ascent(
  attack: Attack, loss: Callable[[Array, Array, Array], Array], target_rank: int | Array
) -> CountedAttack:
  """`targeted_ascent` that also counts the passes."""

  def attacked(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> CountedResult:
    targets = rival_of_rank(logits_fn(x), y, target_rank)
    ascending = counting_ascent(attack, lambda logits, y: loss(logits, y, targets))
    return ascending(keys, logits_fn, x, y)

  return attacked


def _spread(logits: Array) -> Array:
  """The largest minus the smallest finite logit of each example, [B, C] -> [B]."""
  finite = jnp.isfinite(logits)
  largest = jnp.max(logits, axis=-1, where=finite, initial=-jnp.inf)
  return largest - jnp.min(logits, axis=-1, where=finite, initial=jnp.inf)


def _result(delta: Array, logits_fn: LogitsFn, x: Array, y: Array) -> AttackResult:
  """delta, set to 0 where the clean example is misclassified, and whether it fools the net."""
  misclassified = ~losses.correct(logits_fn(x), y)
  delta = jnp.where(expand_like(misclassified, x), 0.0, delta)
  return AttackResult(delta, misclassified | ~losses.correct(logits_fn(x + delta), y))
