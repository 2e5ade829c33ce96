"""The device: its name, its peak by the vendor and measured, the precisions that rows compare."""

import importlib.metadata
import importlib.util
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

# How float32 nets compute products: fully, with factors of TF32, or the whole net in bfloat16.
PRECISIONS = ("float32", "tf32", "bfloat16")
# Dense TFLOP/s by the vendor's datasheet, for the part of a device kind.
PEAKS = {
  "H100": {"float32": 67.0, "tf32": 494.0, "bfloat16": 989.0},
  "H200": {"float32": 67.0, "tf32": 494.0, "bfloat16": 989.0},
  "A100": {"float32": 19.5, "tf32": 156.0, "bfloat16": 312.0},
}


def describe() -> dict[str, Any]:
  """Device kind, backend and versions; rows of one file all come from one description."""
  versions = {
    name: importlib.metadata.version(name)
    for name in ("jax", "flax", "torch", "torchattacks")
    if importlib.util.find_spec(name)
  }
  return {
    "device": jax.devices()[0].device_kind,
    "backend": jax.default_backend(),
    "versions": versions,
  }


def vendor_peak(precision: str) -> float | None:
  """TFLOP/s of the datasheet, or None for a device that is not in the table."""
  kind = jax.devices()[0].device_kind
  return next((peaks[precision] for name, peaks in PEAKS.items() if name in kind), None)


@contextmanager
def products(precision: str) -> Iterator[None]:
  """Computes float32 products fully or, on an NVIDIA GPU, with factors of TF32 (XLA's default)."""
  with jax.default_matmul_precision("highest" if precision == "float32" else "default"):
    yield


def matmul_tflops(precision: str, size: int, repeats: int = 10) -> dict[str, float]:
  """Measured TFLOP/s of a product of two random matrices [size, size]."""
  dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
  a, b = (jax.random.normal(jax.random.key(seed), (size, size), dtype) for seed in range(2))
  with products(precision):
    product = jax.jit(jnp.matmul)
    product(a, b).block_until_ready()
    seconds = []
    for _ in range(5):
      began = time.perf_counter()
      outs = [product(a, b) for _ in range(repeats)]  # queued, so that launches overlap
      jax.block_until_ready(outs)
      seconds.append((time.perf_counter() - began) / repeats)
  return {"tflops": 2 * size**3 / statistics.median(seconds) / 1e12}
