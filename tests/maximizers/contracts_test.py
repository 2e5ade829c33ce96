"""One table, maximizers x sets: what every maximizer promises. A new maximizer is a new row."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rounding import assert_close, rounding

import robust_opt as ro
from robust_opt.maximizers.apgd import apgd_steps
from robust_opt.sets import BALLS

ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
BOXES = {"ball": None, "ball_with_box": (0.0, 1.0)}
MAXIMIZERS = {
  "frank_wolfe": lambda u: ro.frank_wolfe(u),
  "pgd": lambda u: ro.pgd(u, step_of(u), random_start=False),
  "pgd_random": lambda u: ro.pgd(u, step_of(u), random_start=True),
  "pgd_momentum": lambda u: ro.pgd(u, lambda t: step_of(u), random_start=False, momentum=0.5),
  "projected": lambda u: ro.projected(u, optax.sgd(1.0)),
  "lbfgs": lambda u: ro.lbfgs(u),
  "apgd": lambda u: apgd_steps(u, NUM_STEPS, False),
}
ONE_SET = ("l2", "ball_with_box")
# Each row compiles: the fast set has all of the basic three, and of the others one set.
BASIC = ("frank_wolfe", "pgd", "pgd_random")


def contract(maximizers):
  """Runs a test for each of them over every set."""
  rows = [
    pytest.param(s, b, m, marks=[] if m in BASIC or (s, b) == ONE_SET else pytest.mark.slow)
    for s in BALLS
    for b in BOXES
    for m in maximizers
  ]
  return pytest.mark.parametrize(("name", "box", "maximizer"), rows)


CONTRACT = contract(MAXIMIZERS)
BATCH, NUM_ENTRIES, NUM_STEPS = 32, 6, 8
# Forward and back through the entries and 3 units, then a norm over the entries.
TERMS = 2 * (NUM_ENTRIES + 3) + NUM_ENTRIES + 8
ROUNDING = rounding(terms=TERMS)
close = functools.partial(assert_close, terms=TERMS, steps=NUM_STEPS, dtype=np.float32)


def step_of(u):
  """Euclidean steps, whose limit is the maximum over any set; signs over linf, as is usual."""
  return ro.LInf(u.radius / 2) if isinstance(u, ro.LInf) else ro.L2(u.radius)


def values(x, weights, gain):
  """A small net of each example's own: [B, n], [B, n, 3], [B] -> [B]; linear where gain is < 0."""
  hidden = jnp.einsum("bn,bnh->bh", x - 0.5, weights)
  return jnp.where(gain < 0, hidden.sum(-1), gain * jnp.sin(2 * hidden).sum(-1))


def run_eagerly(maximizer, u, key, x, weights, gain, num_steps=NUM_STEPS):
  attack = ro.ascend(MAXIMIZERS[maximizer](u), num_steps)
  return attack(lambda x: values(x, weights, gain), key, x)


@functools.cache
def compiled(maximizer):
  return jax.jit(functools.partial(run_eagerly, maximizer))


def runner(name, box, maximizer):
  """One compilation for every test of a row."""
  return lambda keys, x, radius, weights, gain: compiled(maximizer)(
    BALLS[name](radius, BOXES[box]), keys, x, weights, gain
  )


@functools.cache
def problem():
  """keys [B], x [B, n], radius [B], weights [B, n, 3], gain [B]."""
  rng = np.random.default_rng(0)
  x = rng.random((BATCH, NUM_ENTRIES)).astype(np.float32)
  x[:4] = np.round(x[:4])
  weights = rng.normal(size=(BATCH, NUM_ENTRIES, 3)).astype(np.float32)
  radius = 10 ** rng.uniform(-1.5, 0.5, BATCH).astype(np.float32)
  return jax.random.split(jax.random.key(1), BATCH), x, radius, weights, np.ones(BATCH, np.float32)


def norm(delta, name):
  return np.linalg.norm(np.asarray(delta, np.float64), ORDERS[name], axis=-1)


@CONTRACT
def test_feasible_reported_and_repeatable(name, box, maximizer):
  keys, x, radius, weights, gain = problem()
  attack = runner(name, box, maximizer)
  delta, info = attack(keys, x, radius, weights, gain)
  chex.assert_shape(delta, x.shape)
  chex.assert_type(delta, jnp.float32)
  chex.assert_shape(info, (NUM_STEPS, BATCH))
  chex.assert_tree_all_finite((delta, info))
  assert info.zero_gradient.dtype == bool
  assert not info.zero_gradient.any()
  assert np.all(norm(delta, name) <= radius * (1 + ROUNDING))
  if BOXES[box] is not None:
    moved = x + np.asarray(delta)
    assert np.all((moved >= 0) & (moved <= 1))
  chex.assert_trees_all_equal(attack(keys, x, radius, weights, gain), (delta, info))

  start = 0 * x
  if maximizer == "pgd_random":
    start = BALLS[name](radius, BOXES[box]).sample(keys, x)
    other, _ = attack(keys[::-1], x, radius, weights, gain)
    assert np.any(other != delta)
  close(info.value[0], values(x + start, weights, gain))
  climbed = np.asarray(values(x + delta, weights, gain) - info.value[0])
  assert climbed.mean() > 0.1


@CONTRACT
def test_examples_do_not_mix(name, box, maximizer):
  """A permutation of the batch permutes the result; an example with gradient 0 stays put."""
  keys, x, radius, weights, gain = problem()
  attack = runner(name, box, maximizer)
  delta, info = attack(keys, x, radius, weights, gain)
  order = np.random.default_rng(2).permutation(BATCH)
  shuffled = attack(keys[order], x[order], radius[order], weights[order], gain[order])
  close(shuffled, (delta[order], jax.tree.map(lambda a: a[:, order], info)))

  flat = np.arange(BATCH) % 3 == 0
  gain = np.where(flat, 0, gain).astype(np.float32)
  still, info = attack(keys, x, radius, weights, gain)
  np.testing.assert_array_equal(info.zero_gradient, np.broadcast_to(flat, info.value.shape))
  if maximizer == "pgd_random":
    start = BALLS[name](radius, BOXES[box]).sample(keys, x)
    close(still[flat], start[flat])
  else:
    np.testing.assert_array_equal(still[flat], 0)
  close(still[~flat], delta[~flat])


@CONTRACT
def test_radius_0_is_the_clean_example(name, box, maximizer):
  keys, x, radius, weights, gain = problem()
  delta, info = runner(name, box, maximizer)(keys, x, 0 * radius, weights, gain)
  np.testing.assert_array_equal(delta, 0)
  np.testing.assert_array_equal(info.value, np.broadcast_to(info.value[0], info.value.shape))


@CONTRACT
def test_a_linear_function_is_maximized(name, box, maximizer):
  keys, x, radius, weights, _ = problem()
  delta, info = runner(name, box, maximizer)(keys, x, radius, weights, -np.ones_like(radius))
  g = weights.sum(-1)
  if BOXES[box] is None:
    dual = {"linf": 1, "l2": 2, "l1": np.inf}[name]
    best = radius * np.linalg.norm(g, dual, axis=-1)
  else:
    best = np.sum(g * BALLS[name](radius, BOXES[box]).steepest_ascent(g, x), -1)
  scale = radius * np.linalg.norm(g, axis=-1)
  gained = np.sum(g * delta, -1)
  assert np.all(gained <= best + ROUNDING * scale)
  if maximizer in ("frank_wolfe", "lbfgs") or (name == "linf" and maximizer.startswith("pgd")):
    close(gained, best)
  # Projected gradient ascent with steps s is within |g| |delta_0 - delta*|^2 / (2 s NUM_STEPS).
  distance, length = (2 if maximizer == "pgd_random" else 1) * radius, radius
  if maximizer == "projected":  # by the gradient itself, and the ball of l_inf is longer in l_2
    distance = radius * (np.sqrt(NUM_ENTRIES) if name == "linf" else 1)
    length = np.linalg.norm(g, axis=-1)
  slope = np.linalg.norm(g, axis=-1)
  assert np.all(best - gained <= slope * distance**2 / (2 * length * NUM_STEPS) + ROUNDING * scale)
  if maximizer != "apgd":  # whose momentum carries it past the edge and back
    fall = -np.diff(info.value, axis=0).min()
    assert fall < NUM_STEPS * ROUNDING * np.abs(info.value).max()


@contract([m for m in MAXIMIZERS if m != "projected"])  # whose optimizer has a rate, in pixels
def test_the_scale_of_the_gradient_does_not_matter(name, box, maximizer):
  """Gradients of 1e-30, whose squares are 0: sums over large batches, or means, change no step."""
  keys, x, radius, weights, _ = problem()
  linear, attack = -np.ones_like(radius), runner(name, box, maximizer)
  expected, _ = attack(keys, x, radius, weights, linear)
  for exponent in (-100, 100) if maximizer == "apgd" else (-100,):
    delta, info = attack(keys, x, radius, np.ldexp(weights, exponent), linear)
    assert not info.zero_gradient.any()
    close(delta, expected)


@CONTRACT
def test_no_steps_give_the_start(name, box, maximizer):
  keys, x, radius, weights, gain = problem()
  u = BALLS[name](radius, BOXES[box])
  delta, info = run_eagerly(maximizer, u, keys, x, weights, gain, num_steps=0)
  chex.assert_shape(info, (0, BATCH))
  start = u.sample(keys, x) if maximizer == "pgd_random" else 0 * x
  np.testing.assert_array_equal(delta, start)


@pytest.mark.parametrize("maximizer", list(MAXIMIZERS))
def test_no_gradient_flows_through_delta(maximizer):
  keys, x, radius, weights, gain = problem()

  def total(u, x, weights):
    return run_eagerly(maximizer, u, keys, x, weights, gain, 1)[0].sum()

  inputs = BALLS["l2"](radius, BOXES["ball_with_box"]), x, weights
  gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*inputs)
  chex.assert_trees_all_equal(gradients, jax.tree.map(jnp.zeros_like, gradients))


@pytest.mark.parametrize("name", list(BALLS))
@pytest.mark.parametrize("box", list(BOXES))
def test_one_full_step_is_algorithm_1(name, box):
  """PGD whose one step has the full radius == one Frank-Wolfe iteration == steepest ascent."""
  _, x, _, weights, gain = problem()

  @jax.jit
  def four_ways(x):
    u, value_fn = BALLS[name](0.3, BOXES[box]), lambda x: values(x, weights, gain)
    pgd, frank_wolfe = ro.pgd(u, u, random_start=False), ro.frank_wolfe(u)
    attacks = (ro.steepest(u), ro.ascend(pgd, 1), ro.ascend(frank_wolfe, 1))
    by_hand = u.steepest_ascent(jax.grad(lambda x: value_fn(x).sum())(x), x)
    return by_hand, [attack(value_fn, None, x)[0] for attack in attacks]

  by_hand, attacks = four_ways(x)
  for delta in attacks:
    close(delta, by_hand)


@pytest.mark.parametrize("maximizer", list(MAXIMIZERS))
def test_jit_changes_nothing_and_leaks_no_tracer(maximizer):
  """Over two steps: many steps over a sine amplify the rounding in which the two differ."""
  keys, x, radius, weights, gain = problem()
  arguments = BALLS["l2"](radius, BOXES["ball_with_box"]), keys, x, weights, gain
  two_steps = functools.partial(run_eagerly, maximizer, num_steps=2)
  eager = two_steps(*arguments)
  with jax.checking_leaks():
    close(eager, jax.jit(two_steps)(*arguments))


@pytest.mark.parametrize("name", list(BALLS))
def test_a_larger_set_never_has_the_smaller_maximum(name):
  _, x, _, weights, _ = problem()

  @jax.jit
  def worst_value(u):
    delta, _ = ro.ascend(ro.frank_wolfe(u), 1)(linear, None, x)
    return linear(x + delta)

  def linear(x):
    return values(x, weights, -1.0)

  radii = np.linspace(0, 2, 7, dtype=np.float32)
  curve = np.stack([worst_value(BALLS[name](radius, BOXES["ball_with_box"])) for radius in radii])
  assert worst_value._cache_size() == 1
  close(curve[0], linear(x))
  assert np.diff(curve, axis=0).min() > -ROUNDING * np.abs(curve).max()
