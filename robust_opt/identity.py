"""What tells one network from another: its code, its arrays, and what it answers.

  net = of_net(logits_fn, x)     # {"code": ..., "arrays": ..., "logits": ...}, JSON values
  same("logits", old["logits"], net["logits"])

The code is the jaxpr of the logits and of their gradient: with other preprocessing, or another
custom gradient, it is another network, although the weights are the same. The jaxpr does not show
what happens inside a callback (a bridge to PyTorch, say); the clean logits do.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from robust_opt.checkpoint import digest
from robust_opt.trust_trials import answers
from robust_opt.types import Array, LogitsFn

NUM_IMAGES = 8
# Logits that differ by no more than this share of the largest are equal up to float32 rounding: a
# sum of n terms in another order differs by about sqrt(n) * 6e-8; the rest is margin for depth.
ROUNDING = 1e-4

_ADDRESS = re.compile(r"0x[0-9a-fA-FX]+")


def of_net(logits_fn: LogitsFn, x: np.ndarray, definition: str = "") -> dict[str, Any]:
  """The identity of a network as JSON values.

  Args:
    logits_fn: x [B, *S] -> logits [B, C], in evaluation mode.
    x: [N, *S] float32, pixels in [0, 1]; the first NUM_IMAGES are used.
    definition: text that determines what a Partial computes from its arrays; empty: the function
      is traced. A definition does not depend on the backend or on the version of JAX.

  Returns:
    code: SHA-256 of the definition or of the jaxpr; empty if the function cannot be traced.
    arrays: SHA-256 of the arrays that it computes with; empty likewise.
    logits: of the first images, [n, C] as nested lists.
  """
  images = x[:NUM_IMAGES]
  logits = answers(logits_fn, images, len(images))
  rounded = [[float(f"{value:.6g}") for value in row] for row in logits]
  if definition:
    code, arrays = definition, jax.tree.leaves(logits_fn)
  else:
    code, arrays = _traced(logits_fn, jnp.asarray(images))
  sha256 = hashlib.sha256(_ADDRESS.sub("", code).encode()).hexdigest() if code else ""
  return {"code": sha256, "arrays": digest(arrays) if code else "", "logits": rounded}


def same(key: str, old: Any, new: Any) -> bool:
  """Whether two values of an identity agree, logits up to rounding.

  Args:
    key: name of the value; its last part, after a dot, says whether it holds logits.
    old: a JSON value.
    new: likewise.
  """
  if key.rpartition(".")[2] != "logits" or np.shape(old) != np.shape(new):
    return bool(old == new)
  a, b = np.asarray(old, np.float64), np.asarray(new, np.float64)
  return bool(np.max(np.abs(a - b)) <= ROUNDING * np.max(np.abs(a)))


def _traced(logits_fn: LogitsFn, x: Array) -> tuple[str, list[Array]]:
  """The text of a function's jaxpr and the arrays in it; ("", []) if it cannot be traced."""

  def with_gradient(x: Array) -> tuple[Array, Array]:
    logits, vjp = jax.vjp(logits_fn, x)
    return logits, vjp(jnp.ones_like(logits))[0]

  for function in (with_gradient, logits_fn):
    try:
      jaxpr = jax.make_jaxpr(function)(x)
      return str(jaxpr), list(_constants(jaxpr))
    except Exception:  # whatever the user's function raises
      continue
  return "", []


def _constants(jaxpr: Any) -> Iterator[Array]:
  """Every array in a jaxpr and in the jaxprs of its equations, in order."""
  constants = [*getattr(jaxpr, "consts", ())]
  for equation in jaxpr.eqns:
    constants += [atom.val for atom in equation.invars if isinstance(atom, core.Literal)]
  for array in constants:
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key) if hasattr(array, "dtype") else False
    yield jax.random.key_data(array) if is_key else array
  for equation in jaxpr.eqns:
    for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
      if hasattr(value, "eqns"):
        yield from _constants(value)
