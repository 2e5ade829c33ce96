"""The interface of attacks on logits."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax.numpy as jnp

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


class MinimalAttack(Protocol):
  """A LogitsAttack that looks for the smallest perturbation, from one to start from if there is.

  `start` is [B, *S]: perturbations within the box, 0 where there is none. One that fools the net is
  returned if nothing smaller is found.
  """

  def __call__(
    self, keys: Array, logits_fn: LogitsFn, x: Array, y: Array, start: Array | None = None
  ) -> AttackResult:
    """keys [B], x [B, *S], y [B]."""
    ...


class Passes(NamedTuple):
  """How often an attack ran its batch through the net.

  Attributes:
    forward: [] int32, passes for the logits alone.
    gradient: [] int32, backward passes; each but the further ones of a step has a forward pass too.
  """

  forward: Array
  gradient: Array


class CountedResult(NamedTuple):
  """An AttackResult with the passes that it cost."""

  delta: Array
  fooled: Array
  passes: Passes


# (keys [B], logits_fn, x [B, *S], y [B]) -> CountedResult
CountedAttack = Callable[[Array, LogitsFn, Array, Array], CountedResult]


def passes(forward: Array | int, gradient: Array | int) -> Passes:
  """Passes from numbers."""
  return Passes(jnp.asarray(forward, jnp.int32), jnp.asarray(gradient, jnp.int32))


def uncounted(attack: CountedAttack) -> LogitsAttack:
  """The attack without its counts."""

  def attacked(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> AttackResult:
    result = attack(keys, logits_fn, x, y)
    return AttackResult(result.delta, result.fooled)

  return attacked
