"""Keeping the best point, restarts, and the maximizers beyond the single step."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rounding import assert_close, rounding, widest

import robust_opt as ro
from robust_opt.errors import InputError
from robust_opt.maximizers.base import better

BATCH, NUM_ENTRIES = 24, 6
pytestmark = pytest.mark.usefixtures("float64")
# Forward and back through 6 entries and 4 sines, whose curvature multiplies errors at every step.
ERROR = {"terms": 2 * (6 + 4) + 4, "steps": 12, "growth": 4.0}
close = functools.partial(assert_close, **ERROR, scale=1.0)
ROUNDING = rounding(**ERROR, dtype=np.float64)


def problem(seed=0):
  """keys [B], x [B, n], and a value that goes up and down within the ball."""
  rng = np.random.default_rng(seed)
  weights = widest(rng.normal(size=(BATCH, NUM_ENTRIES, 4)))

  def value_fn(x):
    return jnp.sin(4 * jnp.einsum("bn,bnh->bh", x, weights)).sum(-1)

  x = widest(rng.random((BATCH, NUM_ENTRIES)))
  return jax.random.split(jax.random.key(seed), BATCH), x, value_fn


def overshooting():
  """Steps of half the radius: the last point is rarely the best."""
  return ro.pgd(ro.LInf(0.5), ro.LInf(0.4))


def test_the_best_is_the_highest_point_that_the_ascent_passed():
  keys, x, value_fn = problem()
  run = functools.partial(ro.ascend, overshooting(), 12)
  (last, info), (best, same) = (
    jax.jit(functools.partial(run(keep_best=kept), value_fn))(keys, x) for kept in (False, True)
  )
  close(info, same)
  values = np.stack([value_fn(x), *info.value, value_fn(x + last)])
  close(value_fn(x + best), values.max(axis=0))
  assert np.mean(value_fn(x + best) > value_fn(x + last) + 0.1) > 0.5


def test_the_best_is_never_below_the_clean_example():
  keys, x, value_fn = problem()
  start_only = ro.ascend(ro.pgd(ro.LInf(0.5), ro.LInf(0.1)), 0, keep_best=True)
  best, _ = start_only(value_fn, keys, x)
  kept = np.all(best == 0, axis=-1)
  assert 0.2 < kept.mean() < 0.8  # a random point is worse about half the time
  np.testing.assert_array_equal(value_fn(x + best) >= value_fn(x), True)


def test_points_are_compared_by_their_score():
  """The value climbs away from the score: the best point by score is the start."""
  _, x, value_fn = problem()
  scored = lambda x: ro.Scored(value_fn(x), -value_fn(x))  # noqa: E731
  step_up = ro.ascend(ro.pgd(ro.L2(0.02), ro.L2(0.01), random_start=False), 2, keep_best=True)
  assert np.all(value_fn(x + step_up(value_fn, None, x)[0]) > value_fn(x))
  delta, info = step_up(scored, None, x)
  np.testing.assert_array_equal(delta, 0)
  np.testing.assert_array_equal(info.score, -info.value)


def test_a_net_that_answers_nan_is_beaten():
  x = jnp.zeros((3, 2)) + jnp.array([[0.0], [0.05], [0.9]])
  value_fn = lambda x: jnp.where(x[:, 0] > 0.1, jnp.nan, 1.0) * x.sum(-1)  # noqa: E731
  delta, _ = ro.ascend(ro.frank_wolfe(ro.LInf(0.07)), 1, keep_best=True)(value_fn, None, x)
  np.testing.assert_array_equal(np.isnan(value_fn(x + delta)), [False, True, True])


def test_better_keeps_the_first_of_equals():
  points = jnp.arange(4.0)[:, None]
  scores = jnp.array([1.0, 2.0, jnp.nan, jnp.nan])
  new = (points + 10, jnp.array([1.0, 3.0, 5.0, jnp.nan]))
  np.testing.assert_array_equal(better((points, scores), new)[0][:, 0], [0, 11, 2, 3])


def test_restarts_keep_the_best_of_every_example():
  keys, x, value_fn = problem()
  one = ro.ascend(ro.pgd(ro.LInf(0.5), ro.LInf(0.1)), 5, keep_best=True)
  best, info = jax.jit(lambda keys, x: ro.restarts(one, 4)(value_fn, keys, x))(keys, x)
  chex.assert_shape(info.value, (4 * 5, BATCH))
  each = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
  single = jax.jit(lambda keys: value_fn(x + one(value_fn, keys, x)[0]))
  singles = np.stack([single(each[:, i]) for i in range(4)])
  close(value_fn(x + best), singles.max(axis=0))
  winners = singles.argmax(axis=0)
  assert len(np.unique(winners)) > 1  # no restart is the best of the whole batch
  with pytest.raises(InputError, match="A restart needs a key"):
    ro.restarts(one, 4)(value_fn, None, x)
  sixth = lambda x: value_fn(jnp.tile(x, (BATCH, 1)))[5:6]  # noqa: E731
  alone, _ = jax.jit(functools.partial(ro.restarts(one, 4), sixth))(keys[5:6], x[5:6])
  close(alone[0], best[5])


def test_one_number_for_the_batch_has_no_best_example():
  _, x, value_fn = problem()
  total = lambda x: value_fn(x).sum()  # noqa: E731
  for attack in (
    ro.ascend(ro.frank_wolfe(ro.L2(0.1)), 1, keep_best=True),
    ro.ascend(ro.lbfgs(ro.L2(0.1)), 1),
  ):
    with pytest.raises(InputError, match="one value for each of the 24 examples"):
      attack(total, None, x)


def test_a_schedule_gives_every_step_its_set():
  _, x, _ = problem()
  lengths = jnp.array([0.4, 0.2, 0.1])
  slope = np.where(np.arange(NUM_ENTRIES) % 2, 1.0, -1.0)
  climber = ro.pgd(ro.LInf(10.0), lambda t: ro.LInf(lengths[t]), random_start=False)
  delta, _ = ro.ascend(climber, 3)(lambda x: x @ slope, None, x)
  np.testing.assert_allclose(delta, np.broadcast_to(0.7 * slope, x.shape), rtol=ROUNDING)


def test_momentum_by_hand():
  """g_{t+1} = mu g_t + grad / |grad|_1: Dong et al. 2018, equations 6 and 7."""
  _, x, value_fn = problem()
  gradient = jax.jit(jax.grad(lambda x: value_fn(x).sum()))
  delta, velocity = np.zeros_like(x), np.zeros_like(x)
  for _ in range(4):
    grad = np.asarray(gradient(x + delta))
    velocity = 0.9 * velocity + grad / np.abs(grad).sum(-1, keepdims=True)
    delta = np.clip(delta + 0.1 * np.sign(velocity), -0.25, 0.25)
  attack = ro.ascend(ro.pgd(ro.LInf(0.25), ro.LInf(0.1), random_start=False, momentum=0.9), 4)
  close(jax.jit(lambda x: attack(value_fn, None, x)[0])(x), delta)


def test_an_optimizer_of_optax_ascends_each_example_alone():
  _, x, value_fn = problem()
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.05))
  ascend = ro.ascend(ro.projected(ro.L2(0.4), optimizer), 10)
  attack = jax.jit(lambda x: ascend(value_fn, None, x))
  delta, info = attack(x)
  assert np.all(np.linalg.norm(delta, axis=-1) <= 0.4 * (1 + ROUNDING))
  assert np.mean(value_fn(x + delta) - value_fn(x)) > 0.5
  far = x.at[0].set(100 * x[0])  # a neighbor with another gradient
  close(attack(far)[0][1:], delta[1:])
  chex.assert_tree_all_finite(info)


SETS = {"linf": ro.LInf, "l2": ro.L2, "l1": ro.L1}


@pytest.mark.parametrize(
  "name", ["l1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("linf", "l2"))]
)
def test_lbfgs_never_falls_and_is_never_below_algorithm_1(name):
  _, x, value_fn = problem()
  u = SETS[name](0.5, (0.0, 1.0))
  delta, info = jax.jit(lambda x: ro.ascend(ro.lbfgs(u), 10)(value_fn, None, x))(x)
  values = np.stack([*info.value, value_fn(x + delta)])
  assert np.diff(values, axis=0).min() >= -ROUNDING
  single, _ = ro.steepest(u)(value_fn, None, x)
  assert np.all(values[1] >= value_fn(x + single) - ROUNDING)
  np.testing.assert_array_less(u.gauge(delta, x), 1 + ROUNDING)


@pytest.mark.parametrize(
  "name", ["l2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("linf", "l1"))]
)
def test_lbfgs_finds_the_maximum_of_a_concave_quadratic(name):
  """max of -(x - c)' D (x - c) / 2 over the ball: inside it is c, on its edge it is SciPy's."""
  rng = np.random.default_rng(1)
  curvature = widest(10 ** rng.uniform(-1, 1, (BATCH, NUM_ENTRIES)))
  center = rng.normal(size=(BATCH, NUM_ENTRIES))
  center[::2] *= 0.1  # these lie inside of the ball of l_inf

  def value_fn(x):
    return -0.5 * jnp.sum(curvature * (x - center) ** 2, axis=-1)

  x, u = jnp.zeros((BATCH, NUM_ENTRIES)), SETS[name](1.0)
  slow = ro.pgd(u, ro.L2(1.0), random_start=False)
  delta, _ = ro.ascend(ro.lbfgs(u), 60)(value_fn, None, x)
  # Projected gradient ascent with steps 1 / L converges to the maximum of a concave function.
  best, _ = ro.ascend(ro.projected(u, optax.sgd(0.1)), 3000)(value_fn, None, x)
  np.testing.assert_allclose(value_fn(delta), value_fn(best), rtol=2e-3, atol=2e-3)
  twenty = [
    value_fn(ro.ascend(m, 20, keep_best=True)(value_fn, None, x)[0]) for m in (slow, ro.lbfgs(u))
  ]
  assert np.mean(twenty[1]) > np.mean(twenty[0])
