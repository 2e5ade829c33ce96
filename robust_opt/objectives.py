"""The two halves of the min-max: what the adversary ascends and what the learner descends.

  objective = ro.robust()          # Algorithm 1: both play on the same loss, at the perturbed batch
  objective = ro.trades(beta=6.0)  # another method: another pair, under any set and any maximiser

|  objective         |  the adversary ascends        |  the learner descends                     |
|  robust            |  J(x')                        |  J(x')                                    |
|  mixture           |  J(x')                        |  alpha J(x) + (1 - alpha) J(x')           |
|  virtual           |  KL(p(x) || p(x'))            |  J(x) + alpha KL(p(x) || p(x'))           |
|  trades            |  KL(p(x) || p(x'))            |  J(x) + beta KL(p(x) || p(x')), through   |
|                    |                               |  both                                     |
|  mart              |  J(x')                        |  boosted J(x') + beta (1 - p_y(x)) KL     |
|  gradient_penalty  |  nothing                      |  J(x) + max over delta of <grad J, delta> |

Here x' = x + delta and J is the cross-entropy. A forward pass is a function of the images alone,
x [B, *S] -> (logits [B, C], model_state): its caller has chosen parameters, mode and dropout.
`inner` is handed a forward pass whose parameters are frozen, `outer` one that trains.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.errors import InputError
from robust_opt.precision import computed_wide, wide
from robust_opt.sets import UncertaintySet
from robust_opt.types import Array, Forward, LossFn, ModelState, Scored, ValueFn

# What a config may name; gradient_penalty takes the set besides.
__all__ = ["gradient_penalty", "mart", "mixture", "robust", "trades", "virtual"]


class RobustObjective(NamedTuple):
  """min over theta of outer, at the x_adv that attacks inner.

  Attributes:
    inner: (forward, x [B, *S], y [B, ...]) -> value_fn, what the adversary ascends. Its score is
      the margin, > 0 where the net is fooled, if y are classes (integers [B], with two logits or
      more), and else the value itself.
    outer: (forward, x [B, *S], x_adv [B, *S], y [B, ...]) -> (loss [B], model_state), what the
      learner descends. x_adv carries no gradient.
  """

  inner: Callable[[Forward, Array, Array], ValueFn]
  outer: Callable[[Forward, Array, Array, Array], tuple[Array, ModelState]]


def robust(loss: LossFn = losses.cross_entropy) -> RobustObjective:
  """min over theta of max over delta in U of J(theta, x + delta, y).

  The net never sees the clean example: Shaham et al. 2015, Algorithm 1. Standard training is the
  same objective under an attack of 0 steps.

  Args:
    loss: J, (outputs of the model, y [B, ...]) -> [B], of whatever labels it takes: classes,
      targets of a regression, soft labels, several labels an example. An attack that compares
      points (`keep_best`, `restarts`) compares them by the margin if y are classes, integers [B]
      with two logits or more, and else by the loss.
  """

  def outer(forward: Forward, x: Array, x_adv: Array, y: Array) -> tuple[Array, ModelState]:
    del x
    logits, model_state = forward(x_adv)
    return loss(logits, y), model_state

  return RobustObjective(_ascend_loss(loss), outer)


def mixture(alpha: float = 0.5, loss: LossFn = losses.cross_entropy) -> RobustObjective:
  """alpha J(x, y) + (1 - alpha) J(x + delta, y): Goodfellow et al. 2015, section 6, with l_inf.

  With examples found by L-BFGS it is how Szegedy et al. 2014 feed theirs back.

  Args:
    alpha: in [0, 1], the weight of the clean examples; 0 is `robust`.
    loss: J.
  """
  if not 0 <= alpha <= 1:
    raise InputError(f"alpha is a weight and must be in [0, 1], but was {alpha}.")

  def outer(forward: Forward, x: Array, x_adv: Array, y: Array) -> tuple[Array, ModelState]:
    clean, adversarial, model_state = _both(forward, x, x_adv)
    return alpha * loss(clean, y) + (1 - alpha) * loss(adversarial, y), model_state

  return RobustObjective(_ascend_loss(loss), outer)


def virtual(alpha: float = 1.0) -> RobustObjective:
  """J(x, y) + alpha KL(p(x) || p(x + delta)): virtual adversarial training, which is smooth in x.

  Miyato et al. 2015 (arXiv 1507.00677), equations 1 to 4; p(x) in the second term is a constant.
  That term needs no label: an example of label -1 has it alone, and the first is a mean over those
  that have one (under pmap and shard_map, over those on the device). Its gradient at delta = 0 is
  zero: ascend by `ro.power_iteration`, or from a random start.

  Args:
    alpha: >= 0, the weight of the smoothness.
  """
  _check_weight("alpha", alpha)

  def outer(forward: Forward, x: Array, x_adv: Array, y: Array) -> tuple[Array, ModelState]:
    clean, adversarial, model_state = _both(forward, x, x_adv)
    smoothness = losses.kl_divergence(adversarial, jax.lax.stop_gradient(clean))
    labelled = y >= 0
    supervised = jnp.where(labelled, losses.cross_entropy(clean, jnp.maximum(y, 0)), 0.0)
    # So that the mean over the batch is the mean over the labelled.
    share = y.shape[0] / jnp.maximum(jnp.sum(labelled), 1)
    supervised *= share.astype(supervised.dtype)
    return supervised + alpha * smoothness, model_state

  return RobustObjective(_ascend_divergence, outer)


def trades(beta: float = 6.0) -> RobustObjective:
  """J(x, y) + beta KL(p(x) || p(x + delta)), the gradient through both terms of the divergence.

  Zhang et al. 2019 (arXiv 1901.08573), equation 5. The divergence has no gradient at delta = 0:
  start at random.

  Args:
    beta: >= 0, 1 / lambda of the paper.
  """
  _check_weight("beta", beta)

  def outer(forward: Forward, x: Array, x_adv: Array, y: Array) -> tuple[Array, ModelState]:
    clean, adversarial, model_state = _both(forward, x, x_adv)
    divergence = losses.kl_divergence(adversarial, clean)
    return losses.cross_entropy(clean, y) + beta * divergence, model_state

  return RobustObjective(_ascend_divergence, outer)


def mart(beta: float = 5.0) -> RobustObjective:
  """Misclassification-aware training: what is misclassified when clean weighs more.

    -log p_y(x') - log(1 - max over j != y of p_j(x')) + beta (1 - p_y(x)) KL(p(x) || p(x'))

  Wang et al. 2020 (ICLR, "Improving adversarial robustness requires revisiting misclassified
  examples"), equations 8 to 11.

  Args:
    beta: >= 0, lambda of the paper.
  """
  _check_weight("beta", beta)

  def outer(forward: Forward, x: Array, x_adv: Array, y: Array) -> tuple[Array, ModelState]:
    clean, adversarial, model_state = _both(forward, x, x_adv)
    return _mart(clean, adversarial, y, beta), model_state

  return RobustObjective(_ascend_loss(losses.cross_entropy), outer)


def gradient_penalty(
  uncertainty: UncertaintySet, loss: LossFn = losses.cross_entropy
) -> RobustObjective:
  """J(x, y) + max over delta in U of <grad_x J, delta>: robust optimisation to first order.

  Over a ball of radius r the penalty is r |grad_x J|_q, 1/p + 1/q = 1 (double backpropagation,
  Drucker and LeCun 1992, for p = 2). By Danskin's theorem its gradient is that of the inner
  product at the maximiser, whatever the set. It needs no attack: give it one of 0 steps.

  Args:
    uncertainty: U.
    loss: J.
  """

  def outer(forward: Forward, x: Array, x_adv: Array, y: Array) -> tuple[Array, ModelState]:
    del x_adv

    def total(x: Array) -> tuple[Array, tuple[Array, ModelState]]:
      logits, model_state = forward(x)
      values = loss(logits, y)
      return jnp.sum(values), (values, model_state)

    gradient, (values, model_state) = jax.grad(total, has_aux=True)(x)
    delta = jax.lax.stop_gradient(uncertainty.steepest_ascent(gradient, x))
    penalty = jnp.sum(gradient * delta, axis=range(1, x.ndim), dtype=wide(x.dtype))
    return values + penalty.astype(values.dtype), model_state

  return RobustObjective(_ascend_loss(loss), outer)


def _are_classes(logits: Array, y: Array) -> bool:
  """Whether labels are integers [B] and logits [B, C] of at least two classes."""
  classes = logits.ndim == 2 and logits.shape[1] >= 2
  return classes and y.ndim == 1 and bool(jnp.issubdtype(y.dtype, jnp.integer))


def _ascend_loss(loss: LossFn) -> Callable[[Forward, Array, Array], ValueFn]:
  def inner(forward: Forward, x: Array, y: Array) -> ValueFn:
    del x

    def value_fn(x_adv: Array) -> Array | Scored:
      logits, _ = forward(x_adv)
      value = loss(logits, y)
      return Scored(value, losses.margin(logits, y)) if _are_classes(logits, y) else value

    return value_fn

  return inner


def _ascend_divergence(forward: Forward, x: Array, y: Array) -> ValueFn:
  """Away from the prediction at x, which is computed once."""
  del y
  clean, _ = forward(x)

  def value_fn(x_adv: Array) -> Array:
    return losses.kl_divergence(forward(x_adv)[0], clean)

  return value_fn


@computed_wide
def _mart(clean: Array, adversarial: Array, y: Array, beta: float) -> Array:
  """The loss of `mart`, [B], given the logits."""
  log_p = losses.log_softmax(adversarial)
  is_label = jnp.arange(log_p.shape[-1]) == y[:, None]
  rival = jnp.argmax(jnp.where(is_label, -jnp.inf, log_p), axis=-1)
  # log(1 - p) of a p that may be nearly 1: what all the other classes have together.
  is_rival = jnp.arange(log_p.shape[-1]) == rival[:, None]
  log_rest = jax.nn.logsumexp(jnp.where(is_rival, -jnp.inf, log_p), axis=-1)
  boosted = losses.cross_entropy(adversarial, y) - log_rest
  unsure = -jnp.expm1(-losses.cross_entropy(clean, y))
  return boosted + beta * unsure * losses.kl_divergence(adversarial, clean)


def _both(forward: Forward, x: Array, x_adv: Array) -> tuple[Array, Array, ModelState]:
  """Logits at x and at x_adv, [B, C]; running statistics go on by the mean of both batches."""
  clean, clean_state = forward(x)
  adversarial, adversarial_state = forward(x_adv)
  return clean, adversarial, jax.tree.map(_mean, clean_state, adversarial_state)


def _mean(a: Array, b: Array) -> Array:
  """Of running statistics; a counter or a key, which has no mean, goes on from the second pass."""
  return (a + b) / 2 if jnp.issubdtype(jnp.asarray(a).dtype, jnp.inexact) else b


def _check_weight(name: str, weight: float) -> None:
  if not 0 <= weight < float("inf"):
    raise InputError(f"{name} is a weight and must be a finite number >= 0, but was {weight}.")
