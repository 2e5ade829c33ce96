"""Measurements behind the checks of evaluation/trust.py: logits, gradients, counts after attacks.

  probe = Probe(net, x, y, ro.LInf(0.3, box=(0.0, 1.0)), seed=0, size=100)
  correct = np.flatnonzero(probe.predictions() == y)      # ids of examples: indices into x
  robust = probe.white_box(correct, apgd_attack(40))      # those that remain correct
  robust = probe.robust(correct, noise_attack)

The set, the loss and the random numbers are traced: an attack is compiled once for all nets of one
architecture.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import losses
from robust_opt.arrays import where_examples
from robust_opt.attacks import white_box
from robust_opt.attacks.square import square
from robust_opt.attacks.types import AttackResult, LogitsAttack
from robust_opt.evaluation.batches import MakeAttack, predictions, run_attack
from robust_opt.evaluation.inputs import box_of, check_set
from robust_opt.maximizers import steepest
from robust_opt.maximizers.apgd import apgd
from robust_opt.maximizers.base import value_and_input_gradient
from robust_opt.sets import Ball, lengths
from robust_opt.types import Array, LogitsFn

NUM_DRAWS = 10  # the maximum number of noise draws

_LOSSES = (losses.cross_entropy, losses.dlr)


class Probe(NamedTuple):
  """A net, the examples it is attacked on, and the set it is attacked in.

  Attributes:
    net: x [B, *S] -> logits [B, C], a Partial.
    x: [N, *S], float32 in [0, 1].
    y: [N], int32.
    u: the ball, with a finite box.
    seed: of all random numbers.
    size: the size of all batches.
    channel_axis: of one example, or None.
  """

  net: LogitsFn
  x: np.ndarray
  y: np.ndarray
  u: Ball
  seed: int
  size: int
  channel_axis: int | None = None

  @property
  def diameter(self) -> float:
    """The diameter of the box: a ball of this radius around any image contains all images."""
    low, high = box_of(self.u)
    return float(lengths(self.u, np.full((1, self.x[0].size), high - low))[0])

  def predictions(self) -> np.ndarray:
    """The class of every image, [N]."""
    return predictions(self.net, self.x, self.size)

  def num_flat(self, ids: np.ndarray) -> int:
    """The number of ids at which the gradient of the cross-entropy is exactly 0."""
    return sum(
      int(np.sum(_is_flat(self.net, self.x[whole], self.y[whole])[:count]))
      for whole, count in self._batches(ids)
    )

  def sweep(
    self, ids: np.ndarray, make: MakeAttack, factors: Iterable[float]
  ) -> dict[float, np.ndarray]:
    """Radius -> ids that remain correct, for factors of the radius and the diameter of the box.

    All radii use the same random numbers.
    """
    radius = float(self.u.radius)
    largest = max(radius, self.diameter)
    radii = {largest} | {min(factor * radius, largest) for factor in factors}

    return {
      radius: self._replace(u=dataclasses.replace(self.u, radius=radius)).white_box(ids, make)
      for radius in sorted(radii)
    }

  def white_box(self, ids: np.ndarray, make: MakeAttack, run: int = 0) -> np.ndarray:
    """The ids that remain correct after an ascent of each loss."""
    for loss in range(len(_LOSSES)):
      ids = self.robust(ids, make, run, loss)
    return ids

  def robust(self, ids: np.ndarray, make: MakeAttack, run: int = 0, loss: int = 0) -> np.ndarray:
    """The ids that remain correct after an attack; its random numbers depend on run and loss."""
    key = jax.random.fold_in(jax.random.key(self.seed), len(_LOSSES) * run + loss)
    axis, net, u = self.channel_axis, self.net, check_set(self.u)
    robust = [np.zeros(0, bool)]
    for whole, count in self._batches(ids):
      arrays = whole.astype(np.int32), self.x[whole], self.y[whole]
      result = run_attack(make, axis, net, u, np.int32(loss), key, *arrays)
      robust.append(~np.asarray(result.fooled)[:count])
    return ids[np.concatenate(robust)]

  def _batches(self, ids: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Batches of ids of one size, the last padded by repetition, with their unpadded lengths."""
    parts = [ids[i : i + self.size] for i in range(0, len(ids), self.size)]
    return [(np.resize(part, self.size), len(part)) for part in parts]


@functools.cache
def apgd_attack(num_steps: int) -> MakeAttack:
  """The white-box attack."""

  def make(u: Ball, loss: Array, channel_axis: int | None) -> LogitsAttack:
    del channel_axis
    return white_box.ascent(apgd(u, num_steps, keep_best=True), _loss(loss))

  return make


@functools.cache
def square_attack(num_queries: int) -> MakeAttack:
  """The black-box attack, which ignores the loss."""

  def make(u: Ball, loss: Array, channel_axis: int | None) -> LogitsAttack:
    del loss
    return square(u, num_queries, channel_axis=channel_axis)

  return make


def fgsm_attack(u: Ball, loss: Array, channel_axis: int | None) -> LogitsAttack:
  """One step from the clean image."""
  del channel_axis
  return white_box.ascent(steepest(u), _loss(loss))


def noise_attack(u: Ball, loss: Array, channel_axis: int | None) -> LogitsAttack:
  """The furthest points of the set in random directions."""
  del loss, channel_axis

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


@jax.jit
def _is_flat(net: LogitsFn, x: Array, y: Array) -> Array:
  info, _ = value_and_input_gradient(lambda x: losses.cross_entropy(net(x), y), x)
  return info.zero_gradient


def _loss(index: Array) -> Callable[[Array, Array], Array]:
  """A loss by its index, which is traced: all losses share one program."""
  return lambda logits, y: jax.lax.switch(index, _LOSSES, logits, y)
