"""Measurements that explain adversarial examples, for any net.

  epsilons = jnp.linspace(-1, 1, 201)
  logits = epsilon_sweep(logits_fn, x, jnp.sign(gradient), epsilons)     # [E, B, C]
  wrong = ~jax.vmap(losses.correct, (0, None))(logits, y)                # [E, B]
  linearity(epsilons, logits).knee                  # near 1: lines that meet at x
  intervals(wrong).runs                             # few: regions, not pockets

|  claim                                                  |  measured by                           |
|  small changes add up over many pixels                  |  activation_growth                     |
|  nets are locally linear along a perturbation           |  epsilon_sweep, linearity              |
|  adversarial examples lie in contiguous regions         |  intervals, plane, components          |
|  a rotation toward the gradient is enough               |  rotate_toward, smallest_angle         |
|  nets make the same mistakes, as linear classifiers do  |  agreement_on_mistakes,                |
|                                                         |  transfer_matrix, effective_weights    |
|  nets are confident on mistakes and on rubbish          |  confidence_on_mistakes, rubbish_rate  |

All functions are pure, and all but `components` can be jitted. Directions have the shape of x; bad
arguments are an InputError. Perturbed points are not clipped to the pixel box; a fraction of no
examples is NaN. Source: Goodfellow, Shlens and Szegedy 2015, "Explaining and harnessing adversarial
examples" (arXiv 1412.6572); docstrings cite its sections.
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
  """The change of an activation <w, x> in n dimensions, each [D]."""

  worst: Array  # mean over w of <w, eps sign(w)>, which is eps n
  noise: Array  # root mean square of <w, eps s> for random signs s, about eps sqrt(pi n / 2)


class Linearity(NamedTuple):
  """R^2 of least squares fits to every curve, [B, C]; NaN for a constant curve."""

  line: Array  # of one straight line
  knee: Array  # of two lines that meet at eps = 0; at least `line`, up to rounding


class Intervals(NamedTuple):
  """Runs of neighboring values of eps at which an example is misclassified, each [B] int32."""

  runs: Array  # their number
  longest: Array  # the number of values in the longest, 0 without runs


class Agreement(NamedTuple):
  """How often nets a and b predict the same class, each []."""

  mistakes: Array  # the fraction among the examples that a misclassifies
  both: Array  # the fraction among the examples that both misclassify
  num_mistakes: Array  # int32, the number of examples that a misclassifies
  num_both: Array  # int32, the number of examples that both misclassify


class Confidence(NamedTuple):
  """The mean of the largest probability, each []."""

  mistakes: Array  # over misclassified examples
  correct: Array  # over the others
  error: Array  # the fraction of misclassified examples


def activation_growth(key: Array, dimensions: Sequence[int], eps: float, trials: int) -> Growth:
  """<w, eta> for the worst eta of l_inf norm eps, and for random signs of the same norm.

  The first grows linearly in n, the second as its square root. Weights are Gaussian, scaled to a
  mean magnitude of one; `trials` of them are drawn from fold_in(key, n) for every dimension n >= 1.
  Source: section 3.
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
  """Logits along the line x + eps * direction, [E, B, C]; the net is compiled once.

  The epsilons [E] have either sign, in pixels if the largest entry of direction is one. Source:
  section 8, figure 4, where the direction is the sign of the loss's gradient.
  """
  _check_shape(x, direction=direction)
  return jax.lax.map(lambda eps: logits_fn(x + eps * direction), jnp.asarray(epsilons, x.dtype))


def linearity(epsilons: Array, logits: Array) -> Linearity:
  """The linearity of the curves [E, B, C] of an `epsilon_sweep`, with and without a bend at x.

  E is at least 4, since two lines fit fewer points exactly. Logits that are not finite give NaN.
  Source: section 8 and figure 4, whose curves are "conspicuously piecewise linear".
  """
  if len(epsilons) < 4:
    raise InputError(f"linearity needs at least 4 values of eps, but has {len(epsilons)}.")
  eps = projections.over_largest(jnp.asarray(epsilons))
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

  `wrong` is [E, B] bool in the order of eps, E >= 1. One long run is a region that the line
  crosses, many short ones are pockets. Source: section 8.
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

  Entry [i, j, k] is that of example i at a = grid[j], b = grid[k] for R >= 2 values grid from
  -extent to extent. With an odd resolution R the middle is x itself.
  """
  _check_shape(x, u=u, v=v)
  if resolution < 2:
    raise InputError(f"resolution must be at least 2, but was {resolution}.")
  grid = (jnp.asarray(symmetric_grid(1.0, resolution), x.dtype) * extent).astype(x.dtype)
  points = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)

  def predict(point: Array) -> Array:
    return losses.predicted(logits_fn(x + point[0] * u + point[1] * v))

  return jnp.moveaxis(jax.lax.map(predict, points), 0, 1).reshape(-1, resolution, resolution)


def components(mask: ArrayLike) -> np.ndarray:
  """Number of regions of pixels that share an edge: mask [*N, R, R] bool -> [*N]. NumPy."""
  mask = np.asarray(mask, bool)
  if mask.ndim < 2:
    raise InputError(f"mask must be [*N, R, R], but has {mask.ndim} axes.")
  counts = [ndimage.label(mask[index])[1] for index in np.ndindex(mask.shape[:-2])]
  return np.array(counts, int).reshape(mask.shape[:-2])


def rotate_toward(x: Array, g: Array, angle: Array | float) -> Array:
  """Rotates every x by an angle ([] or [B], in radians) toward g in their plane, keeping |x|_2.

    cos(angle) x + sin(angle) |x|_2 p,   p the unit vector along the part of g orthogonal to x

  Where g is 0 or parallel to x, up to rounding, x is returned. NaN in g gives NaN. Source: section
  4, last paragraph, where g is the gradient.
  """
  _check_shape(x, g=g)

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
  Include the angle 0 to report misclassified clean examples as 0.
  """
  if not len(angles):
    raise InputError("smallest_angle needs at least one angle, but has none.")

  def misclassified_at(angle: Array) -> Array:
    wrong = ~losses.correct(logits_fn(rotate_toward(x, g, angle)), y)
    return jnp.where(wrong, angle, jnp.inf)

  return jnp.min(jax.lax.map(misclassified_at, jnp.asarray(angles, x.dtype)), axis=0)


def agreement_on_mistakes(predicted_a: Array, predicted_b: Array, y: Array) -> Agreement:
  """How often b makes the same mistake as a, the net that was attacked; all arguments are [B].

  Source: section 8, the paragraphs before the last.
  """
  wrong = predicted_a != y
  both = wrong & (predicted_b != y)
  same = (predicted_a == predicted_b).astype(jnp.float32)
  counts = (jnp.sum(mask, dtype=jnp.int32) for mask in (wrong, both))
  return Agreement(_mean_where(same, wrong), _mean_where(same, both), *counts)


def transfer_matrix(
  logits_fns: Sequence[LogitsFn], adversarial: Sequence[Array] | Array, y: Array
) -> Array:
  """Accuracy of N nets on M sets [B, *S] of the same examples, each against one net: [M, N]."""
  if not len(logits_fns) or not len(adversarial):
    counts = f"{len(logits_fns)} and {len(adversarial)}"
    raise InputError(f"transfer_matrix needs at least one net and one set, but has {counts}.")
  sets = jnp.stack(list(adversarial))

  def accuracies(logits_fn: LogitsFn) -> Array:
    return jax.lax.map(lambda x: jnp.mean(losses.correct(logits_fn(x), y)), sets)

  return jnp.stack([accuracies(logits_fn) for logits_fn in logits_fns], axis=1)


def effective_weights(logits_fn: LogitsFn, x: Array) -> Array:
  """The weights of the pixels in a linear approximation of the net, [C, *S], C >= 2.

  The mean over x [B, *S] of the gradient of every logit minus that of the mean logit, since only
  differences of logits matter. For logits W x + b it is W minus the mean of its rows, for any x.
  Source: the hypothesis of section 8 that all these nets resemble one linear classifier.
  """
  logits, pull_back = jax.vjp(logits_fn, x)
  losses.check_classes(logits)

  def mean_gradient(one_hot: Array) -> Array:
    (gradient,) = pull_back(jnp.broadcast_to(one_hot, logits.shape))
    return jnp.mean(gradient, axis=0)

  weights = jax.lax.map(mean_gradient, jnp.eye(logits.shape[-1], dtype=logits.dtype))
  return weights - jnp.mean(weights, axis=0)


def cosine_similarity(a: Array, b: Array) -> Array:
  """Cosine of the angle between a and b [C, *S] per class, [C]; NaN where either is 0."""
  _check_shape(a, b=b)

  def cosine(a: Array, b: Array) -> Array:
    one = jnp.ones((), a.dtype)
    inner = jnp.sum(projections.furthest_l2(a, one) * projections.furthest_l2(b, one))
    is_zero = (projections.linf_norm(a) == 0) | (projections.linf_norm(b) == 0)
    return jnp.where(is_zero, jnp.nan, jnp.clip(inner, -1.0, 1.0))

  return jax.vmap(cosine)(a, b)


def confidence_on_mistakes(probabilities: Array, y: Array) -> Confidence:
  """The confidence on misclassified and on other examples. Source: section 4.

  Examples with probabilities [B, C] that are not finite count as mistakes.
  """
  right = losses.correct(probabilities, y)
  largest = jnp.max(probabilities, axis=-1)
  return Confidence(_mean_where(largest, ~right), _mean_where(largest, right), 1 - jnp.mean(right))


def rubbish_rate(probabilities: Array, threshold: float = 0.5) -> Array:
  """The fraction of inputs of no class with a probability [B, C] above the threshold, [].

  Rows need not sum to one; NaN gives NaN. Source: appendix A, "rubbish class examples".
  """
  largest = jnp.max(probabilities, axis=-1)
  return jnp.mean(jnp.where(jnp.isnan(largest), jnp.nan, largest > threshold))


def _r_squared(design: Array, z: Array) -> Array:
  """R^2 [*R] of the least squares fits of z [E, *R] by the columns of design."""
  flat = z.reshape(len(z), -1)
  flat = flat - jnp.mean(flat, axis=0)
  basis, sizes, _ = jnp.linalg.svd(design, full_matrices=False)
  # Dependent columns are dropped: one side of the knee is 0 if no eps lies there.
  basis = basis * (sizes > sizes[0] * math.sqrt(len(design)) * 4 * jnp.finfo(design.dtype).eps)
  with jax.default_matmul_precision("highest"):
    residual = flat - basis @ (basis.T @ flat)
  total = jnp.sum(flat**2, axis=0)
  fit = 1 - jnp.sum(residual**2, axis=0) / jnp.where(total == 0, jnp.nan, total)
  return fit.reshape(z.shape[1:])


def _check_shape(x: Array, **others: Array) -> None:
  """InputError for the named arrays that do not have the shape of x."""
  for name, other in others.items():
    if other.shape != x.shape:
      raise InputError(f"{name} must have the shape {x.shape}, but has {other.shape}.")


def _mean_where(values: Array, where: Array) -> Array:
  """Mean of the values [B] where the mask [B] is True; NaN if it never is."""
  count = jnp.sum(where)
  total = jnp.sum(jnp.where(where, values, 0.0))
  return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)
