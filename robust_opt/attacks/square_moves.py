"""The starts and moves of Square Attack, by norm, for one example [*W, C].

  moves = moves_of(ro.L2(0.5))
  delta = radius * moves.start(key, (28, 28, 1))
  delta = moves.move(key, sides, delta, radius, bounds)

W are the n window axes. Source: Andriushchenko, Croce, Flammarion and Hein 2020 (arXiv 1912.00049),
called "the paper" below; over l_1, Croce and Hein 2021 (arXiv 2103.01208).
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt.sets import Ball, LInf, projections
from robust_opt.sets.projections import Bounds
from robust_opt.types import Array

# The queries, out of 10,000, after which the fraction of the image that a square covers is halved,
# as in the authors' code, which AutoAttack runs with p_init = 0.8.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
TILES = 5  # per axis, in the start over l_2 and l_1
# A bump decays by 1 / j^power: the power, by the order of the norm.
DECAY = {2: 2, 1: 4}
# Partial sums of 1 / j^power; later terms do not change the sum in float32.
_SUMS = {
  order: np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1.0, 4097.0) ** power)])
  for order, power in DECAY.items()
}


class Moves(NamedTuple):
  """The start and the moves of the search in a norm.

  Attributes:
    least_side: of a square, in pixels.
    start: (key, shape of the example) -> delta [*W, C] in the ball of radius 1.
    move: (key, sides [n], delta [*W, C], radius [], bounds) -> another delta within the ball and
      the bounds.
  """

  least_side: int
  start: Callable[[Array, tuple[int, ...]], Array]
  move: Callable[[Array, Array, Array, Array, Bounds], Array]


def moves_of(u: Ball) -> Moves:
  """The moves in the norm of a ball."""
  if isinstance(u, LInf):
    return Moves(1, _stripes, _recolor)
  order = int(u.order)
  return Moves(
    3, functools.partial(_bump_grid, order=order), functools.partial(_move_mass, order=order)
  )


def _stripes(key: Array, shape: tuple[int, ...]) -> Array:
  """Stripes, one pixel wide, each with a random color of {-1, 1}^C (section 3.2).

  They vary along the last window axis, the width of an image, and are constant along the others.
  """
  *others, width, channels = shape
  colors = jax.random.rademacher(key, (*(1,) * len(others), width, channels), jnp.float32)
  return jnp.broadcast_to(colors, shape)


def _recolor(key: Array, sides: Array, delta: Array, radius: Array, bounds: Bounds) -> Array:
  """Algorithm 2: paints a square in one of the colors {-radius, radius}^C.

  A color that changes nothing would waste the query (every other query for one-pixel squares of
  images with one channel); the opposite color is tried instead.
  """
  axes, channels = delta.ndim - 1, delta.shape[-1]
  u = jax.random.uniform(key, (axes + channels,))
  square = _inside(_offsets(_corner(u[:axes], sides, delta.shape), delta.shape), sides)
  color = jnp.where(u[axes:] < 0.5, -radius, radius)

  def painted(color: Array) -> Array:
    return jnp.clip(jnp.where(square, color, delta), *bounds)

  once = painted(color)
  return jnp.where(jnp.all(once == delta), painted(-color), once)


def _bump_grid(key: Array, shape: tuple[int, ...], order: int) -> Array:
  """Tiles with a bump each, split along a random axis, of a random sign in every channel.

  Section 3.3 of the paper. All tiles have the same size, and the grid is centered.
  """
  *sizes, channels = shape
  tile = [max(size // TILES, 1) for size in sizes]
  grid = [min(size, TILES) for size in sizes]
  sign_key, split_key = jax.random.split(key)
  signs = jax.random.rademacher(sign_key, (*grid, channels), jnp.float32)
  split = _axis(jax.random.uniform(split_key, tuple(grid)), len(sizes))

  # Along every axis: the tile of a pixel, and its offset within that tile.
  offsets, tiles = [], []
  for size, side, count in zip(sizes, tile, grid, strict=True):
    at = jnp.arange(size) - (size - count * side) // 2
    number = jnp.clip(at // side, 0, count - 1)
    tiles.append(number)
    offsets.append(at - number * side)
  of_tile = jnp.ix_(*tiles)
  within = jnp.ix_(*offsets)
  bump = _bump(within, jnp.array(tile), split[of_tile], order)[..., None]
  bumps = jnp.where(_inside(within, tile), bump, 0.0) * signs[of_tile]
  return bumps / _root(jnp.sum(_power(bumps, order)), order)


def _move_mass(
  key: Array, sides: Array, delta: Array, radius: Array, bounds: Bounds, order: int
) -> Array:
  """Algorithm 3: adds a bump in one square, with mass taken from another.

  Mass is sum |delta_j|^order; in units of the radius the mass of the ball is 1. In each channel the
  first square gets the mass of both squares and its part of the unused mass. Over l_2 the result
  lies in the ball, so that clipping it to the bounds is the exact projection onto both; the mass
  clipped off is unused in the next query.

  Over l_1, as in the code of Croce and Hein (2021), the first square gets that mass times the
  number of channels, and the result is projected onto ball and bounds, which takes the mass from
  small entries everywhere.
  """
  *sizes, channels = delta.shape
  axes = len(sizes)
  scale = jnp.where(radius > 0, radius, 1.0)
  delta = delta / scale  # in units of the radius, no power underflows or overflows
  u = jax.random.uniform(key, (2 * axes + 1 + channels,))
  offsets = _offsets(_corner(u[:axes], sides, delta.shape), delta.shape)
  to = _inside(offsets, sides)
  source = _offsets(_corner(u[axes : 2 * axes], sides, delta.shape), delta.shape)
  freed = _inside(source, sides)

  bump = _bump(offsets, sides, _axis(u[2 * axes], axes), order)[..., None].astype(delta.dtype)
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
  # Rounding of long sums may leave the ball: shrink back into it.
  mass = jnp.maximum(jnp.sum(per_channel(moved)), 1.0)
  return jnp.clip(radius * (moved / _root(mass, order)), *bounds)


def _power(v: Array, order: int) -> Array:
  """|v|^order for order 1 and 2; on a CPU, XLA sums this faster than jnp.abs."""
  return jnp.where(v < 0, -v, v) if order == 1 else v * v


def _root(mass: Array, order: int) -> Array:
  return mass if order == 1 else jnp.sqrt(mass)


def sides_of(shape: tuple[int, ...], p_init: float, least: int) -> np.ndarray:
  """The sides of a square after each number of halvings, [len(HALVINGS) + 1, n].

  The window has equal sides and the nearest possible volume; where an axis is too short, it spans
  that axis and is longer along the others.
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
  """The first pixel of a square, uniform within the example if u [n] in [0, 1) is."""
  return jnp.floor(u * (jnp.array(shape[:-1]) - sides + 1)).astype(jnp.int32)


def _axis(u: Array, count: int) -> Array:
  """One of `count` axes, uniform if u in [0, 1) is."""
  return jnp.floor(u * count).astype(jnp.int32)


def _offsets(corner: Array, shape: tuple[int, ...]) -> tuple[Array, ...]:
  """The offset of every pixel from a corner along each window axis: n open axes of W."""
  return jnp.ix_(*(jnp.arange(size) - corner[axis] for axis, size in enumerate(shape[:-1])))


def _inside(offsets: Sequence[Array], sides: Array | Sequence[int]) -> Array:
  """Whether a pixel lies in the window from which the offsets are counted, [*W, 1]."""
  along = [(offset >= 0) & (offset < sides[axis]) for axis, offset in enumerate(offsets)]
  return functools.reduce(operator.and_, along)[..., None]


def _bump(offsets: Sequence[Array], sides: Array, split: Array, order: int) -> Array:
  """Two pyramids of opposite sign, side by side along the axis `split`, [*W] (section 3.3).

  Equation 2 of the paper: the height of a pyramid is the sum of 1 / j^DECAY[order] for j from d + 1
  to m + 1, where d is the distance of a pixel from the middle, the largest over the axes, and m the
  largest possible d. It falls off from the middle, quickly at first. With more than two axes the
  pyramids are cubes, with one axis intervals.

  Args:
    offsets: along each of the n axes, within the window; the result outside of it is meaningless.
    sides: [n], of the window.
    split: which axis is halved, [] or [*W].
    order: of the norm.
  """
  distance, most = jnp.zeros(()), jnp.zeros((), jnp.int32)
  second = jnp.zeros((), bool)
  for axis, offset in enumerate(offsets):
    side, half = sides[axis], sides[axis] // 2
    beyond = (split == axis) & (offset >= half)
    length = jnp.where(split == axis, jnp.where(beyond, side - half, half), side)
    from_middle = offset - jnp.where(beyond, half, 0) - length // 2
    # In floats, since ptxas drops absolute values of integers within their maxima (CUDA 13).
    from_middle = jnp.abs(from_middle.astype(distance.dtype))
    distance, most = jnp.maximum(distance, from_middle), jnp.maximum(most, length // 2)
    second = second | beyond
  sums = jnp.asarray(_SUMS[order], jnp.float32)
  indices = most + 1, distance.astype(jnp.int32)
  top, at = (jnp.minimum(index, sums.size - 1) for index in indices)
  height = sums[top] - sums[at]
  return jnp.where(second, -height, height)
