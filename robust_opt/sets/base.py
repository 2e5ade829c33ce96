"""The interface of uncertainty sets U(x): values with four methods, and pytrees.

  @set_dataclass
  class Cube(ExampleSet):
    radius: Radius

    def _steepest_ascent(self, grad, x):     # of ONE example; also _project, _sample, _gauge
      return self.radius * jnp.sign(grad)

A set is immutable. Its radii and arrays are leaves, so that it goes through jit (one trace for many
radii), vmap and grad as an argument; everything else is static.
"""

import dataclasses
from typing import Any, ClassVar, TypeVar, dataclass_transform

import chex
import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import keys, precision
from robust_opt.checks import described
from robust_opt.errors import InputError
from robust_opt.sets import projections
from robust_opt.types import Array

Box = tuple[float, float]
Radius = Any  # [] or [B]: a number or an array, which may be traced

SetClass = TypeVar("SetClass", bound=type["UncertaintySet"])


def static(*, default: Any = dataclasses.MISSING) -> Any:
  """A field of a set that is a compile-time constant: hashable, or a NumPy array."""
  return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(static,))
def set_dataclass(cls: SetClass) -> SetClass:
  """A frozen dataclass that is a pytree: fields marked `static` are static, the others its data."""
  cls = dataclasses.dataclass(frozen=True, eq=False)(cls)  # type: ignore[assignment]
  fields = dataclasses.fields(cls)  # type: ignore[arg-type]
  constants = [field.name for field in fields if field.metadata.get("static")]
  data = [field.name for field in fields if field.name not in constants]

  def flatten_with_keys(u: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
    children = [(jax.tree_util.GetAttrKey(name), getattr(u, name)) for name in data]
    return children, tuple(_Constant(getattr(u, name)) for name in constants)

  def unflatten(values: tuple[Any, ...], children: Any) -> Any:
    # Without the checks of __init__: leaves may be tracers, axes or derivatives.
    u = object.__new__(cls)
    vars(u).update(zip(data, children, strict=True))
    vars(u).update(zip(constants, (constant.value for constant in values), strict=True))
    return u

  jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
  return cls


class UncertaintySet:
  """The perturbations U(x) that the adversary may add to each example of a batch.

  The methods take a batch, delta or grad [B, *S] and x [B, *S], and return x's type. Two sets are
  equal if they have the same type and equal fields.
  """

  def steepest_ascent(self, grad: Array, x: Array) -> Array:
    """The argmax over delta in U(x) of <grad, delta>, [B, *S]; 0 where grad is 0."""
    raise InputError(f"{type(self).__name__} has no steepest ascent.")

  def project(self, delta: Array, x: Array) -> Array:
    """The nearest point of U(x) in the Euclidean sense, [B, *S]."""
    raise InputError(f"{type(self).__name__} has no projection.")

  def sample(self, key: Array, x: Array) -> Array:
    """A random point of U(x), [B, *S]. `key` is one key, or one per example [B]."""
    raise InputError(f"{type(self).__name__} has no sampling.")

  def gauge(self, delta: Array, x: Array) -> Array:
    """The smallest t with delta in t U(x), [B]; at most 1 inside."""
    raise InputError(f"{type(self).__name__} has no gauge.")

  def __eq__(self, other: object) -> bool:
    if type(self) is not type(other):
      return NotImplemented
    if jax.tree.structure(self) != jax.tree.structure(other):  # type: ignore[operator]
      return False
    pairs = zip(jax.tree.leaves(self), jax.tree.leaves(other), strict=True)
    return all(a is b or np.array_equal(a, b) for a, b in pairs)

  def __hash__(self) -> int:
    return hash(jax.tree.structure(self))


class MappedSet(UncertaintySet):
  """A set whose four methods are `_apply(operation, first, x)`; `first` is grad, delta or key."""

  def _apply(self, operation: str, first: Array, x: Array) -> Array:
    raise NotImplementedError

  def steepest_ascent(self, grad: Array, x: Array) -> Array:  # noqa: D102
    return self._apply("steepest_ascent", grad, x)

  def project(self, delta: Array, x: Array) -> Array:  # noqa: D102
    return self._apply("project", delta, x)

  def sample(self, key: Array, x: Array) -> Array:  # noqa: D102
    return self._apply("sample", key, x)

  def gauge(self, delta: Array, x: Array) -> Array:  # noqa: D102
    return self._apply("gauge", delta, x)


class ExampleSet(MappedSet):
  """A set whose geometry is written for one example and mapped over the batch.

  Subclasses define `_steepest_ascent(grad, x)`, `_project(delta, x)`, `_sample(key, x)` and
  `_gauge(delta, x)` for x [*S]. There the fields named in `_radii` are [], and they, grad and
  delta have x's type, or float32 if that has fewer bits. x keeps its type, whose rounding matters
  at the bounds of a box. It is an InputError if x is not floating, or a radius not [] or [B].
  """

  _radii: ClassVar[tuple[str, ...]] = ("radius",)

  def __post_init__(self) -> None:
    for name in self._radii:
      check_radius(name, getattr(self, name))
    box = getattr(self, "box", None)
    if box is not None:
      if np.shape(box) != (2,) or not box[0] < box[1]:
        raise InputError(f"box must be (low, high) with low < high, but was {box}.")
      object.__setattr__(self, "box", tuple(box))

  def _apply(self, operation: str, first: Array, x: Array) -> Array:
    x = jnp.asarray(x)
    dtype, count = precision.wide(precision.check_floating(x, "x")), x.shape[:1]
    if operation == "sample":
      first = keys.per_example(first, len(x))
    else:
      chex.assert_equal_shape((first, x))
    radii = {name: getattr(self, name) for name in self._radii}
    for name, radius in radii.items():
      if jnp.shape(radius) not in ((), count):
        raise InputError(
          f"{name} must be one number or one for each of the {count[0]} examples, but has the "
          f"shape {jnp.shape(radius)}."
        )
      radii[name] = jnp.broadcast_to(jnp.asarray(radius, dtype), count)

    def of_one(radii: dict[str, Array], first: Array, x: Array) -> Array:
      u = dataclasses.replace(self, **radii)  # type: ignore[type-var]
      return getattr(u, f"_{operation}")(first, x)

    return jax.vmap(of_one)(radii, precision.cast(first, dtype), x).astype(x.dtype)


def check_radius(name: str, radius: Radius) -> None:
  """InputError for a radius that is not a number >= 0; a traced one cannot be checked."""
  if isinstance(radius, jax.core.Tracer):
    return
  values = np.asarray(radius)
  if isinstance(radius, tuple | list) or not jnp.issubdtype(values.dtype, np.number):
    raise InputError(
      f"{name} must be a number, or one for each example, as in ro.LInf(8 / 255), but was "
      f"{described(radius)}."
    )
  if not np.all(values >= 0):
    raise InputError(f"{name} must be >= 0 (0 means the clean example), but was {radius}.")


def check_set(who: str, u: object) -> None:
  """InputError unless u is a set; it begins with `who`, what takes it, and says what to write."""
  if isinstance(u, UncertaintySet):
    return
  name = {"l1": "L1", "l2": "L2"}.get(str(u).lower(), "LInf")
  if isinstance(u, type) and issubclass(u, UncertaintySet):
    name = u.__name__
  radius = u if isinstance(u, int | float) else "radius"
  raise InputError(f"{who} takes a set, as in ro.{name}({radius}), but was given {described(u)}.")


def box_bounds(box: Box, x: Array) -> projections.Bounds:
  """The (lower, upper) [*S] of delta that keep x + delta, as it is rounded, in the box; x [*S]."""
  low, high = (jnp.asarray(end, x.dtype) for end in box)
  lower, upper = low - x, high - x

  def inward(bound: Array, outside: Array) -> Array:
    # In wide boxes high - x is rounded more coarsely than high is.
    frozen = jax.lax.stop_gradient(bound)  # nextafter has no derivative
    ulp = jnp.nextafter(frozen, jnp.zeros_like(frozen)) - frozen
    return bound + jnp.where(outside, ulp, 0.0)

  return inward(lower, x + lower < low), inward(upper, x + upper > high)


def cube_bounds(radius: Array, box: Box | None, x: Array) -> projections.Bounds:
  """The bounds [*S] of delta in the l_inf ball cut by the box."""
  lower, upper = jnp.broadcast_to(-radius, x.shape), jnp.broadcast_to(radius, x.shape)
  if box is None:
    return lower, upper
  least, most = box_bounds(box, x)
  return jnp.maximum(lower, least), jnp.minimum(upper, most)


def ratio(a: Array, b: Array) -> Array:
  """The largest a / b, where 0 / 0 is 0, a / 0 is inf and NaN stays NaN."""
  return jnp.max(jnp.where(a == 0, 0.0, jnp.where(b > 0, a / b, jnp.inf + a)))


def uniform_l2(key: Array, radius: Array, live: Array) -> Array:
  """A uniform point of the l_2 ball over the entries where live [*S] is 1; 0 in the others."""
  # Barthe, Guedon, Mendelson and Naor (2005), theorem 1, for p = 2.
  normal_key, exponential_key = jax.random.split(key)
  z = live * jax.random.normal(normal_key, live.shape, radius.dtype)
  e = jax.random.exponential(exponential_key, (), radius.dtype)
  return radius * z / jnp.sqrt(jnp.sum(z**2) + 2.0 * e)


@dataclasses.dataclass(frozen=True, eq=False)
class _Constant:
  """A static field, comparable and hashable even if it is a NumPy array."""

  value: Any

  def _key(self) -> Any:
    if isinstance(self.value, np.ndarray):
      return self.value.dtype.str, self.value.shape, self.value.tobytes()
    return self.value

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Constant) and bool(self._key() == other._key())

  def __hash__(self) -> int:
    return hash(self._key())
