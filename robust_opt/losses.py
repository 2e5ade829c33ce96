"""What is wrong with every example, (logits [B, C], labels [B]) -> [B]; never averaged.

Logits are unnormalised: the outputs of a softmax are no logits. Every loss grows as the label
loses, so that an adversary climbs it; any number of classes from 2 on.

|  input                               |  cross_entropy  |  margin, dlr      |
|  a label outside [0, C)              |  NaN            |  NaN              |
|  NaN logits                          |  NaN            |  NaN              |
|  all logits equal                    |  log C          |  0                |
|  a label that wins by far (float32)  |  0, flat        |  margin is never  |
"""

import chex
import jax
import jax.numpy as jnp
import optax

from robust_opt.errors import InputError
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


def margin(logits: Array, labels: Array) -> Array:
  """max over j != y of z_j - z_y: how far the label is beaten, > 0 where another class wins.

  It has a gradient where the cross-entropy of a confident net is flat. Source: Carlini and Wagner
  2017 (arXiv 1608.04644), f_6 with the sign turned and without its floor.

  Args:
    logits: [B, C], C >= 2.
    labels: [B], integers.
  """
  return _best_other(logits, labels) - _entry(logits, labels)


def dlr(logits: Array, labels: Array) -> Array:
  """The difference of logits ratio, a margin that does not depend on the scale of the logits.

    (max over j != y of z_j - z_y) / (z_(1) - z_(3)),   z_(k) the k-th largest logit

  With two classes there is no third: the margin itself. Source: Croce and Hein 2020 (arXiv
  2003.01690), equation 6.

  Args:
    logits: [B, C], C >= 2.
    labels: [B], integers.
  """
  if logits.shape[-1] < 3:
    return margin(logits, labels)
  largest = jnp.sort(logits, axis=-1)
  return _ratio(margin(logits, labels), largest[:, -1] - largest[:, -3])


def targeted_margin(logits: Array, labels: Array, targets: Array) -> Array:
  """z_t - z_y: how far the target beats the label.

  Args:
    logits: [B, C], C >= 2.
    labels: [B], integers.
    targets: [B], integers.
  """
  return _entry(logits, targets) - _entry(logits, labels)


def targeted_dlr(logits: Array, labels: Array, targets: Array) -> Array:
  """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2); with three classes z_(4) is z_(3), with two 1.

  Source: Croce and Hein 2020 (arXiv 2003.01690), equation 7.

  Args:
    logits: [B, C], C >= 2.
    labels: [B], integers.
    targets: [B], integers, the class to be mistaken for.
  """
  beaten = targeted_margin(logits, labels, targets)
  if logits.shape[-1] < 3:
    return beaten
  largest = jnp.sort(logits, axis=-1)
  fourth = largest[:, -4] if logits.shape[-1] > 3 else largest[:, -3]
  return _ratio(beaten, largest[:, -1] - (largest[:, -3] + fourth) / 2)


def kl_divergence(logits: Array, reference: Array) -> Array:
  """KL(softmax(reference) || softmax(logits)), which needs no label.

  Source: Miyato et al. 2015 (arXiv 1507.00677), equation 1.

  Args:
    logits: [B, C], of the perturbed examples.
    reference: [B, C], of the clean ones.
  """
  chex.assert_equal_shape((logits, reference))
  log_reference = jax.nn.log_softmax(reference)
  difference = log_reference - jax.nn.log_softmax(logits)
  return jnp.sum(jnp.exp(log_reference) * difference, axis=-1)


def correct(logits: Array, labels: Array) -> Array:
  """Whether the largest logit is the label's, [B] bool; never where a logit is inf or NaN."""
  chex.assert_rank([logits, labels], [2, 1])
  return (jnp.argmax(logits, axis=-1) == labels) & jnp.all(jnp.isfinite(logits), axis=-1)


def _entry(logits: Array, labels: Array) -> Array:
  """logits[i, labels[i]], NaN for a label that does not exist."""
  chex.assert_rank([logits, labels], [2, 1])
  exists = (labels >= 0) & (labels < logits.shape[-1])
  entry = jnp.take_along_axis(logits, jnp.where(exists, labels, 0)[:, None], axis=-1)[:, 0]
  return jnp.where(exists, entry, jnp.nan)


def _best_other(logits: Array, labels: Array) -> Array:
  if logits.shape[-1] < 2:
    raise InputError(f"A margin needs logits of at least 2 classes, but has {logits.shape[-1]}.")
  is_label = jnp.arange(logits.shape[-1]) == labels[:, None]
  return jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)


def _ratio(a: Array, b: Array) -> Array:
  """a / b, and a itself where b is 0 (all logits that matter are equal, and a is 0 too)."""
  return a / jnp.where(b == 0, 1.0, b)
