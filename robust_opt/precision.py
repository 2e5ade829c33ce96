"""Low-precision types: computation in float32, results in the caller's type; float32 products.

  dtype = precision.wide(x.dtype)      # bfloat16 and float16 -> float32

  @precision.computed_wide             # takes and returns bfloat16, computes in float32
  def norm(delta): ...

  with precision.products("float32"):  # full float32 products on every backend, for a measurement
    logits = net(x)

Sums of hundreds of entries lose all precision in bfloat16 and overflow in float16. Results are
rounded once, at the end, to nearest, with a relative error of at most eps / 2 per entry, so a
perturbation leaves its ball by at most that fraction of the radius (eps is 2^-7 for bfloat16, 2^-10
for float16).

Accelerators multiply float32 matrices in fewer bits unless told otherwise (TF32 on NVIDIA GPUs,
bfloat16 on TPUs), which changes logits by some 0.3 % and hence predictions close to a boundary.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from robust_opt.errors import InputError
from robust_opt.types import Array, PyTree

P = ParamSpec("P")
T = TypeVar("T")

# Precision of float32 products -> the value of jax.default_matmul_precision. On a GPU "bfloat16" is
# TF32; a CPU computes all of them in float32.
PRODUCTS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}
# What else jax.default_matmul_precision takes for the same.
_ALIASES = {"float32": "float32", "high": "tf32", "default": "bfloat16", "fastest": "bfloat16"}


def stated(name: str | None = None) -> str:
  """The precision of float32 products of a measurement.

  Args:
    name: a key of PRODUCTS; None: that of jax.default_matmul_precision if the caller has set it,
      else "float32".

  Raises:
    InputError: an unknown name.
  """
  ambient = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
  if name is not None and name not in (*PRODUCTS, ambient):
    raise InputError(f"precision must be one of {', '.join(PRODUCTS)}, but was {name!r}.")
  names = {value: key for key, value in PRODUCTS.items()} | _ALIASES
  return name or names.get(ambient, ambient) or "float32"


def products(name: str | None = None) -> contextlib.AbstractContextManager[None]:
  """A context in which float32 products have the precision `stated(name)`.

  It counts where a function is traced or called; functions under jit are compiled once for each.
  """
  precision = stated(name)
  return jax.default_matmul_precision(PRODUCTS.get(precision, precision))


def measured(function: Callable[P, T]) -> Callable[P, T]:
  """Makes a function compute in `products()`, with its traced part."""

  @functools.wraps(function)
  def computed(*args: P.args, **kwargs: P.kwargs) -> T:
    with products():
      return function(*args, **kwargs)

  return computed


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

  All floating-point arguments are cast.

  Raises:
    InputError: from the function: its first argument is not floating point.
  """
  name = next(iter(inspect.signature(function).parameters))

  @functools.wraps(function)
  def computed(*args: P.args, **kwargs: P.kwargs) -> Array:
    dtype = check_floating(args[0] if args else kwargs[name], f"{function.__name__}: {name}")
    args, kwargs = cast((args, kwargs), wide(dtype))
    return function(*args, **kwargs).astype(dtype)

  return computed


def check_floating(array: Any, name: str) -> Any:
  """The dtype of an array or a jax.ShapeDtypeStruct.

  Raises:
    InputError: it is not floating point.
  """
  dtype = jnp.result_type(array)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise InputError(f"{name} must be floating point, not {dtype}.")
  return dtype
