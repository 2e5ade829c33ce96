"""Helpers for arrays of examples: broadcasting per-example values, padding, digests.

delta = where_examples(fooled, new, delta)     # fooled [B], new and delta [B, *S]
scaled = expand_like(scale, delta) * delta     # scale [B]
batch = pad_to(x[start:stop], batch_size)      # [n, *S] -> [batch_size, *S]
"""

import hashlib
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt.types import Array

AnyArray = TypeVar("AnyArray", np.ndarray, Array)


def expand_like(values: AnyArray, like: AnyArray) -> AnyArray:
  """[B] -> [B, 1, ..., 1] with as many axes as `like` [B, *S], to broadcast against it."""
  return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def where_examples(mask: Array, a: Array, b: Array) -> Array:
  """Per example, a where mask [B] is True and b elsewhere; a and b are [B, *S]."""
  return jnp.where(expand_like(mask, b), a, b)


def pad_to(array: AnyArray, count: int) -> AnyArray:
  """[n, *S] -> [count, *S], n >= 1: repeats the last entry at the end."""
  return array[np.minimum(np.arange(count), len(array) - 1)]


def symmetric_grid(limit: float, num: int) -> np.ndarray:
  """num evenly spaced values from -limit to limit [num], exactly symmetric; 0 if num is 1."""
  return limit * (2 * np.arange(num) - (num - 1)) / max(num - 1, 1)


def digest(tree: Any) -> str:
  """SHA-256 over all arrays of a tree, including each one's path, dtype and shape."""
  sha = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(tree):
    array = np.ascontiguousarray(jax.device_get(leaf))
    sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape};".encode())
    sha.update(array.tobytes())
  return sha.hexdigest()
