"""What is wrong with every example, (logits [B, C], labels [B]) -> [B]; never averaged.

Logits are unnormalised: the outputs of a softmax are no logits.
"""

import chex
import jax.numpy as jnp
import optax

from robust_opt.types import Array


def cross_entropy(logits: Array, labels: Array) -> Array:
  """-log softmax(logits)[label].

  Args:
    logits: [B, C], unnormalised. A label outside [0, C) gives NaN.
    labels: [B], integers.
  """
  chex.assert_rank([logits, labels], [2, 1])
  labels = jnp.where(labels < 0, logits.shape[-1], labels)  # else -1 would be the last class
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def correct(logits: Array, labels: Array) -> Array:
  """Whether the largest logit is the label's, [B] bool; never where a logit is inf or NaN."""
  chex.assert_rank([logits, labels], [2, 1])
  return (jnp.argmax(logits, axis=-1) == labels) & jnp.all(jnp.isfinite(logits), axis=-1)
