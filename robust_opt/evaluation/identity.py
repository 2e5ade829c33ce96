"""What identifies a network: its code, its arrays, and its logits on the first images.

  net = of_net(logits_fn, x)     # {"code": ..., "arrays": ..., "logits": ...}, JSON values
  same("logits", old["logits"], net["logits"])

The code is the jaxpr of the logits and of their gradient, which shows other preprocessing and other
custom gradients. It does not show what a callback does (to PyTorch, for example); the logits do.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt.arrays import digest
from robust_opt.evaluation import network
from robust_opt.evaluation.batches import plain_logits
from robust_opt.types import LogitsFn

NUM_IMAGES = 8


def of_net(logits_fn: LogitsFn, x: np.ndarray, definition: str = "") -> dict[str, Any]:
  """The identity of a network as JSON values.

  Args:
    logits_fn: x [B, *S] -> logits [B, C], in evaluation mode.
    x: [N, *S] float32, pixels in [0, 1]; the first NUM_IMAGES are used.
    definition: text that determines what a Partial computes from its arrays; if it is empty, the
      function is traced. Unlike a trace, it depends neither on the backend nor on the JAX version.

  Returns:
    The SHA-256 of the code and of the arrays, and the logits [n, C] as nested lists.
  """
  images = x[:NUM_IMAGES]
  logits = plain_logits(logits_fn, images, len(images)).astype(np.float64)
  rounded = [[float(f"{value:.6g}") for value in row] for row in logits]
  if definition:
    code, arrays = definition, jax.tree.leaves(logits_fn)
  else:
    jaxpr = network.traced(lambda _, x: logits_fn(x), (), jnp.asarray(images))
    code, arrays = network.code(jaxpr), network.constants(jaxpr)
  sha256 = hashlib.sha256(code.encode()).hexdigest()
  return {"code": sha256, "arrays": digest(arrays), "logits": rounded}


def same(key: str, old: Any, new: Any) -> bool:
  """Whether two JSON values agree; up to rounding if the last part of the key is "logits"."""
  if key.rpartition(".")[2] != "logits" or np.shape(old) != np.shape(new):
    return bool(old == new)
  return network.compared(np.asarray(old, np.float32), np.asarray(new, np.float32))[0]
