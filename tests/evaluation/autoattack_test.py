"""AutoAttack where the answer is known, and its promises: no recompiling, resume, same answers."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import rounding

import robust_opt as ro
from robust_opt.certify import exact
from robust_opt.errors import InputError
from robust_opt.evaluation import autoattack, network
from robust_opt.training import sharding

ENTRIES = (4, 4, 1)
# The standard version with fewer steps.
SMALL = (
  autoattack._apgd_ce(15),
  autoattack._apgd_t(15, 9),
  autoattack._fab_t(10, 9),
  autoattack._square(30),
)
RADII = {"linf": 0.1, "l2": 0.3, "l1": 0.6}


def linear_net(weights, bias, x):
  return x.reshape(len(x), -1) @ weights + bias


@functools.cache
def problem(num_classes=5, count=70, scale=1.0):
  """(weights, bias), x, y of a linear model that is right on about nine of ten."""
  rng = np.random.default_rng(num_classes)
  weights = (scale * rng.normal(size=(16, num_classes))).astype(np.float32)
  bias = rng.normal(size=num_classes).astype(np.float32)
  x = rng.random((count, *ENTRIES)).astype(np.float32)
  y = np.asarray(linear_net(weights, bias, x)).argmax(axis=1)
  y[::10] = (y[::10] + 1) % num_classes
  return (weights, bias), x, y


def net_of(weights):
  return jax.tree_util.Partial(linear_net, *weights)


def attack(weights, x, y, norm, **changed):
  options = {"norm": norm, "radius": RADII[norm], "version": SMALL, "batch_size": 16} | changed
  return ro.autoattack(net_of(weights), x, y, **options)


# Compiling the ensemble takes longer than running it: one case in the fast set.
SLOW_CASES = [("linf", 2), ("l1", 10), ("linf", 100), ("l2", 3), ("l2", 10), ("l1", 2)]


@pytest.mark.parametrize(
  ("norm", "num_classes"),
  [("linf", 10), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES)],
)
def test_it_finds_what_the_closed_form_says(norm, num_classes):
  weights, x, y = problem(num_classes)
  # About half of the examples are robust at this radius.
  radius = float(np.median(exact.linear_distance(*weights, x, y, ro.sets.ball_of(norm))))
  verdict = attack(weights, x, y, norm, radius=radius)
  clean = exact.linear_margin(*weights, x, y, ro.sets.ball_of(norm)(0.0, autoattack.BOX))
  worst = exact.linear_margin(*weights, x, y, ro.sets.ball_of(norm)(radius, autoattack.BOX))
  stands = verdict.broken_by == autoattack.STANDS
  np.testing.assert_array_equal(verdict.broken_by == 0, clean > 0)
  # Nothing that is robust is broken, and nearly all that is not robust is.
  assert np.all(stands[worst < -1e-5])
  gap = 0.02 * (worst - clean)
  assert not np.any(stands[worst > gap + 1e-5])
  assert 0 < stands.sum() < np.sum(clean < 0)  # the problem has both

  moved = verdict.broken_by > 0
  delta = (verdict.images.astype(np.float64) - x).reshape(len(x), -1)
  order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
  assert np.all(np.linalg.norm(delta, order, axis=1) <= radius * (1 + rounding(terms=2 * 16 + 8)))
  np.testing.assert_array_equal(delta[~moved], 0)
  assert np.all((verdict.images >= 0) & (verdict.images <= 1))
  np.testing.assert_array_equal(
    autoattack.predictions(net_of(weights), verdict.images, 16)[stands], y[stands]
  )
  assert np.all(autoattack.predictions(net_of(weights), verdict.images, 16)[moved] != y[moved])
  assert verdict.robust_accuracy == stands.mean()
  assert verdict.clean_accuracy == np.mean(clean <= 0)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_its_ascents_keep_the_best_iterate_not_the_last(norm):
  """By the margin: an iterate that fools is not lost to one of a higher loss."""
  x = problem()[1][:12].reshape(12, -1)
  slope = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)

  def value_fn(x):  # the loss climbs on where the margin falls again
    return ro.Scored(x @ slope[:, 0], jnp.sin(8 * x @ slope).sum(-1))

  attack = autoattack._apgd(norm, jnp.float32(RADII[norm]), 10)
  delta, info = jax.jit(lambda x: attack(value_fn, jax.random.key(0), x))(x)
  ours, last_ball = value_fn(x + delta).score, info.score[-4:]  # of l_1, 40 % of the steps
  passed = np.maximum(last_ball.max(axis=0), value_fn(x).score)
  assert np.all(ours >= passed - 1e-4)
  assert np.mean(ours > info.score[-1] + 0.1) > 0.3


@pytest.mark.slow
def test_the_same_seed_gives_the_same_answer_and_another_another():
  weights, x, y = problem()
  first, again, other = (attack(weights, x, y, "l2", seed=seed) for seed in (0, 0, 1))
  chex.assert_trees_all_equal(first[1:], again[1:])
  assert np.any(first.images != other.images)
  np.testing.assert_array_equal(first.broken_by == -1, other.broken_by == -1)


@pytest.mark.slow
def test_an_example_does_not_depend_on_its_neighbours():
  weights, x, y = problem()
  whole = attack(weights, x, y, "linf")
  large = attack(weights, x, y, "linf", batch_size=40)
  np.testing.assert_array_equal(whole.broken_by, large.broken_by)
  np.testing.assert_allclose(whole.images, large.images, atol=rounding(terms=2 * 16 + 8))


class KilledError(Exception):
  pass


def keeping(store, dies_after=None):
  """Parts in a dictionary; saving one too many is the end."""

  def save(name, arrays):
    if dies_after is not None and len(store) >= dies_after:
      raise KilledError
    store[name] = arrays

  return autoattack.Parts(store.get, save)


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_to_the_same_answer():
  weights, x, y = problem()
  whole, parts = attack(weights, x, y, "linf", batch_size=8), {}
  reference = {}
  attack(weights, x, y, "linf", batch_size=8, parts=keeping(reference))
  for dies_after in (0, 1, 5, len(reference) - 1):
    with pytest.raises(KilledError):
      attack(weights, x, y, "linf", batch_size=8, parts=keeping(parts, dies_after))
    assert len(parts) == dies_after  # nothing that was done is lost, or done again
  resumed = attack(weights, x, y, "linf", batch_size=8, parts=keeping(parts))
  chex.assert_trees_all_equal(resumed[1:], whole[1:])
  assert parts.keys() == reference.keys()


@pytest.mark.slow
def test_nothing_is_compiled_anew_as_examples_fall():
  weights, x, y = problem(num_classes=10)

  def compilations():
    return [
      f._cache_size() for f in (autoattack._attack, autoattack._predict, network._compiled_logits)
    ]

  def run(count, scale, radius=0.3):
    net = net_of(jax.tree.map(lambda w: scale * w, weights))
    options = {"norm": "l2", "radius": radius, "version": SMALL, "batch_size": 16}
    ro.autoattack(net, x[:count], y[:count], **options)

  run(70, 1.0)
  after_first = compilations()
  run(70, 0.7, radius=0.301)  # another net of the same architecture, another radius
  run(53, 1.3)  # another number of examples
  assert compilations() == after_first


@pytest.mark.parametrize("count", [0, 1, 3, 8, 15, 16, 17, 31, 64, 100])
def test_batches_cover_everyone_once_in_two_sizes(count):
  ids = np.arange(count) * 3
  batches = list(autoattack.split(ids, 16))
  np.testing.assert_array_equal(np.concatenate([ids[:0], *batches]), ids)
  sizes = {autoattack.bucket(len(batch), 16) for batch in batches}
  assert sizes <= {2, 16}
  assert sum(autoattack.bucket(len(batch), 16) for batch in batches) <= count + 2


@pytest.mark.slow
def test_over_a_mesh_it_is_the_same():
  weights, x, y = problem()
  mesh = sharding.data_mesh()
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(sharding.AXIS))
  placed = attack(
    weights, x, y, "linf", batch_size=64, place=lambda array: jax.device_put(array, split)
  )
  alone = attack(weights, x, y, "linf", batch_size=64)
  np.testing.assert_array_equal(placed.broken_by, alone.broken_by)


@pytest.mark.slow
def test_progress_tells_of_every_batch():
  weights, x, y = problem()
  seen = []
  verdict = attack(weights, x, y, "linf", report=seen.append)
  assert all(a.standing >= b.standing and a.done <= b.done for a, b in itertools.pairwise(seen))
  assert seen[-1].standing / seen[-1].total == verdict.robust_accuracy
  assert {p.words for p in seen} >= {"apgd-ce", "apgd-t, target 1", "square"}


@pytest.mark.slow
def test_a_net_that_answers_at_random_is_attacked_on_average():
  weights, x, y = problem()

  def noisy(x, key):
    return linear_net(*weights, x) + 0.3 * jax.random.normal(key, (x.shape[0], 5))

  net = network.Randomized(noisy, jax.random.key(1), num_draws=20)
  rand = (autoattack._apgd_ce(10, fresh_noise=True), autoattack._apgd_dlr(10, fresh_noise=True))
  verdict = ro.autoattack(net, x, y, norm="l2", radius=0.3, version=rand, batch_size=16)
  plain = attack(weights, x, y, "l2")
  assert abs(verdict.robust_accuracy - plain.robust_accuracy) < 0.1
  probabilities = jnp.exp(net(x)).sum(axis=-1)
  np.testing.assert_allclose(probabilities, 1, rtol=rounding(terms=20 + 5 + 8))


def test_nan_under_attack_is_a_broken_example():
  weights, x, y = problem()
  x = np.clip(x, 0.2, 0.8)
  y = np.asarray(linear_net(*weights, x)).argmax(axis=1)

  def fragile(x):
    changed = jnp.abs(x - 0.5).reshape(len(x), -1).max(axis=1) > 0.31
    return jnp.where(changed[:, None], jnp.nan, linear_net(*weights, x))

  verdict = ro.autoattack(fragile, x, y, norm="linf", radius=0.05, version=SMALL[:1], batch_size=16)
  near = np.abs(x - 0.5).reshape(len(x), -1).max(axis=1) > 0.29
  assert near.mean() > 0.5
  assert np.mean(verdict.broken_by[near] > 0) > 0.9


def softmax_net(x):
  return jax.nn.softmax(linear_net(*problem()[0], x))


GOOD = {"norm": "linf", "radius": 0.1, "version": SMALL, "batch_size": 16}
BAD = {
  "unknown norm": ({"norm": "l3"}, "norm must be one of linf, l2, l1, but was 'l3'"),
  "radius 0": ({"radius": 0.0}, "radius must be a finite number > 0"),
  "radius nan": ({"radius": float("nan")}, "radius must be a finite number > 0"),
  "unknown version": ({"version": "best"}, "version must be one of standard, rand, quick"),
  "batch size": ({"batch_size": 0}, "batch_size must be an integer >= 1"),
  "no images": ({"x": np.zeros((0, 4), np.float32), "y": np.zeros(0, int)}, "at least one image"),
  "labels missing": ({"y": np.zeros(3, int)}, "as many labels as images"),
  "bytes": ({"x": np.zeros((70, *ENTRIES), np.uint8)}, "floating point, .* but are uint8"),
  "0 to 255": ({"x": np.full((70, *ENTRIES), 255.0)}, r"in \[0, 1\], but lie in \[255, 255\]"),
  "nan image": ({"x": np.full((70, *ENTRIES), np.nan)}, "must be finite"),
  "float labels": ({"y": np.zeros(70)}, "Labels must be integers"),
  "label too large": ({"y": np.full(70, 5)}, r"Labels must lie in \[0, 5\)"),
  "label negative": ({"y": np.full(70, -1)}, r"Labels must lie in \[0, 5\)"),
  "probabilities": ({"net": softmax_net}, "must return logits, but its outputs"),
  "nan logits": ({"net": lambda x: jnp.full((len(x), 5), jnp.nan)}, "logits must be finite"),
  "one class": ({"net": lambda x: jnp.zeros((len(x), 1))}, "at least 2 classes"),
  "one logit": ({"net": lambda x: jnp.zeros(len(x))}, "at least 2 classes"),
  "a net that raises": ({"net": lambda x: 1 / 0}, "The net fails on images .* division by zero"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_what_cannot_be_attacked_is_refused_in_one_sentence(case):
  weights, x, y = problem()
  changed, words = BAD[case]
  arguments = {"net": net_of(weights), "x": x, "y": y} | GOOD | changed
  net, x, y = (arguments.pop(name) for name in ("net", "x", "y"))
  with pytest.raises(InputError, match=words) as caught:
    ro.autoattack(net, x, y, **arguments)
  assert "\n" not in str(caught.value)
