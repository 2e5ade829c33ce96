"""Objectives of adversarial training: the values that the adversary and the learner optimize.

  objective = ro.robust()          # Algorithm 1: both use the loss at the perturbed batch
  objective = ro.trades(beta=6.0)  # another pair, for any set and any maximizer

|  objective         |  the adversary maximizes  |  the learner minimizes                        |
|  robust            |  J(x')                    |  J(x')                                        |
|  mixture           |  J(x')                    |  alpha J(x) + (1 - alpha) J(x')               |
|  virtual           |  KL(p(x) || p(x'))        |  J(x) + alpha KL(p(x) || p(x'))               |
|  trades            |  KL(p(x) || p(x'))        |  J(x) + beta KL(p(x) || p(x')), through both  |
|  mart              |  J(x')                    |  boosted J(x') + beta (1 - p_y(x)) KL         |
|  gradient_penalty  |  nothing                  |  J(x) + max over delta of <grad J, delta>     |

Here x' = x + delta and J is the cross-entropy. `ro.ibp` (certificates/training.py) is the objective
of certified training. A forward pass is a function of the images alone, x [B, *S] ->
(logits [B, C], model_state), with parameters, mode and dropout fixed by the caller. `inner` gets
one with frozen parameters, `outer` one with trainable parameters, which takes train=False too.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import losses
from robust_opt.checks import check_callable, described
from robust_opt.errors import InputError
from robust_opt.precision import computed_wide, wide
from robust_opt.sets import UncertaintySet
from robust_opt.sets.base import check_set
from robust_opt.types import Array, Forward, LossFn, ModelState, Scored, ValueFn

Inner = Callable[[Forward, Array, Array], ValueFn]
Outer = Callable[[Forward, Array, Array, Array], tuple[Array, ModelState]]

# Available to configs; gradient_penalty also takes the set.
__all__ = ["gradient_penalty", "mart", "mixture", "robust", "trades", "virtual"]

_LOSS = "(outputs of the net, y) -> losses [B]"


class RobustObjective(NamedTuple):
  """min over theta of outer, at the x_adv that maximizes inner.

  Attributes:
    inner: (forward, x [B, *S], y [B, ...]) -> value_fn, which the adversary maximizes. If y are
      classes (integers [B], at least two logits), its score is the margin, > 0 where the net is
      fooled; otherwise the value itself.
    outer: (forward, x [B, *S], x_adv [B, *S], y [B, ...]) -> (loss [B], model_state), which the
      learner minimizes. No gradient flows through x_adv.
  """

  inner: Inner
  outer: Outer


class ScheduledObjective(NamedTuple):
  """An objective that depends on the training step, such as one over a set that grows.

    ScheduledObjective(lambda step: ro.ibp(ro.ramp(ro.LInf(0.1), step, 1000)))

  Attributes:
    at: (step [], int32, traced) -> the objective of that update.
  """

  at: Callable[[Array], RobustObjective]


def robust(loss: LossFn = losses.cross_entropy) -> RobustObjective:
  """min over theta of max over delta in U of J(theta, x + delta, y).

  Source: Shaham et al. 2015, Algorithm 1. Standard training is this objective with an attack of 0
  steps. `loss` is J, (outputs of the model, y [B, ...]) -> [B], for any kind of label: classes,
  regression targets, soft labels, several labels per example.
  """

  check_callable("loss", loss, _LOSS, None, None)

  def outer(forward: Forward, x: Array, x_adv: Array, y: Array) -> tuple[Array, ModelState]:
    logits, model_state = forward(x_adv)
    return loss(logits, y), model_state

  return RobustObjective(_ascend_loss(loss), outer)


def mixture(alpha: float = 0.5, loss: LossFn = losses.cross_entropy) -> RobustObjective:
  """alpha J(x, y) + (1 - alpha) J(x + delta, y): Goodfellow et al. 2015, section 6, with l_inf.

  With an L-BFGS attack it is the adversarial training of Szegedy et al. 2014. alpha in [0, 1] is
  the weight of the clean examples; 0 is `robust`.
  """
  check_share("alpha", alpha)
  check_callable("loss", loss, _LOSS, None, None)

  def combined(clean: Array, adversarial: Array, y: Array) -> Array:
    return alpha * loss(clean, y) + (1 - alpha) * loss(adversarial, y)

  return RobustObjective(_ascend_loss(loss), _of_both(combined))


def virtual(alpha: float = 1.0) -> RobustObjective:
  """J(x, y) + alpha KL(p(x) || p(x + delta)): virtual adversarial training.

  Miyato et al. 2015 (arXiv 1507.00677), equations 1 to 4; p(x) in the second term is constant. That
  term needs no label: examples of label -1 have only that term, and the first is a mean over the
  labeled examples (under pmap and shard_map, over those on the device). The gradient of the second
  is 0 at delta = 0: use `ro.power_iteration` or a random start.
  """
  _check_weight("alpha", alpha)

  def combined(clean: Array, adversarial: Array, y: Array) -> Array:
    smoothness = losses.kl_divergence(adversarial, jax.lax.stop_gradient(clean))
    labeled = y >= 0
    supervised = jnp.where(labeled, losses.cross_entropy(clean, jnp.maximum(y, 0)), 0.0)
    # Makes the mean over the batch a mean over the labeled examples.
    scale = y.shape[0] / jnp.maximum(jnp.sum(labeled), 1)
    supervised *= scale.astype(supervised.dtype)
    return supervised + alpha * smoothness

  return RobustObjective(_ascend_divergence, _of_both(combined))


def trades(beta: float = 6.0) -> RobustObjective:
  """J(x, y) + beta KL(p(x) || p(x + delta)), with the gradient through both p(x) and p(x + delta).

  Zhang et al. 2019 (arXiv 1901.08573), equation 5; beta >= 0 is 1 / lambda of the paper. The
  gradient of the divergence is 0 at delta = 0: use a random start.
  """
  _check_weight("beta", beta)

  def combined(clean: Array, adversarial: Array, y: Array) -> Array:
    divergence = losses.kl_divergence(adversarial, clean)
    return losses.cross_entropy(clean, y) + beta * divergence

  return RobustObjective(_ascend_divergence, _of_both(combined))


def mart(beta: float = 5.0) -> RobustObjective:
  """Misclassification-aware training, with a larger weight of misclassified clean examples.

    -log p_y(x') - log(1 - max over j != y of p_j(x')) + beta (1 - p_y(x)) KL(p(x) || p(x'))

  Wang et al. 2020 (ICLR, "Improving adversarial robustness requires revisiting misclassified
  examples"), equations 8 to 11; beta >= 0 is lambda of the paper.
  """
  _check_weight("beta", beta)

  @computed_wide
  def combined(clean: Array, adversarial: Array, y: Array) -> Array:
    log_p = losses.log_softmax(adversarial)
    is_label = jnp.arange(log_p.shape[-1]) == y[:, None]
    rival = jnp.argmax(jnp.where(is_label, -jnp.inf, log_p), axis=-1)
    # log(1 - p), where p may be close to 1: the sum of all other probabilities.
    is_rival = jnp.arange(log_p.shape[-1]) == rival[:, None]
    log_rest = jax.nn.logsumexp(jnp.where(is_rival, -jnp.inf, log_p), axis=-1)
    boosted = losses.cross_entropy(adversarial, y) - log_rest
    doubt = -jnp.expm1(-losses.cross_entropy(clean, y))  # 1 - p_y(x)
    return boosted + beta * doubt * losses.kl_divergence(adversarial, clean)

  return RobustObjective(_ascend_loss(losses.cross_entropy), _of_both(combined))


def gradient_penalty(u: UncertaintySet, loss: LossFn = losses.cross_entropy) -> RobustObjective:
  """J(x, y) + max over delta in U of <grad_x J, delta>: robust optimization to first order.

  For a ball of radius r the penalty is r |grad_x J|_q, 1/p + 1/q = 1 (double backpropagation,
  Drucker and LeCun 1992, for p = 2). By Danskin's theorem its gradient is that of the inner product
  at the maximizer, for any set. It needs no attack: use one of 0 steps.
  """
  check_set("gradient_penalty", u)
  check_callable("loss", loss, _LOSS, None, None)

  def outer(forward: Forward, x: Array, x_adv: Array, y: Array) -> tuple[Array, ModelState]:
    def total(x: Array) -> tuple[Array, tuple[Array, ModelState]]:
      logits, model_state = forward(x)
      values = loss(logits, y)
      return jnp.sum(values), (values, model_state)

    gradient, (values, model_state) = jax.grad(total, has_aux=True)(x)
    delta = jax.lax.stop_gradient(u.steepest_ascent(gradient, x))
    penalty = jnp.sum(gradient * delta, axis=range(1, x.ndim), dtype=wide(x.dtype))
    return values + penalty.astype(values.dtype), model_state

  return RobustObjective(_ascend_loss(loss), outer)


def _ascend_loss(loss: LossFn) -> Inner:
  def inner(forward: Forward, x: Array, y: Array) -> ValueFn:
    def value_fn(x_adv: Array) -> Array | Scored:
      logits, _ = forward(x_adv)
      value = loss(logits, y)
      classes = logits.ndim == 2 and logits.shape[1] >= 2
      classes = classes and y.ndim == 1 and jnp.issubdtype(y.dtype, jnp.integer)
      return Scored(value, losses.margin(logits, y)) if classes else value

    return value_fn

  return inner


def _ascend_divergence(forward: Forward, x: Array, y: Array) -> ValueFn:
  """Ascends the divergence from the prediction at x, which is computed once."""
  clean, _ = forward(x)
  return lambda x_adv: losses.kl_divergence(forward(x_adv)[0], clean)


def _of_both(combined: Callable[[Array, Array, Array], Array]) -> Outer:
  """A loss of the logits at x and at x_adv; running statistics are the mean of both updates."""

  def outer(forward: Forward, x: Array, x_adv: Array, y: Array) -> tuple[Array, ModelState]:
    clean, clean_state = forward(x)
    adversarial, adversarial_state = forward(x_adv)
    model_state = jax.tree.map(_mean, clean_state, adversarial_state)
    return combined(clean, adversarial, y), model_state

  return outer


def _mean(a: Array, b: Array) -> Array:
  """The mean of running statistics; for a counter or a key, b, from the second pass."""
  return (a + b) / 2 if jnp.issubdtype(jnp.asarray(a).dtype, jnp.inexact) else b


def check_share(name: str, weight: float) -> None:
  """InputError unless the weight is a number in [0, 1]; a traced one is not looked at."""
  if isinstance(weight, jax.core.Tracer):
    return
  _check_weight(name, weight)
  if weight > 1:
    raise InputError(f"{name} is a weight and must be in [0, 1], but was {weight}.")


def _check_weight(name: str, weight: float) -> None:
  is_number = isinstance(weight, int | float | np.number | jax.Array)
  if not (is_number and 0 <= weight < float("inf")):
    shown = weight if isinstance(weight, float | int) else described(weight)
    raise InputError(f"{name} is a weight and must be a finite number >= 0, but was {shown}.")
