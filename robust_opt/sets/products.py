"""A product of sets: every block of an example has its own set, norm and radius.

u = Product((ro.LInf(0.1, box=(0.0, 1.0)), ro.L2(0.5)), shapes=((28, 28, 1), (200,)))
delta = u.steepest_ascent(grad, x)  # grad and x are [B, 28 * 28 + 200]: the two blocks, flattened
"""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import keys
from robust_opt.errors import InputError
from robust_opt.sets.base import MappedSet, UncertaintySet, set_dataclass, static
from robust_opt.types import Array


@set_dataclass
class Product(MappedSet):
  """{delta: block i of delta lies in set i, for every i}, over flattened examples [B, n].

  The i-th set receives its block of grad, delta and x in the block's shape, so that one block may
  be an image in a box and another not. Steepest ascent and projection are those of the blocks, the
  gauge is the largest of theirs. Samples are independent across blocks.
  """

  sets: tuple[UncertaintySet, ...]  # one per block, at least one, of radii [] or [B]
  shapes: tuple[tuple[int, ...], ...] = static()  # of the blocks; n is the sum of their sizes

  def __post_init__(self) -> None:
    object.__setattr__(self, "sets", tuple(self.sets))
    object.__setattr__(self, "shapes", tuple(tuple(shape) for shape in self.shapes))
    if not self.sets or len(self.sets) != len(self.shapes):
      given = f"{len(self.sets)} sets and {len(self.shapes)} shapes"
      raise InputError(f"A product needs at least one set and one shape per set, not {given}.")
    if any(side < 1 for shape in self.shapes for side in shape):
      raise InputError(f"Every entry of a block's shape must be >= 1, but they are {self.shapes}.")

  def _apply(self, operation: str, first: Array, x: Array) -> Array:
    blocks = split(x, self.shapes)
    if operation == "sample":
      fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
      firsts = [fold(keys.per_example(first, len(x)), i) for i in range(len(blocks))]
    else:
      chex.assert_equal_shape((first, x))
      firsts = split(first, self.shapes)
    pairs = zip(self.sets, firsts, blocks, strict=True)
    results = [getattr(u, operation)(of_first, of_x) for u, of_first, of_x in pairs]
    return jnp.max(jnp.stack(results), axis=0) if operation == "gauge" else join(results)


def split(v: Array, shapes: Sequence[Sequence[int]]) -> list[Array]:
  """Flattened examples [B, n] -> their blocks, each [B, *shape]; an InputError if n differs."""
  sizes = [math.prod(shape) for shape in shapes]
  if v.ndim != 2 or v.shape[1] != sum(sizes):
    raise InputError(
      f"Blocks of the shapes {[tuple(shape) for shape in shapes]} are flattened examples "
      f"[B, {sum(sizes)}], but the array has the shape {v.shape}."
    )
  parts = jnp.split(v, np.cumsum(sizes)[:-1], axis=1)
  return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def join(blocks: Sequence[Array]) -> Array:
  """Blocks, each [B, *shape] -> flattened examples [B, n]; the inverse of `split`."""
  return jnp.concatenate([block.reshape(block.shape[0], -1) for block in blocks], axis=1)
