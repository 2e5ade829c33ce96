"""Square Attack, held to what is known exactly: linear nets, and every query as the net sees it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import rounding

import robust_opt as ro
from robust_opt import losses
from robust_opt.attacks import square_moves
from robust_opt.attacks.square import counting_square, square
from robust_opt.certificates import exact

BALLS = ro.sets.BALLS
EVERY_NORM = pytest.mark.parametrize("norm", list(BALLS))
BATCH, SHAPE, NUM_QUERIES = 24, (6, 5, 2), 50
UNIT_BOX, ODD_BOX = (0.0, 1.0), (-0.37, 1.1)


def size_of(v, norm):
  return ro.sets.lengths(BALLS[norm], np.asarray(v))


def keys_for(batch, seed=0):
  return jax.random.split(jax.random.key(seed), batch)


def images(seed=0, shape=SHAPE):
  x = np.random.default_rng(seed).random((BATCH, *shape)).astype(np.float32)
  x[: BATCH // 4] = np.round(x[: BATCH // 4])  # on the edge of the box
  return x


def weights_of(num_classes, shape=SHAPE):
  return np.random.default_rng(1).normal(size=(np.prod(shape), num_classes)).astype(np.float32)


def linear(x, weights):
  """[B, *S], [n, C] -> [B, C]; a sum, no matrix product: nothing depends on the batch's size."""
  return jnp.sum(x.reshape(len(x), -1, 1) * weights, axis=1)


def net(x, weights, bias, waves):
  """Linear where waves is 0."""
  z = linear(x, weights)
  return z + waves * (5 * jnp.sin(2 * z) + jnp.roll(z, 1, axis=-1) * jnp.cos(z)) + bias


def margins(logits, y):
  """max over j != y of z_j - z_y, in float64."""
  logits = np.asarray(logits, np.float64)
  is_label = np.arange(logits.shape[-1]) == np.asarray(y)[:, None]
  return np.where(is_label, -np.inf, logits).max(-1) - logits[is_label]


@functools.cache
def runner(norm, box):
  """(attack, traces): one compilation a batch size for every test of a norm and a box."""
  traces = []

  @jax.jit
  def attack(keys, x, y, radius, *parameters):
    traces.append(x.shape)
    search = counting_square(BALLS[norm](radius, box), NUM_QUERIES)
    return search(keys, lambda x: net(x, *parameters), x, y)

  return attack, traces


SEEN = []


@functools.cache
def watched_runner(norm):
  """Without a box; SEEN gets every batch that the net is asked about."""

  @jax.jit
  def attack(keys, x, y, radius, *parameters):
    def watched(x):
      jax.debug.callback(lambda x: SEEN.append(np.array(x)), x, ordered=True)
      return net(x, *parameters)

    return counting_square(BALLS[norm](radius), NUM_QUERIES)(keys, watched, x, y)

  return attack


def watch(norm, *args):
  """The result, and the images that the net was shown: [forward passes, B, *S]."""
  SEEN.clear()
  result = jax.block_until_ready(watched_runner(norm)(*args))
  jax.effects_barrier()
  return result, np.stack(SEEN)


WAVY = (weights_of(3), np.zeros(3, np.float32), np.float32(1))
LINEAR = (weights_of(3), np.zeros(3, np.float32), np.float32(0))


def problem(norm, x):
  """keys, x, y, radius [B] from 0 to beyond the box; a quarter of it is misclassified."""
  y = np.array(jnp.argmax(net(x, *WAVY), -1))
  y = np.where(np.arange(BATCH) % 4 == 1, (y + 1) % 3, y)
  scale = {"linf": 0.005, "l2": 0.02, "l1": 0.05}[norm]
  radius = (scale * 2.0 ** np.linspace(0, 10, BATCH)).astype(np.float32)
  radius[[2, 3, 6]] = 0, 1e-30, 1e6
  return keys_for(BATCH), x, y, radius


@EVERY_NORM
@pytest.mark.slow
def test_the_result_is_feasible_and_as_it_is_reported(norm):
  low, high = np.float32(ODD_BOX)
  x = np.clip(low + images() * (high - low), low, high)
  keys, x, y, radius = problem(norm, x)
  delta, fooled, queries = runner(norm, ODD_BOX)[0](keys, x, y, radius, *WAVY)
  delta = np.asarray(delta)
  chex.assert_shape(delta, x.shape)
  chex.assert_type(delta, jnp.float32)
  chex.assert_tree_all_finite(delta)
  assert np.all(size_of(delta, norm) <= radius.astype(np.float64) * (1 + 1e-6))
  assert np.all((x + delta >= low) & (x + delta <= high))

  clean, attacked = margins(net(x, *WAVY), y), margins(net(x + delta, *WAVY), y)
  wrong = clean > 0
  assert wrong.sum() == BATCH // 4
  np.testing.assert_array_equal(fooled, attacked > 0)
  assert np.all(delta[wrong] == 0)
  moved = np.any(delta != 0, axis=(1, 2, 3))
  assert np.all(attacked[moved] > clean[moved])
  np.testing.assert_array_equal(np.asarray(queries) == 0, wrong)
  assert np.all(np.asarray(queries)[~np.asarray(fooled)] == NUM_QUERIES)
  # It found something, and not everything.
  assert 0 < np.sum(fooled & ~wrong) < np.sum(~wrong)


@EVERY_NORM
@pytest.mark.slow
def test_an_examples_result_is_its_own(norm):
  """The same again; in another order; in half the batch; another with another key."""
  attack, traces = runner(norm, UNIT_BOX)
  examples = problem(norm, images())
  result = attack(*examples, *WAVY)
  chex.assert_trees_all_equal(attack(*examples, *WAVY), result)

  order = np.random.default_rng(2).permutation(BATCH)
  shuffled = attack(*(a[order] for a in examples), *WAVY)
  chex.assert_trees_all_equal(shuffled, jax.tree.map(lambda a: a[order], result))
  half = attack(*(a[::2] for a in examples), *WAVY)
  chex.assert_trees_all_equal(half, jax.tree.map(lambda a: a[::2], result))

  other = attack(keys_for(BATCH, seed=1), *examples[1:], *WAVY)
  moved = np.any(np.asarray(result.delta) != 0, axis=(1, 2, 3)) & (examples[-1] < 10)
  changed = np.any(np.asarray(other.delta != result.delta), axis=(1, 2, 3))
  assert np.mean(changed[moved]) > 0.9
  attack(*examples[:-1], examples[-1] / 2, *WAVY)
  assert len(traces) == len(set(traces)) == 2  # a batch size each; radii do not count


@pytest.mark.parametrize(
  "norm", ["l2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("linf", "l1"))]
)
def test_logits_that_say_nothing(norm):
  keys, x, _, radius = problem(norm, images())
  y = np.arange(BATCH) % 2  # of equal logits the first class wins
  constant = (np.zeros_like(WAVY[0]), *WAVY[1:])
  delta, fooled, queries = runner(norm, UNIT_BOX)[0](keys, x, y, radius, *constant)
  assert not np.any(delta)
  np.testing.assert_array_equal(fooled, y == 1)
  np.testing.assert_array_equal(queries, np.where(y == 1, 0, NUM_QUERIES))


@pytest.mark.parametrize(
  "norm", ["l1", *(pytest.param(n, marks=pytest.mark.slow) for n in ("linf", "l2"))]
)
def test_it_keeps_a_change_where_the_margin_grew_and_only_there(norm):
  # The label cannot lose, so that every query is made.
  weights, _, waves = WAVY
  never = (weights, np.array([1e3, 0, 0], np.float32), waves)
  x, y, radius = images(), np.zeros(BATCH, np.int32), np.float32(0.7)
  result, seen = watch(norm, keys_for(BATCH), x, y, np.full(BATCH, radius), *never)
  assert len(seen) == 1 + NUM_QUERIES
  assert np.all(np.asarray(result.queries) == NUM_QUERIES)
  assert not np.any(result.fooled)
  np.testing.assert_array_equal(seen[0], x)
  values = np.stack([np.asarray(losses.margin(net(s, *never), y)) for s in seen])
  best_query = np.argmax(values, axis=0)
  np.testing.assert_allclose(
    x + result.delta, seen[best_query, np.arange(BATCH)], rtol=1e-6, atol=1e-6
  )

  least = 1 if norm == "linf" else 3
  sides = square_moves.sides_of(SHAPE, 0.8, least)
  halvings = np.array(square_moves.HALVINGS) * NUM_QUERIES / 10_000
  best, value = seen[1].copy(), values[1].copy()
  for t in range(2, len(seen)):
    # What a query changes lies in one square (over l_2 in two), of this query's side; over l_1 the
    # projection changes entries everywhere.
    changed = np.any(np.abs(seen[t] - best) > 1e-5, axis=-1)  # [B, H, W]
    num_squares = 1 if norm == "linf" else 2
    side = sides[np.sum(t - 1 > halvings)]
    assert norm != "linf" or np.all(changed.any((1, 2)))  # over l_inf no query is wasted
    if norm != "l1":
      assert np.all(changed.any(2).sum(1) <= num_squares * side[0])
      assert np.all(changed.any(1).sum(1) <= num_squares * side[1])
      assert np.all(changed.sum((1, 2)) <= num_squares * np.prod(side))
    better = values[t] > value
    best[better], value[better] = seen[t][better], values[t][better]
  assert np.mean(value > values[1]) > 0.9

  # Without a box no query leaves the sphere: no mass is lost.
  for queried in seen[1:]:
    np.testing.assert_allclose(
      size_of(queried - x, norm), radius, atol=rounding(terms=2 * np.prod(SHAPE))
    )
  if norm == "linf":
    np.testing.assert_allclose(np.abs(seen[1:] - x), radius, atol=rounding(terms=4))


@EVERY_NORM
def test_it_stops_when_all_are_fooled(norm):
  x = images()
  y = np.array(jnp.argmax(net(x, *LINEAR), -1))
  y[1] = (y[1] + 1) % 3
  radius = np.full(BATCH, {"linf": 1, "l2": 8, "l1": 60}[norm], np.float32)
  result, seen = watch(norm, keys_for(BATCH), x, y, radius, *LINEAR)
  queries = np.asarray(result.queries)
  assert np.all(result.fooled)
  assert queries[1] == 0
  assert 1 < queries.max() < NUM_QUERIES
  assert len(seen) == 1 + queries.max()
  fooled = np.stack([~np.asarray(losses.correct(net(s, *LINEAR), y)) for s in seen])
  np.testing.assert_array_equal(queries, np.argmax(fooled, axis=0))  # the first that fools


@pytest.mark.parametrize(
  ("norm", "num_classes"), [("linf", 3), ("l2", 3), ("l1", 3), ("linf", 10), ("l2", 2)]
)
@pytest.mark.slow
def test_it_never_fools_what_a_linear_net_certifies(norm, num_classes):
  """Over a ball the margin to class j grows by at most radius |w_j - w_y|_q, and by no more."""
  x, weights = images(), weights_of(num_classes)
  parameters = (weights, np.zeros(num_classes, np.float32), np.float32(0))
  y = np.argmax(net(x, *parameters), -1)
  distance = np.asarray(exact.linear_distance(weights, parameters[1], x, y, BALLS[norm]))

  def attack(radius):
    return watch(norm, keys_for(BATCH), x, y, radius.astype(np.float32), *parameters)[0]

  certified = attack(distance * (1 - 1e-5))
  assert not np.any(certified.fooled)
  assert np.all(margins(net(x + certified.delta, *parameters), y) < 1e-4)
  assert np.any(np.asarray(certified.delta) != 0)
  # And where the certificate is broken by far, these few queries do fool.
  assert np.all(attack(distance * {"linf": 5, "l2": 5, "l1": 10}[norm]).fooled)


@pytest.mark.parametrize(
  ("shape", "box"),
  [
    ((12,), None),
    ((3, 2, 3), UNIT_BOX),
    ((5, 3), None),
    ((2, 3, 2, 2), UNIT_BOX),
    ((1, 2, 1, 2, 2, 2), None),
  ],
  ids=["vector", "two_guesses", "signal", "volume", "five_axes"],
)
def test_over_linf_it_finds_the_maximum_of_a_linear_margin(shape, box):
  x, weights, radius = images(shape=shape), weights_of(2, shape), np.float32(0.3)
  y, bias = np.zeros(BATCH, np.int32), np.array([1e2, 0], np.float32)
  attack = square(ro.LInf(radius, box), num_queries=600)
  delta, _ = jax.jit(lambda keys, x: attack(keys, lambda x: linear(x, weights) + bias, x, y))(
    keys_for(BATCH), x
  )
  limits = (
    (-radius, radius) if box is None else (np.maximum(-radius, -x), np.minimum(radius, 1 - x))
  )
  slope = (weights[:, 1] - weights[:, 0]).reshape(shape)
  furthest = np.broadcast_to(np.where(slope > 0, limits[1], limits[0]), x.shape)
  np.testing.assert_allclose(delta, furthest, atol=1e-7)


def test_a_net_that_answers_nan_is_fooled():
  x, y = images(), np.zeros(BATCH, np.int32)

  def logits_fn(moved):
    still = jnp.all(moved == x, axis=(1, 2, 3))
    return jnp.where(still[:, None], jnp.array([1.0, 0.0]), jnp.nan)

  attack = counting_square(ro.LInf(0.5, UNIT_BOX), num_queries=5)
  delta, fooled, queries = jax.jit(lambda keys, x: attack(keys, logits_fn, x, y))(
    keys_for(BATCH), x
  )
  assert np.all(fooled)
  assert np.all(np.asarray(queries) == 1)
  assert np.all(size_of(delta, "linf") > 0)
  assert np.all(size_of(delta, "linf") <= 0.5)


def test_bad_input_is_named():
  y, logits_fn = np.zeros(BATCH, np.int32), functools.partial(linear, weights=weights_of(3))
  u, keys = ro.L2(0.1, UNIT_BOX), keys_for(BATCH)

  def run(attack, keys=keys, x=images()):  # noqa: B008
    return jax.eval_shape(lambda x: attack(keys, logits_fn, x, y), x)

  with pytest.raises(ro.InputError, match=r"square takes ro.LInf, ro.L2 or ro.L1, .* not an L0"):
    square(ro.sets.L0(3))
  with pytest.raises(ro.InputError, match="num_queries must be at least 1, but was 0"):
    square(u, num_queries=0)
  for p_init in (0.0, 1.5, float("nan")):
    with pytest.raises(ro.InputError, match=r"in \(0, 1\], but was"):
      square(u, p_init=p_init)
  for axis in (3, -4, "last", 0.0):
    with pytest.raises(ro.InputError, match=r"channel_axis must be .* shape \(6, 5, 2\), from -3"):
      run(square(u, channel_axis=axis))
  with pytest.raises(ro.InputError, match="floating point"):
    run(square(u), x=jnp.zeros((BATCH, *SHAPE), jnp.int32))
  with pytest.raises(ro.InputError, match="one for each of the 24 examples"):
    run(square(ro.L2(np.ones(3))))
  for wrong in (keys[:3], jax.random.key_data(keys[:3])):
    with pytest.raises(ro.InputError, match="one key or one for each of the 24 examples"):
      run(square(u), wrong)
