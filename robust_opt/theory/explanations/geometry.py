"""How the output of a net changes along lines, planes and circles through an example.

  logits = epsilon_sweep(logits_fn, x, direction, epsilons)      # [E, B, C]
  smallest_angle(logits_fn, x, y, gradient, angles)              # [B], in radians

Sections are those of Goodfellow et al. 2015 (arXiv 1412.6572).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from robust_opt import losses
from robust_opt.arrays import symmetric_grid
from robust_opt.errors import InputError
from robust_opt.sets import projections
from robust_opt.types import Array, LogitsFn


class Growth(NamedTuple):
  """The change of an activation <w, x> in n dimensions, each [D].

  Attributes:
    worst: mean over w of <w, eps sign(w)>, which is eps n.
    noise: root mean square of <w, eps s> for random signs s, about eps sqrt(pi n / 2).
  """

  worst: Array
  noise: Array


class Linearity(NamedTuple):
  """R^2 of least squares fits to every curve, [B, C]; NaN for a constant curve.

  Attributes:
    line: of one straight line.
    knee: of two lines that meet at eps = 0; at least `line`, up to rounding.
  """

  line: Array
  knee: Array


class Intervals(NamedTuple):
  """Runs of neighboring values of eps at which an example is misclassified, each [B] int32.

  Attributes:
    runs: the number of runs.
    longest: the number of values in the longest run, 0 without runs.
  """

  runs: Array
  longest: Array


def activation_growth(
  key: Array, dimensions: Sequence[int], eps: Array | float, trials: int
) -> Growth:
  """<w, eta> for the worst eta of l_inf norm eps, and for random signs of the same norm.

  The first grows linearly in n, the second as its square root. The weights are Gaussian, scaled to
  a mean magnitude of one. Source: section 3.

  Args:
    key: one key; dimension n draws from fold_in(key, n).
    dimensions: D numbers n >= 1.
    eps: [].
    trials: weight vectors per n.

  Raises:
    InputError: dimensions is empty, or one of them or trials is less than 1.
  """
  if len(dimensions) < 1 or min(dimensions) < 1:
    raise InputError(f"dimensions must be integers >= 1, at least one, but were {dimensions}.")
  if trials < 1:
    raise InputError(f"trials must be at least 1, but was {trials}.")

  def at(n: int) -> Growth:
    weight_key, sign_key = jax.random.split(jax.random.fold_in(key, n))
    w = jax.random.normal(weight_key, (trials, n))
    w = w / jnp.mean(jnp.abs(w), axis=1, keepdims=True)
    worst = jnp.sum(w * (eps * jnp.sign(w)), axis=1)
    noise = jnp.sum(w * (eps * jax.random.rademacher(sign_key, w.shape, w.dtype)), axis=1)
    return Growth(jnp.mean(worst), jnp.sqrt(jnp.mean(noise**2)))

  return jax.tree.map(lambda *values: jnp.stack(values), *map(at, dimensions))


def epsilon_sweep(logits_fn: LogitsFn, x: Array, direction: Array, epsilons: Array) -> Array:
  """Logits along the line x + eps * direction, [E, B, C], not clipped to the pixel box.

  Source: section 8, figure 4, where the direction is the sign of the loss's gradient.

  Args:
    logits_fn: compiled once for all eps.
    x, direction: [B, *S].
    epsilons: [E], of either sign; in pixels if the largest entry of direction is one.

  Raises:
    InputError: direction does not have the shape of x.
  """
  same_shape(x, direction=direction)
  return jax.lax.map(lambda eps: logits_fn(x + eps * direction), jnp.asarray(epsilons, x.dtype))


def linearity(epsilons: Array, logits: Array) -> Linearity:
  """The linearity of the curves of an `epsilon_sweep`, with and without a bend at x.

  Source: section 8 and figure 4, whose curves are "conspicuously piecewise linear".

  Args:
    epsilons: [E], E >= 4: two lines fit fewer points exactly.
    logits: [E, B, C]. Logits that are not finite give NaN.

  Raises:
    InputError: there are fewer than four values of eps.
  """
  if len(epsilons) < 4:
    raise InputError(f"linearity needs at least 4 values of eps, but has {len(epsilons)}.")
  largest = jnp.max(jnp.abs(epsilons))
  eps = epsilons / jnp.where(largest > 0, largest, 1.0)
  # R^2 does not depend on offset and scale; removing them keeps the precision of sums of squares.
  z = logits - logits[:1]
  span = jnp.max(jnp.abs(z), axis=0)
  z = z / jnp.where(span == 0, 1.0, span)
  ones = jnp.ones_like(eps)
  line = jnp.stack([ones, eps], axis=1)
  knee = jnp.stack([ones, jnp.minimum(eps, 0.0), jnp.maximum(eps, 0.0)], axis=1)
  return Linearity(_r_squared(line, z), _r_squared(knee, z))


def intervals(wrong: Array) -> Intervals:
  """Number and length of the runs of eps at which examples are misclassified.

  One long run is a region that the line crosses, many short ones are pockets. Source: section 8.

  Args:
    wrong: [E, B] bool, E >= 1, in the order of eps.

  Raises:
    InputError: wrong is empty.
  """
  if not len(wrong):
    raise InputError("intervals needs at least one value of eps, but has none.")
  wrong = jnp.asarray(wrong, bool)
  begins = wrong.at[1:].set(wrong[1:] & ~wrong[:-1])
  index = jnp.arange(len(wrong), dtype=jnp.int32)[:, None]
  last_right = jax.lax.cummax(jnp.where(wrong, -1, index), axis=0)
  longest = jnp.max(index - last_right, axis=0)
  return Intervals(jnp.sum(begins, axis=0, dtype=jnp.int32), longest)


def plane(
  logits_fn: LogitsFn, x: Array, u: Array, v: Array, extent: Array | float, resolution: int
) -> Array:
  """Predicted classes on the slice x + a u + b v, [B, R, R] int32; -1 where a logit is not finite.

  Entry [i, j, k] is that of example i at a = grid[j], b = grid[k] for R values grid from -extent to
  extent. With an odd R the middle is x itself.

  Args:
    logits_fn: the net.
    x, u, v: [B, *S].
    extent: [], largest a and b.
    resolution: R >= 2.

  Raises:
    InputError: u or v does not have the shape of x, or R is less than 2.
  """
  same_shape(x, u=u, v=v)
  if resolution < 2:
    raise InputError(f"resolution must be at least 2, but was {resolution}.")
  grid = (jnp.asarray(symmetric_grid(1.0, resolution), x.dtype) * extent).astype(x.dtype)
  points = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)

  def predict(point: Array) -> Array:
    return losses.predicted(logits_fn(x + point[0] * u + point[1] * v))

  return jnp.moveaxis(jax.lax.map(predict, points), 0, 1).reshape(-1, resolution, resolution)


def components(mask: ArrayLike) -> np.ndarray:
  """Number of connected components of each region; pixels that share an edge are connected.

  NumPy, cannot be jitted.

  Args:
    mask: [*N, R, R] bool.

  Returns:
    [*N] integers.

  Raises:
    InputError: mask has fewer than two axes.
  """
  mask = np.asarray(mask, bool)
  if mask.ndim < 2:
    raise InputError(f"mask must be [*N, R, R], but has {mask.ndim} axes.")
  counts = [ndimage.label(mask[index])[1] for index in np.ndindex(mask.shape[:-2])]
  return np.array(counts, int).reshape(mask.shape[:-2])


def rotate_toward(x: Array, g: Array, angle: Array | float) -> Array:
  """Rotates every x by an angle toward g, in the plane of x and g, keeping |x|_2.

    cos(angle) x + sin(angle) |x|_2 p,   p the unit vector along the part of g orthogonal to x

  Where g is 0 or parallel to x, up to rounding, x is returned. NaN in g gives NaN. The result is
  not clipped to the pixel box. Source: section 4, last paragraph, where g is the gradient.

  Args:
    x, g: [B, *S].
    angle: [] or [B], in radians.

  Raises:
    InputError: g does not have the shape of x.
  """
  same_shape(x, g=g)

  def rotate(x: Array, g: Array, angle: Array) -> Array:
    one = jnp.ones((), x.dtype)
    along_x, unit_g = projections.furthest_l2(x, one), projections.furthest_l2(g, one)
    across = unit_g
    for _ in range(2):  # the second pass removes the rounding of the first
      across = across - jnp.sum(across * along_x) * along_x
    # Parallel unit vectors differ by a few roundings.
    parallel = projections.l2_norm(across) <= 16 * jnp.finfo(x.dtype).eps
    orthogonal = projections.furthest_l2(across, projections.l2_norm(x))
    return jnp.where(parallel, x, jnp.cos(angle) * x + jnp.sin(angle) * orthogonal)

  return jax.vmap(rotate)(x, g, jnp.broadcast_to(jnp.asarray(angle, x.dtype), x.shape[:1]))


def smallest_angle(logits_fn: LogitsFn, x: Array, y: Array, g: Array, angles: Array) -> Array:
  """The smallest of the angles at which `rotate_toward` makes x misclassified, [B]; inf if none.

  The fraction of examples with an angle of at most a is the error under rotations of up to a.

  Args:
    logits_fn: the net.
    x: [B, *S].
    y: [B], labels.
    g: [B, *S], the direction to rotate toward, such as the gradient of the loss.
    angles: [A], A >= 1, in radians. Include 0 to report misclassified clean examples as 0.

  Raises:
    InputError: angles is empty, or g does not have the shape of x.
  """
  if not len(angles):
    raise InputError("smallest_angle needs at least one angle, but has none.")

  def misclassified_at(angle: Array) -> Array:
    wrong = ~losses.correct(logits_fn(rotate_toward(x, g, angle)), y)
    return jnp.where(wrong, angle, jnp.inf)

  return jnp.min(jax.lax.map(misclassified_at, jnp.asarray(angles, x.dtype)), axis=0)


def _r_squared(design: Array, z: Array) -> Array:
  """R^2 [*R] of the least squares fits of z [E, *R] by the columns of design."""
  flat = z.reshape(len(z), -1)
  flat = flat - jnp.mean(flat, axis=0)
  basis, sizes, _ = jnp.linalg.svd(design, full_matrices=False)
  # Dependent columns are dropped: one side of the knee is 0 if no eps lies there.
  spans = sizes > sizes[0] * math.sqrt(len(design)) * 4 * jnp.finfo(design.dtype).eps
  basis = basis * spans
  with jax.default_matmul_precision("highest"):
    residual = flat - basis @ (basis.T @ flat)
  total = jnp.sum(flat**2, axis=0)
  fit = 1 - jnp.sum(residual**2, axis=0) / jnp.where(total == 0, jnp.nan, total)
  return fit.reshape(z.shape[1:])


def same_shape(x: Array, **others: Array) -> None:
  """InputError for the named arrays that do not have the shape of x."""
  for name, other in others.items():
    if other.shape != x.shape:
      raise InputError(f"{name} must have the shape {x.shape}, but has {other.shape}.")
