"""What the adversary ascends and what the learner descends."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import assert_close, widest

import robust_opt as ro

pytestmark = pytest.mark.usefixtures("float64")
# Forward and back through 5 inputs, 3 classes and 8 examples, and some logarithms.
close = functools.partial(assert_close, terms=2 * (5 + 3 + 8) + 16, scale=1.0)


def problem():
  rng = np.random.default_rng(0)
  x, moved = widest(rng.random((2, 8, 5)))
  return widest(rng.normal(size=(5, 3))), x, moved, rng.integers(0, 3, 8)


def forward_of(w, seen=None):
  """A linear model whose state counts its images; `seen` records what it was shown."""

  def forward(x, train=True):
    if seen is not None:
      seen.append(x)
    return x @ w, {"count": x.shape[0]}

  return forward


ALL = {
  "mixture": ro.mixture(0.3),
  "virtual": ro.virtual(2.0),
  "trades": ro.trades(3.0),
  "mart": ro.mart(4.0),
  "gradient_penalty": ro.gradient_penalty(ro.L2(0.2)),
  "ibp": ro.ibp(ro.LInf(0.2), alpha=0.3, share=0.5),
}


@pytest.mark.parametrize("name", ALL)
def test_every_example_has_a_loss_of_its_own(name):
  w, x, moved, y = problem()
  run = jax.jit(lambda x, moved, y: ALL[name].outer(forward_of(w), x, moved, y))
  losses, state = run(x, moved, y)
  chex.assert_shape(losses, (8,))
  chex.assert_tree_all_finite(losses)
  alone = [run(x[i : i + 1], moved[i : i + 1], y[i : i + 1])[0] for i in range(8)]
  close(np.concatenate(alone), losses)
  assert state == {"count": 8}


@pytest.mark.parametrize("own", [None, lambda z, y: z.sum(-1) + y])
def test_robust_plays_one_loss_at_the_perturbed_batch(own):
  """The cross-entropy unless told otherwise."""
  w, x, moved, y = problem()
  objective, seen = ro.robust(own) if own else ro.robust(), []
  loss = own or ro.losses.cross_entropy
  value = objective.inner(forward_of(w, seen), x, y)(moved).value
  paid, state = objective.outer(forward_of(w, seen), x, moved, y)
  chex.assert_shape([value, paid], (8,))
  chex.assert_trees_all_equal(value, paid, jnp.asarray(loss(moved @ w, y)))
  assert state == {"count": 8}
  assert len(seen) == 2  # one forward pass each, and never of the clean batch
  assert all(shown is moved for shown in seen)


def test_the_two_halves_make_robustify():
  """attack(inner), then outer: what a training step does is what robustify does."""
  w, x, _, y = problem()
  objective, attack = ro.robust(), ro.steepest(ro.L2(0.3))

  def two_halves(w):
    frozen = forward_of(jax.lax.stop_gradient(w))
    delta, _ = attack(objective.inner(frozen, x, y), None, x)
    return objective.outer(forward_of(w), x, x + delta, y)[0].mean()

  def loss(w, x, y):
    return ro.losses.cross_entropy(x @ w, y).mean()

  robust = ro.robustify(loss, attack)
  expected = jax.jit(jax.value_and_grad(robust))(w, x, y)
  close(jax.jit(jax.value_and_grad(two_halves))(w), expected)


def kl(p, q):
  return (p * (np.log(p) - np.log(q))).sum(-1)


def outer(objective, w, x, moved, y):
  """[B]; compiled as one program."""
  return jax.jit(lambda x, moved, y: objective.outer(forward_of(w), x, moved, y)[0])(x, moved, y)


def test_mixture_in_closed_form():
  w, x, moved, y = problem()
  clean, perturbed = (ro.losses.cross_entropy(z @ w, y) for z in (x, moved))
  for alpha in (0.0, 0.3, 1.0):
    found = outer(ro.mixture(alpha), w, x, moved, y)
    close(found, alpha * clean + (1 - alpha) * perturbed)


def test_trades_and_virtual_in_closed_form():
  w, x, moved, y = problem()
  p, q = (np.asarray(jax.nn.softmax(z @ w), np.float64) for z in (x, moved))
  clean = -np.log(p[np.arange(8), y])
  for objective, weight in ((ro.trades(3.0), 3.0), (ro.virtual(2.0), 2.0)):
    found = outer(objective, w, x, moved, y)
    close(found, clean + weight * kl(p, q))
    climbed = jax.jit(objective.inner(forward_of(w), x, y))
    close(climbed(moved), kl(p, q))
    close(climbed(x), 0.0)


def test_of_trades_both_predictions_learn_and_of_virtual_one():
  """In logits z, z': dKL(p || p')/dz' = p' - p; through p too, dKL/dz = p (log p - log p' - KL)."""
  w, x, moved, y = problem()
  p, q = (np.asarray(jax.nn.softmax(z @ w), np.float64) for z in (x, moved))
  by_moved = moved.T @ (q - p)
  by_clean = x.T @ (p * (np.log(p) - np.log(q) - kl(p, q)[:, None]))

  def gradient(objective):
    plain = ro.robust()  # the clean loss, that both have

    def penalty(w):
      forward = forward_of(w)
      return (objective.outer(forward, x, moved, y)[0] - plain.outer(forward, x, x, y)[0]).sum()

    return jax.jit(jax.grad(penalty))(w)

  close(gradient(ro.virtual(1.0)), by_moved)
  close(gradient(ro.trades(1.0)), by_moved + by_clean)
  assert np.abs(by_clean).max() > 0.01


def test_virtual_needs_no_label():
  w, x, moved, y = problem()
  some = np.where(np.arange(8) < 3, y, -1)
  found = outer(ro.virtual(2.0), w, x, moved, some)
  smooth = 2.0 * ro.losses.kl_divergence(moved @ w, x @ w)
  close(found[3:], smooth[3:])
  labeled = ro.losses.cross_entropy(x[:3] @ w, y[:3]).mean()
  close(found.mean(), smooth.mean() + labeled)
  none = outer(ro.virtual(2.0), w, x, moved, np.full(8, -1))
  close(none, smooth)


def test_mart_in_closed_form():
  w, x, moved, y = problem()
  p, q = (np.asarray(jax.nn.softmax(z @ w), np.float64) for z in (x, moved))
  rows = np.arange(8)
  others = np.where(np.arange(3) == y[:, None], 0, q)
  boosted = -np.log(q[rows, y]) - np.log(1 - others.max(-1))
  expected = boosted + 4.0 * (1 - p[rows, y]) * kl(p, q)
  close(outer(ro.mart(4.0), w, x, moved, y), expected)


@pytest.mark.parametrize("classes", [2, 3])
def test_mart_of_a_confident_net_is_finite(classes):
  """1 - p of a p that rounds to 1 would be log(0)."""
  logits = jnp.zeros((2, classes)).at[:, 0].set(60.0)
  y = np.array([0, 1])

  def loss(logits):
    return ro.mart().outer(lambda x: (logits, {}), jnp.zeros((2, 1)), jnp.zeros((2, 1)), y)[0].sum()

  value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
  chex.assert_tree_all_finite((value, gradient))
  assert value > 100  # both terms see that the second is wrong


@pytest.mark.parametrize(
  "norm", ["l1", *(pytest.param(n, marks=pytest.mark.slow) for n in ("linf", "l2"))]
)
def test_a_gradient_penalty_is_robust_optimization_to_first_order(norm):
  """Exactly so for a loss that is linear in x; otherwise loss plus radius times the dual norm."""
  w, x, _, y = problem()
  uncertainty = ro.sets.BALLS[norm](0.3)

  def linear(logits, y):
    return logits[:, 0] - 2 * logits[:, 1]

  attack = ro.steepest(uncertainty)
  delta = jax.jit(lambda x: attack(lambda x: linear(x @ w, y), None, x)[0])(x)
  penalized, state = ro.gradient_penalty(uncertainty, linear).outer(forward_of(w), x, x, y)
  assert state == {"count": 8}
  robust = ro.robust(linear).outer(forward_of(w), x, x + delta, y)[0]
  close(penalized, robust)

  order = {"linf": 1, "l2": 2, "l1": np.inf}[norm]

  def explicit(w):
    gradient = jax.grad(lambda x: ro.losses.cross_entropy(x @ w, y).sum())(x)
    dual = jnp.linalg.norm(gradient, order, axis=-1)
    return (ro.losses.cross_entropy(x @ w, y) + 0.3 * dual).sum()

  def found(w):
    return ro.gradient_penalty(uncertainty).outer(forward_of(w), x, x, y)[0].sum()

  expected = jax.jit(jax.value_and_grad(explicit))(w)
  close(jax.jit(jax.value_and_grad(found))(w), expected)


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: ro.mixture(1.5), r"alpha .* in \[0, 1\], but was 1.5"),
    (lambda: ro.trades(-1.0), "beta .* >= 0, but was -1.0"),
    (lambda: ro.virtual(float("nan")), "alpha .* but was nan"),
    (lambda: ro.mart(float("inf")), "beta .* but was inf"),
  ],
)
def test_weights_that_are_none_are_refused(make, words):
  with pytest.raises(ro.InputError, match=words):
    make()


@pytest.mark.parametrize("make", [ro.mixture, ro.virtual, ro.trades, ro.mart])
def test_statistics_are_averaged_and_counters_are_not(make):
  """Haiku's batch norm counts its passes in an integer, and NNX keeps the keys of dropout."""
  w, x, moved, y = problem()

  def forward(x):
    return x @ w, {"mean": x.mean(), "count": jnp.int32(x.sum()), "key": jax.random.key(3)}

  _, state = make().outer(forward, jnp.asarray(x), jnp.asarray(moved), y)
  close(state["mean"], (x.mean() + moved.mean()) / 2)
  assert state["count"].dtype == jnp.int32
  assert int(state["count"]) == int(moved.sum())
  assert jax.random.key_data(state["key"]).tolist() == [0, 3]
