"""Tangent planes: known manifolds, the Jacobian they are read from, and held-out digits."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import assert_close, rounding

from robust_opt import sets
from robust_opt.data import datasets
from robust_opt.errors import InputError
from robust_opt.sets import tangents

KEY = jax.random.key(0)
ROWS = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 3)))[0].T  # orthonormal, [3, 8]
autoencoder_loss, contraction = jax.jit(tangents.autoencoder_loss), jax.jit(tangents.contraction)
# Products over 8 pixels and 12 units, in a few rounds of orthonormalization.
TERMS = 4 * (8 + 12)
ROUNDING = rounding(terms=TERMS)
close = functools.partial(assert_close, terms=TERMS, scale=1.0, dtype=np.float32)


def on_a_plane(num_images=120):
  """Points [N, 2, 4] of the plane through 0.5 that the first two of ROWS span."""
  z = np.random.default_rng(1).uniform(-0.3, 0.3, (num_images, 2))
  return np.float32(0.5 + z @ ROWS[:2]).reshape(-1, 2, 4)


def on_a_circle(num_images):
  """Points [N, 8] of a circle of radius 0.3, and the tangents [N, 8] there."""
  angle = np.linspace(0, 2 * np.pi, num_images, endpoint=False)
  radial = np.stack([np.cos(angle), np.sin(angle)], 1) @ ROWS[:2]
  tangent = np.stack([-np.sin(angle), np.cos(angle)], 1) @ ROWS[:2]
  return np.float32(0.5 + 0.3 * radial), tangent


def random_encoder(hidden=12, num_entries=8, seed=3):
  rng = np.random.default_rng(seed)
  shapes = ((hidden, num_entries), (hidden,), (num_entries,))
  return tangents.Autoencoder(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes))


def jacobians(params, x):
  """[B, H, n], by automatic differentiation."""
  one = jax.jacobian(lambda x: tangents.encode(params, x[None])[0])
  return np.asarray(jax.jit(jax.vmap(one))(x)).reshape(len(x), -1, x[0].size)


def flat(basis):
  return np.asarray(basis, np.float64).reshape(*basis.shape[:2], -1)


def cosines(first, second):
  """Of the principal angles between the spans of orthonormal rows, largest angle last."""
  return np.linalg.svd(first @ np.swapaxes(second, -1, -2), compute_uv=False)


def assert_orthonormal(basis):
  rows = flat(basis)
  gram = rows @ rows.swapaxes(1, 2)
  close(gram, np.broadcast_to(np.eye(rows.shape[1]), gram.shape))


# Local principal components.


def test_local_pca_finds_a_plane_and_nothing_more():
  charts = tangents.local_pca(on_a_plane(), rank=3, num_charts=5, key=KEY)
  chex.assert_shape(charts, [(5, 2, 4), (5, 3, 2, 4)])
  assert_orthonormal(charts.bases[:, :2])
  assert np.all(cosines(flat(charts.bases)[:, :2], ROWS[:2]) > 1 - ROUNDING)
  np.testing.assert_array_equal(charts.bases[:, 2], 0)


def test_local_pca_follows_a_circle():
  images, tangent = on_a_circle(240)
  charts = tangents.local_pca(images, rank=1, num_charts=48, key=KEY, neighbors=9)
  found = flat(tangents.charts_basis(charts, jnp.asarray(images)))[:, 0]
  assert np.all(np.abs(np.sum(found * tangent, 1)) > np.cos(np.radians(20)))
  # One plane for all would be tangent at no more than a few points.
  one = flat(tangents.local_pca(images, 1, 1, KEY, neighbors=240).bases)[0, 0]
  assert np.mean(np.abs(tangent @ one) > np.cos(np.radians(20))) < 0.3


def test_the_leading_direction_has_the_most_variance():
  z = np.random.default_rng(0).normal(size=(200, 3)) * [0.02, 0.08, 0.04]
  images = np.clip(0.5 + z @ ROWS, 0, 1).astype(np.float32)
  charts = tangents.local_pca(images, 3, 1, KEY, neighbors=200)
  exact = np.linalg.svd(images - images.mean(0))[2][:3]
  close(np.abs(np.sum(flat(charts.bases)[0] * exact, 1)), 1)


def test_anchors_are_the_means_of_their_images():
  images = np.random.default_rng(0).random((60, 5)).astype(np.float32)
  charts = tangents.local_pca(images, 2, 6, KEY, iterations=50)
  distance = np.linalg.norm(images[:, None] - charts.anchors[None], axis=-1)
  cell = distance.argmin(1)
  assert set(cell) == set(range(6))
  means = np.stack([images[cell == j].mean(0) for j in range(6)])
  close(charts.anchors, means)
  # At an x the plane is that of the nearest anchor.
  np.testing.assert_array_equal(
    tangents.charts_basis(charts, jnp.asarray(images)), charts.bases[cell]
  )
  # Without iterations, and with an anchor an image, they are the images.
  every = tangents.local_pca(images, 2, 60, KEY, iterations=0)
  np.testing.assert_array_equal(np.sort(every.anchors, 0), np.sort(images, 0))


def test_equal_images_have_no_directions():
  charts = tangents.local_pca(np.full((20, 4), 0.25, np.float32), 2, 3, KEY)
  np.testing.assert_array_equal(charts.bases, 0)


# The auto-encoder.


def test_loss_in_closed_form():
  params, x = random_encoder(), jnp.asarray(on_a_plane(7))
  w, b, c = (np.asarray(p, np.float64) for p in params)
  pixels = np.asarray(x, np.float64).reshape(7, -1)
  h = 1 / (1 + np.exp(-(pixels @ w.T + b)))
  y = 1 / (1 + np.exp(-(h @ w + c)))
  expected = -np.sum(pixels * np.log(y) + (1 - pixels) * np.log(1 - y), 1)
  expected += 0.7 * np.sum(jacobians(params, x) ** 2, (1, 2))
  close(autoencoder_loss(params, x, 0.7), expected)


@pytest.mark.parametrize(("rank", "iterations"), [(2, 40), (6, 0), (8, 0)])
def test_encoder_basis_is_the_leading_right_singular_vectors(rank, iterations):
  """By subspace iteration, and at once where the subspace is the whole code (12 units)."""
  params, x = random_encoder(), jnp.asarray(on_a_plane(9))
  basis = tangents.encoder_basis(params, x, rank, iterations)
  chex.assert_shape(basis, (9, rank, 2, 4))
  assert_orthonormal(basis)
  exact = np.linalg.svd(jacobians(params, x).astype(np.float64))[2][:, :rank]
  np.testing.assert_allclose(np.abs(np.sum(flat(basis) * exact, -1)), 1, atol=1e-4)


def test_few_iterations_catch_most_of_the_jacobian():
  params = random_encoder(hidden=40, num_entries=30)
  x = jnp.asarray(np.random.default_rng(0).random((9, 30)), jnp.float32)
  jacobian = jacobians(params, x)
  best = np.sum(np.linalg.svd(jacobian, compute_uv=False)[:, :4] ** 2, 1)

  def caught(iterations):
    basis = flat(tangents.encoder_basis(params, x, 4, iterations))
    return np.sum((jacobian @ basis.swapaxes(1, 2)) ** 2, (1, 2)) / best

  assert np.all(caught(6) <= 1 + ROUNDING)
  assert np.all(caught(6) > 0.99)
  assert np.all(caught(6) > caught(0))


@pytest.mark.parametrize("bias", [-40.0, -15.0, 0.0])
def test_nearly_saturated_units_have_directions(bias):
  """Slopes of 1e-17 too, whose squares are 0 in float32."""
  params = random_encoder()._replace(hidden_bias=jnp.full(12, bias))
  x = jnp.asarray(on_a_plane(5))
  basis = tangents.encoder_basis(params, x, 2, 40)
  exact = np.linalg.svd(jacobians(params, x).astype(np.float64))[2][:, :2]
  assert np.all(cosines(flat(basis), exact) > 1 - ROUNDING)


def test_directions_that_the_encoder_lacks_are_0():
  x = jnp.asarray(on_a_plane(5))
  params = random_encoder()
  weights = np.asarray(params.weights)
  of_rank_2 = params._replace(weights=jnp.asarray(weights[:, :2] @ ROWS[:2], jnp.float32))
  basis = tangents.encoder_basis(of_rank_2, x, 4)
  assert_orthonormal(basis[:, :2])
  assert np.all(cosines(flat(basis)[:, :2], ROWS[:2]) > 1 - ROUNDING)
  np.testing.assert_array_equal(basis[:, 2:], 0)
  for dead in (
    params._replace(hidden_bias=jnp.full(12, 1e4)),
    params._replace(weights=0 * params.weights),
  ):
    np.testing.assert_array_equal(tangents.encoder_basis(dead, x, 3), 0)


def test_the_autoencoder_finds_a_plane():
  images = on_a_plane()
  params = tangents.contractive_autoencoder(
    images, KEY, hidden=6, penalty=0.1, epochs=1000, batch_size=30, learning_rate=3e-3
  )
  basis = flat(tangents.encoder_basis(params, jnp.asarray(images), 2))
  # What is left of the weights' start fades slowly: 9 degrees here, 4 after longer training.
  assert np.all(cosines(basis, ROWS[:2]) > np.cos(np.radians(15)))


def test_training_lowers_the_loss_and_the_penalty_the_contraction():
  images = on_a_plane()
  x = jnp.asarray(images)
  train = functools.partial(
    tangents.contractive_autoencoder, images, KEY, hidden=6, batch_size=30, learning_rate=0.01
  )
  losses = [autoencoder_loss(train(epochs=n, penalty=0.1), x, 0.1).mean() for n in (1, 60)]
  assert losses[1] < losses[0]
  sizes = [contraction(train(epochs=60, penalty=p), x).mean() for p in (0.0, 0.1, 10.0)]
  assert sizes[0] > sizes[1] > 10 * sizes[2]


# What both are for.


@functools.cache
def digits():
  """Training images and labels, and held-out ones."""
  train = datasets.load("digits", "train")
  return train.images[:800], train.labels[:800], train.images[800:900], train.labels[800:900]


@pytest.mark.parametrize("name", ["autoencoder", "local_pca"])
def test_planes_contain_what_makes_digits_of_a_class_differ(name):
  """The way from a held-out digit to its nearest of the same class: more than by chance."""
  images, labels, held_out, held_out_labels = digits()
  rank = 5
  if name == "autoencoder":
    params = tangents.contractive_autoencoder(images, KEY, hidden=32, epochs=100)
    basis_of = functools.partial(tangents.encoder_basis, params, rank=rank)
  else:
    basis_of = tangents.fit(name, images, rank, seed=0)
  x = jnp.asarray(held_out / np.float32(255))
  known = images.reshape(len(images), -1) / 255
  away = known[None] - np.asarray(x).reshape(len(x), 1, -1)
  distance = np.where(labels == held_out_labels[:, None], np.sum(away**2, -1), np.inf)
  nearest = away[np.arange(len(x)), distance.argmin(1)]
  basis = jax.jit(basis_of)(x)
  assert_orthonormal(basis)

  def share(planes):
    return np.mean(np.sum(np.einsum("bdn,bn->bd", planes, nearest) ** 2, 1) / distance.min(1))

  chance = np.linalg.qr(np.random.default_rng(0).normal(size=(len(x), 64, rank)))[0]
  chance = share(chance.swapaxes(1, 2))
  assert abs(chance - rank / 64) < 0.02
  assert share(flat(basis)) > 1.5 * chance
  # And it is this x's plane that does: those of other digits contain less.
  assert share(flat(basis)) > share(flat(basis)[::-1])


@pytest.mark.parametrize("name", ["autoencoder", "local_pca"])
def test_fit_is_a_pure_function_of_the_seed(name, monkeypatch):
  monkeypatch.setattr(tangents, "_NUM_STEPS", 100)
  images = np.random.default_rng(0).integers(0, 256, (24, 2, 3), np.uint8)
  x = jnp.asarray(images / np.float32(255))
  basis_of = tangents.fit(name, images, 2, seed=0)
  basis = basis_of(x)
  chex.assert_shape(basis, (24, 2, 2, 3))
  chex.assert_type(basis, jnp.float32)
  of_floats = tangents.fit(name, images / np.float32(255), 2, seed=0)(x)
  np.testing.assert_array_equal(of_floats, basis)
  # An example's plane does not depend on its neighbors, nor on who maps over it.
  close(basis_of(x[3:4]), basis[3:4])
  one_by_one = jax.jit(jax.vmap(lambda one: basis_of(one[None])[0]))(x)
  close(one_by_one, basis)


def test_keys_choose_the_charts_and_the_weights():
  images = np.random.default_rng(0).random((30, 4)).astype(np.float32)
  for fit in (
    lambda key: tangents.local_pca(images, 1, 3, key).anchors,
    lambda key: tangents.contractive_autoencoder(images, key, hidden=3, epochs=1).weights,
  ):
    first, second = fit(jax.random.key(0)), fit(jax.random.key(1))
    assert np.max(np.abs(first - second)) > 1e-3


@pytest.mark.parametrize("name", ["autoencoder", "local_pca"])
def test_one_step_within_the_tangent_planes(name):
  rng = np.random.default_rng(0)
  images, g = rng.random((24, 2, 3)).astype(np.float32), rng.normal(size=(24, 2, 3))
  x, g = jnp.asarray(images), g.astype(np.float32)
  if name == "autoencoder":
    basis_of = functools.partial(tangents.encoder_basis, random_encoder(9, 6), rank=2)
  else:
    basis_of = functools.partial(tangents.charts_basis, tangents.local_pca(images, 2, 4, KEY))
  basis = flat(basis_of(x))
  along = np.einsum("bdn,bd->bn", basis, np.einsum("bdn,bn->bd", basis, g.reshape(24, -1)))
  expected = 0.5 * along / np.linalg.norm(along, axis=1, keepdims=True)
  u = sets.TangentAt(0.5, basis_of)
  step = jax.jit(u.steepest_ascent)(g, x).reshape(24, -1)
  close(step, expected)
  assert np.all(jax.jit(u.gauge)(step.reshape(x.shape), x) <= 1 + ROUNDING)
  other = np.asarray(jax.jit(u.steepest_ascent)(g, x[::-1])).reshape(24, -1)
  assert np.max(np.abs(other - step)) > 1e-2


# What is refused.

IMAGES = np.random.default_rng(0).random((6, 2, 2)).astype(np.float32)
CHARTS = tangents.Charts(jnp.zeros((3, 2, 2)), jnp.zeros((3, 1, 2, 2)))


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: tangents.fit("svd", IMAGES, 1, 0), "name must be 'autoencoder' or 'local_pca'"),
    (lambda: tangents.fit("autoencoder", IMAGES, 5, 0), "rank must be .* 1 to 4 .entries"),
    (lambda: tangents.fit("autoencoder", np.zeros((2, 200)), 129, 0), "rank must be .* 1 to 128"),
    (lambda: tangents.fit("local_pca", IMAGES, 5, 0), "rank must be .* 1 to 4 .entries"),
    (lambda: tangents.fit("local_pca", IMAGES[:3], 3, 0), "rank must be .* 1 to 2 .neighbors"),
    (lambda: tangents.local_pca(IMAGES, 0, 2, KEY), "rank must be an integer from 1"),
    (lambda: tangents.local_pca(IMAGES, 1.5, 2, KEY), "rank must be an integer from 1"),
    (lambda: tangents.local_pca(IMAGES, 1, 7, KEY), "num_charts must be .* 1 to 6 .images"),
    (lambda: tangents.local_pca(IMAGES, 1, 2, KEY, neighbors=7), "neighbors must be .* 1 to 6"),
    (lambda: tangents.local_pca(IMAGES, 1, 2, KEY, iterations=-1), "iterations must be >= 0"),
    (lambda: tangents.local_pca(IMAGES[0, 0], 1, 2, KEY), "images must be .N, .S. with at least"),
    (lambda: tangents.local_pca(IMAGES + 1, 1, 2, KEY), "images must be uint8, or floating"),
    (lambda: tangents.local_pca(IMAGES * np.nan, 1, 2, KEY), "images must be uint8, or floating"),
    (lambda: tangents.contractive_autoencoder(IMAGES, KEY, hidden=0), "hidden must be at least 1"),
    (lambda: tangents.contractive_autoencoder(IMAGES, KEY, epochs=0), "epochs must be at least 1"),
    (lambda: tangents.contractive_autoencoder(IMAGES, KEY, penalty=-1.0), "penalty must be >= 0"),
    (
      lambda: tangents.contractive_autoencoder(IMAGES, KEY, learning_rate=0.0),
      "learning_rate must be > 0",
    ),
    (
      lambda: tangents.contractive_autoencoder(IMAGES.astype(int), KEY),
      "images must be uint8, or floating",
    ),
    (lambda: tangents.encoder_basis(random_encoder(3), jnp.zeros((2, 8)), 4), "rank must be .* 3"),
    (lambda: tangents.encoder_basis(random_encoder(), jnp.zeros((2, 9)), 1), "x has examples of 9"),
    (lambda: tangents.charts_basis(CHARTS, jnp.zeros((1, 4))), "x has examples of the shape"),
    (lambda: tangents.charts_basis(CHARTS, jnp.zeros((1, 2, 2), int)), "x must be floating point"),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(InputError, match=f"^{message}"):
    call()
