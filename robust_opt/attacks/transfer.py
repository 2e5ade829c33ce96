"""Transfer: perturbations made on other nets, judged on the one that is attacked.

  attack = transfer([net_a, net_b], square("linf", 8 / 255))   # nets: x [B, *S] -> logits [B, C]
  found = attack(keys, logits_fn, x, y)

It needs no more of the attacked net than its logits at the results. A net that falls to them but
not to an attack of its own gradient hides that gradient (Athalye, Carlini and Wagner 2018, arXiv
1802.00420, section 3.1).

An attack stops where it fools the source, and leaves alone what the source misclassifies by itself.
One that climbs on behind the source's boundary transfers better.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from robust_opt import losses
from robust_opt.attacks.precision import widened
from robust_opt.attacks.types import Found, LogitsAttack
from robust_opt.errors import InputError
from robust_opt.types import Array, LogitsFn


def transfer(sources: LogitsFn | Sequence[LogitsFn], attack: LogitsAttack) -> LogitsAttack:
  """An attack, run against each source and judged on the target.

  For every example it keeps the first perturbation that fools the target; where none does, the one
  of the highest margin, and 0 if that is no higher than the clean one. Every source is attacked
  with the same keys.

  Args:
    sources: one net or several, none of which needs to be the target.
    attack: what is run against a source as if it were the target.

  Raises:
    InputError: there is no source.
  """
  nets = (sources,) if callable(sources) else tuple(sources)
  if not nets:
    raise InputError("transfer needs at least one net to make perturbations on, but got none.")

  def transferred(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> Found:
    logits_fn, wide_x, rounded = widened(logits_fn, x)

    def judge(x: Array) -> tuple[Array, Array]:
      logits = logits_fn(x)
      return losses.margin(logits, y), ~losses.correct(logits, y)

    delta = jnp.zeros_like(wide_x)
    margin, fooled = judge(wide_x)
    for source in nets:
      candidate = attack(keys, source, x, y).delta
      candidate_margin, candidate_fooled = judge(wide_x + candidate)
      better = ~fooled & (candidate_fooled | (candidate_margin > margin))
      delta = jnp.where(better.reshape(-1, *(1,) * (x.ndim - 1)), candidate, delta)
      margin = jnp.where(better, candidate_margin, margin)
      fooled |= candidate_fooled
    return rounded(Found(delta, fooled))

  return transferred
