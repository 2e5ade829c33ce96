"""Collections: the net scores 0, perturbations have their length, and the file can be trusted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import robust_opt as ro
from robust_opt import models
from robust_opt.arrays import digest
from robust_opt.data.datasets import load
from robust_opt.errors import InputError
from robust_opt.evaluation import collection, verdict
from robust_opt.files import write_sealed

RADII = {"linf": 0.1, "l2": 0.5, "l1": 1.0}
BATCH_SIZE = 64


def make_ascend(apply, batch_size=BATCH_SIZE):
  return collection.make_ascend(apply, ro.robust(), ro.steepest, batch_size)


def balls(box=False):
  return [ro.sets.BALLS[n](radius, (0.0, 1.0) if box else None) for n, radius in RADII.items()]


@pytest.fixture(scope="module")
def trained():
  """(apply, params, model_state) of an MLP after three epochs, and the test set."""
  net, digits, optimizer = models.MLP(widths=(32,)), load("digits", "train"), optax.adam(3e-3)
  apply = models.from_linen(net)
  params, model_state = models.init(net, jax.random.key(0), (8, 8, 1))
  state = ro.init_state(params, model_state, optimizer)
  plan = ro.EpochPlan(len(digits.labels), 32)
  step = ro.make_train_step(apply, optimizer, ro.robust(), ro.ascend(ro.frank_wolfe(ro.L2(0)), 0))
  run = jax.jit(ro.make_scan(step, plan), static_argnums=3)
  data = ro.ArrayData(digits.images, digits.labels)
  for _ in range(3):
    state, _ = run(state, data, jax.random.key(1), plan.num_steps)
  return apply, state.params, state.model_state, load("digits", "test")


@pytest.fixture(scope="module")
def logits_of(trained):
  apply, params, model_state, _ = trained
  return functools.partial(collection.make_logits_of(apply, BATCH_SIZE), params, model_state)


EITHER_SET = pytest.mark.parametrize("examples", [False, True], ids=["ball", "box"], indirect=True)


@pytest.fixture(scope="module")
def examples(request, trained, logits_of):
  """A collection; over balls with a box where the parameter is True."""
  box = getattr(request, "param", False)
  apply, params, model_state, test = trained
  ascend = functools.partial(make_ascend(apply), params, model_state)
  of_test = test.images, test.labels, balls(box)
  found = collection.collect(logits_of, ascend, *of_test, digest(params))
  if box:
    assert found.images.min() >= 0
    assert found.images.max() <= 1
  return found


@EITHER_SET
def test_the_net_is_wrong_on_all_and_was_right_on_the_sources(examples, trained, logits_of):
  apply, params, model_state, test = trained
  assert set(examples.norms) == set(RADII)
  assert len(examples.labels) > 50
  logits_at = jax.jit(lambda x: apply(params, model_state, x, train=False, key=None)[0])
  logits = logits_at(examples.images)
  assert not (np.argmax(logits, axis=1) == examples.labels).any()
  logits = logits_at(test.images[examples.source_ids] / np.float32(255))
  np.testing.assert_array_equal(np.argmax(logits, axis=1), examples.labels)
  np.testing.assert_array_equal(test.labels[examples.source_ids], examples.labels)
  collection.verify(examples, logits_of, test.images, test.labels, examples.net)


@EITHER_SET
@pytest.mark.parametrize(
  ("norm", "length"),
  [
    ("linf", lambda d: np.abs(d).max(axis=1)),
    ("l2", lambda d: np.linalg.norm(d, axis=1)),
    ("l1", lambda d: np.abs(d).sum(axis=1)),
  ],
)
def test_perturbations_are_as_long_as_their_radius(examples, trained, norm, length):
  mine = examples.norms == norm
  sources = collection.pixels(trained[3].images)[examples.source_ids]
  delta = (examples.images.astype(np.float64) - sources).reshape(len(sources), -1)
  ratio = length(delta[mine]) / RADII[norm]
  assert ratio.max() <= 1 + 1e-6
  assert ratio.max() >= 1 - 1e-5
  np.testing.assert_array_equal(examples.radii[mine], RADII[norm])
  relative = collection.relative_norms(examples, trained[3].images)
  np.testing.assert_allclose(relative[mine], ratio, rtol=1e-12)
  if norm == "l1" and examples.images.max() > 1:  # no box: one pixel
    assert ((delta[mine] != 0).sum(axis=1) == 1).all()


def test_nothing_that_fools_the_net_is_left_out(examples, trained, logits_of):
  """Beside the errors that another machine might round away."""
  apply, params, model_state, test = trained
  batch = ro.Batch(collection.pixels(test.images), test.labels, np.arange(len(test.labels)))
  right = collection.correct(logits_of, batch.x, batch.y)

  def value_fn(x):
    return ro.losses.cross_entropy(apply(params, model_state, x, train=False, key=None)[0], batch.y)

  for norm, radius in RADII.items():
    attack = ro.steepest(ro.sets.BALLS[norm](radius))
    delta = jax.jit(lambda x, attack=attack: attack(value_fn, None, x)[0])(batch.x)
    fooled = right & ~collection.correct(logits_of, np.asarray(batch.x + delta), batch.y)
    missing = set(np.flatnonzero(fooled)) - set(examples.source_ids[examples.norms == norm])
    logits = logits_of(np.asarray(batch.x + delta))
    for i in missing:
      assert logits[i].max() - logits[i, batch.y[i]] < 2 * collection.MARGIN


def test_batch_size_changes_nothing(examples, trained):
  apply, params, model_state, test = trained
  logits_of = functools.partial(collection.make_logits_of(apply, 7), params, model_state)
  ascend = functools.partial(make_ascend(apply, batch_size=31), params, model_state)
  other = collection.collect(logits_of, ascend, test.images, test.labels, balls(), examples.net)
  np.testing.assert_array_equal(other.source_ids, examples.source_ids)
  np.testing.assert_array_equal(other.norms, examples.norms)
  np.testing.assert_allclose(other.images, examples.images, atol=1e-6)


def test_file_round_trips_to_the_same_bytes(examples, tmp_path):
  first, second = tmp_path / "a" / "first.npz", tmp_path / "second.npz"
  collection.save(examples, first)
  loaded = collection.load(first)
  for name, value in examples._asdict().items():
    np.testing.assert_array_equal(getattr(loaded, name), value)
  assert loaded.images.dtype == np.float32
  collection.save(loaded, second)
  assert first.read_bytes() == second.read_bytes()


def first(change):
  """A function of an array that changes its first entry."""
  return lambda a: np.concatenate([np.asarray(change(a[:1]), a.dtype), a[1:]])


@pytest.mark.parametrize(
  ("field", "change", "words"),
  [
    ("labels", first(lambda a: (a + 1) % 10), "labels"),
    ("images", first(lambda a: a + 0.5), "of its radius"),
    ("images", first(lambda a: a + np.nan), "of its radius"),
    ("radii", lambda a: a * (1 - 1e-4), "of its radius"),
    ("norms", first(lambda a: ["l9"]), "of its radius"),
    ("net", lambda _: "0" * 64, "was made from net"),
    ("images", lambda a: a[1:], "labels have the shape .* but must have"),
    ("radii", lambda a: a[1:], "radii have the shape .* but must have"),
    (
      "images",
      lambda a: a.reshape(len(a), -1),
      r"images have the shape \(\d+, 64\), but must have",
    ),
    ("source_ids", lambda a: a + 10_000, "not among the 360 test images"),
  ],
)
def test_verify_refuses_a_changed_collection(examples, trained, logits_of, field, change, words):
  test, bad = trained[3], examples._replace(**{field: change(getattr(examples, field))})
  with pytest.raises(InputError, match=words):
    collection.verify(bad, logits_of, test.images, test.labels, examples.net)


def test_verify_refuses_examples_that_the_net_gets_right(examples, trained, logits_of):
  test, images = trained[3], examples.images.copy()
  images[3] = collection.pixels(test.images)[examples.source_ids[3]]
  bad = examples._replace(images=images)
  with pytest.raises(InputError, match=r"1 of the \d+ examples"):
    collection.verify(bad, logits_of, test.images, test.labels, examples.net)


def test_load_refuses_what_is_no_collection(tmp_path):
  """What is no sealed file: files_test."""
  write_sealed(tmp_path / "another_kind.npz", {"images": np.zeros(3), "net": "net"})
  for name in ("absent", "another_kind"):
    with pytest.raises(InputError, match="not a readable collection"):
      collection.load(tmp_path / f"{name}.npz")


def test_nothing_can_be_collected_from_a_net_that_nothing_fools(trained, logits_of):
  test = trained[3]

  def ascend(u, x, y):
    return np.zeros_like(x)

  found = collection.collect(logits_of, ascend, test.images, test.labels, balls(), "net")
  assert len(found.labels) == 0
  collection.verify(found, logits_of, test.images, test.labels, "net")


def test_nan_logits_are_neither_right_nor_collected():
  def nan_logits(images):
    return np.full((len(images), 10), np.nan, np.float32)

  images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int32)
  assert not collection.correct(nan_logits, images, labels).any()


def test_rounding_is_that_of_an_image_file():
  images = np.array([-0.2, 0.0, 0.1, 0.4999, 0.999, 1.5], np.float32)
  expected = np.array([0, 0, 26, 127, 255, 255]) / 255
  np.testing.assert_allclose(collection.rounded(images), expected, rtol=1e-6)
  exact = np.arange(256, dtype=np.uint8)
  np.testing.assert_array_equal(
    collection.rounded(collection.pixels(exact)), collection.pixels(exact)
  )


@pytest.mark.parametrize(("count", "batch_size"), [(0, 4), (1, 4), (4, 4), (9, 4), (3, 8)])
def test_batches_are_padded_and_cut(count, batch_size):
  shapes = []

  def double(x):
    shapes.append(x.shape)
    return 2 * x

  x = np.arange(3.0 * count).reshape(count, 3)
  np.testing.assert_array_equal(collection.in_batches(double, batch_size, x), 2 * x)
  assert set(shapes) == {(batch_size, 3)}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_images_near_one_stay_within_a_small_radius(norm):
  """x + delta rounds by up to 3e-8 a pixel: that may be more than a relative 1e-6 of a radius."""
  rng = np.random.default_rng(0)
  x = rng.uniform(0.5, 1, (64, 784)).astype(np.float32)
  ball = ro.sets.BALLS[norm](0.01)
  delta = np.asarray(ball.steepest_ascent(jnp.asarray(rng.normal(size=x.shape), x.dtype), x))

  def lengths(image):
    return ro.sets.lengths(ball, image.astype(np.float64) - x)

  inwards = lengths(collection._rounded_inward(x, delta))
  assert inwards.max() <= 0.01 * (1 + verdict.TOLERANCE)
  assert inwards.min() > 0.01 * (1 - 1e-3)
  assert lengths(x + delta).max() > 0.01 * (1 + verdict.TOLERANCE)
