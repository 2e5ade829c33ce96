"""What is wrong with every example, (logits [B, C], labels [B]) -> [B]; never averaged.

Logits are unnormalised: the outputs of a softmax are no logits. Every loss grows as the label
loses, so that an adversary climbs it; any number of classes from 2 on. `one_vs_all` and
`independent` are for nets whose classes are present or absent each by itself; `probabilities` are
what a net of any kind believes.

Every loss returns the type of the logits, which may be any floating type: in bfloat16 and float16
it is computed in float32 and rounded at the end. Integer logits are an InputError.

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
from robust_opt.precision import computed_wide
from robust_opt.types import Array


@computed_wide
def cross_entropy(logits: Array, labels: Array) -> Array:
  """-log softmax(logits)[label].

  Args:
    logits: [B, C], unnormalised. A label outside [0, C) gives NaN.
    labels: [B], integers.
  """
  chex.assert_rank([logits, labels], [2, 1])
  labels = jnp.where(labels < 0, logits.shape[-1], labels)  # else -1 would be the last class
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


@computed_wide
def one_vs_all(logits: Array, labels: Array) -> Array:
  """The cross-entropy of C independent sigmoids, the label's class present and the others absent.

    softplus(-z_y) + sum over k != y of softplus(z_k)

  Source: the top layer of independent sigmoids of Goodfellow, Shlens and Szegedy 2015 (arXiv
  1412.6572), section on rubbish class examples.

  Args:
    logits: [B, C]; p(class k is present) = sigmoid(z_k).
    labels: [B], integers. One outside [0, C) gives NaN.
  """
  is_label = _is_label(logits, labels)
  losses = jnp.sum(jax.nn.softplus(jnp.where(is_label, -logits, logits)), axis=-1)
  return jnp.where(jnp.any(is_label, axis=-1), losses, jnp.nan)


@computed_wide
def independent(log_p: Array, labels: Array) -> Array:
  """The same of C independent probabilities, given by their logarithms: what RBF nets return.

    -log p_y - sum over k != y of log(1 - p_k)

  Within 1e-6 of log p_k = 0 the second term goes on along its tangent: an example that lies on
  another class's template has a finite loss and gradient. For `one_vs_all` of the same
  probabilities log p_k = log_sigmoid(z_k).

  Args:
    log_p: [B, C], <= 0; an entry above 0, which is no probability, gives NaN.
    labels: [B], integers. One outside [0, C) gives NaN.
  """
  is_label = _is_label(log_p, labels)
  absent = jnp.where(is_label, 0.0, -_log_of_rest(jnp.where(is_label, -1.0, log_p)))
  present = jnp.where(is_label, -log_p, 0.0)
  valid = jnp.any(is_label, axis=-1) & jnp.all(log_p <= 0, axis=-1)
  return jnp.where(valid, jnp.sum(present + absent, axis=-1), jnp.nan)


# What the outputs of a net mean that was trained by a loss: the kind that `probabilities` takes.
KINDS = {"cross_entropy": "softmax", "one_vs_all": "sigmoid", "independent": "rbf"}


@computed_wide
def probabilities(logits: Array, kind: str) -> Array:
  """What a net believes of every class; the largest is its confidence: [B, C] -> [B, C].

  Args:
    logits: [B, C]; of a net trained by independent: log p.
    kind: 'softmax' (of cross_entropy, they sum to 1), 'sigmoid' (of one_vs_all, each by itself) or
      'rbf' (of independent, each by itself).

  Raises:
    InputError: of another kind.
  """
  functions = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid, "rbf": jnp.exp}
  if kind not in functions:
    raise InputError(f"kind must be 'softmax', 'sigmoid' or 'rbf', but was {kind!r}.")
  return functions[kind](logits)


@computed_wide
def margin(logits: Array, labels: Array) -> Array:
  """max over j != y of z_j - z_y: how far the label is beaten, > 0 where another class wins.

  It has a gradient where the cross-entropy of a confident net is flat. Source: Carlini and Wagner
  2017 (arXiv 1608.04644), f_6 with the sign turned and without its floor.

  Args:
    logits: [B, C], C >= 2.
    labels: [B], integers.
  """
  return _best_other(logits, labels) - _entry(logits, labels)


@computed_wide
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


@computed_wide
def targeted_margin(logits: Array, labels: Array, targets: Array) -> Array:
  """z_t - z_y: how far the target beats the label.

  Args:
    logits: [B, C], C >= 2.
    labels: [B], integers.
    targets: [B], integers.
  """
  return _entry(logits, targets) - _entry(logits, labels)


@computed_wide
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


@computed_wide
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


def _is_label(logits: Array, labels: Array) -> Array:
  """[B, C] bool; a label that does not exist is nowhere."""
  chex.assert_rank([logits, labels], [2, 1])
  return jnp.arange(logits.shape[-1]) == labels[:, None]


def _log_of_rest(log_p: Array) -> Array:
  """log(1 - p) for log p <= 0, and where log p > -1e-6 its tangent there."""
  nearest = -1e-6
  curved = jax.nn.log1mexp(-jnp.minimum(log_p, nearest))
  return curved + jnp.maximum(log_p - nearest, 0.0) / -jnp.expm1(-nearest)


def _best_other(logits: Array, labels: Array) -> Array:
  if logits.shape[-1] < 2:
    raise InputError(f"A margin needs logits of at least 2 classes, but has {logits.shape[-1]}.")
  is_label = jnp.arange(logits.shape[-1]) == labels[:, None]
  return jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)


def _ratio(a: Array, b: Array) -> Array:
  """a / b, and a itself where b is 0 (all logits that matter are equal, and a is 0 too)."""
  return a / jnp.where(b == 0, 1.0, b)
