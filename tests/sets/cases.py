"""Random cases for sets of small vectors, and one compiled call for every operation of a set."""

import functools

import jax
import numpy as np
from rounding import rounding

BATCH, NUM_ENTRIES = 200, 6
BOX = (0.0, 1.0)
# A norm over the entries, its root, and what shifts, scales and clips them.
ROUNDING = rounding(terms=2 * NUM_ENTRIES + 8)


def random_cases(seed=0, batch=BATCH, num_entries=NUM_ENTRIES):
  """g [B, n] without ties, x [B, n] with pixels on the edge of the box, radii [B]."""
  rng = np.random.default_rng(seed)
  g, x = rng.normal(size=(batch, num_entries)), rng.random((batch, num_entries))
  x[: batch // 4] = np.round(x[: batch // 4] * 2) / 2
  radius = 10 ** rng.uniform(-2, 0.5, batch)
  return tuple(a.astype(np.float32) for a in (g, x, radius))


@functools.partial(jax.jit, static_argnames="operation")
def _compiled(u, operation, first, x):
  return getattr(u, operation)(first, x)


def run(u, operation, first, x):
  """An operation of a set, on grad, delta or keys; compiled once for all sets that differ in data.

  The radius is traced, so that it is not checked here.
  """
  return np.array(_compiled(u, operation, first, x))


def keys(seed=0, batch=BATCH):
  """One key for each example."""
  return jax.random.split(jax.random.key(seed), batch)


def inner(g, delta):
  """The inner product of each example, in float64."""
  return np.sum(np.asarray(g, np.float64) * delta, axis=-1)


def length(v):
  """The l_2 norm of each example, in float64."""
  return np.linalg.norm(np.asarray(v, np.float64), axis=-1)
