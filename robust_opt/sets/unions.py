"""The union of several sets: an adversary that chooses among threats for every example."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_opt import keys
from robust_opt.arrays import expand_like
from robust_opt.errors import InputError
from robust_opt.sets.base import Box, UncertaintySet, set_dataclass
from robust_opt.types import Array


@set_dataclass
class Union(UncertaintySet):
  """{delta: delta lies in at least one of the sets}, such as an l_inf and an l_2 ball; not convex.

    u = sets.Union((ro.LInf(8 / 255, box), ro.L2(0.5, box)))

  Steepest ascent and projection are those of the best of the sets for each example, exact if theirs
  are. The gauge is the smallest of theirs. A sample comes from one of the sets, drawn uniformly for
  each example. Trained on, it is the worst of several perturbations (Tramer and Boneh 2019, arXiv
  1904.13000, "max"); `ro.autoattack` attacks in every set.
  """

  sets: tuple[UncertaintySet, ...]  # at least one

  def __post_init__(self) -> None:
    object.__setattr__(self, "sets", tuple(self.sets))
    if not self.sets or not all(isinstance(u, UncertaintySet) for u in self.sets):
      raise InputError(f"A union needs at least one set, and only sets, not {self.sets}.")

  @property
  def box(self) -> Box | None:
    """The box of all sets; None if they differ in it."""
    boxes = {getattr(u, "box", None) for u in self.sets}
    return boxes.pop() if len(boxes) == 1 else None

  def steepest_ascent(self, grad: Array, x: Array) -> Array:  # noqa: D102
    points = [u.steepest_ascent(grad, x) for u in self.sets]
    largest = jnp.max(jnp.abs(grad), axis=range(1, grad.ndim))
    unit = grad / expand_like(jnp.where(largest > 0, largest, 1.0), grad)
    return _best(points, lambda delta: _inner(unit, delta))

  def project(self, delta: Array, x: Array) -> Array:  # noqa: D102
    points = [u.project(delta, x) for u in self.sets]
    return _best(points, lambda point: -_inner(point - delta, point - delta))

  def sample(self, key: Array, x: Array) -> Array:  # noqa: D102
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    each = keys.per_example(key, x.shape[0])
    points = [u.sample(fold(each, index), x) for index, u in enumerate(self.sets)]
    draw = functools.partial(jax.random.randint, shape=(), minval=0, maxval=len(points))
    return _chosen(points, jax.vmap(draw)(fold(each, len(points))))

  def gauge(self, delta: Array, x: Array) -> Array:  # noqa: D102
    return jnp.min(jnp.stack([u.gauge(delta, x) for u in self.sets]), axis=0)


def _inner(a: Array, b: Array) -> Array:
  """The inner product of each example, [B]."""
  return jnp.sum(a * b, axis=range(1, a.ndim))


def _best(points: list[Array], value: Callable[[Array], Array]) -> Array:
  """For each example the point of the largest value [B], the first in a tie."""
  # jnp.argmax ranks NaN highest, so that it is not hidden.
  return _chosen(points, jnp.argmax(jnp.stack([value(point) for point in points]), axis=0))


def _chosen(points: list[Array], which: Array) -> Array:
  """For each example the point of that index, [B]."""
  chosen = points[0]
  for index, point in enumerate(points[1:], start=1):
    chosen = jnp.where(expand_like(which == index, point), point, chosen)
  return chosen
