"""Random keys as callers give them: one or one an example, typed or of jax.random.PRNGKey.

keys = per_example(key, len(x))
"""

import jax
import jax.numpy as jnp

from robust_opt.errors import InputError
from robust_opt.types import Array


def required(key: Array | None, what: str) -> Array:
  """The key, or an InputError that says what needs one."""
  if key is None:
    raise InputError(
      f"{what} needs a key, but it was None; pass one to the attack, or attack_key= to a "
      f"robustified loss."
    )
  return key


def typed(key: Array) -> Array:
  """A key [], or keys [B], of jax.random.key as they are; of jax.random.PRNGKey made so."""
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    return key
  return jax.random.wrap_key_data(key)


def per_example(key: Array, count: int) -> Array:
  """Keys [count]: one key split, or keys as they are."""
  keys = typed(key)
  return keys if keys.ndim else jax.random.split(keys, count)


def keys_of(key: Array, ids: Array) -> Array:
  """A key for every example, [B], that depends on its id alone."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)
