"""Descent that optax lacks: SGD as Torch has it, to reproduce what was trained by it.

optimizer = dampened_sgd(learning_rate=1e-2, momentum=0.9, dampening=0.9)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from robust_opt.types import Array, PyTree

__all__ = ["dampened_sgd"]  # what a config may name, beside all of optax


class DampenedState(NamedTuple):
  """How many updates have been made, and the velocity."""

  step: Array
  velocity: PyTree


def dampened_sgd(
  learning_rate: optax.ScalarOrSchedule, momentum: float = 0.9, dampening: float | None = None
) -> optax.GradientTransformationExtraArgs:
  """Torch's SGD with momentum and dampening, to the letter.

    v_1 = g_1,   v_t = momentum v_{t-1} + (1 - dampening) g_t,   theta_t = theta_{t-1} - lr v_t

  The first gradient is not dampened: with dampening = momentum = 0.9 it counts ten times as much as
  any other. From then on it is optax.sgd at learning_rate (1 - dampening). Source: Lua Torch's
  optim.sgd (and PyTorch's SGD), by which the paper's nets were trained.

  Args:
    learning_rate: a number, or a schedule.
    momentum: 0 <= momentum < 1.
    dampening: None: as the momentum, which is Lua Torch's default.
  """
  fresh = 1.0 - (momentum if dampening is None else dampening)

  def init(params: PyTree) -> DampenedState:
    return DampenedState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

  def update(
    gradient: PyTree, state: DampenedState, params: PyTree | None = None
  ) -> tuple[PyTree, DampenedState]:
    del params
    weight = jnp.where(state.step == 0, 1.0, fresh)
    velocity = jax.tree.map(
      lambda v, g: (momentum * v + weight * g).astype(v.dtype), state.velocity, gradient
    )
    return velocity, DampenedState(state.step + 1, velocity)

  rate = optax.scale_by_learning_rate(learning_rate)
  return optax.chain(optax.GradientTransformation(init, update), rate)
