"""What attacks that read logits take and return."""

from collections.abc import Callable
from typing import NamedTuple

from robust_opt.types import Array, LogitsFn


class Found(NamedTuple):
  """What an attack made of a batch.

  Attributes:
    delta: [B, *S], the worst perturbation that it found; 0 where it found none, and where the clean
      example is misclassified already.
    fooled: [B] bool, whether x + delta is misclassified.
  """

  delta: Array
  fooled: Array


# (keys [B], logits_fn, x [B, *S], y [B]) -> Found
LogitsAttack = Callable[[Array, LogitsFn, Array, Array], Found]


class Minimal(NamedTuple):
  """What a minimal-norm attack made of a batch.

  Attributes:
    delta: [B, *S], the smallest misclassified perturbation that it found, x + delta in the box; 0
      where it found none, and where the clean example is misclassified already.
    found: [B] bool, whether x + delta is misclassified.
  """

  delta: Array
  found: Array


# (keys [B], logits_fn, x [B, *S], y [B]) -> Minimal
MinimalAttack = Callable[[Array, LogitsFn, Array, Array], Minimal]
