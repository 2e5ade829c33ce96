"""Balls over groups of entries: few groups change, or every group independently."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import layout
from robust_opt.errors import InputError
from robust_opt.layout import ChannelAxis
from robust_opt.sets import projections
from robust_opt.sets.base import ExampleSet, Radius, ratio, set_dataclass, static
from robust_opt.types import Array

# Integer labels [*S], a group for every label, or a function from the shape of one example to them.
Groups = np.ndarray | Callable[[Sequence[int]], np.ndarray]


def channels(shape: Sequence[int], channel_axis: ChannelAxis = layout.AUTO) -> np.ndarray:
  """A group for every channel: labels [*S], the index along the channel axis.

  `functools.partial(channels, channel_axis=0)` binds the axis, of one example [*S] as in
  `robust_opt.layout.resolve`. InputError if the examples have no channel axis.
  """
  axis = layout.resolve(channel_axis, shape)
  if axis is None:
    raise InputError(
      f"Examples of shape {tuple(shape)} have no channel axis that can be guessed from the shape: "
      f"pass channel_axis, from 0 to {len(shape) - 1}."
    )
  return np.indices(shape)[axis]


@dataclasses.dataclass(frozen=True)
class patches:  # noqa: N801
  """A group for every square of side x side pixels, with all its channels; patches(1): pixels.

  The groups of a signal are intervals, those of a volume cubes, over all axes but the channel axis.
  Call it with the shape of an example to get labels of that shape.
  """

  side: int  # in pixels, >= 1; the last patches along an axis may be smaller
  channel_axis: ChannelAxis = layout.AUTO  # of one example: see `robust_opt.layout.resolve`

  def __post_init__(self) -> None:
    if self.side < 1:
      raise InputError(f"side must be at least 1 pixel, but was {self.side}.")

  def __call__(self, shape: Sequence[int]) -> np.ndarray:
    """Labels of an example of this shape."""
    counts, indices = [-(-size // self.side) for size in shape], np.indices(shape) // self.side
    axis = layout.resolve(self.channel_axis, shape)
    if axis is not None:
      counts[axis], indices[axis] = 1, 0
    return np.asarray(np.ravel_multi_index(tuple(indices), counts))


@set_dataclass
class _Grouped(ExampleSet):
  radius: Radius  # [] or [B], >= 0, in the units of x (pixels)
  groups: Groups = static()  # integers, or a function to them: `channels`, `patches(4)`

  def _gather(self, v: Array) -> tuple["_Partition", Array]:
    """The groups, and the entries of v [*S] by group, [G, M]."""
    partition = _partition(self.groups, v.shape)
    return partition, partition.gather(v)


@set_dataclass
class GroupL21(_Grouped):
  """{sum over groups of |delta_g|_2 <= radius}, the l_1 ball of the groups' l_2 norms.

  Its steepest ascent moves the one group of largest |grad_g|_2, by the whole radius along its unit
  gradient; ties go to the group of the smallest label. Its samples are uniform. Source: the norm of
  the group lasso, Yuan and Lin (2006).
  """

  def _steepest_ascent(self, grad: Array, x: Array) -> Array:
    partition, grouped = self._gather(grad)
    norms = _norms(grouped)
    largest = jnp.arange(len(norms)) == jnp.argmax(norms)  # of NaN norms, if there are any
    return partition.scatter(jax.vmap(projections.furthest_l2)(grouped, self.radius * largest))

  def _project(self, delta: Array, x: Array) -> Array:
    partition, grouped = self._gather(delta)
    # By symmetry every group keeps its direction, so that only the norms are left to project.
    lengths = projections.l1(_norms(grouped), self.radius)
    return partition.scatter(jax.vmap(projections.l2)(grouped, lengths))

  def _sample(self, key: Array, x: Array) -> Array:
    # z of density exp(-N(z)) over N(z) + e is uniform in the unit ball of any norm N: the length
    # N(z) is Gamma(n), and N / (N + e) then the n-th root of a uniform number. Here the groups of z
    # are independent, of uniform direction and Gamma(size) length.
    normal_key, gamma_key, exponential_key = jax.random.split(key, 3)
    dtype = jnp.result_type(self.radius)
    partition, z = self._gather(jax.random.normal(normal_key, x.shape, dtype))
    lengths = jax.random.gamma(gamma_key, jnp.asarray(partition.sizes, dtype), dtype=dtype)
    total = jnp.sum(lengths) + jax.random.exponential(exponential_key, (), dtype)
    return partition.scatter(jax.vmap(projections.furthest_l2)(z, self.radius * lengths / total))

  def _gauge(self, delta: Array, x: Array) -> Array:
    return ratio(jnp.sum(_norms(self._gather(delta)[1])), self.radius)


@set_dataclass
class GroupLInf2(_Grouped):
  """{|delta_g|_2 <= radius for every group g}: every group has its own l_2 ball.

  Its steepest ascent moves every group of nonzero gradient by the radius along its unit gradient.
  Its samples are uniform.
  """

  def _by_group(self, function: Callable[[Array, Array], Array], v: Array) -> Array:
    partition, grouped = self._gather(v)
    radius = jnp.broadcast_to(self.radius, grouped.shape[:1])
    return partition.scatter(jax.vmap(function)(grouped, radius))

  def _steepest_ascent(self, grad: Array, x: Array) -> Array:
    return self._by_group(projections.furthest_l2, grad)

  def _project(self, delta: Array, x: Array) -> Array:
    return self._by_group(projections.l2, delta)

  def _sample(self, key: Array, x: Array) -> Array:
    # Barthe, Guedon, Mendelson and Naor (2005), theorem 1, for p = 2, in every group.
    normal_key, exponential_key = jax.random.split(key)
    dtype = jnp.result_type(self.radius)
    partition, z = self._gather(jax.random.normal(normal_key, x.shape, dtype))
    e = jax.random.exponential(exponential_key, partition.sizes.shape, dtype)
    length = jnp.sqrt(jnp.sum(z**2, axis=1) + 2.0 * e)
    return partition.scatter(self.radius * z / length[:, None])

  def _gauge(self, delta: Array, x: Array) -> Array:
    return ratio(jnp.max(_norms(self._gather(delta)[1])), self.radius)


class _Partition(NamedTuple):
  """The entries of an example [*S], n entries, in G groups of at most M.

  Both directions gather: sums by scattering depend on the order of threads on a GPU.
  """

  members: np.ndarray  # [G, M], the flat index of every member; n where a group has fewer
  labels: np.ndarray  # [*S], the group of every entry
  indices: np.ndarray  # [*S], its index in that group
  sizes: np.ndarray  # [G]

  def gather(self, v: Array) -> Array:
    """[*S] -> [G, M], 0 beyond the size of a group."""
    return jnp.concatenate([v.reshape(-1), jnp.zeros(1, v.dtype)])[self.members]

  def scatter(self, grouped: Array) -> Array:
    """[G, M] -> [*S]."""
    return grouped[self.labels, self.indices]


def _partition(groups: Groups, shape: Sequence[int]) -> _Partition:
  values = np.asarray(groups(shape) if callable(groups) else groups)
  if values.shape != tuple(shape) or not np.issubdtype(values.dtype, np.integer):
    raise InputError(
      f"groups must be integer labels of the shape {tuple(shape)} of an example, but are "
      f"{values.dtype} of the shape {values.shape}."
    )
  _, labels, sizes = np.unique(values.reshape(-1), return_inverse=True, return_counts=True)
  labels = labels.reshape(-1)
  order = np.argsort(labels, kind="stable")
  indices = np.empty(values.size, np.int64)
  indices[order] = np.arange(values.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  members = np.full((len(sizes), sizes.max()), values.size)
  members[labels, indices] = np.arange(values.size)
  return _Partition(members, labels.reshape(shape), indices.reshape(shape), sizes)


def _norms(grouped: Array) -> Array:
  return jax.vmap(projections.l2_norm)(grouped)
