"""A traced computation as the nodes of an ONNX graph.

  graph = Graph(batch)                                     # the symbolic number of images
  (logits,) = graph.run(closed.jaxpr, closed.consts, [IMAGES])
  graph.nodes, graph.constants                             # for onnx.helper.make_graph

A primitive is one of _DIRECT, or has a function in _HANDLERS.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from robust_opt.errors import InputError
from robust_opt.jaxprs import interpret

IMAGES = "images"  # the input
_WHOLE = np.iinfo(np.int64).max  # the end of a slice that ends where its axis does
# Primitives that are one node with the same arguments.
_DIRECT = {
  **{"add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow"},
  **{"max": "Max", "min": "Min", "neg": "Neg", "abs": "Abs", "sign": "Sign", "floor": "Floor"},
  **{"exp": "Exp", "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh", "logistic": "Sigmoid"},
  **{"erf": "Erf", "sin": "Sin", "cos": "Cos", "ceil": "Ceil", "stop_gradient": "Identity"},
  **{"copy": "Identity", "copy_p": "Identity", "eq": "Equal", "lt": "Less", "gt": "Greater"},
  **{"le": "LessOrEqual", "ge": "GreaterOrEqual", "and": "And", "or": "Or", "not": "Not"},
}
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}

Value = str | np.ndarray  # the name of what depends on the images, or a constant
Handler = Callable[["Graph", Any, list[Value]], str]  # (graph, equation, inputs) -> output


class Graph:
  """The nodes and constants of an ONNX graph that is being made."""

  def __init__(self, batch: Any) -> None:
    self.nodes: list[Any] = []
    self.constants: list[Any] = []
    self._batch = batch  # the symbolic number of images
    self._count = 0

  def add(self, kind: str, *inputs: Value, output: str = "", **attributes: Any) -> str:
    """Adds a node; returns the name of its output."""
    from onnx import helper

    output = output or self._name()
    names = [self.named(value) for value in inputs]
    self.nodes.append(helper.make_node(kind, names, [output], **attributes))
    return output

  def named(self, value: Value) -> str:
    """The name of a value; a constant gets one."""
    if isinstance(value, str):
      return value
    from onnx import numpy_helper

    name = self._name()
    self.constants.append(numpy_helper.from_array(np.asarray(value), name))
    return name

  def shape(self, sizes: Sequence[Any]) -> Value:
    """A shape as a tensor, in which the number of images is that of the input."""
    if all(isinstance(size, int | np.integer) for size in sizes):
      return np.array(sizes, np.int64)
    batch = self.add("Shape", IMAGES, start=0, end=1)
    parts = [batch if self.is_batch(size) else np.array([_fixed(size)]) for size in sizes]
    return self.add("Concat", *parts, axis=0)

  def is_batch(self, size: Any) -> bool:
    """Whether a size is the number of images."""
    return not isinstance(size, int | np.integer) and size == self._batch

  def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
    """Adds a jaxpr; returns its outputs."""
    return interpret(jaxpr, list(map(np.asarray, consts)), inputs, self._equation)

  def _equation(self, equation: Any, values: list[Value]) -> list[Value]:
    name, parameters = equation.primitive.name, equation.params
    values = [value if isinstance(value, str) else np.asarray(value) for value in values]
    fixed = all(isinstance(s, int) for var in equation.outvars for s in var.aval.shape)
    if fixed and name != "dim_as_value" and not any(isinstance(value, str) for value in values):
      outputs = equation.primitive.bind(*values, **parameters)
      several = equation.primitive.multiple_results
      return list(map(np.asarray, outputs if several else [outputs]))
    if name in _DIRECT:
      return [self.add(_DIRECT[name], *values)]
    if name not in _HANDLERS:
      raise InputError(f"export_onnx has no counterpart of JAX's {name}, which the network uses.")
    return [_HANDLERS[name](self, equation, values)]

  def _name(self) -> str:
    self._count += 1
    return f"v{self._count}"


def _number(value: Any) -> np.ndarray:
  return np.array(value, np.float32)


def _fixed(size: Any) -> int:
  if not isinstance(size, int | np.integer):
    raise InputError(f"The network needs an array of the size {size}, of B images.")
  return int(size)


def _cast(graph: Graph, equation: Any, inputs: list[Value]) -> str:
  from onnx import helper

  to = helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"]))
  return graph.add("Cast", *inputs, to=to)


def _reshape(graph: Graph, equation: Any, inputs: list[Value]) -> str:
  return graph.add("Reshape", inputs[0], graph.shape(equation.outvars[0].aval.shape))


def _transpose(graph: Graph, equation: Any, inputs: list[Value]) -> str:
  return graph.add("Transpose", *inputs, perm=equation.params["permutation"])


def _broadcast(graph: Graph, equation: Any, inputs: list[Value]) -> str:
  shape, source = equation.params["shape"], equation.invars[0].aval.shape
  axes = dict(zip(equation.params["broadcast_dimensions"], source))
  ones = [axes.get(axis, 1) for axis in range(len(shape))]
  aligned = graph.add("Reshape", inputs[0], graph.shape(ones))
  return graph.add("Expand", aligned, graph.shape(shape))


def _concatenate(graph: Graph, equation: Any, inputs: list[Value]) -> str:
  return graph.add("Concat", *inputs, axis=equation.params["dimension"])


def _stack(graph: Graph, equation: Any, inputs: list[Value]) -> str:
  axis = equation.params["axis"]
  parts = [graph.add("Unsqueeze", value, np.array([axis])) for value in inputs]
  return graph.add("Concat", *parts, axis=axis)


def _pad(graph: Graph, equation: Any, inputs: list[Value]) -> str:
  low, high, inner = zip(*equation.params["padding_config"])
  if any(inner) or min(map(_fixed, (*low, *high))) < 0:
    raise InputError("export_onnx takes no negative padding and none within an array.")
  return graph.add("Pad", inputs[0], np.array([*low, *high], np.int64), inputs[1])


def _slice(graph: Graph, equation: Any, inputs: list[Value]) -> str:
  parameters, shape = equation.params, equation.invars[0].aval.shape
  ends = [_WHOLE if end == n else _fixed(end) for end, n in zip(parameters["limit_indices"], shape)]
  steps = parameters["strides"] or [1] * len(shape)
  given = (parameters["start_indices"], ends, range(len(shape)), steps)
  return graph.add("Slice", inputs[0], *(np.array(list(each), np.int64) for each in given))


def _reduce(graph: Graph, equation: Any, inputs: list[Value]) -> str:
  axes = np.array(equation.params["axes"], np.int64)
  return graph.add(_REDUCTIONS[equation.primitive.name], inputs[0], axes, keepdims=0)


def _dot(graph: Graph, equation: Any, inputs: list[Value]) -> str:
  """By letters: batch axes, then the other axes of both, as JAX orders them."""
  (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
  letters = iter("abcdefghijklmnopqrstuvwxyz")
  left = [next(letters) for _ in equation.invars[0].aval.shape]
  right = [next(letters) for _ in equation.invars[1].aval.shape]
  for mine, other in zip((*left_sum, *left_batch), (*right_sum, *right_batch)):
    right[other] = left[mine]
  batch = [left[axis] for axis in left_batch]
  free = [
    names[axis]
    for names, used in ((left, (*left_sum, *left_batch)), (right, (*right_sum, *right_batch)))
    for axis in range(len(names))
    if axis not in used
  ]
  terms = ",".join(("".join(left), "".join(right)))
  return graph.add("Einsum", *inputs, equation=f"{terms}->{''.join((*batch, *free))}")


def _convolution(graph: Graph, equation: Any, inputs: list[Value]) -> str:
  """With channels before pixels, as ONNX has them."""
  parameters = equation.params
  numbers = parameters["dimension_numbers"]
  if set(parameters["lhs_dilation"]) != {1} or parameters["batch_group_count"] != 1:
    raise InputError("export_onnx takes no transposed convolution.")
  low, high = zip(*parameters["padding"])
  x = graph.add("Transpose", inputs[0], perm=numbers.lhs_spec)
  kernel = graph.add("Transpose", inputs[1], perm=numbers.rhs_spec)
  y = graph.add(
    "Conv", x, kernel,
    strides=parameters["window_strides"], dilations=parameters["rhs_dilation"],
    group=parameters["feature_group_count"], pads=[*map(int, low), *map(int, high)],
  )  # fmt: skip
  return graph.add("Transpose", y, perm=np.argsort(numbers.out_spec).tolist())


def _window(graph: Graph, equation: Any, inputs: list[Value]) -> str:
  """Pools over [B, H, W, C]."""
  parameters = equation.params
  size, strides = parameters["window_dimensions"], parameters["window_strides"]
  low, high = zip(*parameters["padding"])
  dilated = {*parameters["base_dilation"], *parameters["window_dilation"]} != {1}
  if len(size) != 4 or (size[0], size[3]) != (1, 1) or dilated:
    raise InputError("export_onnx takes pools over the pixels of images [B, H, W, C] only.")
  pads = [*map(int, low[1:3]), *map(int, high[1:3])]
  given: dict[str, Any] = {"kernel_shape": size[1:3], "strides": strides[1:3], "pads": pads}
  x = graph.add("Transpose", inputs[0], perm=(0, 3, 1, 2))
  if equation.primitive.name == "reduce_window_max":
    y = graph.add("MaxPool", x, **given)
  else:
    mean = graph.add("AveragePool", x, count_include_pad=1, **given)
    y = graph.add("Mul", mean, _number(np.prod(size)))
  return graph.add("Transpose", y, perm=(0, 2, 3, 1))


def _choose(graph: Graph, equation: Any, inputs: list[Value]) -> str:
  """A fixed choice of the entries of every image, found by choosing from their numbers."""
  operand, *indices = inputs
  shapes = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
  parameters = dict(equation.params)
  fixed = not any(isinstance(value, str) for value in indices)
  if not fixed or not all(graph.is_batch(shape[0]) for shape in shapes):
    raise InputError("export_onnx takes indices that are the same for all images only.")
  if "slice_sizes" in parameters:
    parameters["slice_sizes"] = (1, *parameters["slice_sizes"][1:])
  sizes = tuple(map(_fixed, shapes[0][1:]))
  numbers = np.arange(math.prod(sizes), dtype=np.int32).reshape(1, *sizes)
  chosen = equation.primitive.bind(numbers, *indices, **parameters)
  flat = graph.add("Reshape", operand, np.array([0, math.prod(sizes)]))  # 0: the same as before
  return graph.add("Gather", flat, np.asarray(chosen[0], np.int64), axis=1)


def _number_of_images(graph: Graph, equation: Any, inputs: list[Value]) -> str:
  from onnx import helper

  del inputs
  shape = graph.shape([equation.params["dim"]])
  to = helper.np_dtype_to_tensor_dtype(np.dtype(equation.outvars[0].aval.dtype))
  return graph.add("Cast", graph.add("Squeeze", shape), to=to)


def _select(graph: Graph, equation: Any, inputs: list[Value]) -> str:
  condition, if_false, if_true = inputs
  return graph.add("Where", condition, if_true, if_false)


_HANDLERS: Mapping[str, Handler] = {
  "convert_element_type": _cast,
  "reshape": _reshape,
  "squeeze": _reshape,
  "expand_dims": _reshape,
  "transpose": _transpose,
  "broadcast_in_dim": _broadcast,
  "concatenate": _concatenate,
  "stack": _stack,
  "pad": _pad,
  "slice": _slice,
  "dim_as_value": _number_of_images,
  "gather": _choose,
  "rev": _choose,
  **dict.fromkeys(_REDUCTIONS, _reduce),
  "dot_general": _dot,
  "conv_general_dilated": _convolution,
  "reduce_window_max": _window,
  "reduce_window_sum": _window,
  "select_n": _select,
  "erfc": lambda graph, equation, inputs: graph.add("Sub", _number(1), graph.add("Erf", *inputs)),
  "square": lambda graph, equation, inputs: graph.add("Mul", inputs[0], inputs[0]),
  "rsqrt": lambda graph, equation, inputs: graph.add("Reciprocal", graph.add("Sqrt", *inputs)),
  "log1p": lambda graph, equation, inputs: graph.add(
    "Log", graph.add("Add", inputs[0], _number(1))
  ),
  "integer_pow": lambda graph, equation, inputs: graph.add(
    "Pow", inputs[0], _number(equation.params["y"])
  ),
  "ne": lambda graph, equation, inputs: graph.add("Not", graph.add("Equal", *inputs)),
}
