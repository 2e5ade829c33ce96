"""Minimal-norm attacks: exact on linear models, near the brute-force optimum in the plane."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import rounding
from scipy import optimize

import robust_opt as ro
from robust_opt.attacks import fab, hyperplanes, minimal, penalized, sigma_zero, szegedy
from robust_opt.certificates import exact

pytestmark = pytest.mark.slow  # they compile for minutes


ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
BALLS = ro.sets.BALLS | {"l0": ro.sets.L0}
WIDE, UNIT = (-50.0, 50.0), (0.0, 1.0)  # WIDE binds nowhere
BATCH, NUM_ENTRIES = 12, 6
# A gradient through the entries, and a hyperplane's margin and norm over them.
ROUNDING = rounding(terms=6 * NUM_ENTRIES + 16)
MAKERS = {
  "fab": lambda u: fab.fab_minimal(u, num_steps=8),
  "fab_t": lambda u: fab.fab_minimal(u, num_steps=8, target_rank=0),
  "fab_restarts": lambda u: fab.fab_minimal(
    dataclasses.replace(u, radius=1e3), num_steps=4, num_restarts=2, random_start=True
  ),
  "deepfool": lambda u: minimal.deepfool(u, num_steps=10),
  "fast_minimum_norm": lambda u: minimal.fast_minimum_norm(u, num_steps=20),
  "szegedy": lambda u: szegedy.szegedy(u, num_steps=8, num_constants=5),
  "ddn": lambda u: minimal.ddn(u, num_steps=30),
  "carlini_wagner": lambda u: penalized.carlini_wagner(u, 20, 5, 1.0, learning_rate=0.1),
  "pdpgd": lambda u: penalized.pdpgd(u, num_steps=40),
  "sigma_zero": lambda u: sigma_zero.sigma_zero(u, num_steps=40),
}
TABLE = [(a, n) for a in ("fab", "deepfool", "fast_minimum_norm") for n in ("l2", "l1")]
TABLE += [("fab_t", "linf"), ("fab_restarts", "l1"), ("szegedy", "l2")]
TABLE += [("ddn", "l2"), ("carlini_wagner", "l2"), ("pdpgd", "linf"), ("sigma_zero", "l0")]
TABLE += [("fast_minimum_norm", "l0")]
# The loss of these has a scale.
SCALED = ("szegedy", "ddn", "carlini_wagner", "pdpgd", "sigma_zero")
CONTRACT = pytest.mark.parametrize(("attack", "norm"), TABLE)
IN_L2 = pytest.mark.parametrize("attack", ["fab", "deepfool", "fast_minimum_norm", "szegedy"])
EVERY_NORM = pytest.mark.parametrize("norm", ORDERS)


def size(delta, norm):
  return ro.sets.lengths(BALLS[norm], np.asarray(delta))


def everywhere(norm, box=UNIT):
  """The ball in which a perturbation has any size."""
  return ro.sets.L0(2**20, 100.0, box) if norm == "l0" else BALLS[norm](np.inf, box)


def keys_of(batch=BATCH):
  return jax.random.split(jax.random.key(3), batch)


def linear_problem(num_classes, batch=BATCH):
  """x [B, n] in the middle of [0, 1], weights [n, C], bias [C]."""
  rng = np.random.default_rng(num_classes)
  x = rng.uniform(0.3, 0.7, (batch, NUM_ENTRIES)).astype(np.float32)
  weights = rng.normal(size=(NUM_ENTRIES, num_classes)).astype(np.float32)
  return x, weights, (0.3 * rng.normal(size=num_classes)).astype(np.float32)


def linear(weights, bias):
  return lambda x: x @ weights + bias


def net(x, gain=1.0):
  """A fixed smooth net of 4 classes: [B, *S] -> [B, 4]."""
  rng = np.random.default_rng(5)
  flat = x.reshape(x.shape[0], -1)
  first = jnp.asarray(rng.normal(size=(flat.shape[1], 8)), jnp.float32)
  second = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)
  return gain * jnp.tanh(2 * (flat - 0.5) @ first) @ second


@functools.cache
def image_problem(box=(0.0, 1.0)):
  """x [B, 2, 3, 1], some pixels on the edges of the box; labels, the first two of them wrong."""
  rng = np.random.default_rng(6)
  x = rng.uniform(*box, (BATCH, 2, 3, 1)).astype(np.float32)
  x[::3] = np.where(rng.random(x[::3].shape) < 0.5, *np.float32(box))
  y = np.array(jnp.argmax(net(x), -1), np.int32)
  y[:2] = (y[:2] + 1) % 4
  return x, y


@functools.cache
def runner(attack, norm, box=UNIT, radius=np.inf):
  """(keys, x, y, gain) -> AttackResult; one compilation for every test of a row."""
  u = everywhere(norm, box)
  run = MAKERS[attack](u if norm == "l0" else dataclasses.replace(u, radius=radius))
  return jax.jit(lambda keys, x, y, gain=1.0: run(keys, functools.partial(net, gain=gain), x, y))


# What all minimal attacks owe.


@CONTRACT
def test_points_that_fool_are_misclassified_and_in_the_box(attack, norm):
  box = (-2.1, 2.6) if norm == "l2" else UNIT  # the ends of one round
  x, y = image_problem(box)
  delta, fooled = runner(attack, norm, box)(keys_of(), x, y)
  chex.assert_shape(delta, x.shape)
  chex.assert_type([delta, fooled], [jnp.float32, bool])
  moved = x + np.asarray(delta)
  assert np.all((moved >= np.float32(box[0])) & (moved <= np.float32(box[1])))
  np.testing.assert_array_equal(fooled, np.argmax(net(moved), -1) != y)
  np.testing.assert_array_equal(delta[~fooled], 0)
  np.testing.assert_array_equal(delta[:2], 0)  # misclassified already
  assert np.all(fooled[:2])
  assert np.mean(fooled[2:]) > 0.6
  assert np.all(size(delta, norm)[2:][fooled[2:]] > 0)


@IN_L2
def test_a_perturbation_longer_than_the_radius_is_not_returned(attack):
  x, y = image_problem()
  delta, fooled = runner(attack, "l2")(keys_of(), x, y)
  norms = size(delta, "l2")
  radius = float(np.median(norms[2:][fooled[2:]])) * 1.001
  within = runner(attack, "l2", radius=radius)(keys_of(), x, y)
  np.testing.assert_array_equal(within.fooled, fooled & (norms <= radius))
  assert np.sum(fooled & ~within.fooled) > 0
  np.testing.assert_array_equal(within.delta[within.fooled], delta[within.fooled])
  np.testing.assert_array_equal(within.delta[~within.fooled], 0)


@CONTRACT
def test_examples_do_not_mix(attack, norm):
  """The order of the batch does not matter, and neither do the neighbors."""
  x, y = image_problem()
  run = runner(attack, norm)
  delta, fooled = run(keys_of(), x, y)
  order = np.random.default_rng(7).permutation(BATCH)
  permuted = run(keys_of()[order], x[order], y[order])
  chex.assert_trees_all_close(tuple(permuted), (delta[order], fooled[order]), rtol=1e-4, atol=1e-5)
  here = np.arange(BATCH) % 2 == 0
  keys = jnp.where(here, keys_of(), jax.random.split(jax.random.key(9), BATCH))
  among_others = run(keys, np.where(here[:, None, None, None], x, 1 - x), y)
  kept = tuple(a[here] for a in among_others)
  chex.assert_trees_all_close(kept, (delta[here], fooled[here]), rtol=1e-4, atol=1e-5)


@CONTRACT
def test_zero_gradients_find_nothing(attack, norm):
  x, y = image_problem()
  delta, fooled = runner(attack, norm)(keys_of(), x, 0 * y, 0.0)  # all logits 0: class 0
  np.testing.assert_array_equal(delta, 0)
  assert not np.any(fooled)


@IN_L2
def test_no_gradient_flows(attack):
  """Neither through x nor into the net: the attack is a constant of the outer problem."""
  x, y = image_problem()

  def total(x, gain):
    return jnp.sum(runner(attack, "l2")(keys_of(), x, y, gain).delta)

  gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(x, 1.0)
  chex.assert_trees_all_equal(gradients, jax.tree.map(jnp.zeros_like, gradients))


@pytest.mark.parametrize(("attack", "norm"), [row for row in TABLE if row[0] not in SCALED])
def test_the_scale_of_the_logits_does_not_matter(attack, norm):
  """A power of two changes no digit."""
  x, y = image_problem()
  unscaled = runner(attack, norm)(keys_of(), x, y, 1.0)
  for exponent in (-60, 40):
    scaled = runner(attack, norm)(keys_of(), x, y, 2.0**exponent)
    chex.assert_trees_all_close(scaled, unscaled, rtol=1e-5, atol=1e-6)


LINEAR_TWO = [("szegedy", "l2", 2), ("ddn", "l2", 2), ("carlini_wagner", "l2", 2)]
LINEAR_TWO += [("pdpgd", norm, 2) for norm in ORDERS]
LINEAR_CASES = [(a, n, 10) for a in ("deepfool", "fast_minimum_norm", "fab") for n in ORDERS]


@pytest.mark.parametrize(("attack", "norm", "num_classes"), [*LINEAR_CASES, *LINEAR_TWO])
def test_a_linear_model_is_fooled_at_its_exact_distance(attack, norm, num_classes):
  x, weights, bias = linear_problem(num_classes)
  logits_fn = linear(weights, bias)
  y = np.argmax(logits_fn(x), -1)
  u = everywhere(norm, WIDE)
  narrow = everywhere(norm)  # Carlini and Wagner measure steps in units of the box
  in_l2 = (
    {}
    if norm != "l2"
    else {
      "szegedy": (szegedy.szegedy(u), 1.05, 1.05),
      "ddn": (minimal.ddn(u, num_steps=200), 1.01, 1.02),
      "carlini_wagner": (penalized.carlini_wagner(narrow, 60, 9, 0.1, 0.05), 1.05, 1.2),
    }
  )
  run, median, largest = {
    "deepfool": (minimal.deepfool(u, overshoot=5e-4), 1 + 1e-3, 1 + 1e-3),
    # It ascends the margin, whose largest rival need not be the closest.
    "fast_minimum_norm": (minimal.fast_minimum_norm(u), 1 + 1e-3, 1.2),
    "fab": (fab.fab_minimal(u, num_steps=3), 1 + 1e-3, 1 + 1e-3),
    "pdpgd": (penalized.pdpgd(u, num_steps=300), 1.06, 1.1),
    **(in_l2 if norm == "l2" else {}),
  }[attack]
  delta, fooled = jax.jit(lambda x, y: run(keys_of(), logits_fn, x, y))(x, y)
  assert np.all(fooled)
  ratio = size(delta, norm) / exact.linear_distance(weights, bias, x, y, type(u))
  assert np.all(ratio >= 1 - ROUNDING)  # nothing that is misclassified is closer
  assert np.median(ratio) <= median
  assert np.all(ratio <= largest)


# Each attack on its own.


def test_deepfool_oversteps_and_looks_at_as_many_classes_as_it_is_told():
  x, weights, bias = linear_problem(10)
  y = np.argmax(linear(weights, bias)(x), -1)
  norms = []
  for num_candidates in (1, None):
    u = everywhere("l2", WIDE)
    run = minimal.deepfool(u, num_candidates=num_candidates, overshoot=0.3)
    delta, fooled = run(keys_of(), linear(weights, bias), x, y)
    assert np.all(fooled)
    norms.append(size(delta, "l2"))
  shortest = 1.3 * exact.linear_distance(weights, bias, x, y, ro.L2)
  np.testing.assert_allclose(norms[1], shortest, rtol=1e-4)
  assert np.any(norms[1] < 0.99 * norms[0])


def test_szegedy_reaches_its_targets():
  x, y = image_problem()
  run = jax.jit(lambda targets: szegedy.szegedy(everywhere("l2"))(keys_of(), net, x, y, targets))
  for shift in (1, 2, 3):
    targets = (y + shift) % 4
    delta, fooled = run(targets)
    mistaken_for = np.argmax(net(x + delta), -1)
    np.testing.assert_array_equal(mistaken_for[2:] == targets[2:], fooled[2:])
    assert np.mean(fooled) > 0.6
  assert not np.any(run(y).fooled[2:])  # the label itself is no target


def test_szegedy_minimizes_as_scipy_does():
  """One constant, so that the descent itself is seen: the minimum within the box, pixels pinned."""
  x, weights, bias = linear_problem(3, batch=6)
  x = np.clip(x, 0.35, 0.6).astype(np.float32)
  box, constant = (0.3, 0.65), np.float32(0.2)
  logits_fn = linear(weights, bias)
  y = np.argmax(logits_fn(x), -1)
  targets = (y + 1) % 3
  bounds = hyperplanes.bounds_of(everywhere("l2", box), x)

  def objective(delta, x=x, targets=targets):
    logits = logits_fn(x + delta)
    loss = ro.losses.cross_entropy(logits, targets)
    return constant * jnp.sum(delta**2, -1) + loss, logits

  def step(descent, _):
    return szegedy._lbfgs_step(objective, descent, bounds, 12)[0], None

  descent, _ = jax.lax.scan(step, szegedy._start_descent(x, 8), length=30)
  reached = objective(descent.delta)[0]
  num_pinned = 0

  @jax.jit
  @jax.value_and_grad
  def one(delta, x, target):
    return objective(delta[None], x[None], target[None])[0][0]

  for i in range(len(x)):
    best = optimize.minimize(
      lambda delta, i=i: tuple(np.float64(a) for a in one(jnp.float32(delta), x[i], targets[i])),
      np.zeros(NUM_ENTRIES),
      jac=True,
      bounds=list(zip(*(np.float64(end[i]) for end in bounds))),
      method="L-BFGS-B",
    )
    np.testing.assert_allclose(reached[i], best.fun, rtol=2e-5)
    np.testing.assert_allclose(descent.delta[i], best.x, atol=5e-3)
    num_pinned += np.sum((best.x <= bounds[0][i]) | (best.x >= bounds[1][i]))
  assert num_pinned > 5


@functools.cache
def plane_problem():
  """A ReLU net of three classes over the unit square, examples, and all points of a fine grid."""
  rng = np.random.default_rng(8)
  first = (4 * rng.normal(size=(2, 16))).astype(np.float32)
  bias = (2 * rng.normal(size=16) - first.sum(0) / 2).astype(np.float32)
  second = rng.normal(size=(16, 3)).astype(np.float32)

  def logits_fn(x):
    return jax.nn.relu(x @ first + bias) @ second

  x = rng.random((48, 2)).astype(np.float32)
  ticks = np.linspace(0, 1, 251, dtype=np.float32)
  grid = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
  labels = np.argmax(logits_fn(grid), -1)
  assert len(np.unique(labels)) >= 2
  return logits_fn, x, np.argmax(logits_fn(x), -1), grid, labels


@EVERY_NORM
def test_near_the_brute_force_minimum_in_the_plane(norm):
  logits_fn, x, y, grid, labels = plane_problem()
  distances = np.linalg.norm(grid[None] - x[:, None], ORDERS[norm], axis=-1)
  smallest = np.where(labels != y[:, None], distances, np.inf).min(-1)
  u = everywhere(norm)
  cell = np.linalg.norm(np.ones(2), ORDERS[norm]) / 250

  attacks = {
    "fab": fab.fab_minimal(dataclasses.replace(u, radius=2.0), num_steps=50, num_restarts=3),
    "deepfool": minimal.deepfool(u),
    "fast_minimum_norm": minimal.fast_minimum_norm(u),
  }
  if norm == "l2":
    attacks["szegedy"] = szegedy.szegedy(u)
  norms = {}
  for name, run in attacks.items():
    delta, fooled = jax.jit(lambda x, y, run=run: run(keys_of(len(x)), logits_fn, x, y))(x, y)
    assert np.all(fooled) or name == "szegedy"  # whose second class may lie nowhere
    norms[name] = np.where(fooled, size(delta, norm), np.inf)
    assert np.all(norms[name] >= smallest - cell), name
  for name in ("fab", "fast_minimum_norm"):
    assert np.median(norms[name] / smallest) <= 1.01, name
    assert np.quantile(norms[name] / smallest, 0.9) <= 1.1, name
  assert np.median(norms["fab"]) <= 1.1 * np.median(norms["deepfool"])


@pytest.mark.parametrize(
  ("make", "sentence"),
  [
    (lambda: minimal.deepfool("l2"), "deepfool takes ro.LInf, ro.L2 or .* not the string 'l2'"),
    (lambda: minimal.deepfool(everywhere("l2", None)), "deepfool needs a set with a finite box"),
    (lambda: minimal.deepfool(everywhere("l2"), num_steps=0), "num_steps must be at least 1"),
    (lambda: minimal.deepfool(everywhere("l2"), num_candidates=0), "num_candidates must be at"),
    (lambda: minimal.fast_minimum_norm(everywhere("l2"), num_steps=0), "num_steps must be at"),
    (lambda: szegedy.szegedy(everywhere("l2", (0.0, np.inf))), "needs a set with a finite box"),
    (lambda: szegedy.szegedy(everywhere("l1")), "szegedy takes ro.L2, not a L1"),
    (lambda: minimal.ddn(everywhere("l1")), "ddn takes ro.L2, not a L1"),
    (lambda: minimal.ddn(everywhere("l2"), radius_change=1.0), "radius_change must be in"),
    (lambda: penalized.carlini_wagner(everywhere("l2"), first_constant=0), "first_constant must"),
    (lambda: penalized.pdpgd(everywhere("l0")), "pdpgd takes ro.LInf"),
    (lambda: penalized.pdpgd(everywhere("l1"), first_weight=0), "first_weight must be"),
    (lambda: sigma_zero.sigma_zero(everywhere("l2")), "sigma_zero takes ro.sets.L0 with a finite"),
    (lambda: sigma_zero.sigma_zero(ro.sets.L0(3)), "sigma_zero takes ro.sets.L0 with a finite box"),
    (lambda: sigma_zero.sigma_zero(everywhere("l0"), sigma=0), "sigma must be > 0"),
    (lambda: minimal.fast_minimum_norm(ro.sets.L0(3)), "fast_minimum_norm takes ro.sets.L0 with"),
    (lambda: szegedy.szegedy(everywhere("l2"), first_constant=0.0), "first_constant must be pos"),
  ],
)
def test_bad_input_is_one_sentence(make, sentence):
  with pytest.raises(ro.InputError, match=sentence):
    make()
