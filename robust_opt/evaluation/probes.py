"""Measurements behind the checks of evaluation/trust.py: logits, gradients, counts after attacks.

  trial = Trial(net, x, y, norm="linf", radius=0.3, seed=0, size=100)
  right = np.flatnonzero(trial.predictions() == y)           # ids of examples: places in x
  standing = trial.white_box(right, apgd_attack(40))         # those of them that it does not break
  standing = trial.standing(right, noise_attack)

Radius, loss and random numbers are traced: an attack is compiled once for all nets of one
architecture.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import losses
from robust_opt.attacks import white_box
from robust_opt.attacks.square import square
from robust_opt.attacks.types import LogitsAttack
from robust_opt.evaluation.autoattack import BOX, predictions
from robust_opt.keys import keys_of
from robust_opt.maximizers import steepest
from robust_opt.maximizers.apgd import apgd
from robust_opt.maximizers.base import value_and_input_gradient
from robust_opt.sets import BALLS
from robust_opt.types import Array, LogitsFn

NUM_DRAWS = 10  # of noise, at most: a control should be given more than one chance

_LOSSES = (losses.cross_entropy, losses.dlr)
# (keys [B], logits_fn, x [B, *S], y [B]) -> fooled [B]
Attack = Callable[[Array, LogitsFn, Array, Array], Array]
# (norm, radius [], place in _LOSSES []) -> attack. A compile-time constant, compared by identity.
Maker = Callable[[str, Array, Array], Attack]


def answers(logits_fn: LogitsFn, x: np.ndarray, size: int) -> np.ndarray:
  """As the caller's own call gives them, [N, C]: under a jit of ours, Python noise would freeze.

  They are of the net's own type, which says how they may be rounded. Of no examples, N = 0, one
  call that says C.
  """
  # Elsewhere than on a CPU, sizes differ by whether their products are rounded to fewer bits.
  with jax.default_matmul_precision("highest"):
    parts = [logits_fn(jnp.asarray(x[i : i + size])) for i in range(0, max(1, len(x)), size)]
    return np.concatenate([np.asarray(part) for part in parts])


class Trial(NamedTuple):
  """A net, and the examples and the set that it is attacked on and in.

  Attributes:
    net: x [B, *S] -> logits [B, C], a Partial.
    x: [N, *S], float32 in [0, 1].
    y: [N], int32.
    norm: "linf", "l2" or "l1".
    radius: in pixels.
    seed: of all random numbers.
    size: the one size of all batches.
  """

  net: LogitsFn
  x: np.ndarray
  y: np.ndarray
  norm: str
  radius: float
  seed: int
  size: int

  @property
  def diameter(self) -> float:
    """Of the pixel box: within this radius lies every image."""
    entries = self.x[0].size
    return {"linf": 1.0, "l2": math.sqrt(entries), "l1": float(entries)}[self.norm]

  def predictions(self) -> np.ndarray:
    """The class of every image, [N]."""
    return predictions(self.net, self.x, self.size)

  def flat(self, ids: np.ndarray) -> int:
    """At how many of the ids the gradient of the cross-entropy is exactly 0."""
    return sum(
      int(np.sum(_is_flat(self.net, self.x[whole], self.y[whole])[:count]))
      for whole, count in self._batches(ids)
    )

  def sweep(
    self, ids: np.ndarray, make: Maker, factors: Iterable[float]
  ) -> dict[float, np.ndarray]:
    """Radius -> ids that stand, for factors of the radius up to one that allows every image.

    Every radius is attacked afresh, from the same random numbers.
    """
    most = max(self.radius, self.diameter)
    radii = {most} | {min(factor * self.radius, most) for factor in factors}
    return {each: self._replace(radius=each).white_box(ids, make) for each in sorted(radii)}

  def white_box(self, ids: np.ndarray, make: Maker, run: int = 0) -> np.ndarray:
    """The ids that stand after an ascent of each loss."""
    for which in range(len(_LOSSES)):
      ids = self.standing(ids, make, run, which)
    return ids

  def standing(self, ids: np.ndarray, make: Maker, run: int = 0, which: int = 0) -> np.ndarray:
    """The ids that an attack does not break; run and which, the loss, choose its random numbers."""
    key = jax.random.fold_in(jax.random.key(self.seed), len(_LOSSES) * run + which)
    stands = [np.zeros(0, bool)]
    for whole, count in self._batches(ids):
      fooled = _fooled(
        make,
        self.norm,
        self.net,
        np.float32(self.radius),
        np.int32(which),
        key,
        whole.astype(np.int32),
        self.x[whole],
        self.y[whole],
      )
      stands.append(~np.asarray(fooled)[:count])
    return ids[np.concatenate(stands)]

  def _batches(self, ids: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Ids of one size, the last filled up by repetition, and how many of them count."""
    parts = [ids[i : i + self.size] for i in range(0, len(ids), self.size)]
    return [(np.resize(part, self.size), len(part)) for part in parts]


@functools.cache
def apgd_attack(num_steps: int) -> Maker:
  """The white-box attack."""

  def make(norm: str, radius: Array, which: Array) -> Attack:
    climb = apgd(BALLS[norm](radius, BOX), num_steps, keep_best=True)
    return _of_found(white_box.ascent(climb, _loss(which)))

  return make


@functools.cache
def square_attack(num_queries: int, channel_axis: int | None) -> Maker:
  """The black-box attack, which has no loss to choose."""

  def make(norm: str, radius: Array, which: Array) -> Attack:
    del which
    return _of_found(square(norm, radius, BOX, num_queries, channel_axis=channel_axis))

  return make


def fgsm_attack(norm: str, radius: Array, which: Array) -> Attack:
  """One step from the clean image."""
  return _of_found(white_box.ascent(steepest(BALLS[norm](radius, BOX)), _loss(which)))


def noise_attack(norm: str, radius: Array, which: Array) -> Attack:
  """The furthest points of the set in directions drawn at random."""
  del which
  ball = BALLS[norm](radius, BOX)

  def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
    def draw(fooled: Array, number: Array) -> tuple[Array, None]:
      one = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), x.shape[1:]))
      delta = ball.steepest_ascent(one(keys), x)
      return fooled | ~losses.correct(logits_fn(x + delta), y), None

    draws = jnp.arange(num_draws(math.prod(x.shape[1:])))
    return jax.lax.scan(draw, jnp.zeros(x.shape[:1], bool), draws)[0]

  return attack


def num_draws(num_entries: int) -> int:
  """Of noise: fewer in few dimensions, where it soon hits upon the gradient's direction."""
  return max(1, min(NUM_DRAWS, num_entries // 6))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fooled(
  make: Maker,
  norm: str,
  net: LogitsFn,
  radius: Array,
  which: Array,
  key: Array,
  ids: Array,
  x: Array,
  y: Array,
) -> Array:
  return make(norm, radius, which)(keys_of(key, ids), net, x, y)


@jax.jit
def _is_flat(net: LogitsFn, x: Array, y: Array) -> Array:
  info, _ = value_and_input_gradient(lambda x: losses.cross_entropy(net(x), y), x)
  return info.zero_gradient


def _of_found(attack: LogitsAttack) -> Attack:
  return lambda keys, logits_fn, x, y: attack(keys, logits_fn, x, y).fooled


def _loss(which: Array) -> Callable[[Array, Array], Array]:
  """A loss by its place, which is traced: all losses share one program."""
  return lambda logits, y: jax.lax.switch(which, _LOSSES, logits, y)
