"""Optimizers, weight averaging and learning rate schedules that optax lacks.

optimizer = dampened_sgd(learning_rate=1e-2, momentum=0.9, dampening=0.9)   # as in Torch
optimizer = optax.chain(optax.adam(1e-3), weight_average(0.999))            # averaged weights
optimizer = optax.chain(optax.sgd(0.1, 0.5), max_column_norm(1.9365))       # within a ball
step = ro.make_train_step(..., perturb_weights=adversarial_weights(0.005))  # AWP
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robust_opt.errors import InputError
from robust_opt.sets.projections import furthest_l2, l2_norm
from robust_opt.types import Array, PyTree

__all__ = ["dampened_sgd"]  # available to configs, in addition to optax

# Of optax, those that a config cannot use: they search along the gradient or need the loss.
NEED_VALUE = ("lbfgs", "polyak_sgd")
# Those whose learning rate is a number, never a schedule.
CONSTANT_RATE = ("optimistic_adam", "rprop", "sm3")
# Those whose steps are proportional to the gradient; the others, as Adam, normalize it.
GRADIENT_STEPS = ("sgd", "dampened_sgd", "noisy_sgd", "optimistic_gradient_descent")


class DampenedState(NamedTuple):
  """The number of updates so far, and the velocity."""

  step: Array
  velocity: PyTree


def dampened_sgd(
  learning_rate: optax.ScalarOrSchedule, momentum: float = 0.9, dampening: float | None = None
) -> optax.GradientTransformationExtraArgs:
  """SGD with momentum and dampening, exactly as in Torch.

    v_1 = g_1,   v_t = momentum v_{t-1} + (1 - dampening) g_t,   theta_t = theta_{t-1} - lr v_t

  The first gradient is not dampened: with dampening = momentum = 0.9 it has ten times the weight of
  the others. Otherwise this is optax.sgd with learning_rate (1 - dampening). dampening None is the
  momentum, the default of Lua Torch. Source: Lua Torch's optim.sgd, which trained the nets of the
  paper (and PyTorch's SGD).
  """
  fresh = 1.0 - (momentum if dampening is None else dampening)

  def init(params: PyTree) -> DampenedState:
    return DampenedState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

  def update(
    gradient: PyTree, state: DampenedState, params: PyTree | None = None
  ) -> tuple[PyTree, DampenedState]:
    weight = jnp.where(state.step == 0, 1.0, fresh)
    velocity = jax.tree.map(
      lambda v, g: (momentum * v + weight * g).astype(v.dtype), state.velocity, gradient
    )
    return velocity, DampenedState(state.step + 1, velocity)

  rate = optax.scale_by_learning_rate(learning_rate)
  return optax.chain(optax.GradientTransformation(init, update), rate)


class AverageState(NamedTuple):
  """The number of updates so far, and the average of the weights after them."""

  step: Array
  average: PyTree


class AveragesState(NamedTuple):
  """The same, and the average of the batch statistics, of a model that has some."""

  step: Array
  average: PyTree
  model_state: PyTree


def weight_average(decay: float) -> optax.GradientTransformationExtraArgs:
  """Keeps an exponential moving average of the weights; must be the last of a chain.

    average_t = d_t average_{t-1} + (1 - d_t) theta_t,   d_t = min(decay, t / (t + 9)),  t >= 1

  Updates are unchanged. Early weights are forgotten faster, so that the average of a short run does
  not include its start. Batch statistics are averaged in the same way, as far as `update` is told
  them as model_state (the training steps do); what is no float, as a counter, is the newest.
  `training.evaluated` returns the averages. Source: Polyak and Juditsky (1992); against robust
  overfitting Chen et al. 2021 (ICLR, "Robust overfitting may be mitigated by properly learned
  smoothening").
  """

  def init(params: PyTree) -> AverageState:
    # A copy: a state with the same buffer twice could not be donated.
    return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

  def update(
    updates: PyTree,
    state: AverageState | AveragesState,
    params: PyTree | None = None,
    *,
    model_state: PyTree = (),
    **_: Any,
  ) -> tuple[PyTree, AverageState | AveragesState]:
    assert params is not None, "an average of weights needs the weights"
    step = state.step + 1
    keep = jnp.minimum(decay, step / (step + 9))

    def averaged(a: Array, new: Array) -> Array:
      floating = jnp.issubdtype(jnp.asarray(a).dtype, jnp.inexact)
      return (keep * a + (1 - keep) * new).astype(a.dtype) if floating else new

    average = jax.tree.map(averaged, state.average, optax.apply_updates(params, updates))
    if isinstance(state, AverageState):
      return updates, AverageState(step, average)
    statistics = jax.tree.map(averaged, state.model_state, model_state)
    return updates, AveragesState(step, average, statistics)

  return optax.GradientTransformationExtraArgs(init, update)


def max_column_norm(limit: float) -> optax.GradientTransformation:
  """Keeps the incoming weights of every unit within an l_2 ball, by projection after each update.

    w <- w min(1, limit / |w|_2)   after the update, for the incoming weights w of one unit

  Kernels are the parameters of rank >= 2, [..., units] as in Flax; other parameters (biases,
  scales), and the updates of columns within the ball, remain unchanged. In a chain it follows the
  optimizer and precedes weight_average. Source: Srebro and Shraibman 2005 (COLT, "Rank, trace-norm
  and max-norm"), with dropout Hinton et al. 2012 (arXiv 1207.0580); the limit is 1.9365 in the
  maxout nets of Goodfellow et al. 2013 (arXiv 1302.4389).
  """

  def bounded(update: Array, before: Array) -> Array:
    if before.ndim < 2:
      return update
    after = optax.apply_updates(before, update)
    norm = jax.vmap(l2_norm, in_axes=1)(after.reshape(-1, after.shape[-1]))
    inside = norm <= limit
    scale = limit / jnp.where(inside, 1.0, norm)
    return jnp.where(inside, update, (after * scale - before).astype(update.dtype))

  return optax.stateless_with_tree_map(bounded)


def adversarial_weights(gamma: float) -> Callable[[PyTree, PyTree], PyTree]:
  """Adversarial weight perturbation: (params, gradient) -> the perturbation of the weights.

    v_l = gamma |w_l| g_l / |g_l|   for every layer's kernel; 0 for biases and scales

  Source: Wu, Xia and Wang 2020 (arXiv 2004.05884), equations 7 to 9 with one step.
  """

  def of_kernel(w: Array, g: Array) -> Array:
    if w.ndim < 2:
      return jnp.zeros_like(w)
    return gamma * l2_norm(w) * furthest_l2(g, jnp.ones((), g.dtype), None)

  return lambda params, gradient: jax.tree.map(of_kernel, params, gradient)


def constant(peak: float, total: int, steps_per_epoch: int) -> optax.Schedule:
  """The peak throughout."""
  return optax.constant_schedule(peak)


def inverse_time(
  peak: float, total: int, steps_per_epoch: int, rate: float = 5e-6
) -> optax.Schedule:
  """peak / (1 + rate step)."""
  _check_finite("rate", rate, rate >= 0)
  return lambda step: peak / (1.0 + rate * step)


def halving(peak: float, total: int, steps_per_epoch: int, epochs: float = 25.0) -> optax.Schedule:
  """peak / 2^k after k times `epochs` epochs."""
  _check_finite("epochs", epochs, epochs > 0)
  every = max(1, round(epochs * steps_per_epoch))
  return optax.exponential_decay(peak, every, decay_rate=0.5, staircase=True)


def cosine(peak: float, total: int, steps_per_epoch: int) -> optax.Schedule:
  """Decays from peak to 0 along half a cosine."""
  return optax.cosine_decay_schedule(peak, total)


def triangular(peak: float, total: int, steps_per_epoch: int) -> optax.Schedule:
  """Rises from 0 to peak and falls to 0, linearly."""
  up = max(1, total // 2)
  rise, fall = optax.linear_schedule(0, peak, up), optax.linear_schedule(peak, 0, total - up)
  return optax.join_schedules([rise, fall], [up])


def one_cycle(
  peak: float,
  total: int,
  steps_per_epoch: int,
  warmup: float = 0.3,
  div_factor: float = 25.0,
  final_div_factor: float = 1e4,
) -> optax.Schedule:
  """Rises from peak / div_factor to peak in a share of the training, then falls, along cosines.

    peak / div_factor -> peak -> peak / (div_factor final_div_factor)

  Source: Smith and Topin 2017 (arXiv 1708.07120), as in PyTorch and optax.
  """
  _check_finite("div_factor", div_factor, div_factor > 0)
  _check_finite("final_div_factor", final_div_factor, final_div_factor > 0)
  if total < 2:
    return optax.constant_schedule(peak)
  up = max(1, _warmup_steps(warmup, total))
  share = (up + 0.5) / total  # of which optax takes the integer part
  return optax.cosine_onecycle_schedule(total, peak, share, div_factor, final_div_factor)


def warmup_cosine(
  peak: float, total: int, steps_per_epoch: int, warmup: float = 0.05, end: float = 0.0
) -> optax.Schedule:
  """Rises linearly from 0 in a share of the training, then falls to end * peak along a cosine."""
  _check_finite("end", end, end >= 0)
  up = _warmup_steps(warmup, total)
  return optax.warmup_cosine_decay_schedule(0.0, peak, up, total, end * peak)


def piecewise(
  peak: float,
  total: int,
  steps_per_epoch: int,
  boundaries: tuple[float, ...] = (0.5, 0.75),
  factors: tuple[float, ...] = (0.1, 0.1),
) -> optax.Schedule:
  """peak times the product of the factors whose boundaries have been passed.

  A boundary < 1 is a share of the training, any other a number of epochs. Multiples of the peak by
  0.1 at half and at three quarters of the training are those of Rice, Wong and Kolter 2020 (arXiv
  2002.11569).
  """
  if len(boundaries) != len(factors):
    raise InputError(
      f"boundaries and factors of a schedule must be equally many, but were {boundaries} and "
      f"{factors}."
    )
  for boundary, factor in zip(boundaries, factors, strict=True):
    _check_finite("boundaries", boundary, boundary > 0)
    _check_finite("factors", factor, factor > 0)
  share = lambda b: min(round(b * total), total - 1)  # noqa: E731
  steps = [share(b) if b < 1 else round(b * steps_per_epoch) for b in boundaries]
  if any(step >= total for step in steps):
    epochs = total / steps_per_epoch
    raise InputError(
      f"boundaries of a schedule must lie before the end of the training, epoch {epochs:g}, but "
      f"were {boundaries}."
    )
  passed = lambda step: step >= jnp.array(steps, jnp.int32)  # noqa: E731
  return lambda step: peak * jnp.prod(jnp.where(passed(step), jnp.array(factors), 1.0))


def _warmup_steps(warmup: float, total: int) -> int:
  """At least one step remains after it."""
  if not 0 <= warmup < 1:
    raise InputError(
      f"warmup of a schedule must be a share of the training, 0 <= warmup < 1, but was {warmup}."
    )
  return min(round(warmup * total), total - 1)


def _check_finite(name: str, value: float, allowed: bool) -> None:
  if not (allowed and math.isfinite(value)):
    raise InputError(f"{name} of a schedule must be finite and positive, but was {value}.")


# (peak learning rate, total updates, updates per epoch, **its own keys) -> schedule
SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
  "constant": constant,
  "inverse_time": inverse_time,
  "halving": halving,
  "cosine": cosine,
  "triangular": triangular,
  "one_cycle": one_cycle,
  "warmup_cosine": warmup_cosine,
  "piecewise": piecewise,
}
