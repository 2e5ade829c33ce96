"""What the adversary ascends and what the learner descends."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_opt as ro


def problem():
  rng = np.random.default_rng(0)
  x, moved = rng.random((2, 8, 5)).astype(np.float32)
  return rng.normal(size=(5, 3)).astype(np.float32), x, moved, rng.integers(0, 3, 8)


def forward_of(w, seen=None):
  """A linear model whose state counts its images; `seen` records what it was shown."""

  def forward(x):
    if seen is not None:
      seen.append(x)
    return x @ w, {"count": x.shape[0]}

  return forward


@pytest.mark.parametrize("loss", [ro.losses.cross_entropy, lambda z, y: z.sum(-1) + y])
def test_robust_plays_one_loss_at_the_perturbed_batch(loss):
  w, x, moved, y = problem()
  objective, seen = ro.robust(loss), []
  value, score = objective.inner(forward_of(w, seen), x, y)(moved)
  outer, state = objective.outer(forward_of(w, seen), x, moved, y)
  chex.assert_shape([value, outer], (8,))
  chex.assert_trees_all_equal(value, outer, jnp.asarray(loss(moved @ w, y)))
  np.testing.assert_array_equal(score > 0, ~ro.losses.correct(moved @ w, y))
  assert state == {"count": 8}
  assert len(seen) == 2  # one forward pass each, and never of the clean batch
  assert all(shown is moved for shown in seen)


def test_robust_ascends_cross_entropy_unless_told():
  w, x, moved, y = problem()
  value = ro.robust().inner(forward_of(w), x, y)(moved).value
  np.testing.assert_array_equal(value, ro.losses.cross_entropy(moved @ w, y))


def test_the_two_halves_make_robustify():
  """attack(inner), then outer: what a training step does is what robustify does."""
  w, x, _, y = problem()
  objective, attack = ro.robust(), ro.steepest(ro.l2(0.3))

  def two_halves(w):
    frozen = forward_of(jax.lax.stop_gradient(w))
    delta, _ = attack(objective.inner(frozen, x, y), None, x)
    return objective.outer(forward_of(w), x, x + delta, y)[0].mean()

  def loss(w, x, y):
    return ro.losses.cross_entropy(x @ w, y).mean()

  robust = ro.robustify(loss, attack)
  expected = jax.value_and_grad(robust)(w, x, y)
  chex.assert_trees_all_close(jax.value_and_grad(two_halves)(w), expected, rtol=1e-5, atol=1e-7)
