"""Balls of a norm, alone or cut by the pixel box.

  u = ro.L2(0.5)                        # the ball |delta|_2 <= 0.5, in pixels of [0, 1]
  u = ro.LInf(8 / 255, box=(0.0, 1.0))  # perturbed images stay images
  u = ro.L1(radii)                      # radii [B]: one radius per example

Every method returns the type of x. bfloat16 and float16 are computed in float32 and rounded once:
delta may leave the ball by eps / 2 of the radius (2^-8, 2^-11), and x + delta stays in the box.

|  input                  |  steepest_ascent                                       |
|  grad = 0               |  0, never an arbitrary direction, never NaN            |
|  grad of 1e-30 or 1e30  |  a step of the full radius                             |
|  NaN in grad            |  NaN                                                   |
|  radius 0               |  0                                                     |
|  radius inf             |  only with a box; without one, entries are inf or NaN  |
|  radius < 0 or NaN      |  InputError (a traced radius cannot be checked)        |
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt.checks import described
from robust_opt.errors import InputError
from robust_opt.sets import projections
from robust_opt.sets.base import (
  Box,
  ExampleSet,
  Radius,
  box_bounds,
  ratio,
  set_dataclass,
  static,
  uniform_l2,
)
from robust_opt.types import Array


@set_dataclass
class Ball(ExampleSet):
  """{|delta| <= radius} in some norm, with x + delta in the box: the base of LInf, L2 and L1.

  Attributes:
    radius: [] or [B], >= 0, in the units of x (pixels in [0, 1]).
    box: (low, high) that x + delta must stay in, or None; x itself must lie in it.

  Raises:
    InputError: the radius is negative or NaN, or the box is not an interval; from the methods: x is
      not floating point, or the radius is neither [] nor [B].
  """

  radius: Radius
  box: Box | None = static(default=None)

  name: ClassVar[str]  # in flags, files and messages
  order: ClassVar[float]  # p of the norm l_p

  @staticmethod
  def norm(delta: Array) -> Array:
    """The norm of one perturbation, [*S] -> []."""
    raise NotImplementedError

  @staticmethod
  def dual_norm(delta: Array) -> Array:
    """The dual norm: the largest <v, delta> over |v| <= 1, [*S] -> []."""
    raise NotImplementedError

  def _bounds(self, x: Array) -> projections.Bounds | None:
    return None if self.box is None else box_bounds(self.box, x)

  def _cut(self, delta: Array, x: Array) -> Array:
    return delta if self.box is None else jnp.clip(delta, *box_bounds(self.box, x))

  def _gauge(self, delta: Array, x: Array) -> Array:
    of_ball, bounds = ratio(self.norm(delta), self.radius), self._bounds(x)
    if bounds is None:
      return of_ball
    return jnp.maximum(of_ball, ratio(jnp.abs(delta), projections.room(delta, bounds)))


@set_dataclass
class LInf(Ball):
  """{|delta|_inf <= radius}; its steepest ascent is radius * sign(grad), as in FGSM."""

  name = "linf"
  order = math.inf
  norm = staticmethod(projections.linf_norm)
  dual_norm = staticmethod(projections.l1_norm)

  def _steepest_ascent(self, grad: Array, x: Array) -> Array:
    return self._cut(jnp.where(grad == 0, 0.0, self.radius * jnp.sign(grad)), x)

  def _project(self, delta: Array, x: Array) -> Array:
    return projections.linf(delta, self.radius, self._bounds(x))

  def _sample(self, key: Array, x: Array) -> Array:
    dtype = jnp.result_type(self.radius)
    return self._cut(self.radius * jax.random.uniform(key, x.shape, dtype, -1.0, 1.0), x)


@set_dataclass
class L2(Ball):
  """{|delta|_2 <= radius}; its steepest ascent is radius * grad / |grad|_2."""

  name = "l2"
  order = 2
  norm = staticmethod(projections.l2_norm)
  dual_norm = staticmethod(projections.l2_norm)

  def _steepest_ascent(self, grad: Array, x: Array) -> Array:
    return projections.furthest_l2(grad, self.radius, self._bounds(x))

  def _project(self, delta: Array, x: Array) -> Array:
    return projections.l2(delta, self.radius, self._bounds(x))

  def _sample(self, key: Array, x: Array) -> Array:
    return self._cut(uniform_l2(key, self.radius, jnp.ones_like(x)), x)


@set_dataclass
class L1(Ball):
  """{|delta|_1 <= radius}; its steepest ascent moves the one entry of largest |grad| by the radius.

  With a box, the part that exceeds the bound of that entry goes to the next.
  """

  name = "l1"
  order = 1
  norm = staticmethod(projections.l1_norm)
  dual_norm = staticmethod(projections.linf_norm)

  def _steepest_ascent(self, grad: Array, x: Array) -> Array:
    return projections.furthest_l1(grad, self.radius, self._bounds(x))

  def _project(self, delta: Array, x: Array) -> Array:
    return projections.l1(delta, self.radius, self._bounds(x))

  def _sample(self, key: Array, x: Array) -> Array:
    # Barthe, Guedon, Mendelson and Naor (2005), theorem 1, for p = 1.
    laplace_key, exponential_key = jax.random.split(key)
    dtype = jnp.result_type(self.radius)
    z = jax.random.laplace(laplace_key, x.shape, dtype)
    e = jax.random.exponential(exponential_key, (), dtype)
    return self._cut(self.radius * z / (jnp.sum(jnp.abs(z)) + e), x)


BALLS: dict[str, type[Ball]] = {ball.name: ball for ball in (LInf, L2, L1)}


def ball_of(name: str) -> type[Ball]:
  """LInf, L2 or L1 by name; an InputError for any other name."""
  if name not in BALLS:
    raise InputError(f"norm must be one of {', '.join(BALLS)}, but was {name!r}.")
  return BALLS[name]


def norm_of(config: Mapping[str, Any]) -> str:
  """The norm of a ball that is named by its class or norm; of any other set its class."""
  name = str(config["name"])
  classes = {ball.__name__: norm for norm, ball in BALLS.items()}
  own = name.rpartition(":")[2]
  return classes.get(own, own)


def lengths(ball: Ball | type[Ball], deltas: np.ndarray) -> np.ndarray:
  """The norms of perturbations [K, *S] -> [K], in float64 on the host."""
  flat = deltas.astype(np.float64).reshape(len(deltas), math.prod(deltas.shape[1:]))
  return np.asarray(np.linalg.norm(flat, ball.order, axis=1))


def check_ball(u: object, who: str, *, box: bool = False) -> Ball:
  """u, if it is an LInf, L2 or L1, with a finite box if `box`; otherwise an InputError.

  The message begins with `who`, the name of the algorithm. Subclasses of your own are refused.
  """
  if not isinstance(u, Ball) or type(u) not in BALLS.values():
    raise InputError(
      f"{who} takes ro.LInf, ro.L2 or ro.L1, as in ro.LInf(8 / 255), not {described(u)}."
    )
  if box and (u.box is None or not all(map(math.isfinite, u.box))):
    raise InputError(
      f"{who} needs a set with a finite box, as in ro.{type(u).__name__}(radius, box=(0.0, 1.0)), "
      f"but its box was {u.box}."
    )
  return u
