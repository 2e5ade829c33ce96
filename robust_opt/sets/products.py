"""A product of sets: every block of an example has a set, a norm and a radius of its own.

u = product((ro.linf(0.1, box=(0.0, 1.0)), (28, 28, 1)), (ro.l2(0.5), (200,)))
delta = u.steepest_ascent(g, x)  # g and x are [B, 28 * 28 + 200]: the two blocks, flattened
"""

import math
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from robust_opt import keys
from robust_opt.errors import InputError
from robust_opt.sets.balls import UncertaintySet
from robust_opt.types import Array

Shape = Sequence[int]


def product(*blocks: tuple[UncertaintySet, Shape]) -> UncertaintySet:
  """{delta: block i of delta lies in set i, for every i}, over flattened examples [B, n].

  The blocks lie in an example one after the other; the i-th set is handed its own block of g, delta
  and x, in the block's shape, so that one block may be an image in a box and another not. Both
  <g, delta> and the squared distance are sums over the blocks, which makes the steepest ascent and
  the projection those of every block by itself: exact where the blocks' are, and every block may be
  at the edge of its set at once. The gauge is the largest of the blocks'. The blocks' samples are
  independent, and uniform in the product where they are uniform in the blocks.

  Args:
    *blocks: (set, shape of its block in one example); at least one. n is the sum of the sizes of
      the shapes. A radius of a set is [] or [B], as it is for that set alone.

  Raises:
    InputError: there is no block, or a shape has an entry < 1; from the set's functions: the
      examples are not [B, n], and as for the sets.
  """
  if not blocks:
    raise InputError("A product needs at least one block (set, shape), but was given none.")
  sets, shapes = [u for u, _ in blocks], [tuple(shape) for _, shape in blocks]
  if any(side < 1 for shape in shapes for side in shape):
    raise InputError(f"Every entry of a block's shape must be >= 1, but the shapes are {shapes}.")

  def by_block(
    operation: Callable[[UncertaintySet], Callable[[Array, Array], Array]], v: Array, x: Array
  ) -> list[Array]:
    chex.assert_equal_shape((v, x))
    pairs = zip(sets, split(v, shapes), split(x, shapes), strict=True)
    return [operation(u)(of_v, of_x) for u, of_v, of_x in pairs]

  def steepest_ascent(g: Array, x: Array) -> Array:
    return join(by_block(lambda u: u.steepest_ascent, g, x))

  def project(delta: Array, x: Array) -> Array:
    return join(by_block(lambda u: u.project, delta, x))

  def sample(key: Array, x: Array) -> Array:
    parts = split(x, shapes)
    each = keys.per_example(key, x.shape[0])
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    return join([u.sample(fold(each, i), part) for i, (u, part) in enumerate(zip(sets, parts))])

  def gauge(delta: Array, x: Array) -> Array:
    return jnp.max(jnp.stack(by_block(lambda u: u.gauge, delta, x)), axis=0)

  return UncertaintySet(steepest_ascent, project, sample, gauge)


def split(v: Array, shapes: Sequence[Shape]) -> list[Array]:
  """Flattened examples [B, n] -> their blocks, each [B, *shape].

  Raises:
    InputError: v is not [B, n] with n the sum of the sizes of the shapes.
  """
  sizes = [math.prod(shape) for shape in shapes]
  if v.ndim != 2 or v.shape[1] != sum(sizes):
    raise InputError(
      f"Blocks of the shapes {[tuple(shape) for shape in shapes]} are flattened examples "
      f"[B, {sum(sizes)}], but were given an array of the shape {v.shape}."
    )
  parts, start = [], 0
  for size, shape in zip(sizes, shapes, strict=True):
    parts.append(v[:, start : start + size].reshape(-1, *shape))
    start += size
  return parts


def join(blocks: Sequence[Array]) -> Array:
  """Blocks, each [B, *shape] -> flattened examples [B, n]; what `split` undoes."""
  return jnp.concatenate([block.reshape(block.shape[0], -1) for block in blocks], axis=1)
