"""Rotations and translations of images, searched on a grid.

  u = ro.sets.Transforms(max_rotation=30.0, max_translation=3.0)
  attack = ro.grid_search(u, num_rotations=31, num_translations=5)
  delta, info = attack(value_fn, None, x)      # x [B, H, W, C], [B, C, H, W] or [B, H, W]

The loss has many local maxima, which gradients do not leave: a grid is the stronger attack, usually
of 31 rotations and 5 translations per axis, up to 30 degrees and a tenth of the width (Engstrom et
al. 2019, arXiv 1712.02779, section 5).
"""

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import precision
from robust_opt.arrays import symmetric_grid
from robust_opt.errors import InputError
from robust_opt.maximizers.base import (
  AnyValueFn,
  AscentInfo,
  Attack,
  Candidates,
  at_step,
  better,
  per_example,
  scored,
)
from robust_opt.sets.spatial import Transforms, transform
from robust_opt.types import Array

NUM_ROTATIONS, NUM_TRANSLATIONS = 31, 5  # per axis


def grid_search(
  u: Transforms, num_rotations: int = NUM_ROTATIONS, num_translations: int = NUM_TRANSLATIONS
) -> Attack:
  """The worst of a grid of rotations and translations, for each example.

  The candidates are the clean example, first, and those of `candidates`. They run sequentially, one
  forward pass each, so that memory does not grow with the grid; the limits of u may be traced.
  delta [B, *S] is transform(x) - x; its score is never below the clean one, and NaN is the highest
  score. AscentInfo is stacked over the candidates, value [1 + G, B]; zero_gradient is False, since
  no gradient is taken. The key is not used.

  Raises:
    InputError: u is another set, or a number is < 1; from the attack: x does not hold images, as
      for `sets.spatial.transform`, or the loss has one value for the whole batch.
  """
  if not isinstance(u, Transforms):
    raise InputError(f"grid_search takes ro.sets.Transforms, not {type(u).__name__}.")
  for name, num in (("num_rotations", num_rotations), ("num_translations", num_translations)):
    if num < 1:
      raise InputError(f"{name} must be at least 1, but was {num}.")

  def attack(value_fn: AnyValueFn, key: Array | None, x: Array) -> tuple[Array, AscentInfo]:
    del key

    def evaluate(delta: Array) -> AscentInfo:
      out = scored(at_step(value_fn, 0)(x + delta), x)
      return AscentInfo(out.value, jnp.zeros(x.shape[:1], bool), per_example(out.score, x))

    def body(best: Candidates, candidate: Array) -> tuple[Candidates, AscentInfo]:
      delta = transform(x, candidate[0], candidate[1:], u.channel_axis) - x
      info = evaluate(delta)
      return better(best, (delta, info.score)), info

    clean = evaluate(jnp.zeros_like(x))
    start = (jnp.zeros_like(x), clean.score)
    grid = candidates(u, num_rotations, num_translations).astype(precision.wide(x.dtype))
    (delta, _), info = jax.lax.scan(body, start, grid)
    stacked = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), clean, info)
    return jax.lax.stop_gradient(delta), stacked

  return attack


def candidates(u: Transforms, num_rotations: int, num_translations: int) -> Array:
  """Degrees, and shifts down and to the right in pixels: [G, 3].

  num_rotations x num_translations^2 of them, evenly spaced between minus and plus the maximum (a
  single value is 0), less the identity.
  """
  angles, shifts = symmetric_grid(1.0, num_rotations), symmetric_grid(1.0, num_translations)
  unit = np.stack(np.meshgrid(angles, shifts, shifts, indexing="ij"), axis=-1).reshape(-1, 3)
  unit = unit[np.any(unit != 0, axis=1)]
  return jnp.asarray(unit) * jnp.asarray([u.max_rotation, u.max_translation, u.max_translation])
