"""Targeted attacks: any attack on logits, aimed at a chosen class for each example.

  targets = target_classes("least_likely", logits_fn(x), y)     # or "random", or a class; [B]
  delta, hit = targeted(square(u))(keys, logits_fn, x, targets)  # hit: the target is predicted
  delta, hit = targeted(deepfool(everywhere))(keys, logits_fn, x, targets)

The attack sees a net of two logits: the largest of the other classes, which counts as the label,
and that of the target. So whatever fools that net makes the target the prediction. Every attack is
targeted in the same way, and no attack needs to know about targets. Its losses become

  cross-entropy   softplus(largest other logit - target logit)
  margin, dlr     target logit - largest other logit

This is not the target of APGD-T and FAB-T, where any wrong prediction counts.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import losses
from robust_opt.attacks.types import AttackResult, LogitsAttack
from robust_opt.errors import InputError
from robust_opt.keys import per_example
from robust_opt.types import Array, LogitsFn

RULES = ("least_likely", "random")


def targeted(attack: LogitsAttack) -> LogitsAttack:
  """The attack (keys, logits_fn, x, targets [B]) that succeeds where the target is predicted.

  As for any attack, delta is 0 where the clean example is classified as the target already. Attacks
  toward a class by its rank (`targeted_ascent`, `fab` with target_rank) have only rank 0 here.
  """

  def attacked(keys: Array, logits_fn: LogitsFn, x: Array, targets: Array) -> AttackResult:
    return attack(keys, functools.partial(_two_logits, logits_fn, targets), x, 0 * targets)

  return attacked


def _two_logits(logits_fn: LogitsFn, targets: Array, x: Array, *key: Array) -> Array:
  """The largest logit of the other classes and that of the target, [B, 2]; NaN if one is NaN.

  A tie goes to the other classes, though argmax may predict the target, as it comes first.
  """
  logits = logits_fn(x, *key)
  losses.check_classes(logits)
  is_target = jnp.arange(logits.shape[-1]) == targets[:, None]
  other = jnp.max(jnp.where(is_target, -jnp.inf, logits), axis=-1)
  target = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
  # NaN or infinite logits predict no class, and so not the target: the label wins.
  finite = jnp.all(jnp.isfinite(logits), axis=-1)
  return jnp.stack([jnp.where(finite, other, 0.0), jnp.where(finite, target, -1.0)], axis=-1)


def target_classes(
  target: int | str, logits: Array, y: np.ndarray | Array, key: Array | None = None
) -> np.ndarray:
  """The target of each example, [B] int32.

  Args:
    target: a class, for all examples; "least_likely", the wrong class of the smallest logit; or
      "random", any wrong class with equal probability.
    logits: [B, C], of the clean examples.
    y: [B], the labels. Where the label is the class of choice, it remains the target; leave those
      examples out.
    key: for "random", one or one for each example [B].

  Raises:
    InputError: see `check_target`; or "random" without a key.
  """
  losses.check_classes(logits)
  num_classes = logits.shape[-1]
  check_target(target, num_classes)
  if target == "least_likely":
    is_label = jnp.arange(num_classes) == jnp.asarray(y)[:, None]
    return np.asarray(jnp.argmin(jnp.where(is_label, jnp.inf, logits), axis=-1), np.int32)
  if target == "random":
    if key is None:
      raise InputError("Random targets need a key, as in jax.random.key(0).")
    draw = jax.vmap(lambda key: jax.random.randint(key, (), 1, num_classes))
    return np.asarray((jnp.asarray(y) + draw(per_example(key, len(y)))) % num_classes, np.int32)
  return np.full(np.shape(y), target, np.int32)


def check_target(target: int | str, num_classes: int) -> None:
  """InputError unless the target is a class from 0 to num_classes - 1, or one of RULES."""
  if target in RULES or (isinstance(target, int) and 0 <= target < num_classes):
    return
  raise InputError(
    f"target must be a class from 0 to {num_classes - 1}, or one of {', '.join(RULES)}, but was "
    f"{target!r}."
  )
