"""Losses per example, (logits [B, C], integer labels [B]) -> [B], not averaged.

  loss = losses.cross_entropy(logits, labels)        # [B]

Logits are unnormalized (not the outputs of a softmax), C >= 2. Every loss increases as the label's
logit decreases, so an adversary maximizes it. `one_vs_all` and `independent` are for nets that
predict the presence of every class separately, and allow C = 1; `probabilities` is for all of them.
`cross_entropy` also takes soft labels, the probabilities of the classes [B, C].

Every loss returns the type of the logits; bfloat16 and float16 are computed in float32 and rounded
at the end. Integer logits raise an InputError.

|  input                                       |  cross_entropy  |  margin, dlr      |
|  fewer than 2 classes                        |  InputError     |  InputError       |
|  a label outside [0, C), NaN logits          |  NaN            |  NaN              |
|  all logits equal                            |  log C          |  0                |
|  a label that wins by more than 87 (float32) |  0, flat        |  margin not flat  |

The cross-entropy and its gradient keep their relative precision for confident nets.
"""

import chex
import jax
import jax.numpy as jnp

from robust_opt.errors import InputError
from robust_opt.precision import computed_wide
from robust_opt.types import Array


def check_classes(logits: Array | jax.ShapeDtypeStruct) -> None:
  """InputError unless the logits [..., C] have at least 2 classes: a single one always wins."""
  num_classes = logits.shape[-1]
  if num_classes < 2:
    raise InputError(
      f"Logits must be those of at least 2 classes, [B, C], but have {num_classes}; for a net of "
      "one logit z return [0, z]."
    )


@computed_wide
def log_softmax(logits: Array) -> Array:
  """Log-probabilities [B, C] whose gradients do not round to 0 for confident nets.

    z_k - z_m - log1p(sum over j != m of exp(z_j - z_m)),   m the largest logit

  The usual form adds exp(0) = 1 to the sum, so that the gradient at the largest class, 1 - p, is 0
  in float32 once the others sum to less than 6e-8. A logit of -inf means an impossible class.
  """
  is_top = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
  below = logits - jnp.sum(jnp.where(is_top, logits, 0.0), axis=-1, keepdims=True)
  below = jnp.where(is_top, jax.lax.stop_gradient(below), below)  # z_m - z_m is constant
  others = jnp.sum(jnp.where(is_top, 0.0, jnp.exp(below)), axis=-1, keepdims=True)
  return below - jnp.log1p(others)


@computed_wide
def cross_entropy(logits: Array, labels: Array) -> Array:
  """-log softmax(logits)[label]; of soft labels, floats q [B, C], -sum over k of q_k log p_k.

  A class of probability 0 contributes 0.
  """
  check_classes(logits)
  log_p = log_softmax(logits)
  if not jnp.issubdtype(jnp.asarray(labels).dtype, jnp.floating):
    return -_entry(log_p, labels)
  chex.assert_equal_shape((logits, labels))
  return -jnp.sum(labels * jnp.where(labels == 0, 0.0, log_p), axis=-1)


@computed_wide
def one_vs_all(logits: Array, labels: Array) -> Array:
  """The cross-entropy of C independent sigmoids: the label's class is present, the others absent.

    softplus(-z_y) + sum over k != y of softplus(z_k)

  Here p(class k is present) = sigmoid(z_k) and C >= 1; a label outside [0, C) gives NaN. Source:
  Goodfellow, Shlens and Szegedy 2015 (arXiv 1412.6572), section on rubbish class examples.
  """
  is_label = _is_label(logits, labels)
  total = jnp.sum(jax.nn.softplus(jnp.where(is_label, -logits, logits)), axis=-1)
  return jnp.where(jnp.any(is_label, axis=-1), total, jnp.nan)


@computed_wide
def independent(log_p: Array, labels: Array) -> Array:
  """The cross-entropy of C independent probabilities given by their logarithms, as of RBF nets.

    -log p_y - sum over k != y of log(1 - p_k)

  Within 1e-6 of log p_k = 0 the second term continues along its tangent, so that an example on the
  template of another class has a finite loss and gradient. With log p_k = log_sigmoid(z_k) it
  equals `one_vs_all`. An entry of log_p [B, C] above 0, or a label outside [0, C), gives NaN.
  """
  is_label = _is_label(log_p, labels)
  absent = jnp.where(is_label, 0.0, -_log_of_rest(jnp.where(is_label, -1.0, log_p)))
  present = jnp.where(is_label, -log_p, 0.0)
  valid = jnp.any(is_label, axis=-1) & jnp.all(log_p <= 0, axis=-1)
  return jnp.where(valid, jnp.sum(present + absent, axis=-1), jnp.nan)


# The training loss -> the kind of the outputs, for `probabilities`.
KINDS = {"cross_entropy": "softmax", "one_vs_all": "sigmoid", "independent": "rbf"}


@computed_wide
def probabilities(logits: Array, kind: str) -> Array:
  """The probability of every class, [B, C] -> [B, C]; the largest is the confidence of the net.

  `kind` is 'softmax', 'sigmoid' or 'rbf', where logits are log p: see KINDS.

  Raises:
    InputError: an unknown kind, or a softmax over one class.
  """
  functions = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid, "rbf": jnp.exp}
  if kind not in functions:
    raise InputError(f"kind must be 'softmax', 'sigmoid' or 'rbf', but was {kind!r}.")
  if kind == "softmax":
    check_classes(logits)
  return functions[kind](logits)


@computed_wide
def margin(logits: Array, labels: Array) -> Array:
  """max over j != y of z_j - z_y: > 0 where another class wins.

  Its gradient does not vanish where the cross-entropy of a confident net is flat. Source: Carlini
  and Wagner 2017 (arXiv 1608.04644), f_6 with the opposite sign and without its floor.
  """
  check_classes(logits)
  is_label = _is_label(logits, labels)
  best_other = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
  return best_other - _entry(logits, labels)


@computed_wide
def dlr(logits: Array, labels: Array) -> Array:
  """The difference of logits ratio, a margin that does not depend on the scale of the logits.

    (max over j != y of z_j - z_y) / (z_(1) - z_(3)),   z_(k) the k-th largest logit

  With two classes it is the margin itself. Source: Croce and Hein 2020 (arXiv 2003.01690),
  equation 6.
  """
  difference = margin(logits, labels)
  if logits.shape[-1] < 3:
    return difference
  ordered = jnp.sort(logits, axis=-1)
  return _ratio(difference, ordered[:, -1] - ordered[:, -3])


@computed_wide
def targeted_margin(logits: Array, labels: Array, targets: Array) -> Array:
  """z_t - z_y, for targets [B]: > 0 where the target beats the label."""
  check_classes(logits)
  return _entry(logits, targets) - _entry(logits, labels)


@computed_wide
def targeted_dlr(logits: Array, labels: Array, targets: Array) -> Array:
  """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2) for targets [B].

  With three classes z_(4) is z_(3); with two the denominator is 1. Source: Croce and Hein 2020
  (arXiv 2003.01690), equation 7.
  """
  difference = targeted_margin(logits, labels, targets)
  if logits.shape[-1] < 3:
    return difference
  ordered = jnp.sort(logits, axis=-1)
  fourth = ordered[:, -4] if logits.shape[-1] > 3 else ordered[:, -3]
  return _ratio(difference, ordered[:, -1] - (ordered[:, -3] + fourth) / 2)


@computed_wide
def kl_divergence(logits: Array, reference: Array) -> Array:
  """KL(softmax(reference) || softmax(logits)), [B], of perturbed examples from the clean reference.

  Both are [B, C], C >= 2. A class of probability 0 in the reference contributes 0. Source: Miyato
  et al. 2015 (arXiv 1507.00677), equation 1.
  """
  chex.assert_equal_shape((logits, reference))
  check_classes(logits)
  log_p = log_softmax(reference)
  p = jnp.exp(log_p)
  return jnp.sum(p * jnp.where(p == 0, 0.0, log_p - log_softmax(logits)), axis=-1)


@computed_wide
def jensen_shannon(logits: Array, others: Array) -> Array:
  """The Jensen-Shannon divergence of two predictions, [B]: (KL(p || m) + KL(q || m)) / 2.

  p and q are the softmax of logits and of others, both [B, C], C >= 2, and m = (p + q) / 2. It is
  symmetric and at most log 2.
  """
  chex.assert_equal_shape((logits, others))
  check_classes(logits)
  log_p, log_q = log_softmax(logits), log_softmax(others)
  log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)

  def divergence(log_r: Array) -> Array:
    r = jnp.exp(log_r)
    return jnp.sum(r * jnp.where(r == 0, 0.0, log_r - log_m), axis=-1)

  return (divergence(log_p) + divergence(log_q)) / 2


def correct(logits: Array, labels: Array) -> Array:
  """Whether the largest logit is the label's, [B] bool; False where a logit is inf or NaN."""
  chex.assert_rank([logits, labels], [2, 1])
  return (predicted(logits) == labels) & (labels >= 0)


def predicted(logits: Array) -> Array:
  """The class of the largest logit, [B] int32; -1 where a logit is inf or NaN."""
  check_classes(logits)
  finite = jnp.all(jnp.isfinite(logits), axis=-1)
  return jnp.where(finite, jnp.argmax(logits, axis=-1), -1).astype(jnp.int32)


def _entry(logits: Array, labels: Array) -> Array:
  """logits[i, labels[i]]; NaN for a label that does not exist."""
  chex.assert_rank([logits, labels], [2, 1])
  exists = (labels >= 0) & (labels < logits.shape[-1])
  entry = jnp.take_along_axis(logits, jnp.where(exists, labels, 0)[:, None], axis=-1)[:, 0]
  return jnp.where(exists, entry, jnp.nan)


def _is_label(logits: Array, labels: Array) -> Array:
  """[B, C] bool: True at the label; False everywhere for a label that does not exist."""
  chex.assert_rank([logits, labels], [2, 1])
  return jnp.arange(logits.shape[-1]) == labels[:, None]


def _log_of_rest(log_p: Array) -> Array:
  """log(1 - p) for log p <= 0; its tangent where log p > -1e-6."""
  nearest = -1e-6
  curved = jax.nn.log1mexp(-jnp.minimum(log_p, nearest))
  return curved + jnp.maximum(log_p - nearest, 0.0) / -jnp.expm1(-nearest)


def _ratio(a: Array, b: Array) -> Array:
  """a / b; a where b is 0 (then the logits are equal and a is also 0)."""
  return a / jnp.where(b == 0, 1.0, b)
