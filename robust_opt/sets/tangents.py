"""Tangent planes of the data manifold, learned from unlabeled training images.

  basis_of = tangents.fit("autoencoder", train.images, rank=10, seed=0)
  u = sets.TangentAt(0.5, basis_of)     # at every x the l_2 ball within its tangent plane

Shaham, Yamada and Negahban (2015, arXiv 1511.05432) interpret the manifold tangent classifier of
Rifai et al. (2011, NIPS) as one steepest ascent step over that set. A plane is a basis [rank, *S]
of orthonormal rows. Rows past the number of directions of the data or the encoder are 0; a
direction counts if its singular value is above a thousandth of the largest. Images are [N, *S],
uint8 in [0, 255] or floats in [0, 1]; a number out of its range is an InputError.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from robust_opt.errors import InputError
from robust_opt.precision import check_floating
from robust_opt.sets import BasisOf
from robust_opt.sets.projections import over_largest
from robust_opt.types import Array

_EXACT = jax.lax.Precision.HIGHEST
# Directions of smaller singular value, relative to the largest, are dropped: in float32 their
# squares, the eigenvalues, are indistinguishable from rounding.
_LEAST = 1e-3
_NUM_STEPS = 10_000  # updates of the autoencoder that `fit` trains, whatever the size of the data
_IMAGES_AT_A_TIME = 4096  # limits the distances in memory to [4096, M]
_ANCHORS_AT_A_TIME = 16  # limits the distances in memory to [16, N]


def fit(name: str, images: np.ndarray | Array, rank: int, seed: int) -> BasisOf:
  """The tangent planes of the images' manifold: x [B, *S], floats in [0, 1] -> [B, rank, *S].

  "autoencoder" trains 128 units by 10,000 steps of 100 images, "local_pca" has 200 charts, each of
  the 5 * rank nearest images. The rank is at most the entries of an image, and 128 or N - 1.
  """
  key = jax.random.key(seed)
  num_images, num_entries = _pixels(images).shape
  if name == "autoencoder":
    hidden, batch_size = 128, min(100, num_images)
    _check_integer("rank", rank, min(num_entries, hidden), "entries of an image, hidden units")
    epochs = -(-_NUM_STEPS // (num_images // batch_size))
    params = contractive_autoencoder(
      images, key, hidden=hidden, epochs=epochs, batch_size=batch_size
    )
    return functools.partial(encoder_basis, params, rank=rank)
  if name == "local_pca":
    charts = local_pca(images, rank, min(200, num_images), key)
    return functools.partial(charts_basis, charts)
  raise InputError(f"name must be 'autoencoder' or 'local_pca', but was {name!r}.")


class Charts(NamedTuple):
  """Planes at M points of the manifold, [M, *S], by orthonormal rows [M, rank, *S].

  The row of the largest variance is first; rows that the images around an anchor lack are 0.
  """

  anchors: Array
  bases: Array


def local_pca(
  images: np.ndarray | Array,
  rank: int,
  num_charts: int,
  key: Array,
  *,
  neighbors: int | None = None,
  iterations: int = 10,
) -> Charts:
  """Local principal components: the plane of largest variance around each of num_charts anchors.

  The anchors are the centers after some iterations of k-means on the images, started at random
  images (a center without images does not move). A plane is spanned by the leading right singular
  vectors of the `neighbors` nearest images (None: 5 * rank), about their mean. Few neighbors follow
  the curvature of the manifold better, many average out more noise. The rank is less than their
  number. Source: Kambhatla and Leen (1997, Neural Computation 9), with the nearest images in place
  of those of the same cell.
  """
  x, shape = _pixels(images), np.shape(images)[1:]
  _check_integer("rank", rank, x.shape[1], "entries of an image")
  _check_integer("num_charts", num_charts, len(x), "images")
  if neighbors is None:
    neighbors = min(5 * rank, len(x))
  _check_integer("neighbors", neighbors, len(x), "images")
  _check_integer("rank", rank, neighbors - 1, "neighbors of an anchor, less one for their mean")
  if iterations < 0:
    raise InputError(f"iterations must be >= 0, but was {iterations}.")
  anchors, bases = _fit_charts(x, key, rank, num_charts, neighbors, iterations)
  return Charts(anchors.reshape(num_charts, *shape), bases.reshape(num_charts, rank, *shape))


@jax.jit
def charts_basis(charts: Charts, x: Array) -> Array:
  """The basis [B, rank, *S] of the plane at the anchor nearest to each x [B, *S].

  It is piecewise constant: correct at the anchors, and between them where the manifold is flat.
  """
  shape = charts.anchors.shape[1:]
  check_floating(x, "x")
  if x.shape[1:] != shape:
    raise InputError(f"x has examples of the shape {x.shape[1:]}, but the charts are of {shape}.")
  anchors = charts.anchors.reshape(len(charts.anchors), -1)
  return charts.bases[_nearest(anchors, x.reshape(len(x), -1))].astype(x.dtype)


class Autoencoder(NamedTuple):
  """An autoencoder of one hidden layer with tied weights."""

  weights: Array  # [H, n] of the encoder; the decoder's are the transpose
  hidden_bias: Array  # [H]
  visible_bias: Array  # [n]


_Carry = tuple[Autoencoder, optax.OptState]


def contractive_autoencoder(
  images: np.ndarray | Array,
  key: Array,
  *,
  hidden: int = 128,
  penalty: float = 3.0,
  epochs: int = 20,
  batch_size: int = 100,
  learning_rate: float = 1e-3,
) -> Autoencoder:
  """An autoencoder whose code changes as little with its input as reconstruction allows.

    h(x) = sigmoid(W x + b),   y(x) = sigmoid(W^T h(x) + c)
    minimize the mean over images of  cross_entropy(y(x), x) + penalty |dh / dx|_F^2

  The cross-entropy is summed over the pixels, as if each were a probability. Reconstruction keeps
  the code of `hidden` units sensitive along the manifold; the penalty makes it insensitive
  elsewhere. Trained by Adam; an epoch drops the last N mod batch_size images of its random order.
  Source: Rifai, Vincent, Muller, Glorot and Bengio (2011, ICML).

  Of the penalties 1, 3 and 10, the planes of 3 captured most of the difference between a held-out
  MNIST digit and its nearest neighbor of the same class. With too large a penalty the code becomes
  constant: the weights and the `contraction` go to 0, and the planes are meaningless.
  """
  x = _pixels(images)
  for name, value in (("hidden", hidden), ("epochs", epochs), ("batch_size", batch_size)):
    if value < 1:
      raise InputError(f"{name} must be at least 1, but was {value}.")
  if not penalty >= 0:
    raise InputError(f"penalty must be >= 0, but was {penalty}.")
  if not learning_rate > 0:
    raise InputError(f"learning_rate must be > 0, but was {learning_rate}.")
  return _train(x, key, penalty, learning_rate, hidden, epochs, min(batch_size, len(x)))


def encode(params: Autoencoder, x: Array) -> Array:
  """The code sigmoid(W x + b), [B, H] in [0, 1], of x [B, *S]."""
  flat = x.reshape(len(x), -1)
  return jax.nn.sigmoid(flat @ params.weights.T + params.hidden_bias)


def contraction(params: Autoencoder, x: Array) -> Array:
  """|dh / dx|_F^2 = sum_j (h_j (1 - h_j))^2 |W_j|^2: x [B, *S] -> [B]."""
  return _slopes(params, x) ** 2 @ jnp.sum(params.weights**2, axis=1)


def autoencoder_loss(params: Autoencoder, x: Array, penalty: float | Array) -> Array:
  """The loss of `contractive_autoencoder`: x [B, *S] in [0, 1] -> [B]."""
  flat = x.reshape(len(x), -1)
  logits = encode(params, x) @ params.weights + params.visible_bias
  reconstruction = jnp.sum(optax.losses.sigmoid_binary_cross_entropy(logits, flat), axis=1)
  return reconstruction + penalty * contraction(params, x)


@functools.partial(jax.jit, static_argnames=("rank", "iterations"))
def encoder_basis(params: Autoencoder, x: Array, rank: int, iterations: int = 6) -> Array:
  """The leading right singular vectors of the encoder's Jacobian at x: the plane of the code.

    J = diag(h (1 - h)) W  [H, n]

  The directions in which the code changes most, largest first, up to sign; rows past the rank of J
  are 0 (all of them where every unit is saturated). No derivative flows through them.

  x is [B, *S] and the result [B, rank, *S], for a rank from 1 to min(H, n). Computed by subspace
  iteration on J J^T with 2 rank vectors, many times faster than a decomposition of every J: exact
  if H <= 2 rank, otherwise with an error of the plane that shrinks as
  (s_{2 rank + 1} / s_rank)^(2 iterations), s the singular values of J; below a degree on MNIST.
  """
  hidden, num_entries = params.weights.shape
  _check_integer("rank", rank, min(hidden, num_entries), "hidden units, or the entries of an image")
  check_floating(x, "x")
  size = math.prod(x.shape[1:])
  if size != num_entries:
    raise InputError(f"x has examples of {size} entries, but the encoder reads {num_entries}.")
  # Otherwise XLA spends seconds at compile time on folding the product of constant weights.
  params = jax.lax.optimization_barrier(params)
  slopes = _slopes(params, x)
  # The plane does not depend on the scale of J, whose square may underflow.
  slopes = jax.lax.stop_gradient(over_largest(slopes, axis=1))[:, :, None]
  weights = jax.lax.stop_gradient(over_largest(params.weights))
  gram = jnp.matmul(weights, weights.T, precision=_EXACT)  # shared by all x

  def times(q: Array) -> Array:  # J J^T q, [B, H, columns]
    return slopes * jnp.einsum("hk,bkc->bhc", gram, slopes * q, precision=_EXACT)

  num_vectors = min(hidden, 2 * rank)
  start = jax.random.normal(jax.random.key(0), (hidden, num_vectors), weights.dtype)
  q = jnp.broadcast_to(jnp.linalg.qr(start)[0], (len(x), hidden, num_vectors))
  q = jax.lax.fori_loop(0, iterations, lambda _, q: jnp.linalg.qr(times(q))[0], q)
  within = jnp.einsum("bhc,bhd->bcd", q, times(q), precision=_EXACT)
  q = jnp.matmul(q, _leading(within, rank), precision=_EXACT)
  rows = jnp.einsum("bhc,hn->bcn", slopes * q, weights, precision=_EXACT)  # J^T q
  return _orthonormal_rows(rows).reshape(len(x), rank, *x.shape[1:])


def _slopes(params: Autoencoder, x: Array) -> Array:
  """The derivatives h (1 - h) of the sigmoids, [B, H]."""
  h = encode(params, x)
  return h * (1.0 - h)


@functools.partial(jax.jit, static_argnames=("hidden", "epochs", "batch_size"))
def _train(
  x: Array, key: Array, penalty: float, rate: float, hidden: int, epochs: int, batch_size: int
) -> Autoencoder:
  """Minimizes the mean `autoencoder_loss` of x [N, n] by Adam."""
  weights_key, order_key = jax.random.split(key)
  num_entries = x.shape[1]
  bound = jnp.sqrt(6.0 / (hidden + num_entries))  # Glorot and Bengio (2010)
  params = Autoencoder(
    jax.random.uniform(weights_key, (hidden, num_entries), x.dtype, -bound, bound),
    jnp.zeros(hidden, x.dtype),
    jnp.zeros(num_entries, x.dtype),
  )
  optimizer = optax.adam(rate)
  gradient = jax.grad(lambda params, x: jnp.mean(autoencoder_loss(params, x, penalty)))

  def step(carry: _Carry, rows: Array) -> tuple[_Carry, None]:
    params, state = carry
    updates, state = optimizer.update(gradient(params, x[rows]), state)
    return (optax.apply_updates(params, updates), state), None

  def epoch(carry: _Carry, key: Array) -> tuple[_Carry, None]:
    num_batches = len(x) // batch_size
    order = jax.random.permutation(key, len(x))[: num_batches * batch_size]
    return jax.lax.scan(step, carry, order.reshape(num_batches, batch_size))

  carry = (params, optimizer.init(params))
  (params, _), _ = jax.lax.scan(epoch, carry, jax.random.split(order_key, epochs))
  return params


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _fit_charts(
  x: Array, key: Array, rank: int, num_charts: int, neighbors: int, iterations: int
) -> tuple[Array, Array]:
  """The anchors [M, n] and bases [M, rank, n] of x [N, n]."""

  def lloyd(_: int, centers: Array) -> Array:
    cell = _nearest(centers, x)
    count = jax.ops.segment_sum(jnp.ones(len(x), x.dtype), cell, num_charts)[:, None]
    total = jax.ops.segment_sum(x, cell, num_charts)
    return jnp.where(count > 0, total / jnp.maximum(count, 1.0), centers)

  first = jax.random.permutation(key, len(x))[:num_charts]
  anchors = jax.lax.fori_loop(0, iterations, lloyd, x[first])
  squares = jnp.sum(x**2, axis=1)

  def plane(anchor: Array) -> Array:
    distance = squares - 2.0 * jnp.matmul(x, anchor, precision=_EXACT)  # and |anchor|^2
    around = x[jax.lax.top_k(-distance, neighbors)[1]]
    around = around - jnp.mean(around, axis=0)
    vectors = _leading(jnp.matmul(around, around.T, precision=_EXACT), rank)
    return _orthonormal_rows(jnp.matmul(vectors.T, around, precision=_EXACT))

  # Without a remainder, which XLA would decompose concurrently: two batched LAPACK calls that each
  # wait for both of its threads deadlock (jaxlib 0.10).
  at_a_time = math.gcd(num_charts, _ANCHORS_AT_A_TIME)
  return anchors, jax.lax.map(plane, anchors, batch_size=at_a_time)


def _leading(gram: Array, rank: int) -> Array:
  """The eigenvectors [..., k, rank] of the largest eigenvalues of gram [..., k, k], in order."""
  return jnp.linalg.eigh(gram)[1][..., ::-1][..., :rank]  # eigh is ascending


def _orthonormal_rows(rows: Array) -> Array:
  """Normalizes orthogonal rows [..., rank, n], largest first; 0 where a row is too small."""
  size = jnp.linalg.norm(rows, axis=-1, keepdims=True)
  largest = jnp.max(size, axis=-2, keepdims=True)
  return jnp.where(size <= _LEAST * largest, 0.0, jnp.linalg.qr(rows.mT)[0].mT)


def _nearest(anchors: Array, x: Array) -> Array:
  """The index [N] of the anchor [M, n] nearest to each of x [N, n]; ties go to the first."""
  squares = jnp.sum(anchors**2, axis=1)

  def of_one(x: Array) -> Array:
    return jnp.argmin(squares - 2.0 * jnp.matmul(anchors, x, precision=_EXACT))  # and |x|^2

  return jax.lax.map(of_one, x, batch_size=_IMAGES_AT_A_TIME)


def _pixels(images: np.ndarray | Array) -> Array:
  """[N, n], float32 in [0, 1]."""
  x = np.asarray(images)
  if x.ndim < 2 or x.size == 0:
    raise InputError(
      f"images must be [N, *S] with at least one image and one entry, but have the shape {x.shape}."
    )
  if x.dtype == np.uint8:
    return jnp.asarray(x.reshape(len(x), -1).astype(np.float32) / np.float32(255))
  # `not` around the comparisons also rejects NaN.
  if not (np.issubdtype(x.dtype, np.floating) and np.min(x) >= 0 and np.max(x) <= 1):
    raise InputError(
      f"images must be uint8, or floating point in [0, 1], but are {x.dtype} from {np.min(x)} to "
      f"{np.max(x)}."
    )
  return jnp.asarray(x.reshape(len(x), -1).astype(np.float32))


def _check_integer(name: str, value: int, most: int, of_what: str) -> None:
  if not isinstance(value, int | np.integer) or not 1 <= value <= most:
    raise InputError(f"{name} must be an integer from 1 to {most} ({of_what}), but was {value}.")
