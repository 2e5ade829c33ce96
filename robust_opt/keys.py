"""Random keys from callers: one key or one per example, of jax.random.key or jax.random.PRNGKey."""

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt.errors import InputError
from robust_opt.types import Array


def required(key: Array | None, what: str) -> Array:
  """The key; an InputError that begins with `what` if it is None or no array."""
  if isinstance(key, jax.Array | np.ndarray):
    return key
  raise InputError(
    f"{what} needs a key, as in jax.random.key(0), but it was {key!r} (a robustified loss takes "
    "attack_key=)."
  )


def typed(key: Array) -> Array:
  """Converts keys of jax.random.PRNGKey to those of jax.random.key, [] or [B]."""
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    return key
  return jax.random.wrap_key_data(key)


def per_example(key: Array, count: int) -> Array:
  """Splits one key into [count]; keys [count] are returned unchanged."""
  keys = typed(key)
  return keys if keys.ndim else jax.random.split(keys, count)


def keys_of(key: Array, ids: Array) -> Array:
  """One key per example [B], which depends only on its id."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)
