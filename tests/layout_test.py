"""Channel axes: how they are resolved, and that no result depends on where they lie."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_opt as ro
from robust_opt import layout, sets
from robust_opt.attacks.square import counting_square
from robust_opt.data import augmentation, datasets
from robust_opt.errors import InputError
from robust_opt.evaluation import phases, trust
from robust_opt.sets.spatial import transform

SHAPE, FIRST = (6, 5, 3), (3, 6, 5)


def moved(x):
  """[N, H, W, C] -> [N, C, H, W]."""
  return np.moveaxis(np.asarray(x), -1, 1)


def images(count=8, shape=SHAPE):
  return np.random.default_rng(0).random((count, *shape)).astype(np.float32)


def nets(shape=SHAPE):
  """The same net for channels last and for channels first, and its labels of `images`."""
  weights = np.random.default_rng(1).normal(size=(int(np.prod(shape)), 3)).astype(np.float32)

  def last(x):
    z = x.reshape(len(x), -1) @ weights
    return z + 3 * jnp.sin(2 * z)

  def first(x):
    # The barrier keeps the product as it is: with the axes moved into it, it would round otherwise.
    return last(jax.lax.optimization_barrier(jnp.moveaxis(x, 1, -1)))

  return last, first, np.asarray(last(images(shape=shape))).argmax(axis=1)


@pytest.mark.parametrize(
  ("shape", "axis"),
  [
    ((28, 28, 1), 2),
    ((4, 32, 32), 0),
    ((6, 7, 6, 1), 3),
    ((20, 3), 1),
    ((3, 20), 0),
    ((2, 32, 32), 2),  # no candidate
    ((3, 28, 1), 2),  # two
    ((4, 3), None),
    ((3,), None),
    ((), None),
  ],
)
def test_what_is_guessed(shape, axis):
  assert layout.resolve("auto", shape) == axis
  assert layout.resolve(None, shape) is None
  for given in range(len(shape)):
    assert layout.resolve(given, shape) == layout.resolve(given - len(shape), shape) == given
  x = np.arange(2 * np.prod(shape, dtype=int)).reshape(2, *shape)
  last = layout.to_last(x, axis)
  np.testing.assert_array_equal(
    last, x[..., None] if axis is None else np.moveaxis(x, axis + 1, -1)
  )
  np.testing.assert_array_equal(layout.from_last(last, axis), x)
  guess = layout.describe_guess("auto", shape)
  assert bool(guess) == (axis not in (None, len(shape) - 1))
  assert not guess or f"axis {axis} " in guess


@pytest.mark.parametrize("axis", [3, "last"])
def test_what_is_no_axis_is_refused_before_any_work(axis):
  net = lambda x: jnp.zeros((len(x), 2)).at[:, 0].set(2)  # noqa: E731
  x, y, attacked = images(), np.zeros(8, int), []
  phase = phases.Phase("none", "apgd", lambda *_: attacked.append(1))
  with pytest.raises(InputError, match="channel_axis must be 'auto', None or an axis"):
    ro.autoattack(net, x, y, u=ro.L2(0.1, (0.0, 1.0)), version=(phase,), channel_axis=axis)
  with pytest.raises(InputError, match="channel_axis must be"):
    trust.report(net, x, y, u=ro.L2(0.1, (0.0, 1.0)), channel_axis=axis)
  assert not attacked


@pytest.mark.parametrize(
  "norm", ["linf", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("l2", "l1"))]
)
def test_square_finds_the_same_in_every_layout(norm):
  last, first, y = nets()
  x, radius = images(), {"linf": 0.05, "l2": 0.2, "l1": 0.8}[norm]
  keys = jax.random.split(jax.random.key(0), len(x))

  def search(net, x, axis):
    u = ro.sets.BALLS[norm](radius, box=(0.0, 1.0))
    attack = counting_square(u, num_queries=40, channel_axis=axis)
    return jax.jit(lambda x: attack(keys, net, x, y))(x)

  expected = search(last, x, "auto")
  assert 0 < expected.fooled.sum() < len(x)
  assert np.all(np.any(np.asarray(expected.delta) != 0, axis=(1, 2, 3)))
  found = search(first, moved(x), "auto")
  np.testing.assert_array_equal(found.delta, moved(expected.delta))
  np.testing.assert_array_equal(found.queries, expected.queries)
  if norm == "linf":
    other = search(first, moved(x), -1)
    assert np.any(np.asarray(other.delta) != moved(expected.delta))


@pytest.mark.slow
def test_autoattack_hands_the_axis_on_and_says_what_it_guessed(caplog):
  """Of two channels first nothing can be guessed: the axis has to be stated."""
  last, first, y = nets((6, 5, 2))
  x, version = images(shape=(6, 5, 2)), (phases.square_phase(30),)
  attack = functools.partial(ro.autoattack, y=y, u=ro.LInf(0.05, (0.0, 1.0)), version=version)
  expected = attack(last, x)
  found = attack(first, moved(x), channel_axis=0)
  np.testing.assert_array_equal(found.broken_by, expected.broken_by)
  np.testing.assert_array_equal(found.images, moved(expected.images))
  assert not caplog.records

  last, first, y = nets()
  ro.autoattack(first, moved(images()), y, u=ro.LInf(0.05, (0.0, 1.0)), version=())
  (record,) = caplog.records
  assert "channels guessed to be axis 0 of examples of shape (3, 6, 5)" in record.getMessage()


# Quick: phases of a few steps. Compiling takes longer than running.
FEW = (phases.apgd_ce(3), phases.fab_t(2, 1), phases.square_phase(10))
VOLUME = (6, 7, 6, 1)
RADII = {"linf": 0.05, "l2": 0.3, "l1": 1.0}
SLOW_CASES = [((17,), "l1"), ((2, 3, 2, 3, 2), "linf")]


def any_rank(shape, norm):
  """net, x, y, set: the first example is misclassified."""
  net, _, y = nets(shape)
  y[0] = (y[0] + 1) % 3
  return net, images(shape=shape), y, ro.sets.BALLS[norm](RADII[norm], box=(0.0, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "norm"), [(VOLUME, "l2"), *SLOW_CASES])
def test_examples_of_any_rank_go_through_the_ensemble(shape, norm):
  net, x, y, u = any_rank(shape, norm)
  verdict = ro.autoattack(net, x, y, u, version=FEW)
  assert verdict.images.shape == x.shape
  assert verdict.broken_by[0] == 0
  broken = verdict.broken_by > 0
  assert np.all(np.asarray(net(verdict.images)).argmax(1)[broken] != y[broken])


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "norm"), [(VOLUME, "l2"), *SLOW_CASES])
def test_examples_of_any_rank_go_through_the_trust_report(shape, norm):
  net, x, y, u = any_rank(shape, norm)
  checks = trust.report(net, x, y, u, num_steps=2, num_queries=5)
  assert checks[-1].name == "black box"


# --- The other parts that look at neighboring pixels ---


def test_groups_of_every_layout():
  first = functools.partial(sets.channels, channel_axis=0)
  np.testing.assert_array_equal(sets.channels(SHAPE), np.broadcast_to(np.arange(3), SHAPE))
  for labels in (first(FIRST), sets.channels(FIRST)):
    np.testing.assert_array_equal(labels, moved(sets.channels(SHAPE)[None])[0])
  squares = moved(sets.patches(2)(SHAPE)[None])[0]
  for patches in (sets.patches(2), sets.patches(2, channel_axis=0)):
    np.testing.assert_array_equal(patches(FIRST), squares)
  # Intervals of a signal, cubes of a volume.
  np.testing.assert_array_equal(sets.patches(2)((5, 3))[:, 0], [0, 0, 1, 1, 2])
  cubes = sets.patches(2)((4, 4, 4, 1))
  np.testing.assert_array_equal(np.unique(cubes, return_counts=True)[1], [8] * 8)
  assert len(np.unique(cubes[:2, :2, :2])) == 1
  for shape in ((28, 28), (17,)):
    with pytest.raises(InputError, match="no channel axis"):
      sets.channels(shape)


def test_transforms_of_every_layout():
  x = images()
  rotated = np.asarray(transform(x, 20.0, (1.0, -0.5)))
  for axis in ("auto", 0):
    found = transform(moved(x), 20.0, (1.0, -0.5), axis)
    np.testing.assert_array_equal(found, moved(rotated))
  gray = transform(x[..., 0], 20.0, (1.0, -0.5))
  np.testing.assert_array_equal(gray, rotated[..., 0])

  weights = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
  attack = ro.grid_search(ro.sets.Transforms(30.0, 1.0), 3, 1)
  search = lambda value_fn, x: jax.jit(lambda x: attack(value_fn, None, x)[0])(x)  # noqa: E731
  expected = search(lambda x: jnp.sum(x * weights, axis=(1, 2, 3)), x)
  first = lambda x: jnp.sum(jnp.moveaxis(x, 1, -1) * weights, axis=(1, 2, 3))  # noqa: E731
  np.testing.assert_array_equal(search(first, moved(x)), moved(expected))
  for wrong in (x[..., 0, 0], x[..., None]):
    with pytest.raises(InputError, match="two axes besides batch and channels"):
      transform(wrong, 0.0, (0.0, 0.0))


@pytest.mark.parametrize("augment", [augmentation.flip, augmentation.crop])
def test_augmentations_of_every_layout(augment):
  x, keys = images(), jax.random.split(jax.random.key(0), 8)
  expected = augment(keys, x)
  assert np.any(np.asarray(expected) != x)
  for axis in ("auto", 0):
    np.testing.assert_array_equal(augment(keys, moved(x), channel_axis=axis), moved(expected))


def test_data_of_every_layout_become_channels_last():
  x, labels = images(), np.arange(8)
  for given, axis in ((x, "auto"), (moved(x), "auto"), (moved(x), 0), (moved(x), -3)):
    chex.assert_trees_all_equal(datasets.from_arrays(given, labels, channel_axis=axis).images, x)
  narrow = images(shape=(4, 5, 2))  # looks like channels first
  assert datasets.from_arrays(narrow, labels, channel_axis=-1).images.shape == narrow.shape
  assert datasets.from_arrays(narrow[..., 0], labels).images.shape == (8, 4, 5, 1)
