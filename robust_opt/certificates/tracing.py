"""The graph of a network for bounds, from its jaxpr.

  graph = tracing.trace(logits_fn, (28, 28, 1), jnp.float32)

Any JAX function will do: what does not depend on the image is computed at once (so that batch
normalization by running statistics is affine), nested functions are inlined, and every other
primitive is affine (`primitives`) or one of the few nonlinear ones below. An InputError names the
first that is neither.
"""

import collections
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt.certificates import primitives
from robust_opt.certificates.graph import Graph, Node
from robust_opt.certificates.operations import (
  ABS,
  RELU,
  SIGMOID,
  TANH,
  Affine,
  Maximum,
  Operation,
  Piecewise,
)
from robust_opt.errors import InputError
from robust_opt.jaxprs import interpret
from robust_opt.precision import check_floating
from robust_opt.types import Array, LogitsFn

_SAME = ("copy", "copy_p", "stop_gradient")
_COMPARISONS = {"ge": True, "gt": True, "le": False, "lt": False}
_ENTRYWISE: dict[str, Operation] = {"logistic": SIGMOID, "tanh": TANH, "abs": ABS}


def trace(logits_fn: LogitsFn, shape: Sequence[int], dtype: Any) -> Graph:
  """The graph of logits_fn for one image.

  Args:
    logits_fn: x [1, *S] -> logits [1, C]; the images of a batch must not depend on one another.
    shape: S.
    dtype: of the image and of all that is computed, at least float32.

  Raises:
    InputError: an operation of the network cannot be bounded, or it computes in another type.
  """
  with jax.default_matmul_precision("highest"):
    image = jax.ShapeDtypeStruct((1, *shape), dtype)
    closed = jax.make_jaxpr(logits_fn)(image)
  out = [var.aval for var in closed.jaxpr.outvars]
  if len(out) != 1 or len(out[0].shape) != 2 or out[0].shape[0] != 1:
    shapes = ", ".join(str(aval.shape) for aval in out)
    raise InputError(f"The network must return logits [1, C] for one image, but returned {shapes}.")
  check_floating(out[0], "The net's logits")
  builder = _Builder(image)
  (logits,) = interpret(closed.jaxpr, closed.consts, [_X(0)], builder.equation)
  if not isinstance(logits, _X):
    raise InputError("The network's logits do not depend on the image.")
  return builder.graph(logits.node)


class _X(NamedTuple):
  """A value of the jaxpr that depends on the image."""

  node: int


class _IsPositive(NamedTuple):
  """A comparison of a node's values with 0."""

  node: int
  positive: bool  # whether it holds above 0, not below


class _Builder:
  """Walks a jaxpr and collects nodes; constants are arrays, or tracers of an outer jit."""

  def __init__(self, image: jax.ShapeDtypeStruct) -> None:
    self.nodes = {0: Node(None, (), image.shape)}
    self.dtype = image.dtype
    self.factors: dict[int, tuple[int, Any]] = {}  # node -> (other, c): its value is c * other's

  def graph(self, output: int) -> Graph:
    """What the output depends on."""
    live = {0, output}
    for index in sorted(self.nodes, reverse=True):
      if index in live:
        live.update(self.nodes[index].inputs)
    nodes = {index: node for index, node in self.nodes.items() if index in live}
    uses = collections.Counter(i for node in nodes.values() for i in node.inputs)
    return Graph(nodes, output, dict(uses), self.dtype)

  def equation(self, equation: Any, values: list[Any]) -> list[Any]:
    """The outputs of one equation, each an array, an _X, or an _IsPositive."""
    name = equation.primitive.name
    if not any(isinstance(value, _X | _IsPositive) for value in values):
      return _constants(equation, values)
    if name in _SAME:
      return values
    for var in equation.outvars:
      if jnp.issubdtype(var.aval.dtype, jnp.floating) and var.aval.dtype != self.dtype:
        raise InputError(
          f"A certificate needs a network that computes in {self.dtype}, but it computes in "
          f"{var.aval.dtype}."
        )
    is_x = [isinstance(value, _X) for value in values]
    found = self.nonlinear(name, equation, values, is_x)
    if found is None and not any(isinstance(value, _IsPositive) for value in values):
      found = self.affine(equation, values, is_x)
    if found is None:
      raise InputError(_unsupported(name, is_x))
    return found

  def affine(self, equation: Any, values: list[Any], is_x: list[bool]) -> list[Any] | None:
    """New nodes of an affine primitive, one for each output; None for another, such as a cast."""
    if not all(jnp.issubdtype(var.aval.dtype, jnp.floating) for var in equation.outvars):
      return None
    inputs = tuple(value.node for value in values if isinstance(value, _X))
    arrays = [
      jnp.zeros(self.nodes[value.node].shape, var.aval.dtype) if isinstance(value, _X) else value
      for value, var in zip(values, equation.invars, strict=True)
    ]
    outputs = []
    for k, var in enumerate(equation.outvars):
      operation = primitives.affine(equation, arrays, is_x, k)
      if operation is None:
        return None
      outputs.append(self.add(operation, inputs, var.aval.shape))
    if equation.primitive.name in ("mul", "neg"):
      factor = -1.0 if equation.primitive.name == "neg" else arrays[1 - is_x.index(True)]
      self.factors[outputs[0].node] = (inputs[0], factor)
    return outputs

  def nonlinear(
    self, name: str, equation: Any, values: list[Any], is_x: list[bool]
  ) -> list[Any] | None:
    """New nodes of a nonlinear primitive; None if it is none."""
    if name in _ENTRYWISE:
      return [self.same_shape(_ENTRYWISE[name], values[0])]
    if name in _COMPARISONS and is_x == [True, False] and _is_zero(values[1]):
      return [_IsPositive(values[0].node, _COMPARISONS[name])]
    if name == "select_n" and isinstance(values[0], _IsPositive):
      return self.select(values[0], values[1:])
    if name in ("max", "min"):
      return [self.extremum(name, values, is_x)]
    if name == "reduce_max":
      return [self.reduce_max(values[0], equation.params["axes"])]
    if name == "reduce_window_max":
      windows = self.windows(values[0], equation.params)
      return [self.add(Maximum(), (windows.node,), equation.outvars[0].aval.shape)]
    return None

  def add(self, operation: Operation, inputs: tuple[int, ...], shape: Sequence[int]) -> _X:
    """A new node."""
    index = len(self.nodes)
    self.nodes[index] = Node(operation, inputs, tuple(shape))
    return _X(index)

  def same_shape(self, operation: Operation, x: _X) -> _X:
    """A new node of the shape of its input."""
    return self.add(operation, (x.node,), self.nodes[x.node].shape)

  def select(self, where: _IsPositive, cases: list[Any]) -> list[Any] | None:
    """where(z >= 0, c z, d z), such as a leaky ReLU."""
    left, right = (self.slope(case, where.node) for case in cases)
    if left is None or right is None:
      return None
    if not where.positive:
      left, right = right, left
    return [self.same_shape(Piecewise(left, right), _X(where.node))]

  def slope(self, case: Any, node: int) -> Any | None:
    """c, if the case is c times the value of the node."""
    if isinstance(case, _X):
      other, factor = self.factors.get(case.node, (None, None))
      return 1.0 if case.node == node else factor if other == node else None
    return 0.0 if _is_zero(case) else None

  def extremum(self, name: str, values: list[Any], is_x: list[bool]) -> _X:
    """max(a, b) = b + relu(a - b) and min(a, b) = b - relu(b - a), b constant if one is."""
    a, b = values if is_x[0] else values[::-1]
    shape = self.nodes[a.node].shape
    if name == "max" and _is_zero(b):
      return self.same_shape(RELU, a)
    sign = 1.0 if name == "max" else -1.0
    part = self.same_shape(RELU, self.sum((a, sign), (b, -sign), shape))
    return self.sum((b, 1.0), (part, sign), shape)

  def sum(self, first: tuple[Any, float], second: tuple[Any, float], shape: Sequence[int]) -> _X:
    """The sum of two values, each with its sign; one may be constant."""
    pairs = (first, second)
    signs = tuple(sign for value, sign in pairs if isinstance(value, _X))
    biases = [sign * jnp.broadcast_to(v, shape) for v, sign in pairs if not isinstance(v, _X)]

    def linear(*xs: Array) -> Array:
      return functools.reduce(operator.add, map(operator.mul, signs, xs))

    def magnitude(*xs: Array) -> Array:
      return functools.reduce(operator.add, xs)

    bias = biases[0] if biases else None
    operation = Affine(linear, magnitude, bias, terms=1, mixes=len(signs) > 1)
    inputs = tuple(value.node for value, _ in pairs if isinstance(value, _X))
    return self.add(operation, inputs, shape)

  def reduce_max(self, x: _X, axes: Sequence[int]) -> _X:
    """The axes moved to the end and made one, then the maximum."""
    shape = self.nodes[x.node].shape
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    out = [shape[axis] for axis in kept]

    def move(z: Array) -> Array:
      return z.transpose(*kept, *axes).reshape(*out, -1)

    last = math.prod(shape[axis] for axis in axes)
    moved = self.add(Affine(move, move), (x.node,), (*out, last))
    return self.add(Maximum(), (moved.node,), out)

  def windows(self, x: _X, parameters: Any) -> _X:
    """The entries of every window along a new last axis, for their maximum."""
    shape, size = self.nodes[x.node].shape, parameters["window_dimensions"]
    steps, spread = parameters["window_strides"], parameters["window_dilation"]
    dilations = zip(parameters["padding"], parameters["base_dilation"], strict=True)
    around = [(*pair, dilation - 1) for pair, dilation in dilations]

    def stack(z: Array, fill: float) -> Array:
      z = jax.lax.pad(z, jnp.asarray(fill, z.dtype), around)
      spans = [n - (k - 1) * d for n, k, d in zip(z.shape, size, spread, strict=True)]
      starts = [[i * d for i, d in zip(index, spread, strict=True)] for index in np.ndindex(*size)]
      ends = [[i + n for i, n in zip(start, spans, strict=True)] for start in starts]
      parts = [jax.lax.slice(z, start, end, steps) for start, end in zip(starts, ends, strict=True)]
      return jnp.stack(parts, axis=-1)

    linear = lambda z: stack(z, 0.0)  # noqa: E731
    bias = stack(jnp.zeros(shape, self.dtype), primitives.LOWEST)
    operation = Affine(linear, linear, bias, fan=math.prod(size))
    return self.add(operation, (x.node,), bias.shape)


def _constants(equation: Any, values: list[Any]) -> list[Any]:
  """The outputs of an equation without the image, as numbers where its inputs are numbers."""
  if any(isinstance(value, jax.core.Tracer) for value in values):
    return primitives.evaluate(equation, values)
  with jax.ensure_compile_time_eval():
    return primitives.evaluate(equation, values)


def _is_zero(value: Any) -> bool:
  """Whether a value is known to be 0 everywhere."""
  if isinstance(value, _X | _IsPositive | jax.core.Tracer):
    return False
  return not np.any(np.asarray(value))


def _unsupported(name: str, is_x: list[bool]) -> str:
  """The sentence that names a primitive."""
  several = name in primitives.AFFINE and sum(is_x) > 1
  words = " of several values that depend on the image" if several else ""
  return (
    f"No bounds are known of the operation {name}{words}, which the network uses. Known are affine "
    "operations (dense, convolution, batch normalization in evaluation, sums, average pooling), "
    "ReLU, leaky ReLU, abs, sigmoid, tanh, clipping and maxima."
  )
