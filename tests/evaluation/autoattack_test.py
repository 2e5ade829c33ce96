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
from robust_opt.attacks import white_box
from robust_opt.certificates import exact
from robust_opt.errors import InputError
from robust_opt.evaluation import autoattack, batches, network, phases
from robust_opt.training import sharding

ENTRIES = (4, 4, 1)
BOX = (0.0, 1.0)
# The standard version with fewer steps.
SMALL = (phases.apgd_ce(15), phases.apgd_t(15, 9), phases.fab_t(10, 9), phases.square_phase(30))
RADII = {"linf": 0.1, "l2": 0.3, "l1": 0.6}


def linear_net(weights, bias, x):
  return x.reshape(len(x), -1) @ weights + bias


@functools.cache
def problem(num_classes=5, count=70):
  """(weights, bias), x, y of a linear model that is right on about nine of ten."""
  rng = np.random.default_rng(num_classes)
  weights = rng.normal(size=(16, num_classes)).astype(np.float32)
  bias = rng.normal(size=num_classes).astype(np.float32)
  x = rng.random((count, *ENTRIES)).astype(np.float32)
  y = np.asarray(linear_net(weights, bias, x)).argmax(axis=1)
  y[::10] = (y[::10] + 1) % num_classes
  return (weights, bias), x, y


def net_of(weights):
  return jax.tree_util.Partial(linear_net, *weights)


def ball(norm, radius=None):
  return ro.sets.ball_of(norm)(RADII[norm] if radius is None else radius, box=BOX)


def attack(weights, x, y, u, **options):
  return ro.autoattack(net_of(weights), x, y, u, **{"version": SMALL, "batch_size": 16} | options)


# Compiling the ensemble takes longer than running it: one case in the fast set.
SLOW_CASES = [("linf", 2), ("l1", 10), ("linf", 100), ("l2", 10)]


@pytest.mark.parametrize(
  ("norm", "num_classes"),
  [("linf", 10), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES)],
)
def test_it_finds_what_the_closed_form_says(norm, num_classes):
  weights, x, y = problem(num_classes)
  # About half of the examples are robust at this radius.
  u = ball(norm, float(np.median(exact.linear_distance(*weights, x, y, ro.sets.ball_of(norm)))))
  verdict = attack(weights, x, y, u)
  clean = exact.linear_margin(*weights, x, y, ball(norm, 0.0))
  worst = exact.linear_margin(*weights, x, y, u)
  robust = verdict.broken_by == autoattack.ROBUST
  np.testing.assert_array_equal(verdict.broken_by == 0, clean > 0)
  # Nothing that is robust is broken, and nearly everything else is.
  assert np.all(robust[worst < -1e-5])
  gap = 0.02 * (worst - clean)
  assert not np.any(robust[worst > gap + 1e-5])
  assert 0 < robust.sum() < np.sum(clean < 0)  # the problem has both

  moved = verdict.broken_by > 0
  norms = ro.sets.lengths(u, verdict.images.astype(np.float64) - x)
  assert np.all(norms <= u.radius * (1 + rounding(terms=2 * 16 + 8)))
  np.testing.assert_array_equal(norms[~moved], 0)
  assert np.all((verdict.images >= 0) & (verdict.images <= 1))
  prediction = batches.predictions(net_of(weights), verdict.images, 16)
  np.testing.assert_array_equal(prediction[robust], y[robust])
  assert np.all(prediction[moved] != y[moved])
  assert verdict.robust_accuracy == robust.mean()
  assert verdict.clean_accuracy == np.mean(clean <= 0)


STRUCTURED = ro.sets.GroupL21(0.5, ro.sets.patches(2))


@pytest.mark.slow
def test_a_structured_set_is_attacked_by_pgd():
  """Of two classes the worst point is the steepest ascent: what PGD breaks is known."""
  weights, x, y = problem(num_classes=2)
  versions = [(phases.pgd_phase("pgd", ro.losses.margin, 20, share),) for share in (0.1, 0.5)]
  slope = (weights[0][:, 1] - weights[0][:, 0]).reshape(ENTRIES) * (1 - 2 * y)[:, None, None, None]
  worst = x + STRUCTURED.steepest_ascent(jnp.asarray(slope), jnp.asarray(x))
  margin = ro.losses.margin(net_of(weights)(worst), y)
  for version in versions:
    robust = attack(weights, x, y, STRUCTURED, version=version).broken_by == autoattack.ROBUST
    assert not np.any(robust[margin > 1e-3])
    assert np.all(robust[margin < -1e-3])
    assert 0.1 < np.mean(robust) < 0.9


@pytest.mark.parametrize("norm", ["linf", pytest.param("l1", marks=pytest.mark.slow)])
def test_its_ascents_keep_the_best_iterate_not_the_last(norm):
  """By the margin: an iterate that fools is not lost to one of a higher loss."""
  x = problem()[1][:12].reshape(12, -1)
  slope = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)

  def value_fn(x):  # the loss increases where the margin decreases again
    return ro.Scored(x @ slope[:, 0], jnp.sin(8 * x @ slope).sum(-1))

  attack = phases.apgd_attack(ball(norm), 10)
  delta, info = jax.jit(lambda x: attack(value_fn, jax.random.key(0), x))(x)
  ours, last_ball = value_fn(x + delta).score, info.score[-4:]  # of l_1, 40 % of the steps
  passed = np.maximum(last_ball.max(axis=0), value_fn(x).score)
  assert np.all(ours >= passed - 1e-4)
  assert np.mean(ours > info.score[-1] + 0.1) > 0.3


@pytest.mark.slow
def test_the_same_seed_gives_the_same_answer_and_another_another():
  weights, x, y = problem()
  first, again, other = (attack(weights, x, y, ball("l2"), seed=seed) for seed in (0, 0, 1))
  chex.assert_trees_all_equal(first[1:], again[1:])
  assert np.any(first.images != other.images)
  np.testing.assert_array_equal(first.broken_by == -1, other.broken_by == -1)


@pytest.mark.slow
def test_an_example_depends_neither_on_its_batch_nor_on_the_devices():
  weights, x, y = problem()
  whole = attack(weights, x, y, ball("linf"))
  mesh = sharding.data_mesh()
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(sharding.AXIS))
  put = lambda array: jax.device_put(array, split)  # noqa: E731
  for options in ({"batch_size": 40}, {"batch_size": 64, "put": put}):
    other = attack(weights, x, y, ball("linf"), **options)
    np.testing.assert_array_equal(whole.broken_by, other.broken_by)
    np.testing.assert_allclose(whole.images, other.images, atol=rounding(terms=2 * 16 + 8))


def test_a_part_of_a_data_set_is_attacked_as_in_the_whole():
  weights, x, y = problem()
  brief = functools.partial(attack, weights, u=ball("linf"), version=(phases.square_phase(30),))
  store, ids = {}, np.arange(1, len(x), 3)
  whole, part = brief(x, y), brief(x[ids], y[ids], ids=ids, cache=cache_in(store))
  np.testing.assert_array_equal(part.broken_by, whole.broken_by[ids])
  atol = rounding(terms=2 * 16 + 8)
  np.testing.assert_allclose(part.images, whole.images[ids], atol=atol)
  assert set(np.concatenate([batch["ids"] for batch in store.values()])) <= set(ids)
  # As a data set of its own it gets other random numbers, and none of those batches is reused.
  alone = brief(x[ids], y[ids], cache=cache_in(store))
  assert np.abs(alone.images - part.images).max() > 1e3 * atol
  for wrong, words in ((ids[1:], "one for each image"), (ids / 2, "integers"), (-ids, "from 0 to")):
    with pytest.raises(InputError, match=words):
      brief(x[ids], y[ids], ids=wrong)


class KilledError(Exception):
  pass


def cache_in(store, dies_after=None):
  """A cache in a dictionary; saving one batch too many is the end."""

  def save(name, arrays):
    if dies_after is not None and len(store) >= dies_after:
      raise KilledError
    store[name] = arrays

  return autoattack.ResumeCache(store.get, save)


@pytest.mark.slow
def test_killed_anywhere_it_resumes_to_the_same_answer_and_reports_progress():
  weights, x, y = problem()
  run = functools.partial(attack, weights, x, y, ball("linf"), batch_size=8)
  reference, store, seen = {}, {}, []
  whole = run(cache=cache_in(reference), report=seen.append)
  assert all(a.remaining >= b.remaining and a.done <= b.done for a, b in itertools.pairwise(seen))
  assert seen[-1].remaining / seen[-1].total == whole.robust_accuracy
  assert {("apgd-ce", None), ("apgd-t", 0), ("square", None)} <= {p[:2] for p in seen}
  for dies_after in (0, 1, 5, len(reference) - 1):
    with pytest.raises(KilledError):
      run(cache=cache_in(store, dies_after))
    assert len(store) == dies_after  # nothing that was done is lost, or done again
  chex.assert_trees_all_equal(run(cache=cache_in(store))[1:], whole[1:])
  assert store.keys() == reference.keys()


@pytest.mark.slow
def test_nothing_is_compiled_anew_as_examples_fall():
  weights, x, y = problem(num_classes=10)

  def run(count, scale, radius=0.3):
    attack(jax.tree.map(lambda w: scale * w, weights), x[:count], y[:count], ball("l2", radius))
    functions = batches.run_lanes, batches._predict, network._compiled_logits
    return [function._cache_size() for function in functions]

  after_first = run(70, 1.0)
  run(70, 0.7, radius=0.301)  # another net of the same architecture, another radius
  assert run(53, 1.3) == after_first  # another number of examples


@pytest.mark.slow
def test_leaving_early_changes_no_verdict(monkeypatch):
  """Of a weak net every attack is done long before its last step."""
  weights, x, y = problem()

  def run():
    seen = []
    # New phases, so that they are compiled anew.
    versions = (phases.apgd_ce(30, l1_restarts=2),), (phases.apgd_t(30, 2),), (phases.fab_t(30, 2),)
    found = [
      attack(weights, x, y, ball("l1", 3 * RADII["l1"]), version=v, report=seen.append)
      for v in versions
    ]
    return found, [progress.cost for progress in seen]

  early, costs = run()
  monkeypatch.setattr(white_box, "_ENOUGH", np.inf)
  whole, all_costs = run()
  for ours, theirs in zip(early, whole, strict=True):
    np.testing.assert_array_equal(ours.broken_by, theirs.broken_by)
  assert np.sum(early[0].broken_by > 0) > 50
  fewer, more = (sum(cost.gradient for cost in each) for each in (costs, all_costs))
  # Over l_1, 60 % of the steps are in larger balls.
  assert fewer < 0.9 * more
  assert costs[-1].gradient < 30 * 16


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [False, True])
def test_lanes_of_many_targets_resume_to_the_same_bits(ahead, monkeypatch):
  weights, x, y = problem(num_classes=10)
  sizes = batches.Packing((16, 8), ahead)
  monkeypatch.setattr(batches, "packing", lambda *_: sizes)
  version = (phases.apgd_t(10, 9),)
  run = functools.partial(attack, weights, x, y, ball("linf", 0.03), version=version)
  reference, store, seen = {}, {}, []
  whole = run(cache=cache_in(reference), report=seen.append)
  assert len({len(set(part["ranks"])) for part in reference.values()}) > 1  # some are mixed
  with pytest.raises(KilledError):
    run(cache=cache_in(store, len(reference) - 2))
  # A batch of other lanes, as of another packing, is not taken for this one.
  first = min(store)
  store[first] = store[first] | {"ids": store[first]["ids"][::-1]}
  again = []
  chex.assert_trees_all_equal(run(cache=cache_in(store), report=again.append)[1:], whole[1:])
  assert [p.cost._replace(seconds=0, compiling=0) for p in again] == [
    p.cost._replace(seconds=0, compiling=0) for p in seen
  ]
  # The image is that of the first target that fools the net, whatever the packing.
  monkeypatch.setattr(batches, "packing", lambda *_: batches.Packing((70,), False))
  other = run(batch_size=70)
  np.testing.assert_array_equal(other.broken_by, whole.broken_by)
  np.testing.assert_allclose(other.images, whole.images, atol=rounding(terms=2 * 16 + 8))


def test_costs_count_what_the_net_saw():
  weights, x, y = problem()
  calls = {"forward": 0}

  def net(x):
    jax.debug.callback(lambda: calls.update(forward=calls["forward"] + len(x)))
    return linear_net(*weights, x)

  seen = []
  version = (phases.square_phase(20),)
  verdict = ro.autoattack(
    net, x, y, ball("linf", 0.01), version=version, batch_size=16, report=seen.append
  )
  jax.effects_barrier()
  cost = sum((progress.cost for progress in seen), autoattack.Cost())
  robust_before = int(np.sum(verdict.broken_by != 0))
  assert cost.batches == len(seen)
  assert cost.lanes == robust_before
  assert cost.forward == 21 * (cost.lanes + cost.padding)  # the clean image and 20 queries
  assert 0 < cost.compiling <= cost.seconds
  predicted = 80 + 16 * cost.batches
  assert calls["forward"] == pytest.approx(cost.forward + predicted, abs=200)  # and the checks


@pytest.mark.slow
def test_the_precision_of_search_and_verdict_are_those_stated():
  weights, x, y = problem()
  scales = itertools.count(1)

  def run(**given):
    seen, scale = set(), 1 + next(scales) / 64  # another net, so that it is traced again

    def net(x):
      seen.add((len(x), jax.config.jax_default_matmul_precision))
      return scale * linear_net(*weights, x)

    version = (phases.apgd_ce(3),)
    ro.autoattack(net, x, y, ball("linf"), version=version, batch_size=17, **given)
    return {precision for size, precision in seen if size == 17}

  assert run() == {"highest"}
  assert run(precision="tf32") == {"tensorfloat32"}
  assert run(search_precision="bfloat16") == {"highest", "bfloat16"}
  with jax.default_matmul_precision("high"):
    assert run() == {"tensorfloat32"}
  with pytest.raises(InputError, match="precision must be one of float32, tf32, bfloat16"):
    run(precision="float8")


@pytest.mark.slow
def test_a_random_net_is_attacked_on_average():
  weights, x, y = problem()

  def noisy(x, key):
    return linear_net(*weights, x) + 0.3 * jax.random.normal(key, (x.shape[0], 5))

  net = network.Randomized(noisy, jax.random.key(1), num_draws=20)
  version = (phases.apgd_ce(10, fresh_noise=True), phases.apgd_dlr(10, fresh_noise=True))
  verdict = ro.autoattack(net, x, y, ball("l2"), version=version, batch_size=16)
  plain = attack(weights, x, y, ball("l2"))
  assert abs(verdict.robust_accuracy - plain.robust_accuracy) < 0.1
  probabilities = jnp.exp(net(x)).sum(axis=-1)
  np.testing.assert_allclose(probabilities, 1, rtol=rounding(terms=20 + 5 + 8))


def test_nan_under_attack_is_a_broken_example():
  weights, x, _ = problem()
  x = np.clip(x, 0.2, 0.8)
  y = np.asarray(linear_net(*weights, x)).argmax(axis=1)

  def fragile(x):
    changed = jnp.abs(x - 0.5).reshape(len(x), -1).max(axis=1) > 0.31
    return jnp.where(changed[:, None], jnp.nan, linear_net(*weights, x))

  verdict = ro.autoattack(fragile, x, y, ball("linf", 0.05), version=SMALL[:1], batch_size=16)
  near = np.abs(x - 0.5).reshape(len(x), -1).max(axis=1) > 0.29
  assert near.mean() > 0.5
  assert np.mean(verdict.broken_by[near] > 0) > 0.9


def softmax_net(x):
  return jax.nn.softmax(linear_net(*problem()[0], x))


GOOD = {"u": ball("linf"), "version": SMALL, "batch_size": 16}
PRODUCT = ro.sets.Product((ro.L2(0.1), ro.L2(0.0)), ((8,), (8,)))
BAD = {
  "no set": ({"u": 0.1}, r"u must be a set, as in ro.LInf\(8 / 255, .*, but was 0.1"),
  "radius 0": ({"u": ball("linf", 0.0)}, "radius must be a finite number > 0"),
  "infinite radius": ({"u": ball("l2", np.inf)}, "radius must be a finite number > 0"),
  "radius 0 within": ({"u": PRODUCT}, "radius must be a finite number > 0"),
  "radii": ({"u": ball("l2", np.full(69, 0.1))}, "or one for each of the 70 images, but has the"),
  "no box": ({"u": ro.LInf(0.1)}, "fab needs a set with a finite box"),
  "structured": (
    {"u": STRUCTURED, "version": "standard"},
    'apgd takes ro.LInf, ro.L2 or ro.L1, .* not a GroupL21; version="pgd" attacks every set',
  ),
  "no projection": (
    {"u": ro.sets.Transforms(30.0, 3.0), "version": "pgd"},
    "pgd takes a set with a projection, as in .*, not a Transforms",
  ),
  "unknown version": ({"version": "best"}, "version must be one of standard, rand, quick, pgd"),
  "batch size": ({"batch_size": 0}, "batch_size must be an integer >= 1"),
  "no images": ({"x": np.zeros((0, 4), np.float32), "y": np.zeros(0, int)}, "at least one image"),
  "labels missing": ({"y": np.zeros(3, int)}, "as many labels as images"),
  "bytes": ({"x": np.zeros((70, *ENTRIES), np.uint8)}, "floating point, .* but are uint8"),
  "0 to 255": ({"x": np.full((70, *ENTRIES), 255.0)}, r"in \[0, 1\], but lie in \[255, 255\]"),
  "nan image": ({"x": np.full((70, *ENTRIES), np.nan)}, "must be finite"),
  "float labels": ({"y": np.zeros(70)}, "Labels must be integers"),
  "label too large": ({"y": np.full(70, 5)}, r"Labels must lie in \[0, 5\)"),
  "probabilities": ({"net": softmax_net}, "must return logits, but its outputs"),
  "nan logits": ({"net": lambda x: jnp.full((len(x), 5), jnp.nan)}, "logits must be finite"),
  "one class": ({"net": lambda x: jnp.zeros((len(x), 1))}, "at least 2 classes"),
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
