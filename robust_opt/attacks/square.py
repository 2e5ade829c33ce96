"""Square Attack: a random search that needs no gradient, only logits.

  attack = square(ro.LInf(8 / 255, box=(0.0, 1.0)), num_queries=5000)
  delta, fooled = attack(keys, logits_fn, x, y)   # keys [B]; x [B, *S], pixels in [0, 1]; y [B]

Gradient masking does not stop it, since it needs only the margin. Each query changes the
perturbation within a square at a random position, whose side shrinks as the queries are used up,
and the change is kept if the margin grows.

Examples have any number of axes. A "square" is a window over all of them but the channel axis: an
interval of a signal, a square of an image, a cube of a volume. For images it is that of the paper.

Sources: Andriushchenko, Croce, Flammarion and Hein 2020 (arXiv 1912.00049), algorithm 1; over l_1,
Croce and Hein 2021 (arXiv 2103.01208). The moves are in square_moves.py.

|  input                               |  result                                |
|  misclassified clean example         |  delta 0, fooled, no queries           |
|  logits that never change            |  delta 0, not fooled, all queries      |
|  NaN or infinite logits              |  fooled, as in losses.correct          |
|  radius 0                            |  delta 0                               |
|  radius beyond the box's diameter    |  as for the box's diameter             |
"""

import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import layout, losses
from robust_opt.arrays import where_examples
from robust_opt.attacks.precision import widened
from robust_opt.attacks.square_moves import HALVINGS, moves_of, sides_of
from robust_opt.attacks.support import check_support
from robust_opt.attacks.types import AttackResult, LogitsAttack
from robust_opt.errors import InputError
from robust_opt.keys import per_example
from robust_opt.layout import ChannelAxis
from robust_opt.sets import Ball, Box
from robust_opt.sets.base import box_bounds
from robust_opt.sets.projections import Bounds
from robust_opt.types import Array, LogitsFn


class SquareResult(NamedTuple):
  """The outcome of Square Attack on a batch.

  Attributes:
    delta: as in AttackResult; where no query succeeded, the point of the largest margin, 0 if that
      is the clean example.
    fooled: as in AttackResult.
    queries: [B], int32, the number of perturbed images of each example that the net evaluated:
      num_queries where none succeeded, 0 where the clean example is misclassified.
  """

  delta: Array
  fooled: Array
  queries: Array


class CountingAttack(Protocol):
  """A LogitsAttack that also returns the number of queries."""

  def __call__(self, keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> SquareResult:
    """keys [B], x [B, *S], y [B]."""
    ...


def square(
  u: Ball,
  num_queries: int = 5000,
  p_init: float = 0.8,
  channel_axis: ChannelAxis = layout.AUTO,
) -> LogitsAttack:
  """Square Attack: (keys [B], logits_fn, x [B, *S], y [B]) -> AttackResult.

  Where no query succeeded, delta is the point of the largest margin, 0 if that is the clean
  example. Every query runs the whole batch through logits_fn, until all examples are fooled.

  Args:
    u: LInf, L2 or L1. The radius, [] or [B], may be traced; x must lie in the box, if there is one.
    num_queries: the maximum number of perturbed images of each example, >= 1, the start included.
    p_init: in (0, 1], the fraction of the image that the first squares cover.
    channel_axis: of one example, 0 for [C, H, W]; None if there is none; "auto" guesses it from the
      shape (`robust_opt.layout.resolve`). The result is the same in every layout, bit for bit if
      the logits are.

  Raises:
    InputError: another set, or num_queries or p_init out of range; from the attack: x is not
      floating point, channel_axis is not an axis of an example, the radius is neither [] nor [B],
      or keys are not one key per example.
  """
  search = counting_square(u, num_queries, p_init, channel_axis)

  def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> AttackResult:
    result = search(keys, logits_fn, x, y)
    return AttackResult(result.delta, result.fooled)

  return attack


def counting_square(
  u: Ball,
  num_queries: int = 5000,
  p_init: float = 0.8,
  channel_axis: ChannelAxis = layout.AUTO,
) -> CountingAttack:
  """`square` that also returns the number of queries of each example.

  The random numbers of query t of example i come from fold_in(keys[i], t) alone.
  """
  check_support("square", u)
  if num_queries < 1:
    raise InputError(f"num_queries must be at least 1, but was {num_queries}.")
  if not 0 < p_init <= 1:
    raise InputError(f"p_init is a fraction of the image and must be in (0, 1], but was {p_init}.")
  moves = moves_of(u)
  halvings = np.array(HALVINGS) * num_queries / 10_000

  def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> SquareResult:
    keys = _checked_keys(keys, x)
    logits_fn, x, rounded = widened(logits_fn, x)
    u.gauge(jnp.zeros_like(x), x)  # raises the InputErrors of the set
    axis = layout.resolve(channel_axis, x.shape[1:])
    last = layout.to_last(x, axis)
    images = last if last.ndim > 2 else last[:, None]  # at least one axis for the windows
    radii, bounds = _radii(u, images), _bounds(images, u.box)
    sides = jnp.asarray(sides_of(images.shape[1:], p_init, moves.least_side))

    def start(key: Array, radius: Array, low: Array, high: Array) -> Array:
      return jnp.clip(radius * moves.start(key, low.shape).astype(low.dtype), low, high)

    def in_layout_of_x(delta: Array) -> Array:
      return layout.from_last(delta.reshape(last.shape), axis)

    def propose(t: Array, delta: Array) -> Array:
      side = sides[jnp.sum(t > halvings)]

      def one(key: Array, delta: Array, radius: Array, low: Array, high: Array) -> Array:
        return moves.move(jax.random.fold_in(key, t), side, delta, radius, (low, high))

      return jax.vmap(one)(keys, delta, radii, *bounds)

    def evaluate(delta: Array) -> tuple[Array, Array]:
      logits = logits_fn(x + in_layout_of_x(delta))
      return losses.margin(logits, y), ~losses.correct(logits, y)

    def query(state: _State) -> _State:
      candidate = propose(state.t, state.best)
      margin, fooled = evaluate(candidate)
      accept = ~state.fooled & (fooled | (margin > state.margin))
      return _State(
        state.t + 1,
        where_examples(accept, candidate, state.best),
        jnp.where(accept, margin, state.margin),
        state.fooled | fooled,
        state.queries + ~state.fooled,
      )

    clean_margin, misclassified = evaluate(jnp.zeros_like(images))
    first = jax.vmap(start)(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), radii, *bounds)
    margin, fooled = evaluate(first)
    end = jax.lax.while_loop(
      lambda state: (state.t < num_queries) & ~jnp.all(state.fooled),
      query,
      _State(
        jnp.ones((), jnp.int32),
        first,
        margin,
        misclassified | fooled,
        jnp.where(misclassified, 0, 1),
      ),
    )
    # The margin of the clean example may be larger than any that the search finds.
    beats_clean = ~misclassified & (end.fooled | (end.margin > clean_margin))
    delta = where_examples(beats_clean, end.best, jnp.zeros_like(end.best))
    return rounded(SquareResult(in_layout_of_x(delta), end.fooled, end.queries))

  return attack


class _State(NamedTuple):
  """The search after t queries: best [B, *W, C]; margin, fooled and queries [B]."""

  t: Array
  best: Array
  margin: Array
  fooled: Array
  queries: Array


def _checked_keys(keys: Array, x: Array) -> Array:
  each = per_example(keys, x.shape[0])
  if each.shape != x.shape[:1]:
    raise InputError(
      f"keys must be one key or one for each of the {x.shape[0]} examples, but has the shape "
      f"{keys.shape} and the type {keys.dtype}."
    )
  return each


def _radii(u: Ball, images: Array) -> Array:
  """The radii as [B], at most the diameter of the box, so that infinite ones become finite."""
  radii = jnp.broadcast_to(jnp.asarray(u.radius, images.dtype), images.shape[:1])
  if u.box is None:
    return radii
  low, high = u.box
  return jnp.minimum(radii, (high - low) * math.prod(images.shape[1:]) ** (1 / u.order))


def _bounds(images: Array, box: Box | None) -> Bounds:
  """The bounds of delta that keep x + delta in the box; infinite without one."""
  if box is None:
    return jnp.full_like(images, -jnp.inf), jnp.full_like(images, jnp.inf)
  return box_bounds(box, images)
