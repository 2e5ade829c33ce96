"""Evaluations toward a class of choice: the target of every example, and attacks that aim at it.

rule = parsed("least_likely")                    # or "random", or a class such as "3"
targets = targets_of(rule, net, x, y, ids, seed=0, batch_size=100)       # [N] int32
attack = aimed(phase.make)(u, ranks, channel_axis)        # (keys, net, x, targets) -> result
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt.attacks.targets import target_classes, targeted
from robust_opt.evaluation.batches import MakeAttack, logits_of
from robust_opt.keys import keys_of
from robust_opt.types import Array, LogitsFn

_RANDOM = 0x74617267  # folded into the seed for random targets


def parsed(text: str) -> int | str | None:
  """The rule that a flag or a verdict states: a class, one of `targets.RULES`; None if empty."""
  return int(text) if text.isdecimal() else text or None


def targets_of(
  rule: int | str,
  net: LogitsFn,
  x: np.ndarray,
  y: np.ndarray,
  ids: np.ndarray,
  seed: int,
  batch_size: int,
  put: Callable[[Any], Any] = jnp.asarray,
  precision: str | None = None,
) -> np.ndarray:
  """The target of every example, [N] int32, which does not depend on the other examples.

  Args:
    rule: as for `targets.target_classes`.
    net, x, y, ids, seed: as for `autoattack`; random targets come from the seed and the id.
    batch_size, put, precision: as for `batches.logits_of`.

  Raises:
    InputError: see `targets.check_target`.
  """
  logits = logits_of(net, x, batch_size, put, precision)
  keys = keys_of(jax.random.fold_in(jax.random.key(seed), _RANDOM), jnp.asarray(ids))
  return target_classes(rule, jnp.asarray(logits), y, keys)


@functools.cache  # a compile-time constant, compared by identity
def aimed(make: MakeAttack) -> MakeAttack:
  """The attacks of a phase, toward the classes that they get in place of the labels."""

  def made(u: Any, choice: Array, channel_axis: int | None) -> Callable[..., Any]:
    # The attack sees two logits, among which the target has the rank 0.
    attack: Callable[..., Any] = make(u, jnp.zeros_like(choice), channel_axis)
    return targeted(attack)

  return made
