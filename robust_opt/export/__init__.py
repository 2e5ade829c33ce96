"""Networks as ONNX files, which run without JAX.

  ro.export_onnx(ro.load("digits_linf"), "digits.onnx")

The graph maps images [B, *S] float32, pixels in [0, 1], for any B, to logits [B, C]. It is the
traced computation, primitive by primitive; what does not depend on the images is computed here.
tools/check_verdict.py verifies an evaluation with such a file.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from robust_opt import extras
from robust_opt.errors import InputError
from robust_opt.export.graph import IMAGES, Graph
from robust_opt.files import atomic_write
from robust_opt.models import layers

OPSET, IR_VERSION = 18, 10  # of 2023 and 2024
LOGITS, NET_SHA256 = "logits", "net_sha256"


def export_onnx(net: Any, path: str | Path, image_shape: Sequence[int] = ()) -> None:
  """Writes a network as an ONNX file.

  Args:
    net: a value of `ro.load_run`, `ro.load` or `ro.load_torch`, or any function of images [B, *S]
      in [0, 1] to logits [B, C].
    path: a file that ends in .onnx.
    image_shape: S, of one image; of a loaded network its own, if it is not given.

  Raises:
    InputError: another ending, or the function uses a primitive without a counterpart here, or
      needs the number of images as a Python integer.
    MissingExtraError: the package onnx is not installed.
  """
  path = Path(path)
  if path.suffix != ".onnx":
    raise InputError(f"{path}: a file of export_onnx must end in .onnx.")
  extras.require("onnx", "onnx")
  shape = image_shape or getattr(net, "image_shape", ())
  if not shape:
    raise InputError("export_onnx needs the image_shape of a function, as in (32, 32, 3).")
  model = _model(getattr(net, "logits_fn", net), shape, getattr(net, "sha256", ""))
  with atomic_write(path) as file:
    file.write(model.SerializeToString())


def _model(logits_fn: Callable[[Any], Any], image_shape: Sequence[int], sha256: str) -> Any:
  from onnx import TensorProto, checker, helper

  (batch,) = jax.export.symbolic_shape("B")
  images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
  try:
    with _native_convolutions():
      closed = jax.make_jaxpr(lambda x: logits_fn(x))(images)  # new, since JAX caches traces
  except Exception as error:  # whatever the function raises
    reason = (str(error) or type(error).__name__).splitlines()[0]
    hint = "; write x.shape[0] instead of len(x)" if "_DimExpr" in reason else ""
    raise InputError(
      f"The network cannot be traced for any number of images ({reason}){hint}."
    ) from error
  graph = Graph(batch)
  (logits,) = graph.run(closed.jaxpr, closed.consts, [IMAGES])
  graph.add("Identity", logits, output=LOGITS)
  declared = [
    helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *shape])
    for name, shape in ((IMAGES, image_shape), (LOGITS, closed.out_avals[0].shape[1:]))
  ]
  body = helper.make_graph(graph.nodes, "robust_opt", declared[:1], declared[1:], graph.constants)
  opset = [helper.make_opsetid("", OPSET)]
  model = helper.make_model(
    body, opset_imports=opset, ir_version=IR_VERSION, producer_name="robust_opt"
  )
  if sha256:
    helper.set_model_props(model, {NET_SHA256: sha256})
  checker.check_model(model)
  return model


@contextlib.contextmanager
def _native_convolutions() -> Iterator[None]:
  """Convolutions are traced as such, not as products of patches."""
  before, layers.formulation = layers.formulation, "native"
  try:
    yield
  finally:
    layers.formulation = before
