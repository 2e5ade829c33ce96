"""The interface of attacks on logits."""

from collections.abc import Callable
from typing import NamedTuple

from robust_opt.types import Array, LogitsFn


class AttackResult(NamedTuple):
  """The outcome of an attack on a batch.

  Attributes:
    delta: [B, *S], the best perturbation found; 0 where none was found and where the clean example
      is misclassified already.
    fooled: [B] bool, whether x + delta is misclassified.
  """

  delta: Array
  fooled: Array


# (keys [B], logits_fn, x [B, *S], y [B]) -> AttackResult
LogitsAttack = Callable[[Array, LogitsFn, Array, Array], AttackResult]
