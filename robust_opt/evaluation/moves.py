"""Rotations and translations in a verdict: which of them made an image, and whether they did.

  moves = found(u, images, x)               # [K, 3]: degrees, shifts down and right in pixels
  gauges = sizes(u, images, x, moves)       # [K]: at most 1, inf if they do not make the image

Anyone with the clean images can check them: the transforms are recomputed.
"""

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt.maximizers.grid import NUM_ROTATIONS, NUM_TRANSLATIONS, candidates
from robust_opt.sets.base import UncertaintySet
from robust_opt.sets.spatial import Transforms, transform
from robust_opt.sets.unions import Union
from robust_opt.types import Array

TOLERANCE = 1e-5  # of a pixel's value: x + (transform(x) - x) is rounded, and so are programs
_AT_A_TIME = 256


def transforms_of(u: UncertaintySet) -> Transforms | None:
  """The rotations and translations of a set: u itself, or those in a union; None without any."""
  parts = u.sets if isinstance(u, Union) else (u,)
  return next((part for part in parts if isinstance(part, Transforms)), None)


def found(u: Transforms, images: np.ndarray, x: np.ndarray) -> np.ndarray:
  """The moves of the version "grid" that make each image from the clean one, [K, 3] float32.

  NaN where none does, as of images that another attack has made.
  """
  grid = candidates(u, NUM_ROTATIONS, NUM_TRANSLATIONS).astype(jnp.float32)
  parts = [np.zeros((0, 3), np.float32)]
  for start in range(0, len(x), _AT_A_TIME):
    batch = slice(start, start + _AT_A_TIME)
    distance, index = map(np.asarray, _nearest(u, grid, x[batch], images[batch]))
    parts.append(np.where(distance[:, None] <= TOLERANCE, np.asarray(grid)[index], np.nan))
  return np.concatenate(parts).astype(np.float32)


def sizes(u: Transforms, images: np.ndarray, x: np.ndarray, moves: np.ndarray | None) -> np.ndarray:
  """The moves relative to the largest of u, [K] float64; inf where they do not make the image."""
  if moves is None or not len(x):
    return np.full(len(x), np.inf)
  limits = np.array([u.max_rotation, u.max_translation, u.max_translation], np.float64)
  relative = np.divide(np.abs(moves), limits, where=moves != 0, out=np.zeros(moves.shape))
  parts = []
  for start in range(0, len(x), _AT_A_TIME):
    batch = slice(start, start + _AT_A_TIME)
    parts.append(np.asarray(_distances(u, moves[batch], x[batch], images[batch])))
  made = np.concatenate(parts) <= TOLERANCE  # False for NaN
  return np.where(made, relative.max(axis=1), np.inf)


@jax.jit
def _nearest(u: Transforms, grid: Array, x: Array, images: Array) -> tuple[Array, Array]:
  """The least distance of an image from a transform of the grid [G, 3], [B], and its index, [B]."""

  def body(best: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
    moved = transform(x, grid[index, 0], grid[index, 1:], u.channel_axis)
    distance = jnp.max(jnp.abs(moved - images), axis=range(1, x.ndim))
    closer = distance < best[0]
    return (jnp.where(closer, distance, best[0]), jnp.where(closer, index, best[1])), None

  start = jnp.full(len(x), jnp.inf), jnp.zeros(len(x), jnp.int32)
  return jax.lax.scan(body, start, jnp.arange(len(grid), dtype=jnp.int32))[0]


@jax.jit
def _distances(u: Transforms, moves: Array, x: Array, images: Array) -> Array:
  """The largest difference of every image from its transform, [B]."""

  def of_one(move: Array, x: Array, image: Array) -> Array:
    moved = transform(x[None], move[0], move[1:], u.channel_axis)[0]
    return jnp.max(jnp.abs(moved - image))

  return jax.vmap(of_one)(moves, x, images)
