"""A patch: a square of pixels, anywhere in the image, that an adversary replaces by any others.

u = sets.Patch(5)                    # 5 x 5 pixels of images [H, W, C], [C, H, W] or [H, W]
mask = u.region(corner, x)           # [B, *S] bool, of the square at corner [B, 2]
"""

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import keys, layout, precision
from robust_opt.arrays import expand_like
from robust_opt.errors import InputError
from robust_opt.layout import ChannelAxis
from robust_opt.sets import projections
from robust_opt.sets.base import Box, UncertaintySet, box_bounds, ratio, set_dataclass, static
from robust_opt.types import Array


@set_dataclass
class Patch(UncertaintySet):
  """{delta: only pixels of one square differ from 0, and x + delta lies in the box}; not convex.

  The square, of side x side pixels, may be anywhere within the image. Steepest ascent: of all
  squares that of the largest sum of |grad_j| times the distance of entry j to its bound.
  Projection: delta clipped to the box, in the square that reduces the squared distance most; a
  nearest point, maybe not the only one. A sample is uniform, in a square at a uniform place. The
  gauge is inf if the entries that differ from 0 fit into no square. Source of the threat: Brown et
  al. 2017 (arXiv 1712.09665), here with a patch for each image.
  """

  side: int = static()  # in pixels, >= 1 and at most the sides of the image
  box: Box = static(default=(0.0, 1.0))
  channel_axis: ChannelAxis = static(default=layout.AUTO)  # as for `transform`

  def __post_init__(self) -> None:
    if not isinstance(self.side, int | np.integer) or self.side < 1:
      raise InputError(f"side must be an integer >= 1, in pixels, but was {self.side!r}.")
    if np.shape(self.box) != (2,) or not self.box[0] < self.box[1]:
      raise InputError(f"box must be (low, high) with low < high, but was {self.box}.")
    object.__setattr__(self, "box", tuple(self.box))

  def steepest_ascent(self, grad: Array, x: Array) -> Array:  # noqa: D102
    moved = jnp.where(grad == 0, 0.0, jnp.sign(grad) * self._reach(grad, x))
    return jnp.where(self.steepest_region(grad, x), moved, 0.0).astype(x.dtype)

  def project(self, delta: Array, x: Array) -> Array:  # noqa: D102
    clipped = jnp.clip(delta, *self._bounds(x))
    scale = _largest(delta)
    reduction = (clipped / scale) * (delta / scale + (delta - clipped) / scale)
    return jnp.where(self._best(reduction, x), clipped, 0.0).astype(x.dtype)

  def sample(self, key: Array, x: Array) -> Array:  # noqa: D102
    each = keys.per_example(key, len(x))
    low, high = self.box

    def draw(key: Array, x: Array) -> Array:
      return jax.random.uniform(key, x.shape, precision.wide(x.dtype), low, high) - x

    inside = self.region(self.corners(each, x), x)
    return jnp.where(inside, jax.vmap(draw)(each, x), 0.0).astype(x.dtype)

  def gauge(self, delta: Array, x: Array) -> Array:  # noqa: D102
    within = jax.vmap(ratio)(jnp.abs(delta), self._reach(delta, x))
    changed = (delta != 0).astype(jnp.float32)
    in_square = jnp.max(self._sums(changed, x), axis=(1, 2))
    return jnp.where(in_square < jnp.sum(changed, axis=range(1, x.ndim)), jnp.inf, within)

  def steepest_region(self, grad: Array, x: Array) -> Array:
    """The square of the steepest ascent, [B, *S] bool."""
    return self._best(jnp.abs(grad / _largest(grad)) * self._reach(grad, x), x)

  def region(self, corner: Array, x: Array) -> Array:
    """The pixels of the squares whose upper left corners are given, [B, 2] -> [B, *S] bool."""
    axis = self._axis(x)
    height, width = layout.to_last(x, axis).shape[1:3]
    row, column = corner[:, 0, None, None], corner[:, 1, None, None]
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    inside = (rows >= row) & (rows < row + self.side)
    inside &= (columns >= column) & (columns < column + self.side)
    return jnp.broadcast_to(layout.from_last(inside[..., None], axis), x.shape)

  def corners(self, key: Array, x: Array) -> Array:
    """A uniform place for each example, [B, 2]; keys [B]."""
    rows, columns = (n - self.side + 1 for n in layout.to_last(x, self._axis(x)).shape[1:3])
    draw = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, jnp.array([rows, columns])))
    return draw(jax.vmap(jax.random.fold_in, in_axes=(0, None))(key, 1))

  def _bounds(self, x: Array) -> projections.Bounds:
    return jax.vmap(lambda x: box_bounds(self.box, x))(x)

  def _reach(self, direction: Array, x: Array) -> Array:
    """How far every entry can move in the direction of its sign, [B, *S]."""
    return projections.room(direction, self._bounds(x))

  def _best(self, gain: Array, x: Array) -> Array:
    """The square of the largest sum of gains [B, *S], as `region` has it."""
    sums = self._sums(gain, x)
    index = jnp.argmax(sums.reshape(len(x), -1), axis=1)
    return self.region(jnp.stack(jnp.divmod(index, sums.shape[2]), axis=1), x)

  def _sums(self, values: Array, x: Array) -> Array:
    """The sums over each square and its channels, [B, *S] -> [B, H - side + 1, W - side + 1]."""
    pixels = jnp.sum(layout.to_last(values, self._axis(x)), axis=-1)
    window = (1, self.side, self.side)
    return jax.lax.reduce_window(pixels, 0.0, jax.lax.add, window, (1, 1, 1), "VALID")

  def _axis(self, x: Array) -> int | None:
    axis = layout.resolve(self.channel_axis, x.shape[1:])
    shape = layout.to_last(x, axis).shape
    if len(shape) != 4 or min(shape[1:3]) < self.side:
      raise InputError(
        f"A patch of {self.side} x {self.side} pixels needs images of at least that size, with two "
        f"axes besides the channels (axis {axis}), but an example has the shape {x.shape[1:]}."
      )
    return axis


def _largest(values: Array) -> Array:
  """The largest entry of each example, 1 if all are 0, [B, *S] -> [B, 1, ..., 1]."""
  largest = expand_like(jnp.max(jnp.abs(values), axis=range(1, values.ndim)), values)
  return jnp.where(largest > 0, largest, 1.0)
