"""FAB on linear models, where it is exact, and as an attack within a radius."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import rounding

import robust_opt as ro
from robust_opt.attacks import fab, hyperplanes, white_box

DUAL_ORDERS = {np.inf: 1, 2: 2, 1: np.inf}
WIDE = (-50.0, 50.0)  # binds nowhere
BOX = (0.0, 1.0)
BATCH, NUM_ENTRIES = 12, 6
# A gradient through the entries, and a hyperplane's margin and norm over them.
ROUNDING = rounding(terms=6 * NUM_ENTRIES + 16)
EVERY_NORM = pytest.mark.parametrize("ball", [ro.LInf, ro.L2, ro.L1])


def size(delta, ball):
  return ro.sets.lengths(ball, np.asarray(delta))


def keys_of(seed=3):
  return jax.random.split(jax.random.key(seed), BATCH)


@functools.cache
def linear_problem(num_classes):
  """x [B, n] in the middle of [0, 1], labels, weights [n, C], bias [C]."""
  rng = np.random.default_rng(num_classes)
  x = rng.uniform(0.3, 0.7, (BATCH, NUM_ENTRIES)).astype(np.float32)
  weights = rng.normal(size=(NUM_ENTRIES, num_classes)).astype(np.float32)
  bias = (0.3 * rng.normal(size=num_classes)).astype(np.float32)
  return x, np.argmax(x @ weights + bias, -1), weights, bias


def class_distances(ball, num_classes):
  """(z_y - z_j) / |w_j - w_y|_q of every class, largest clean logit first: [B, C - 1], float64."""
  x, y, weights, bias = linear_problem(num_classes)
  logits = x.astype(np.float64) @ weights + bias
  distances = []
  for z, label in zip(logits, y):
    others = [j for j in np.argsort(-z) if j != label]
    apart = (weights.T - weights[:, label]).astype(np.float64)
    steepness = np.linalg.norm(apart, DUAL_ORDERS[ball.order], axis=-1)
    distances.append(((z[label] - z) / np.where(steepness > 0, steepness, 1))[others])
  return np.array(distances)


def runner(ball, num_classes):
  """(keys, radius, target_rank) -> the results of `fab` and `fab_minimal` on a linear problem."""
  x, y, weights, bias = linear_problem(num_classes)
  chex.clear_trace_counter()

  def logits_fn(x):
    return x @ weights + bias

  @jax.jit
  @chex.assert_max_traces(1)
  def run(keys, radius, target_rank):
    within = fab.fab(ball(radius, WIDE), num_steps=5, target_rank=target_rank)
    smallest = fab.fab_minimal(ball(np.inf, WIDE), num_steps=5, target_rank=target_rank)
    return within(keys, logits_fn, x, y), smallest(keys, logits_fn, x, y)

  return run


@EVERY_NORM
@pytest.mark.slow
def test_the_radius_decides_and_the_rank_is_traced(ball):
  """One compilation for all radii, ranks and examples; the best rank is the untargeted result."""
  num_classes = 10
  x, y, weights, bias = linear_problem(num_classes)
  distances = class_distances(ball, num_classes)
  nearest = distances.min(-1)
  run, norms = runner(ball, num_classes), []
  for rank in range(num_classes - 1):
    factor = np.resize([0, 0.5, 0.99, 1.01, 3.0], BATCH)
    radius = (factor * distances[:, rank]).astype(np.float32)
    (delta, fooled), smallest = run(keys_of(), radius, rank)
    assert np.all(size(delta, ball) <= radius * (1 + ROUNDING))
    np.testing.assert_array_equal(fooled, np.argmax((x + delta) @ weights + bias, -1) != y)
    np.testing.assert_array_equal(delta[~fooled], 0)
    assert np.all(fooled[factor > 1])
    assert not np.any(fooled[radius < nearest * (1 - ROUNDING)])

    assert np.all(smallest.fooled)
    norms.append(size(smallest.delta, ball))
    assert np.all(norms[-1] >= nearest * (1 - ROUNDING))
    assert np.all(norms[-1] <= distances[:, rank] * (1 + 1e-3))
  np.testing.assert_allclose(np.min(norms, 0), nearest, rtol=1e-3)
  assert np.any(np.max(norms, 0) > 1.01 * nearest)  # the rank does matter


@EVERY_NORM
@pytest.mark.slow
def test_a_box_that_binds(ball):
  """Two classes, so that the distance within the box is that of one hyperplane."""
  x, _, weights, bias = linear_problem(2)
  edge = np.float32(0.02) * np.arange(NUM_ENTRIES)  # from binding at once to hardly
  u = ball(np.inf, (0.3, 0.7))
  x = np.where(np.arange(NUM_ENTRIES) < 3, np.clip(x, 0.3 + edge, 0.7 - edge), 0.5)
  x = x.astype(np.float32)

  def logits_fn(x):
    return x @ weights + bias

  labels = np.argmax(logits_fn(x), -1)
  w, gap = hyperplanes.closest_hyperplane(u, logits_fn, x, labels, 1 - labels[None])
  shortest = hyperplanes.to_hyperplanes(u, w, gap, hyperplanes.bounds_of(u, x))
  reachable = np.sum(w * shortest, -1) >= gap * (1 - ROUNDING)
  run = fab.fab_minimal(u, num_steps=30)
  delta, fooled = jax.jit(lambda x: run(keys_of(), logits_fn, x, labels))(x)
  np.testing.assert_array_equal(fooled, reachable)
  ratio = (size(delta, ball) / size(shortest, ball))[fooled]
  assert np.all((ratio >= 1 - ROUNDING) & (ratio <= 1.02))


@pytest.mark.slow
def test_logits_that_are_not_finite_are_misclassified():
  x, *_ = linear_problem(3)
  bad = np.resize([np.nan, np.inf, -np.inf], (BATCH, 1)).astype(np.float32)
  run = fab.fab(ro.L2(0.5, BOX), num_steps=2)
  delta, fooled = run(keys_of(), lambda x: x[:, :3] + bad, x, np.zeros(BATCH, int))
  assert np.all(fooled)
  np.testing.assert_array_equal(delta, 0)


@pytest.mark.slow
def test_restarts_leave_where_the_gradient_is_0():
  """From the clean example there is no way; random starts find it, and by their own keys alone."""
  x = np.full((BATCH, 1), 0.5, np.float32)

  def ramp(x):  # flat up to 0.6, and misclassified from 0.62 on
    return jnp.concatenate([jnp.full_like(x, 0.02), jnp.maximum(x - 0.6, 0.0)], -1)

  def runs(**kwargs):
    find = fab.fab(ro.LInf(1.0, BOX), num_steps=5, **kwargs)
    return jax.jit(lambda keys: find(keys, ramp, x, np.zeros(BATCH, int)))

  assert not np.any(runs()(keys_of()).fooled)
  delta, fooled = runs(num_restarts=20)(keys_of())
  assert np.all(fooled)
  np.testing.assert_allclose(delta, 0.12, rtol=0.01)

  one_run = runs(random_start=True)
  fooled = one_run(keys_of()).fooled
  assert 0 < np.sum(fooled) < BATCH
  np.testing.assert_array_equal(one_run(keys_of()[::-1]).fooled, fooled[::-1])
  assert np.any(one_run(keys_of(4)).fooled != fooled)


@EVERY_NORM
@pytest.mark.slow
def test_a_random_start_is_in_half_the_ball(ball):
  """The first point at which it looks: one step, from logits that say where they were asked."""
  x = np.full((BATCH, NUM_ENTRIES), 0.5, np.float32)
  radius = np.linspace(0.1, 0.4, BATCH, dtype=np.float32)
  asked = []

  def logits_fn(x):
    jax.debug.callback(lambda x: asked.append(np.asarray(x)), x, ordered=True)
    return jnp.broadcast_to(jnp.array([1.0, 0.0]), (len(x), 2))

  run = fab.fab(ball(radius, BOX), num_steps=1, random_start=True, num_search_steps=0)
  run(keys_of(), logits_fn, x, np.zeros(BATCH, int))
  jax.effects_barrier()
  starts = asked[1] - x  # after the clean logits
  share = size(starts, ball) / radius
  assert np.all((share > 0) & (share <= 0.5 * (1 + ROUNDING)))
  assert np.max(share) > 0.3


@pytest.mark.slow
def test_the_final_search_shortens_what_one_step_overshoots():
  x, y, weights, bias = linear_problem(3)
  exact = class_distances(ro.L2, 3).min(-1)

  def ratio(num_search_steps):
    run = fab.fab_minimal(ro.L2(np.inf, WIDE), num_steps=1, num_search_steps=num_search_steps)
    delta, fooled = run(keys_of(), lambda x: x @ weights + bias, x, y)
    assert np.all(fooled)
    return size(delta, ro.L2) / exact

  np.testing.assert_allclose(ratio(0), 1.05, rtol=1e-4)  # eta
  np.testing.assert_allclose(ratio(1), 1.0005, rtol=1e-4)


@pytest.mark.parametrize(
  ("make", "sentence"),
  [
    (lambda: fab.fab(ro.sets.L0(2, box=BOX)), "fab takes ro.LInf, ro.L2 or ro.L1"),
    (lambda: fab.fab(ro.L2(0.1)), "fab needs a set with a finite box"),
    (lambda: fab.fab(ro.L2(0.1, BOX), num_steps=0), "num_steps must be at least 1"),
    (lambda: fab.fab(ro.L2(0.1, BOX), num_restarts=0), "num_restarts must be at least 1"),
    (lambda: fab.fab(ro.L2(0.1, BOX), beta=1.5), "beta in"),
    (lambda: fab.fab_minimal(ro.L2(np.inf, BOX), num_restarts=2), "need a finite radius"),
  ],
)
def test_bad_input_is_one_sentence(make, sentence):
  with pytest.raises(ro.InputError, match=sentence):
    make()


@pytest.mark.parametrize("rank", [2, -1, np.int32(2)])
def test_a_rank_that_the_logits_do_not_have(rank):
  x, y, weights, bias = linear_problem(3)
  steepest = ro.steepest(ro.L2(0.1))
  for attack in (
    fab.fab(ro.L2(0.1, BOX), target_rank=rank),
    white_box.targeted_ascent(steepest, ro.losses.targeted_margin, rank),
  ):
    with pytest.raises(ro.InputError, match="from 0 to 1 for logits of 3 classes"):
      attack(keys_of(), lambda x: x @ weights + bias, x, y)
