"""Transfer attacks: perturbations computed on other nets, evaluated on the target net.

  attack = transfer([net_a, net_b], square(u))     # nets: x [B, *S] -> logits [B, C]
  delta, fooled = attack(keys, logits_fn, x, y)

It evaluates only logits of the target. A net that such perturbations fool, but not an attack on its
own gradient, masks that gradient (Athalye, Carlini and Wagner 2018, arXiv
1802.00420, section 3.1).

An attack stops once it fools the source, and skips examples that the source misclassifies.
Perturbations further past the boundary of the source transfer better.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from robust_opt import losses
from robust_opt.arrays import where_examples
from robust_opt.attacks.precision import widened
from robust_opt.attacks.types import AttackResult, LogitsAttack
from robust_opt.errors import InputError
from robust_opt.types import Array, LogitsFn


def transfer(sources: LogitsFn | Sequence[LogitsFn], attack: LogitsAttack) -> LogitsAttack:
  """An attack that is run on each source and evaluated on the target.

  For each example it keeps the first perturbation that fools the target; where none does, the one
  of the largest margin, or 0 if that is not above the margin of the clean example. Every source is
  attacked with the same keys.

  Args:
    sources: one or several nets.
    attack: the attack to run on each source.

  Raises:
    InputError: there is no source.
  """
  nets = (sources,) if callable(sources) else tuple(sources)
  if not nets:
    raise InputError("transfer needs at least one source net, but got none.")

  def transferred(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> AttackResult:
    logits_fn, wide_x, rounded = widened(logits_fn, x)

    def evaluate(x: Array) -> tuple[Array, Array]:
      logits = logits_fn(x)
      return losses.margin(logits, y), ~losses.correct(logits, y)

    delta = jnp.zeros_like(wide_x)
    margin, fooled = evaluate(wide_x)
    for source in nets:
      candidate = attack(keys, source, x, y).delta
      candidate_margin, candidate_fooled = evaluate(wide_x + candidate)
      better = ~fooled & (candidate_fooled | (candidate_margin > margin))
      delta = where_examples(better, candidate, delta)
      margin = jnp.where(better, candidate_margin, margin)
      fooled |= candidate_fooled
    return rounded(AttackResult(delta, fooled))

  return transferred
