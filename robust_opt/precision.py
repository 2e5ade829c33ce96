"""Low-precision types: computation in float32, results in the caller's type.

  dtype = precision.wide(x.dtype)      # bfloat16 and float16 -> float32

  @precision.computed_wide             # takes and returns bfloat16, computes in float32
  def norm(delta): ...

Sums of hundreds of entries lose all precision in bfloat16 and overflow in float16. Results are
rounded once, at the end, so a perturbation leaves its ball by at most eps / 2 of the radius (eps is
2^-7 for bfloat16, 2^-10 for float16).
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp

from robust_opt.errors import InputError
from robust_opt.types import Array, PyTree

P = ParamSpec("P")


def wide(dtype: Any) -> Any:
  """The type to compute in: at least float32."""
  return jnp.promote_types(dtype, jnp.float32)


def cast(tree: PyTree, dtype: Any) -> PyTree:
  """Converts floating-point leaves, Python floats included, to arrays of dtype."""

  def of_leaf(leaf: Any) -> Any:
    is_array = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    return jnp.asarray(leaf, dtype) if is_array or isinstance(leaf, float) else leaf

  return jax.tree.map(of_leaf, tree)


def computed_wide(function: Callable[P, Array]) -> Callable[P, Array]:
  """Makes a function compute in `wide` of its first argument's type, and return that type.

  All floating-point arguments are cast. An InputError if the first is not floating point.
  """
  name = next(iter(inspect.signature(function).parameters))

  @functools.wraps(function)
  def computed(*args: P.args, **kwargs: P.kwargs) -> Array:
    dtype = check_floating(args[0] if args else kwargs[name], f"{function.__name__}: {name}")
    args, kwargs = cast((args, kwargs), wide(dtype))
    return function(*args, **kwargs).astype(dtype)

  return computed


def check_floating(array: Any, name: str) -> Any:
  """The dtype of an array or a jax.ShapeDtypeStruct; an InputError if it is not floating point."""
  dtype = jnp.result_type(array)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise InputError(f"{name} must be floating point, not {dtype}.")
  return dtype
