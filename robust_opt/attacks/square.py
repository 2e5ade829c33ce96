"""Square Attack: a random search that needs no gradient, only logits.

  attack = square("linf", 8 / 255, num_queries=5000)
  found = attack(keys, logits_fn, x, y)   # keys [B]; x [B, H, W, C], pixels in [0, 1]; y [B]

A net may hide its gradient from the attacks that climb it, but not its margin from this one. Every
query changes the perturbation within a square at a random place, whose side shrinks as the queries
are spent, and the change is kept where the margin grew.

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
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import losses, uncertainty
from robust_opt.attacks.precision import widened
from robust_opt.attacks.types import Found, LogitsAttack
from robust_opt.errors import InputError
from robust_opt.keys import per_example
from robust_opt.projections import Bounds
from robust_opt.types import Array, LogitsFn
from robust_opt.uncertainty import Box, Radius, bounds_within

# After how many of 10,000 queries the share of the image that a square covers is halved: those of
# the authors' program, which AutoAttack runs from a share of 0.8.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
TILES = 5  # along a side, in the start over l_2 and l_1
# Partial sums of 1 / j^2; the terms after the last do not change the sum in float32.
_INVERSE_SQUARES = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1.0, 4097.0) ** 2)])


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

  Raises:
    InputError: the norm is unknown, or the radius, the box, num_queries or p_init out of range;
      from the attack: x is not floating point, an example is not a vector [D] or an image [H, W] or
      [H, W, C], the radius is neither [] nor [B], or keys are not one key for each example.
  """
  search = counting_square(norm, radius, box, num_queries, p_init)
  return lambda keys, logits_fn, x, y: search(keys, logits_fn, x, y).found


def counting_square(
  norm: str,
  radius: Radius,
  box: Box | None = (0.0, 1.0),
  num_queries: int = 5000,
  p_init: float = 0.8,
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
  moves, ball = _MOVES[norm], getattr(uncertainty, norm)(radius, box)
  halvings = np.array(HALVINGS) * num_queries / 10_000

  def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> Searched:
    keys = _keys_of(keys, x)
    logits_fn, x, rounded = widened(logits_fn, x)
    ball.gauge(jnp.zeros_like(x), x)  # raises what the sets raise: of integer x, of radii not [B]
    images = x.reshape(x.shape[0], *_image_shape(x.shape[1:]))
    radii, bounds = _radii(moves, radius, box, images), _bounds(images, box)
    sides = jnp.asarray(_sides(images.shape[1:], p_init, moves.least_side))

    def start(key: Array, radius: Array, low: Array, high: Array) -> Array:
      return jnp.clip(radius * moves.start(key, low.shape), low, high)

    def propose(t: Array, delta: Array) -> Array:
      side = sides[jnp.sum(t > halvings)]

      def one(key: Array, delta: Array, radius: Array, low: Array, high: Array) -> Array:
        return moves.move(jax.random.fold_in(key, t), side, delta, radius, (low, high))

      return jax.vmap(one)(keys, delta, radii, *bounds)

    def judge(delta: Array) -> tuple[Array, Array]:
      logits = logits_fn(x + delta.reshape(x.shape))
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
    delta = _where(beats_clean, end.best, jnp.zeros_like(end.best)).reshape(x.shape)
    return rounded(Searched(Found(delta, end.fooled), end.queries))

  return attack


class _State(NamedTuple):
  """The search so far: t queries were made; best [B, H, W, C]; margin, fooled and queries [B]."""

  t: Array
  best: Array
  margin: Array
  fooled: Array
  queries: Array


# --- What differs from norm to norm, for one example [H, W, C] ---


class _Moves(NamedTuple):
  """Where the search over a norm starts and how it moves.

  Attributes:
    order: p of the norm l_p.
    least_side: of a square, in pixels.
    start: (key, image shape) -> delta [H, W, C] in the ball of radius 1.
    move: (key, sides [2], delta [H, W, C], radius [], bounds) -> another delta within the ball and
      the bounds.
  """

  order: float
  least_side: int
  start: Callable[[Array, tuple[int, ...]], Array]
  move: Callable[[Array, Array, Array, Array, Bounds], Array]


def _stripes(key: Array, shape: tuple[int, ...]) -> Array:
  """Vertical stripes, one pixel wide, each of one of the colours {-1, 1}^C (section 3.2)."""
  _, width, channels = shape
  return jnp.broadcast_to(jax.random.rademacher(key, (1, width, channels), jnp.float32), shape)


def _recolour(key: Array, sides: Array, delta: Array, radius: Array, bounds: Bounds) -> Array:
  """Algorithm 2: paints a square in one of the colours {-radius, radius}^C.

  A colour that changes nothing would be a wasted query (every other one where an image has one
  channel and the square one pixel); its opposite is tried instead.
  """
  u = jax.random.uniform(key, (2 + delta.shape[-1],))
  square = _square(_corner(u[:2], sides, delta.shape), sides, delta.shape)
  colour = jnp.where(u[2:] < 0.5, -radius, radius)

  def painted(colour: Array) -> Array:
    return jnp.clip(jnp.where(square, colour, delta), *bounds)

  once = painted(colour)
  return jnp.where(jnp.all(once == delta), painted(-colour), once)


def _bump_grid(key: Array, shape: tuple[int, ...], order: int) -> Array:
  """Tiles that hold a bump each, upright or transposed, of a random sign in every channel.

  Section 3.3 of the paper. The tiles are of one size and the grid lies in the middle.
  """
  tile = [max(size // TILES, 1) for size in shape[:2]]
  grid = [min(size, TILES) for size in shape[:2]]
  sign_key, transpose_key = jax.random.split(key)
  signs = jax.random.rademacher(sign_key, (*grid, shape[-1]), jnp.float32)
  transposed = jax.random.bernoulli(transpose_key, shape=tuple(grid))

  # Of every row and every column: its tile, and its place within that tile.
  place = [
    jnp.arange(size) - (size - n * side) // 2
    for size, n, side in zip(shape, grid, tile, strict=False)
  ]
  row, column = (
    jnp.clip(at // side, 0, n - 1) for at, n, side in zip(place, grid, tile, strict=True)
  )
  a = (place[0] - row * tile[0])[:, None]
  b = (place[1] - column * tile[1])[None, :]
  inside = (a >= 0) & (a < tile[0]) & (b >= 0) & (b < tile[1])
  bump = _either_way(transposed[row][:, column], a, b, jnp.array(tile))
  bumps = jnp.where(inside, bump, 0.0)[..., None] * signs[row][:, column]
  return bumps / _root(jnp.sum(_power(bumps, order)), order)


def _move_mass(
  key: Array, sides: Array, delta: Array, radius: Array, bounds: Bounds, order: int
) -> Array:
  """Algorithm 3: a bump is added in one square, and pays with the mass of another.

  Mass is sum |delta_j|^order, so that the ball's is 1 in units of the radius. In each channel the
  first square gets what both held and its share of what the ball has left. The result lies in the
  ball, so that cutting it by the bounds is the exact projection onto both; what is cut off is left
  for the next query.

  Over l_1 this is the same scheme with order 1: Croce and Hein (2021) measure mass so and project
  onto ball and box, but the details here are ours.
  """
  *_, channels = delta.shape
  scale = jnp.where(radius > 0, radius, 1.0)
  delta = delta / scale  # in units of the radius, no power under- or overflows
  u = jax.random.uniform(key, (5 + channels,))
  corner = _corner(u[:2], sides, delta.shape)
  to = _square(corner, sides, delta.shape)
  source = _square(_corner(u[2:4], sides, delta.shape), sides, delta.shape)

  a = (jnp.arange(delta.shape[0]) - corner[0])[:, None]
  b = (jnp.arange(delta.shape[1]) - corner[1])[None, :]
  bump = _either_way(u[4] < 0.5, a, b, sides)[..., None]
  sign = jnp.where(u[5:] < 0.5, -1.0, 1.0)

  def per_channel(v: Array) -> Array:
    return jnp.sum(_power(v, order), axis=(0, 1))

  def unit(v: Array) -> Array:
    mass = per_channel(v)
    return v / _root(jnp.where(mass > 0, mass, 1.0), order)

  left = jnp.maximum(1.0 - jnp.sum(per_channel(delta)), 0.0)
  available = per_channel(jnp.where(to | source, delta, 0.0)) + left / channels
  shape = unit(sign * unit(jnp.where(to, bump, 0.0)) + unit(jnp.where(to, delta, 0.0)))
  moved = jnp.where(to, shape * _root(available, order), jnp.where(source, 0.0, delta))
  # Long sums round: shrink what they leave outside.
  mass = jnp.maximum(jnp.sum(per_channel(moved)), 1.0)
  return jnp.clip(radius * (moved / _root(mass, order)), *bounds)


def _power(v: Array, order: int) -> Array:
  """|v|^order for order 1 and 2, of which XLA computes sums on a CPU quickly; not so of jnp.abs."""
  return jnp.where(v < 0, -v, v) if order == 1 else v * v


def _root(mass: Array, order: int) -> Array:
  return mass if order == 1 else jnp.sqrt(mass)


_MOVES = {
  "linf": _Moves(math.inf, 1, _stripes, _recolour),
  "l2": _Moves(
    2, 3, functools.partial(_bump_grid, order=2), functools.partial(_move_mass, order=2)
  ),
  "l1": _Moves(
    1, 3, functools.partial(_bump_grid, order=1), functools.partial(_move_mass, order=1)
  ),
}


# --- Squares and bumps ---


def _sides(shape: tuple[int, ...], p_init: float, least: int) -> np.ndarray:
  """Rows and columns of a square after each number of halvings, [len(HALVINGS) + 1, 2].

  Those of the square whose area is nearest; where the image is too narrow for it, the full breadth
  and as much of the length as makes up the area. A vector's squares are therefore intervals.
  """
  height, width, _ = shape
  breadth, length = sorted((height, width))

  def of_share(p: float) -> tuple[int, int]:
    side = max(least, round(math.sqrt(p * height * width)))
    if side <= breadth:
      return side, side
    along = min(length, max(least, round(p * length)))
    return (breadth, along) if height <= width else (along, breadth)

  return np.array([of_share(p_init / 2**k) for k in range(len(HALVINGS) + 1)])


def _corner(u: Array, sides: Array, shape: tuple[int, ...]) -> Array:
  """A uniform place for the upper left pixel of a square within the image; u [2] in [0, 1)."""
  return jnp.floor(u * (jnp.array(shape[:2]) - sides + 1)).astype(jnp.int32)


def _square(corner: Array, sides: Array, shape: tuple[int, ...]) -> Array:
  """Whether a pixel lies in the square, [H, W, 1]."""
  row, column = jnp.arange(shape[0]), jnp.arange(shape[1])
  rows = (row >= corner[0]) & (row < corner[0] + sides[0])
  columns = (column >= corner[1]) & (column < corner[1] + sides[1])
  return (rows[:, None] & columns[None, :])[..., None]


def _either_way(transposed: Array, a: Array, b: Array, sides: Array) -> Array:
  """A bump, or one that is transposed, at row a [H, 1] and column b [1, W] of the window."""
  rows = jnp.where(transposed, sides[1], sides[0])
  columns = jnp.where(transposed, sides[0], sides[1])
  return _bump(jnp.where(transposed, b, a), jnp.where(transposed, a, b), rows, columns)


def _bump(a: Array, b: Array, rows: Array, columns: Array) -> Array:
  """Two pyramids of opposite sign, side by side (section 3.3).

  Row a and column b are counted within the window, of rows x columns pixels; what lies outside of
  the window means nothing.
  """
  half = columns // 2
  right = b >= half
  height = _pyramid(a, b - jnp.where(right, half, 0), rows, jnp.where(right, columns - half, half))
  return jnp.where(right, -height, height)


def _pyramid(a: Array, b: Array, rows: Array, columns: Array) -> Array:
  """Equation 2 of the paper: the sum of 1 / j^2 for j from d + 1 to n + 1.

  d is how many pixels (a, b) lies from the middle, the larger of the two ways, and n the most that
  d can be: the height falls from the middle, fast at first.
  """
  distance = jnp.maximum(jnp.abs(a - rows // 2), jnp.abs(b - columns // 2))
  most = jnp.maximum(rows // 2, columns // 2)
  sums = jnp.asarray(_INVERSE_SQUARES, jnp.float32)
  return sums[jnp.minimum(most + 1, sums.size - 1)] - sums[jnp.minimum(distance, sums.size - 1)]


# --- The batch ---


def _keys_of(keys: Array, x: Array) -> Array:
  each = per_example(keys, x.shape[0])
  if each.shape != x.shape[:1]:
    raise InputError(
      f"keys must be one key or one for each of the {x.shape[0]} examples, but has the shape "
      f"{keys.shape} and the type {keys.dtype}."
    )
  return each


def _image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """An example as [H, W, C]; a vector is a row of pixels, so that stripes are its entries."""
  if not 1 <= len(shape) <= 3:
    raise InputError(
      f"Square Attack takes examples that are vectors [D] or images [H, W] or [H, W, C], but the "
      f"shape of one example is {shape}."
    )
  return {1: (1, *shape, 1), 2: (*shape, 1), 3: shape}[len(shape)]


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
  return bounds_within(box, images)


def _where(choose: Array, yes: Array, no: Array) -> Array:
  """Per example: choose [B], yes and no [B, H, W, C]."""
  return jnp.where(choose[:, None, None, None], yes, no)
