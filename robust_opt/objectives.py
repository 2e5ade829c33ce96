"""The two halves of the min-max: what the adversary ascends and what the learner descends.

  objective = ro.robust()          # Algorithm 1: both play on the same loss, at the perturbed batch

A forward pass is a function of the images alone, x [B, *S] -> (logits [B, C], model_state): its
caller has chosen parameters, mode and dropout. `inner` is handed a forward pass whose parameters
are frozen, `outer` one that trains.
"""

from collections.abc import Callable
from typing import NamedTuple

from robust_opt import losses
from robust_opt.types import Array, Forward, LossFn, ModelState, Scored, ValueFn

__all__ = ["robust"]  # what a config may name


class RobustObjective(NamedTuple):
  """min over theta of outer, at the x_adv that attacks inner.

  Attributes:
    inner: (forward, x [B, *S], y [B]) -> value_fn, what the adversary ascends; its score is the
      margin, > 0 where the net is fooled.
    outer: (forward, x [B, *S], x_adv [B, *S], y [B]) -> (loss [B], model_state), what the learner
      descends. x_adv carries no gradient.
  """

  inner: Callable[[Forward, Array, Array], ValueFn]
  outer: Callable[[Forward, Array, Array, Array], tuple[Array, ModelState]]


def robust(loss: LossFn = losses.cross_entropy) -> RobustObjective:
  """min over theta of max over delta in U of J(theta, x + delta, y).

  The net never sees the clean example: Shaham et al. 2015, Algorithm 1. Standard training is the
  same objective under an attack of 0 steps.
  """

  def inner(forward: Forward, x: Array, y: Array) -> ValueFn:
    del x

    def value_fn(x_adv: Array) -> Scored:
      logits, _ = forward(x_adv)
      return Scored(loss(logits, y), losses.margin(logits, y))

    return value_fn

  def outer(forward: Forward, x: Array, x_adv: Array, y: Array) -> tuple[Array, ModelState]:
    del x
    logits, model_state = forward(x_adv)
    return loss(logits, y), model_state

  return RobustObjective(inner, outer)
