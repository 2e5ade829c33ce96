"""The primitives of JAX that are affine in the values that depend on x, once the rest is fixed.

  operation = affine(equation, values, is_x)    # an `operations.Affine`, or None

A primitive needs a row here that says how many products it adds up; its linear part, the absolute
values of its matrix and its bias follow from evaluating it. Its transpose is JAX's own.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from robust_opt.certificates.operations import Affine
from robust_opt.types import Array

# Values move, and none is changed.
MOVES = (
  *("reshape", "transpose", "broadcast_in_dim", "slice", "squeeze", "rev", "split", "gather"),
  *("dynamic_slice", "convert_element_type", "expand_dims", "concatenate", "stack", "pad"),
)
# Constants among their inputs are added, or moved beside values of x: they are the bias.
WITH_BIAS = ("add", "add_any", "sub", "concatenate", "stack", "pad", "select_n")
# A product with one factor that is constant.
PRODUCTS = ("mul", "div", "dot_general", "conv_general_dilated")
SUMS = ("reduce_sum", "cumsum", "reduce_window_sum", "add", "add_any", "sub")
AFFINE = {*MOVES, *WITH_BIAS, *PRODUCTS, *SUMS, "neg"}
_FULL = (jax.lax.Precision.HIGHEST,) * 2


def evaluate(equation: Any, values: Sequence[Any]) -> list[Array]:
  """The outputs of an equation of a jaxpr, in full float32 products."""
  parameters = dict(equation.params)
  if equation.primitive.name in ("dot_general", "conv_general_dilated"):
    parameters["precision"] = _FULL
  found = equation.primitive.bind(*values, **parameters)
  return list(found) if equation.primitive.multiple_results else [found]


def affine(
  equation: Any, values: Sequence[Any], is_x: Sequence[bool], output: int
) -> Affine | None:
  """The affine function of the values where is_x, which may be anything of their shape.

  None if the primitive is not affine in them, as the product of two.
  """
  name = equation.primitive.name
  if name not in AFFINE or (name in PRODUCTS and not _one_factor(name, is_x)):
    return None
  adds = name in WITH_BIAS

  def at(xs: Sequence[Array], constants: Callable[[Any], Any]) -> Array:
    rest = iter(xs)
    inputs = [next(rest) if x else constants(value) for value, x in zip(values, is_x, strict=True)]
    return evaluate(equation, inputs)[output]

  # Of a selection the constant that selects, of others the constants that are added, or factors.
  is_bias = lambda value: adds and jnp.issubdtype(jnp.result_type(value), jnp.floating)  # noqa: E731
  without = lambda value: jnp.zeros_like(value) if is_bias(value) else value  # noqa: E731
  absolute = lambda value: without(jnp.abs(value) if name in PRODUCTS else value)  # noqa: E731
  signs = {"sub": (1, -1), "neg": (-1,)}.get(name)

  def linear(*xs: Array) -> Array:
    return at(xs, without)

  def magnitude(*xs: Array) -> Array:
    if signs:
      signs_of_x = (sign for sign, x in zip(signs, is_x, strict=True) if x)
      xs = tuple(sign * x for sign, x in zip(signs_of_x, xs, strict=True))
    return at(xs, absolute)

  bias = None
  if adds and not all(is_x) and any(is_bias(v) for v, x in zip(values, is_x) if not x):
    zeros = [jnp.zeros_like(value) for value, x in zip(values, is_x, strict=True) if x]
    bias = jnp.maximum(at(zeros, lambda value: value), LOWEST)
  shapes = [var.aval.shape for var, x in zip(equation.invars, is_x, strict=True) if x]
  terms, fan = _counts(equation, values, is_x, shapes[0], equation.outvars[output].aval.shape)
  mixes = (name in SUMS and sum(is_x) > (name in WITH_BIAS)) or name in PRODUCTS[2:]
  return Affine(linear, magnitude, bias, terms, fan, mixes)


LOWEST = -1e30  # in place of -inf, with which images are padded for a maximum


def _one_factor(name: str, is_x: Sequence[bool]) -> bool:
  return sum(is_x) == 1 and (is_x[0] or name not in ("div", "conv_general_dilated"))


def _counts(
  equation: Any, values: Sequence[Any], is_x: Sequence[bool], x: Sequence[int], out: Sequence[int]
) -> tuple[int, int]:
  """`terms` and `fan` of `Affine`."""
  name, parameters = equation.primitive.name, equation.params
  repeats = max(1, math.ceil(math.prod(out) / max(1, math.prod(x))))
  if name == "dot_general":
    side = is_x.index(True)
    dimensions, constant = parameters["dimension_numbers"], jnp.shape(values[1 - side])
    contracted, batch = (dimensions[k][1 - side] for k in (0, 1))
    terms = math.prod(constant[k] for k in contracted)
    free = math.prod(constant) // max(1, terms * math.prod(constant[k] for k in batch))
    return terms, free
  if name == "conv_general_dilated":
    kernel, spec = jnp.shape(values[1]), parameters["dimension_numbers"].rhs_spec
    size = math.prod(kernel)
    return size // kernel[spec[0]], size // kernel[spec[1]]
  if name == "reduce_sum":
    return math.prod(x) // max(1, math.prod(out)), 1
  if name == "cumsum":
    return (x[parameters["axis"]],) * 2
  if name == "reduce_window_sum":
    return (math.prod(parameters["window_dimensions"]),) * 2
  if name == "gather":
    return 0, math.prod(out)
  return int(name in ("mul", "div", "add", "add_any", "sub", "neg")), repeats
