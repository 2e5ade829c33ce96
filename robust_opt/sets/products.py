"""A product of sets: every block of an example has its own set, norm and radius.

u = Product((ro.LInf(0.1, box=(0.0, 1.0)), ro.L2(0.5)), shapes=((28, 28, 1), (200,)))
delta = u.steepest_ascent(grad, x)  # grad and x are [B, 28 * 28 + 200]: the two blocks, flattened
"""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from robust_opt import keys
from robust_opt.errors import InputError
from robust_opt.sets.base import UncertaintySet, set_dataclass, static
from robust_opt.types import Array

Shape = Sequence[int]


@set_dataclass
class Product(UncertaintySet):
  """{delta: block i of delta lies in set i, for every i}, over flattened examples [B, n].

  An example is the concatenation of its blocks. The i-th set receives its block of grad, delta and
  x, in the block's shape, so that one block may be an image in a box and another not. Both
  <grad, delta> and the squared distance are sums over the blocks, so the steepest ascent and the
  projection are computed per block, and exact where the blocks' are. The gauge is the largest of
  the blocks' gauges. Samples are independent across blocks, and uniform if the blocks' are.

  Attributes:
    sets: one per block, at least one. The radius of a set is [] or [B].
    shapes: of the blocks of one example. n is the sum of their sizes.

  Raises:
    InputError: there is no block, not one shape per set, or a shape has an entry < 1; from the
      methods: the examples are not [B, n], and as for the sets.
  """

  sets: tuple[UncertaintySet, ...]
  shapes: tuple[tuple[int, ...], ...] = static()

  def __post_init__(self) -> None:
    object.__setattr__(self, "sets", tuple(self.sets))
    object.__setattr__(self, "shapes", tuple(tuple(shape) for shape in self.shapes))
    if not self.sets or len(self.sets) != len(self.shapes):
      raise InputError(
        f"A product needs at least one set and one shape per set, but was given "
        f"{len(self.sets)} sets and {len(self.shapes)} shapes."
      )
    if any(side < 1 for shape in self.shapes for side in shape):
      raise InputError(
        f"Every entry of a block's shape must be >= 1, but the shapes are {list(self.shapes)}."
      )

  def _by_block(self, method: str, v: Array, x: Array) -> list[Array]:
    chex.assert_equal_shape((v, x))
    blocks = zip(self.sets, split(v, self.shapes), split(x, self.shapes), strict=True)
    return [getattr(u, method)(of_v, of_x) for u, of_v, of_x in blocks]

  def steepest_ascent(self, grad: Array, x: Array) -> Array:  # noqa: D102
    return join(self._by_block("steepest_ascent", grad, x))

  def project(self, delta: Array, x: Array) -> Array:  # noqa: D102
    return join(self._by_block("project", delta, x))

  def sample(self, key: Array, x: Array) -> Array:  # noqa: D102
    blocks = split(x, self.shapes)
    each = keys.per_example(key, x.shape[0])
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    pairs = enumerate(zip(self.sets, blocks, strict=True))
    return join([u.sample(fold(each, i), block) for i, (u, block) in pairs])

  def gauge(self, delta: Array, x: Array) -> Array:  # noqa: D102
    return jnp.max(jnp.stack(self._by_block("gauge", delta, x)), axis=0)


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
  """Blocks, each [B, *shape] -> flattened examples [B, n]; the inverse of `split`."""
  return jnp.concatenate([block.reshape(block.shape[0], -1) for block in blocks], axis=1)
