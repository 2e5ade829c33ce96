"""Square Attack: a random search that needs no gradient, only logits.

  attack = square("linf", 8 / 255, num_queries=5000)
  found = attack(keys, logits_fn, x, y)   # keys [B]; x [B, *S], pixels in [0, 1]; y [B]

A net may hide its gradient from the attacks that climb it, but not its margin from this one. Every
query changes the perturbation within a square at a random place, whose side shrinks as the queries
are spent, and the change is kept where the margin grew.

Examples have any number of axes. A "square" is a window over all of them but the channel axis: an
interval of a signal, a square of an image, a cube of a volume. For images it is that of the paper.

Sources: Andriushchenko, Croce, Flammarion and Hein 2020 (arXiv 1912.00049); over l_1, Croce and
Hein 2021 (arXiv 2103.01208). Below, "the paper" is the first.

|  input                             |  result                             |
|  misclassified already             |  delta 0, fooled, no query          |
|  logits that never change          |  delta 0, not fooled, every query   |
|  logits of NaN or inf              |  fooled, as losses.correct has it   |
|  radius 0                          |  delta 0                            |
|  radius beyond the box's diameter  |  as the box's diameter              |
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import layout, losses
from robust_opt.attacks.precision import widened
from robust_opt.attacks.types import Found, LogitsAttack
from robust_opt.errors import InputError
from robust_opt.keys import per_example
from robust_opt.layout import ChannelAxis
from robust_opt.sets import Box, Radius, balls, projections
from robust_opt.sets.base import box_bounds
from robust_opt.sets.projections import Bounds
from robust_opt.types import Array, LogitsFn

# After how many of 10,000 queries the share of the image that a square covers is halved: those of
# the authors' program, which AutoAttack runs from a share of 0.8.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
TILES = 5  # along a side, in the start over l_2 and l_1
# How fast a bump falls off, 1 / j^power, by the order of the norm.
DECAY = {2: 2, 1: 4}
# Partial sums of 1 / j^power; the terms after the last do not change the sum in float32.
_SUMS = {
  order: np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1.0, 4097.0) ** power)])
  for order, power in DECAY.items()
}


class Searched(NamedTuple):
  """What a random search made of a batch.

  Attributes:
    found: as of every attack.
    queries: [B], int32, how many perturbed images of each example the net has seen: num_queries
      where none fooled, 0 where the clean example is misclassified.
  """

  found: Found
  queries: Array


# (keys [B], logits_fn, x [B, *S], y [B]) -> Searched
CountingAttack = Callable[[Array, LogitsFn, Array, Array], Searched]


def square(
  norm: str,
  radius: Radius,
  box: Box | None = (0.0, 1.0),
  num_queries: int = 5000,
  p_init: float = 0.8,
  channel_axis: ChannelAxis = layout.AUTO,
) -> LogitsAttack:
  """Square Attack: (keys [B], logits_fn, x [B, *S], y [B]) -> Found.

  Where nothing fooled, delta is the point of the highest margin that was seen, 0 if that is the
  clean example. The whole batch goes through logits_fn once a query, until all of it is fooled.

  Args:
    norm: "linf", "l2" or "l1".
    radius: [] or [B], >= 0, in the units of x; it may be traced.
    box: (low, high) that x lies in and x + delta must stay in, or None.
    num_queries: at most so many perturbed images of every example, the start among them.
    p_init: in (0, 1], the share of the image that the first squares cover.
    channel_axis: of one example, 0 for [C, H, W]; None if there is none; "auto" guesses it from the
      shape (`robust_opt.layout.resolve`). The result is the same in every layout, to the bit where
      the logits are.

  Raises:
    InputError: the norm is unknown, or the radius, the box, num_queries or p_init out of range;
      from the attack: x is not floating point, channel_axis is not an axis of an example, the
      radius is neither [] nor [B], or keys are not one key for each example.
  """
  search = counting_square(norm, radius, box, num_queries, p_init, channel_axis)
  return lambda keys, logits_fn, x, y: search(keys, logits_fn, x, y).found


def counting_square(
  norm: str,
  radius: Radius,
  box: Box | None = (0.0, 1.0),
  num_queries: int = 5000,
  p_init: float = 0.8,
  channel_axis: ChannelAxis = layout.AUTO,
) -> CountingAttack:
  """Square Attack that also returns the queries of every example; arguments as for square.

  Algorithm 1 of the paper. Query t of example i is drawn from fold_in(keys[i], t) alone.
  """
  if norm not in _MOVES:
    raise InputError(f"norm must be one of {', '.join(_MOVES)}, but was {norm!r}.")
  if num_queries < 1:
    raise InputError(f"num_queries must be at least 1, but was {num_queries}.")
  if not 0 < p_init <= 1:
    raise InputError(f"p_init is a share of the image and must be in (0, 1], but was {p_init}.")
  moves, ball = _MOVES[norm], balls.BALLS[norm](radius, box)
  halvings = np.array(HALVINGS) * num_queries / 10_000

  def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> Searched:
    keys = _keys_of(keys, x)
    logits_fn, x, rounded = widened(logits_fn, x)
    ball.gauge(jnp.zeros_like(x), x)  # raises what the sets raise: of integer x, of radii not [B]
    axis = layout.resolve(channel_axis, x.shape[1:])
    last = layout.to_last(x, axis)
    images = last if last.ndim > 2 else last[:, None]  # at least one axis for the windows
    radii, bounds = _radii(moves, radius, box, images), _bounds(images, box)
    sides = jnp.asarray(_sides(images.shape[1:], p_init, moves.least_side))

    def start(key: Array, radius: Array, low: Array, high: Array) -> Array:
      return jnp.clip(radius * moves.start(key, low.shape).astype(low.dtype), low, high)

    def in_layout_of_x(delta: Array) -> Array:
      return layout.from_last(delta.reshape(last.shape), axis)

    def propose(t: Array, delta: Array) -> Array:
      side = sides[jnp.sum(t > halvings)]

      def one(key: Array, delta: Array, radius: Array, low: Array, high: Array) -> Array:
        return moves.move(jax.random.fold_in(key, t), side, delta, radius, (low, high))

      return jax.vmap(one)(keys, delta, radii, *bounds)

    def judge(delta: Array) -> tuple[Array, Array]:
      logits = logits_fn(x + in_layout_of_x(delta))
      return losses.margin(logits, y), ~losses.correct(logits, y)

    def query(state: _State) -> _State:
      candidate = propose(state.t, state.best)
      margin, fooled = judge(candidate)
      accept = ~state.fooled & (fooled | (margin > state.margin))
      return _State(
        state.t + 1,
        _where(accept, candidate, state.best),
        jnp.where(accept, margin, state.margin),
        state.fooled | fooled,
        state.queries + ~state.fooled,
      )

    clean_margin, misclassified = judge(jnp.zeros_like(images))
    first = jax.vmap(start)(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), radii, *bounds)
    margin, fooled = judge(first)
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
    # The search climbs from its start, wherever that lies: the clean example may have been better.
    beats_clean = ~misclassified & (end.fooled | (end.margin > clean_margin))
    delta = _where(beats_clean, end.best, jnp.zeros_like(end.best))
    return rounded(Searched(Found(in_layout_of_x(delta), end.fooled), end.queries))

  return attack


class _State(NamedTuple):
  """The search so far: t queries were made; best [B, *W, C]; margin, fooled and queries [B]."""

  t: Array
  best: Array
  margin: Array
  fooled: Array
  queries: Array


# --- What differs from norm to norm, for one example [*W, C] with n window axes W ---


class _Moves(NamedTuple):
  """Where the search over a norm starts and how it moves.

  Attributes:
    order: p of the norm l_p.
    least_side: of a square, in pixels.
    start: (key, shape of the example) -> delta [*W, C] in the ball of radius 1.
    move: (key, sides [n], delta [*W, C], radius [], bounds) -> another delta within the ball and
      the bounds.
  """

  order: float
  least_side: int
  start: Callable[[Array, tuple[int, ...]], Array]
  move: Callable[[Array, Array, Array, Array, Bounds], Array]


def _stripes(key: Array, shape: tuple[int, ...]) -> Array:
  """Stripes, one pixel wide, each of one of the colors {-1, 1}^C (section 3.2).

  They vary along the last window axis, the width of an image, and are constant along the others.
  """
  *others, width, channels = shape
  colors = jax.random.rademacher(key, (*(1,) * len(others), width, channels), jnp.float32)
  return jnp.broadcast_to(colors, shape)


def _recolor(key: Array, sides: Array, delta: Array, radius: Array, bounds: Bounds) -> Array:
  """Algorithm 2: paints a square in one of the colors {-radius, radius}^C.

  A color that changes nothing would be a wasted query (every other one where an image has one
  channel and the square one pixel); its opposite is tried instead.
  """
  axes, channels = delta.ndim - 1, delta.shape[-1]
  u = jax.random.uniform(key, (axes + channels,))
  square = _inside(_places(_corner(u[:axes], sides, delta.shape), delta.shape), sides)
  color = jnp.where(u[axes:] < 0.5, -radius, radius)

  def painted(color: Array) -> Array:
    return jnp.clip(jnp.where(square, color, delta), *bounds)

  once = painted(color)
  return jnp.where(jnp.all(once == delta), painted(-color), once)


def _bump_grid(key: Array, shape: tuple[int, ...], order: int) -> Array:
  """Tiles that hold a bump each, split along a random axis, of a random sign in every channel.

  Section 3.3 of the paper. The tiles are of one size and the grid lies in the middle.
  """
  *sizes, channels = shape
  tile = [max(size // TILES, 1) for size in sizes]
  grid = [min(size, TILES) for size in sizes]
  sign_key, split_key = jax.random.split(key)
  signs = jax.random.rademacher(sign_key, (*grid, channels), jnp.float32)
  split = _axis(jax.random.uniform(split_key, tuple(grid)), len(sizes))

  # Along every axis: the tile of a pixel, and its place within that tile.
  places, tiles = [], []
  for size, side, count in zip(sizes, tile, grid, strict=True):
    at = jnp.arange(size) - (size - count * side) // 2
    number = jnp.clip(at // side, 0, count - 1)
    tiles.append(number)
    places.append(at - number * side)
  of_tile = jnp.ix_(*tiles)
  within = jnp.ix_(*places)
  bump = _bump(within, jnp.array(tile), split[of_tile], order)[..., None]
  bumps = jnp.where(_inside(within, tile), bump, 0.0) * signs[of_tile]
  return bumps / _root(jnp.sum(_power(bumps, order)), order)


def _move_mass(
  key: Array, sides: Array, delta: Array, radius: Array, bounds: Bounds, order: int
) -> Array:
  """Algorithm 3: a bump is added in one square, and pays with the mass of another.

  Mass is sum |delta_j|^order, so that the ball's is 1 in units of the radius. In each channel the
  first square gets what both held and its share of what the ball has left. Over l_2 the result lies
  in the ball, so that cutting it by the bounds is the exact projection onto both; what is cut off
  is left for the next query.

  Over l_1, as in the program of Croce and Hein (2021), the first square gets as many times that
  mass as there are channels, and the result is projected onto ball and bounds: small entries
  everywhere pay for it.
  """
  *sizes, channels = delta.shape
  axes = len(sizes)
  scale = jnp.where(radius > 0, radius, 1.0)
  delta = delta / scale  # in units of the radius, no power under- or overflows
  u = jax.random.uniform(key, (2 * axes + 1 + channels,))
  places = _places(_corner(u[:axes], sides, delta.shape), delta.shape)
  to = _inside(places, sides)
  source = _places(_corner(u[axes : 2 * axes], sides, delta.shape), delta.shape)
  freed = _inside(source, sides)

  bump = _bump(places, sides, _axis(u[2 * axes], axes), order)[..., None].astype(delta.dtype)
  sign = jnp.where(u[2 * axes + 1 :] < 0.5, -1.0, 1.0)

  def per_channel(v: Array) -> Array:
    return jnp.sum(_power(v, order), axis=tuple(range(axes)))

  def unit(v: Array) -> Array:
    mass = per_channel(v)
    return v / _root(jnp.where(mass > 0, mass, 1.0), order)

  left = jnp.maximum(1.0 - jnp.sum(per_channel(delta)), 0.0)
  available = per_channel(jnp.where(to | freed, delta, 0.0)) + left / channels
  shape = unit(sign * unit(jnp.where(to, bump, 0.0)) + unit(jnp.where(to, delta, 0.0)))
  if order == 1:
    available = channels * available
  moved = jnp.where(to, shape * _root(available, order), jnp.where(freed, 0.0, delta))
  if order == 1:
    return projections.l1(radius * moved, radius, bounds)
  # Long sums round: shrink what they leave outside.
  mass = jnp.maximum(jnp.sum(per_channel(moved)), 1.0)
  return jnp.clip(radius * (moved / _root(mass, order)), *bounds)


def _power(v: Array, order: int) -> Array:
  """|v|^order for order 1 and 2, of which XLA computes sums on a CPU quickly; not so of jnp.abs."""
  return jnp.where(v < 0, -v, v) if order == 1 else v * v


def _root(mass: Array, order: int) -> Array:
  return mass if order == 1 else jnp.sqrt(mass)


_MOVES = {
  "linf": _Moves(math.inf, 1, _stripes, _recolor),
  "l2": _Moves(
    2, 3, functools.partial(_bump_grid, order=2), functools.partial(_move_mass, order=2)
  ),
  "l1": _Moves(
    1, 3, functools.partial(_bump_grid, order=1), functools.partial(_move_mass, order=1)
  ),
}


# --- Squares and bumps ---


def _sides(shape: tuple[int, ...], p_init: float, least: int) -> np.ndarray:
  """The sides of a square after each number of halvings, [len(HALVINGS) + 1, n].

  Those of the equal-sided window whose volume is nearest; where an axis is too short for it, the
  whole of that axis, and as much of the others as makes up the volume.
  """
  sizes = shape[:-1]

  def of_share(p: float) -> list[int]:
    sides = list(sizes)
    axes = list(range(len(sizes)))
    while axes:
      volume = math.prod((sizes[axis] for axis in axes), start=p)
      side = max(least, round(_nth_root(volume, len(axes))))
      shortest = min(axes, key=lambda axis: sizes[axis])
      if side <= sizes[shortest]:
        for axis in axes:
          sides[axis] = side
        break
      axes.remove(shortest)
    return sides

  return np.array([of_share(p_init / 2**k) for k in range(len(HALVINGS) + 1)])


def _nth_root(value: float, n: int) -> float:
  return math.sqrt(value) if n == 2 else value ** (1 / n)


def _corner(u: Array, sides: Array, shape: tuple[int, ...]) -> Array:
  """A uniform place for the first pixel of a square within the example; u [n] in [0, 1)."""
  return jnp.floor(u * (jnp.array(shape[:-1]) - sides + 1)).astype(jnp.int32)


def _axis(u: Array, count: int) -> Array:
  """One of so many axes, uniform if u in [0, 1) is."""
  return jnp.floor(u * count).astype(jnp.int32)


def _places(corner: Array, shape: tuple[int, ...]) -> tuple[Array, ...]:
  """The place of every pixel along each window axis, counted from a corner: n open axes of W."""
  return jnp.ix_(*(jnp.arange(size) - corner[axis] for axis, size in enumerate(shape[:-1])))


def _inside(places: Sequence[Array], sides: Array | Sequence[int]) -> Array:
  """Whether a pixel lies in the window that the places are counted in, [*W, 1]."""
  along = [(place >= 0) & (place < sides[axis]) for axis, place in enumerate(places)]
  return functools.reduce(operator.and_, along)[..., None]


def _bump(places: Sequence[Array], sides: Array, split: Array, order: int) -> Array:
  """Two pyramids of opposite sign, side by side along the axis `split`, [*W] (section 3.3).

  Equation 2 of the paper: the height of a pyramid is the sum of 1 / j^DECAY[order] for j from d + 1
  to m + 1, where d is how many pixels lie between a place and the middle, the largest over the
  axes, and m the most that d can be. It falls from the middle, fast at first. With more than two
  axes the same is said of cubes; with one, of intervals.

  Args:
    places: along each of the n axes, counted within the window; what lies outside means nothing.
    sides: [n], of the window.
    split: which axis is halved, [] or [*W].
    order: of the norm.
  """
  distance = most = jnp.zeros((), jnp.int32)
  second = jnp.zeros((), bool)
  for axis, place in enumerate(places):
    side, half = sides[axis], sides[axis] // 2
    beyond = (split == axis) & (place >= half)
    length = jnp.where(split == axis, jnp.where(beyond, side - half, half), side)
    from_middle = jnp.abs(place - jnp.where(beyond, half, 0) - length // 2)
    distance, most = jnp.maximum(distance, from_middle), jnp.maximum(most, length // 2)
    second = second | beyond
  sums = jnp.asarray(_SUMS[order], jnp.float32)
  top, at = (jnp.minimum(index, sums.size - 1) for index in (most + 1, distance))
  height = sums[top] - sums[at]
  return jnp.where(second, -height, height)


# --- The batch ---


def _keys_of(keys: Array, x: Array) -> Array:
  each = per_example(keys, x.shape[0])
  if each.shape != x.shape[:1]:
    raise InputError(
      f"keys must be one key or one for each of the {x.shape[0]} examples, but has the shape "
      f"{keys.shape} and the type {keys.dtype}."
    )
  return each


def _radii(moves: _Moves, radius: Radius, box: Box | None, images: Array) -> Array:
  """The radii as [B], none beyond the diameter of the box: infinite ones are numbers then."""
  radii = jnp.broadcast_to(jnp.asarray(radius, images.dtype), images.shape[:1])
  if box is None:
    return radii
  return jnp.minimum(radii, (box[1] - box[0]) * math.prod(images.shape[1:]) ** (1 / moves.order))


def _bounds(images: Array, box: Box | None) -> Bounds:
  """How far every entry may go; without a box, as far as it likes."""
  if box is None:
    return jnp.full_like(images, -jnp.inf), jnp.full_like(images, jnp.inf)
  return box_bounds(box, images)


def _where(choose: Array, yes: Array, no: Array) -> Array:
  """Per example: choose [B], yes and no [B, *W, C]."""
  return jnp.where(choose.reshape(-1, *(1,) * (yes.ndim - 1)), yes, no)
