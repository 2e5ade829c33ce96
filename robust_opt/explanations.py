"""Measurements that explain adversarial examples, of any net; no attack among them.

  epsilons = jnp.linspace(-1, 1, 201)
  logits = epsilon_sweep(logits_fn, x, jnp.sign(gradient), epsilons)     # [E, B, C]
  wrong = ~jax.vmap(losses.correct, (0, None))(logits, y)                # [E, B]
  linearity(epsilons, logits).knee                  # near 1: lines that meet at x
  intervals(wrong).runs                             # few: regions, not pockets

|  claim                                              |  measured by                           |
|  small changes add up over many pixels              |  activation_growth                     |
|  nets are locally linear along a perturbation       |  epsilon_sweep, linearity              |
|  adversarial examples lie in contiguous regions     |  intervals, plane, components          |
|  a turn towards the gradient is enough              |  rotate_toward, smallest_angle         |
|  nets err alike, as linear classifiers do           |  agreement_on_mistakes,                |
|                                                     |  transfer_matrix, effective_weights    |
|  nets are sure of their mistakes, and of rubbish    |  confidence_on_mistakes, rubbish_rate  |

Every function is pure and all but `components` may be compiled; a share of nothing is NaN. The
perturbed points are not cut to the pixel box. Source: Goodfellow, Shlens and Szegedy 2015,
"Explaining and harnessing adversarial examples" (arXiv 1412.6572), whose sections are named below.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from robust_opt import losses, projections
from robust_opt.errors import InputError
from robust_opt.types import Array, LogitsFn


class Growth(NamedTuple):
  """How far <w, .> moves in n dimensions, each [D].

  Attributes:
    worst: mean over w of <w, eps sign(w)>; eps n.
    noise: root mean square of <w, eps s>, s random signs; about eps sqrt(pi n / 2).
  """

  worst: Array
  noise: Array


class Linearity(NamedTuple):
  """R^2 of least squares fits to every curve, [B, C]; NaN for a curve that is constant.

  Attributes:
    line: of one straight line.
    knee: of two that meet at eps = 0; never less than that of one, but for rounding.
  """

  line: Array
  knee: Array


class Intervals(NamedTuple):
  """Runs of neighbouring values of eps at which an example is misclassified, each [B] int32.

  Attributes:
    runs: how many.
    longest: values of eps in the longest, 0 if there is none.
  """

  runs: Array
  longest: Array


class Agreement(NamedTuple):
  """How often b predicts the class that a does, each [].

  Attributes:
    mistakes: share of the examples that a gets wrong; NaN if there are none.
    both: share of the examples that both get wrong; NaN if there are none.
    num_mistakes: int32, examples that a gets wrong.
    num_both: int32, examples that both get wrong.
  """

  mistakes: Array
  both: Array
  num_mistakes: Array
  num_both: Array


class Confidence(NamedTuple):
  """The largest probability, averaged, each [].

  Attributes:
    mistakes: over the examples that are misclassified; NaN if there are none.
    correct: over the others; NaN if there are none.
    error: share of the examples that are misclassified.
  """

  mistakes: Array
  correct: Array
  error: Array


def activation_growth(
  key: Array, dimensions: Sequence[int], eps: Array | float, trials: int
) -> Growth:
  """<w, eta> for the worst eta of max norm eps, and for random signs of the same max norm.

  The first is linear in n, the second grows as its square root. The weights are Gaussian, scaled
  to a mean magnitude of one. Source: section 3.

  Args:
    key: one key; dimension n draws from fold_in(key, n), whatever the others are.
    dimensions: D numbers n >= 1.
    eps: [].
    trials: weight vectors at each n.

  Raises:
    InputError: there is no dimension, or one of them or trials is less than 1.
  """
  if not dimensions or min(dimensions) < 1:
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
  """Logits along the line x + eps * direction, [E, B, C]; not cut to the pixel box.

  Source: section 8, figure 4, where the direction is the sign of the loss's gradient.

  Args:
    logits_fn: compiled once for all eps.
    x: [B, *S].
    direction: [B, *S].
    epsilons: [E], of either sign; in pixels if the largest entry of direction is one.

  Raises:
    InputError: direction has another shape than x.
  """
  _same_shape(x, direction=direction)
  return jax.lax.map(lambda eps: logits_fn(x + eps * direction), jnp.asarray(epsilons, x.dtype))


def linearity(epsilons: Array, logits: Array) -> Linearity:
  """How straight the curves of an `epsilon_sweep` are, with a bend at x and without.

  Source: section 8, which says of figure 4 that the curves are conspicuously piecewise linear.

  Args:
    epsilons: [E], E >= 4: fewer points lie on any two lines.
    logits: [E, B, C]. Logits that are not finite give NaN.

  Raises:
    InputError: there are fewer than four values of eps.
  """
  if len(epsilons) < 4:
    raise InputError(f"linearity needs at least 4 values of eps, but has {len(epsilons)}.")
  largest = jnp.max(jnp.abs(epsilons))
  eps = epsilons / jnp.where(largest > 0, largest, 1.0)
  # R^2 knows neither offset nor scale; without them, sums of squares keep their digits.
  z = logits - logits[:1]
  span = jnp.max(jnp.abs(z), axis=0)
  z = z / jnp.where(span == 0, 1.0, span)
  ones = jnp.ones_like(eps)
  line = jnp.stack([ones, eps], axis=1)
  knee = jnp.stack([ones, jnp.minimum(eps, 0.0), jnp.maximum(eps, 0.0)], axis=1)
  return Linearity(_r_squared(line, z), _r_squared(knee, z))


def intervals(wrong: Array) -> Intervals:
  """Number and length of the runs of eps at which the class is wrong.

  One long run is a region that the line crosses, many short ones are pockets. Source: section 8.

  Args:
    wrong: [E, B] bool, E >= 1, in the order of eps.

  Raises:
    InputError: there is no value of eps.
  """
  if not len(wrong):
    raise InputError("intervals needs at least one value of eps, but has none.")
  wrong = jnp.asarray(wrong, bool)
  begins = wrong.at[1:].set(wrong[1:] & ~wrong[:-1])
  place = jnp.arange(len(wrong), dtype=jnp.int32)[:, None]
  last_right = jax.lax.cummax(jnp.where(wrong, -1, place), axis=0)
  longest = jnp.max(place - last_right, axis=0)
  return Intervals(jnp.sum(begins, axis=0, dtype=jnp.int32), longest)


def plane(
  logits_fn: LogitsFn, x: Array, u: Array, v: Array, extent: Array | float, resolution: int
) -> Array:
  """Predicted classes on the slice x + a u + b v, [B, R, R] int32; -1 where a logit is not finite.

  Entry [i, j, k] is that of example i at a = grid[j], b = grid[k], where grid is R values from
  -extent to extent. An odd R has x itself in the middle.

  Args:
    logits_fn: the net.
    x: [B, *S].
    u: [B, *S], direction of a.
    v: [B, *S], direction of b.
    extent: [], largest a and b.
    resolution: R >= 2.

  Raises:
    InputError: u or v has another shape than x, or R is less than 2.
  """
  _same_shape(x, u=u, v=v)
  if resolution < 2:
    raise InputError(f"resolution must be at least 2, but was {resolution}.")
  grid = (jnp.linspace(-1.0, 1.0, resolution) * extent).astype(x.dtype)
  corners = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)

  def predict(at: Array) -> Array:
    logits = logits_fn(x + at[0] * u + at[1] * v)
    finite = jnp.all(jnp.isfinite(logits), axis=-1)
    return jnp.where(finite, jnp.argmax(logits, axis=-1), -1).astype(jnp.int32)

  return jnp.moveaxis(jax.lax.map(predict, corners), 0, 1).reshape(-1, resolution, resolution)


def components(mask: ArrayLike) -> np.ndarray:
  """Number of connected parts of each region, neighbours being those that share an edge.

  NumPy, not to be compiled.

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
  counts = [ndimage.label(mask[place])[1] for place in np.ndindex(mask.shape[:-2])]
  return np.array(counts, int).reshape(mask.shape[:-2])


def rotate_toward(x: Array, g: Array, angle: Array | float) -> Array:
  """Turns every x by an angle towards g, in the plane of the two; |x|_2 stays.

    cos(angle) x + sin(angle) |x|_2 p,   p the unit vector along the part of g orthogonal to x

  There is no such plane where g is 0 or parallel to x, to rounding: that x stays as it is. NaN in g
  gives NaN. Not cut to the pixel box. Source: section 4, last paragraph, where g is the gradient.

  Args:
    x: [B, *S].
    g: [B, *S].
    angle: [] or [B], in radians.

  Raises:
    InputError: g has another shape than x.
  """
  _same_shape(x, g=g)

  def rotate(x: Array, g: Array, angle: Array) -> Array:
    one = jnp.ones((), x.dtype)
    along_x, unit_g = projections.furthest_l2(x, one), projections.furthest_l2(g, one)
    across = unit_g
    for _ in range(2):  # the second time removes what the first has rounded
      across = across - jnp.sum(across * along_x) * along_x
    # Unit vectors that ought to be parallel differ by a few roundings.
    parallel = projections.l2_norm(across) <= 16 * jnp.finfo(x.dtype).eps
    turned = projections.furthest_l2(across, projections.l2_norm(x))
    return jnp.where(parallel, x, jnp.cos(angle) * x + jnp.sin(angle) * turned)

  return jax.vmap(rotate)(x, g, jnp.broadcast_to(jnp.asarray(angle, x.dtype), x.shape[:1]))


def smallest_angle(logits_fn: LogitsFn, x: Array, y: Array, g: Array, angles: Array) -> Array:
  """The smallest of the angles by which `rotate_toward` makes x misclassified, [B]; inf if none.

  The share of examples with an angle of at most a is the error under turns of up to a, on the grid.

  Args:
    logits_fn: the net.
    x: [B, *S].
    y: [B], labels.
    g: [B, *S], what x is turned towards: the gradient of the loss.
    angles: [A], A >= 1, in radians. With 0 among them, an x that is misclassified as it is has 0.

  Raises:
    InputError: there is no angle, or g has another shape than x.
  """
  if not len(angles):
    raise InputError("smallest_angle needs at least one angle, but has none.")

  def misclassified_at(angle: Array) -> Array:
    wrong = ~losses.correct(logits_fn(rotate_toward(x, g, angle)), y)
    return jnp.where(wrong, angle, jnp.inf)

  return jnp.min(jax.lax.map(misclassified_at, jnp.asarray(angles, x.dtype)), axis=0)


def agreement_on_mistakes(predicted_a: Array, predicted_b: Array, y: Array) -> Agreement:
  """How often b makes the mistakes of a. Source: section 8, the paragraphs before the last.

  Args:
    predicted_a: [B] classes, of the net that the examples are made against.
    predicted_b: [B] classes.
    y: [B], labels.
  """
  wrong = predicted_a != y
  both = wrong & (predicted_b != y)
  same = (predicted_a == predicted_b).astype(jnp.float32)
  return Agreement(
    _mean_where(same, wrong),
    _mean_where(same, both),
    jnp.sum(wrong, dtype=jnp.int32),
    jnp.sum(both, dtype=jnp.int32),
  )


def transfer_matrix(
  logits_fns: Sequence[LogitsFn], adversarial: Sequence[Array] | Array, y: Array
) -> Array:
  """Accuracy of every net on every set of adversarial examples, [M, N]; a row a set.

  Args:
    logits_fns: N nets.
    adversarial: M sets [B, *S], made against one net each, of the same examples.
    y: [B], labels.

  Raises:
    InputError: there is no net, or no set.
  """
  if not len(logits_fns) or not len(adversarial):
    raise InputError(
      "transfer_matrix needs at least one net and one set of examples, "
      f"but has {len(logits_fns)} and {len(adversarial)}."
    )
  sets = jnp.stack(list(adversarial))

  def accuracies(logits_fn: LogitsFn) -> Array:
    return jax.lax.map(lambda x: jnp.mean(losses.correct(logits_fn(x), y)), sets)

  return jnp.stack([accuracies(logits_fn) for logits_fn in logits_fns], axis=1)


def effective_weights(logits_fn: LogitsFn, x: Array) -> Array:
  """What the net would weigh the pixels with if it were linear, [C, *S].

  The mean over x of the gradient of every logit, less that of the mean logit: only differences of
  logits decide. For logits W x + b it is W less the mean of its rows, whatever x. Source: the
  hypothesis of section 8, that all these nets resemble one linear classifier.

  Args:
    logits_fn: every example by itself.
    x: [B, *S], B >= 1.
  """
  logits, pull_back = jax.vjp(logits_fn, x)
  num_classes = logits.shape[-1]

  def mean_gradient(one_hot: Array) -> Array:
    (gradient,) = pull_back(jnp.broadcast_to(one_hot, logits.shape))
    return jnp.mean(gradient, axis=0)

  weights = jax.lax.map(mean_gradient, jnp.eye(num_classes, dtype=logits.dtype))
  return weights - jnp.mean(weights, axis=0)


def cosine_similarity(a: Array, b: Array) -> Array:
  """Cosine of the angle between a and b, class by class, [C]; NaN where either is 0.

  Args:
    a: [C, *S], `effective_weights` of one net, say.
    b: [C, *S], those of another.

  Raises:
    InputError: b has another shape than a.
  """
  _same_shape(a, b=b)

  def cosine(a: Array, b: Array) -> Array:
    one = jnp.ones((), a.dtype)
    inner = jnp.sum(projections.furthest_l2(a, one) * projections.furthest_l2(b, one))
    nothing = (projections.linf_norm(a) == 0) | (projections.linf_norm(b) == 0)
    return jnp.where(nothing, jnp.nan, jnp.clip(inner, -1.0, 1.0))

  return jax.vmap(cosine)(a, b)


def confidence_on_mistakes(probabilities: Array, y: Array) -> Confidence:
  """How sure the net is where it errs, and where it does not. Source: section 4.

  Args:
    probabilities: [B, C]. An example whose are not finite counts as a mistake.
    y: [B], labels.
  """
  right = losses.correct(probabilities, y)
  largest = jnp.max(probabilities, axis=-1)
  return Confidence(_mean_where(largest, ~right), _mean_where(largest, right), 1 - jnp.mean(right))


def rubbish_rate(probabilities: Array, threshold: float = 0.5) -> Array:
  """Share of inputs that are taken for some class, though they are of none; [].

  Source: appendix A, "rubbish class examples", on Gaussian noise.

  Args:
    probabilities: [B, C] at such inputs, NaN giving NaN. The rows of a net with a sigmoid for every
      class need not sum to one.
    threshold: a class whose probability is larger is taken to be present.
  """
  largest = jnp.max(probabilities, axis=-1)
  return jnp.mean(jnp.where(jnp.isnan(largest), jnp.nan, largest > threshold))


def _mean_where(values: Array, where: Array) -> Array:
  """Mean of the values [B] at the places [B]; NaN if there are none."""
  count = jnp.sum(where)
  total = jnp.sum(jnp.where(where, values, 0.0))
  return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def _r_squared(design: Array, z: Array) -> Array:
  """1 - residual / total sum of squares of the fits of z [E, *R] by the columns of design: [*R]."""
  flat = z.reshape(len(z), -1)
  flat = flat - jnp.mean(flat, axis=0)
  basis, sizes, _ = jnp.linalg.svd(design, full_matrices=False)
  # Columns that add nothing: one side of the knee is empty if no eps lies there.
  spans = sizes > sizes[0] * math.sqrt(len(design)) * 4 * jnp.finfo(design.dtype).eps
  basis = basis * spans
  with jax.default_matmul_precision("highest"):
    residual = flat - basis @ (basis.T @ flat)
  total = jnp.sum(flat**2, axis=0)
  fit = 1 - jnp.sum(residual**2, axis=0) / jnp.where(total == 0, jnp.nan, total)
  return fit.reshape(z.shape[1:])


def _same_shape(x: Array, **others: Array) -> None:
  for name, other in others.items():
    if other.shape != x.shape:
      raise InputError(f"{name} must have the shape {x.shape}, but has {other.shape}.")
