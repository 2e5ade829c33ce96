"""Measurements behind the checks of evaluation/trust.py: logits, gradients, counts after attacks.

  probe = Probe(net, x, y, ro.LInf(0.3, box=(0.0, 1.0)), seed=0, size=100)
  robust = probe.white_box(ids, apgd_attack(40))      # the ids (indices into x) that remain correct

The set, the loss and the random numbers are traced: an attack is compiled once for all nets of one
architecture.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import losses
from robust_opt.arrays import where_examples
from robust_opt.attacks import white_box
from robust_opt.attacks.square import square
from robust_opt.attacks.types import AttackResult, LogitsAttack
from robust_opt.evaluation.batches import MakeAttack, run_attack
from robust_opt.evaluation.inputs import check_set
from robust_opt.maximizers import steepest
from robust_opt.maximizers.apgd import apgd
from robust_opt.sets import Ball
from robust_opt.sets.examples import for_examples
from robust_opt.sets.radii import diameter
from robust_opt.types import Array, LogitsFn

NUM_DRAWS = 10  # the maximum number of noise draws

_LOSSES = (losses.cross_entropy, losses.dlr)


class Probe(NamedTuple):
  """A net, the examples it is attacked on, and the set it is attacked in."""

  net: LogitsFn  # a Partial
  x: np.ndarray  # [N, *S], float32 in [0, 1]
  y: np.ndarray  # [N], int32
  u: Ball  # with a finite box
  seed: int  # of all random numbers
  size: int  # of all batches
  channel_axis: int | None = None  # of one example

  def sweep(
    self, ids: np.ndarray, make: MakeAttack, factors: Iterable[float]
  ) -> dict[float, np.ndarray]:
    """Radius -> ids that remain correct, for factors of the radius and the diameter of the box.

    A ball of that diameter around any image contains all images. Of several radii the largest is
    the key.
    """
    radii = np.asarray(self.u.radius, np.float64)
    whole = max(largest_radius(self.u), diameter(self.u, self.x.shape[1:]))
    scaled = [factor * radii for factor in sorted(factors)]
    # Balls that reach beyond the box give way to the one that holds it.
    kept = [each for each in scaled if np.max(each) < whole] + [np.full_like(radii, whole)]
    balls = [dataclasses.replace(self.u, radius=radii) for radii in kept]
    return {largest_radius(u): self._replace(u=u).white_box(ids, make) for u in balls}

  def white_box(self, ids: np.ndarray, make: MakeAttack, run: int = 0) -> np.ndarray:
    """The ids that remain correct after an ascent of each loss."""
    for loss in range(len(_LOSSES)):
      ids = self.robust(ids, make, run, loss)
    return ids

  def robust(self, ids: np.ndarray, make: MakeAttack, run: int = 0, loss: int = 0) -> np.ndarray:
    """The ids that remain correct after an attack; its random numbers depend on run and loss."""
    key = jax.random.fold_in(jax.random.key(self.seed), len(_LOSSES) * run + loss)

    def fooled(ids: np.ndarray, x: np.ndarray, y: np.ndarray) -> Array:
      u = check_set(for_examples(self.u, ids, x.ndim))
      common = make, self.channel_axis, self.net, u, np.int32(loss), key
      return run_attack(*common, ids, x, y).fooled

    return ids[~self._mask(ids, fooled)]

  def _mask(self, ids: np.ndarray, function: Callable[..., Array]) -> np.ndarray:
    """function(ids, x, y) [B] bool of all ids, in batches of one size."""
    masks = [np.zeros(0, bool)]
    for start in range(0, len(ids), self.size):
      part = ids[start : start + self.size]
      padded = np.resize(part, self.size).astype(np.int32)
      masks.append(np.asarray(function(padded, self.x[padded], self.y[padded]))[: len(part)])
    return np.concatenate(masks)


def largest_radius(u: Ball) -> float:
  """That of all examples."""
  return float(np.max(u.radius))


@functools.cache
def apgd_attack(num_steps: int) -> MakeAttack:
  """The white-box attack."""

  def make(u: Ball, loss: Array, _: int | None) -> LogitsAttack:
    return white_box.ascent(apgd(u, num_steps, keep_best=True), _loss(loss))

  return make


@functools.cache
def square_attack(num_queries: int) -> MakeAttack:
  """The black-box attack, which ignores the loss."""

  def make(u: Ball, _: Array, channel_axis: int | None) -> LogitsAttack:
    return square(u, num_queries, channel_axis=channel_axis)

  return make


def fgsm_attack(u: Ball, loss: Array, _: int | None) -> LogitsAttack:
  """One step from the clean image."""
  return white_box.ascent(steepest(u), _loss(loss))


def noise_attack(u: Ball, *_: Any) -> LogitsAttack:
  """The furthest points of the set in random directions."""

  def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> AttackResult:
    def draw(result: AttackResult, number: Array) -> tuple[AttackResult, None]:
      one = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), x.shape[1:]))
      delta = u.steepest_ascent(one(keys), x)
      fooled = ~losses.correct(logits_fn(x + delta), y)
      kept = where_examples(fooled & ~result.fooled, delta, result.delta)
      return AttackResult(kept, result.fooled | fooled), None

    draws = jnp.arange(num_draws(math.prod(x.shape[1:])))
    none = AttackResult(jnp.zeros_like(x), jnp.zeros(x.shape[:1], bool))
    return jax.lax.scan(draw, none, draws)[0]

  return attack


def num_draws(num_entries: int) -> int:
  """The number of noise draws; fewer in low dimensions, where noise soon hits the gradient."""
  return max(1, min(NUM_DRAWS, num_entries // 6))


def _loss(index: Array) -> Callable[[Array, Array], Array]:
  """A loss by its index, which is traced: all losses share one program."""
  return lambda logits, y: jax.lax.switch(index, _LOSSES, logits, y)
