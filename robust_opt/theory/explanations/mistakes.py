"""Agreement of nets on their mistakes, and their confidence.

  transfer_matrix([net_a, net_b], [x_adv_a, x_adv_b], y)         # [2, 2], accuracies
  agreement_on_mistakes(predicted_a, predicted_b, y).both        # [], a fraction

Sections are those of Goodfellow et al. 2015 (arXiv 1412.6572).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.errors import InputError
from robust_opt.sets import projections
from robust_opt.theory.explanations.geometry import same_shape
from robust_opt.types import Array, LogitsFn


class Agreement(NamedTuple):
  """How often nets a and b predict the same class, each [].

  Attributes:
    mistakes: the fraction among the examples that a misclassifies; NaN if there are none.
    both: the fraction among the examples that both misclassify; NaN if there are none.
    num_mistakes: int32, the number of examples that a misclassifies.
    num_both: int32, the number of examples that both misclassify.
  """

  mistakes: Array
  both: Array
  num_mistakes: Array
  num_both: Array


class Confidence(NamedTuple):
  """The mean of the largest probability, each [].

  Attributes:
    mistakes: over misclassified examples; NaN if there are none.
    correct: over the others; NaN if there are none.
    error: the fraction of misclassified examples.
  """

  mistakes: Array
  correct: Array
  error: Array


def agreement_on_mistakes(predicted_a: Array, predicted_b: Array, y: Array) -> Agreement:
  """How often b makes the same mistake as a, the net that was attacked; all arguments are [B].

  Source: section 8, the paragraphs before the last.
  """
  wrong = predicted_a != y
  both = wrong & (predicted_b != y)
  same = (predicted_a == predicted_b).astype(jnp.float32)
  return Agreement(
    _mean_where(same, wrong),
    _mean_where(same, both),
    jnp.sum(wrong, dtype=jnp.int32),
    jnp.sum(both, dtype=jnp.int32),
  )


def transfer_matrix(
  logits_fns: Sequence[LogitsFn], adversarial: Sequence[Array] | Array, y: Array
) -> Array:
  """Accuracy of every net on every set of adversarial examples, [M, N], one row per set.

  Args:
    logits_fns: N nets.
    adversarial: M sets [B, *S] of the same examples, each against one net.
    y: [B], labels.

  Raises:
    InputError: no net, or no set.
  """
  if not len(logits_fns) or not len(adversarial):
    raise InputError(
      "transfer_matrix needs at least one net and one set of examples, "
      f"but has {len(logits_fns)} and {len(adversarial)}."
    )
  sets = jnp.stack(list(adversarial))

  def accuracies(logits_fn: LogitsFn) -> Array:
    return jax.lax.map(lambda x: jnp.mean(losses.correct(logits_fn(x), y)), sets)

  return jnp.stack([accuracies(logits_fn) for logits_fn in logits_fns], axis=1)


def effective_weights(logits_fn: LogitsFn, x: Array) -> Array:
  """The weights of the pixels in a linear approximation of the net, [C, *S].

  The mean over x of the gradient of every logit minus that of the mean logit, since only
  differences of logits matter. For logits W x + b it is W minus the mean of its rows, for any x.
  Source: the hypothesis of section 8 that all these nets resemble one linear classifier.

  Args:
    logits_fn: applied to every example independently.
    x: [B, *S], B >= 1.

  Raises:
    InputError: there are fewer than 2 logits.
  """
  logits, pull_back = jax.vjp(logits_fn, x)
  losses.check_classes(logits)
  num_classes = logits.shape[-1]

  def mean_gradient(one_hot: Array) -> Array:
    (gradient,) = pull_back(jnp.broadcast_to(one_hot, logits.shape))
    return jnp.mean(gradient, axis=0)

  weights = jax.lax.map(mean_gradient, jnp.eye(num_classes, dtype=logits.dtype))
  return weights - jnp.mean(weights, axis=0)


def cosine_similarity(a: Array, b: Array) -> Array:
  """Cosine of the angle between a and b [C, *S] per class, [C]; NaN where either is 0.

  Raises:
    InputError: b does not have the shape of a.
  """
  same_shape(a, b=b)

  def cosine(a: Array, b: Array) -> Array:
    one = jnp.ones((), a.dtype)
    inner = jnp.sum(projections.furthest_l2(a, one) * projections.furthest_l2(b, one))
    is_zero = (projections.linf_norm(a) == 0) | (projections.linf_norm(b) == 0)
    return jnp.where(is_zero, jnp.nan, jnp.clip(inner, -1.0, 1.0))

  return jax.vmap(cosine)(a, b)


def confidence_on_mistakes(probabilities: Array, y: Array) -> Confidence:
  """The confidence on misclassified and on other examples. Source: section 4.

  Examples with probabilities [B, C] that are not finite count as mistakes.
  """
  right = losses.correct(probabilities, y)
  largest = jnp.max(probabilities, axis=-1)
  return Confidence(_mean_where(largest, ~right), _mean_where(largest, right), 1 - jnp.mean(right))


def rubbish_rate(probabilities: Array, threshold: float = 0.5) -> Array:
  """The fraction of inputs of no class that are classified as some class, [].

  Source: appendix A, "rubbish class examples", on Gaussian noise.

  Args:
    probabilities: [B, C] at such inputs; NaN gives NaN. Rows need not sum to one (one sigmoid per
      class).
    threshold: a class of larger probability counts as present.
  """
  largest = jnp.max(probabilities, axis=-1)
  return jnp.mean(jnp.where(jnp.isnan(largest), jnp.nan, largest > threshold))


def _mean_where(values: Array, where: Array) -> Array:
  """Mean of the values [B] where the mask [B] is True; NaN if it never is."""
  count = jnp.sum(where)
  total = jnp.sum(jnp.where(where, values, 0.0))
  return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)
