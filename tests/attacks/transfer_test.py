"""Transfer, with attacks so simple that what it must keep is known."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import assert_close, rounding

import robust_opt as ro
from robust_opt import losses
from robust_opt.attacks.square import square
from robust_opt.attacks.transfer import transfer
from robust_opt.attacks.types import AttackResult

BATCH, SHAPE, RADIUS, BOX = 12, (4, 3, 1), 0.2, (0.0, 1.0)


# A norm over the entries, and what scales and clips them.
TERMS = 2 * 12 + 8
ROUNDING = rounding(terms=TERMS)
close = functools.partial(assert_close, terms=TERMS, dtype=np.float32)

pytestmark = pytest.mark.slow  # they compile for minutes


def problem(num_classes=3):
  """keys, x, and logits_of(i): x -> logits of the i-th linear net."""
  rng = np.random.default_rng(0)
  x = rng.random((BATCH, *SHAPE)).astype(np.float32)
  weights = rng.normal(size=(4, np.prod(SHAPE), num_classes)).astype(np.float32)

  def logits_of(i):
    return lambda x: jnp.sum((x.reshape(len(x), -1, 1) - 0.5) * weights[i], axis=1)

  return jax.random.split(jax.random.key(0), BATCH), x, logits_of


def labels_of(logits_fn, x):
  """What the net says, but for two examples."""
  y = np.array(jnp.argmax(logits_fn(x), -1))
  y[[1, 5]] = (y[[1, 5]] + 1) % 3
  return y


def sign_attack(keys, logits_fn, x, y):
  """FGSM on the margin, whatever it does to the net that it is run on."""
  del keys
  grad = jax.grad(lambda x: jnp.sum(losses.margin(logits_fn(x), y)))(x)
  delta = jnp.clip(RADIUS * jnp.sign(grad), -x, 1 - x)
  return AttackResult(delta, ~losses.correct(logits_fn(x + delta), y))


def margin_at(logits_fn, x, y):
  return np.asarray(losses.margin(logits_fn(x), y))


@pytest.mark.parametrize("sources", [[0, 1], [1, 2, 3], [3, 2, 1]])
def test_it_keeps_the_first_that_fools_and_else_the_highest_margin(sources):
  keys, x, logits_of = problem()
  target, nets = logits_of(0), [logits_of(i) for i in sources]
  y = labels_of(target, x)
  result = jax.jit(transfer(nets, sign_attack), static_argnums=1)(keys, target, x, y)

  clean = margin_at(target, x, y)
  tried = [sign_attack(keys, net, x, y).delta for net in nets]
  values = [margin_at(target, x + delta, y) for delta in tried]
  for i in range(BATCH):
    fooling = [k for k in range(len(nets)) if values[k][i] > 0]
    best = fooling[0] if fooling else int(np.argmax([value[i] for value in values]))
    keeps = clean[i] <= 0 and values[best][i] > clean[i]
    expected = tried[best][i] if keeps else np.zeros(SHAPE)
    np.testing.assert_allclose(result.delta[i], expected, atol=rounding())
    assert result.fooled[i] == (clean[i] > 0 or bool(fooling))
  assert np.all(np.asarray(result.fooled)[[1, 5]])
  assert not np.any(np.asarray(result.delta)[[1, 5]])


def test_an_examples_result_is_its_own():
  keys, x, logits_of = problem()
  target = logits_of(0)
  y = labels_of(target, x)
  attack = transfer([logits_of(1), logits_of(2)], square(ro.L2(0.5, BOX), num_queries=10))
  run = jax.jit(lambda keys, x, y: attack(keys, target, x, y))
  whole = run(keys, x, y)
  order = np.arange(BATCH)[::-1]
  chex.assert_trees_all_equal(
    run(keys[order], x[order], y[order]), jax.tree.map(lambda a: a[order], whole)
  )
  close(run(keys[:5], x[:5], y[:5]), jax.tree.map(lambda a: a[:5], whole))
  norms = np.linalg.norm(np.asarray(whole.delta, np.float64).reshape(BATCH, -1), axis=-1)
  assert np.all(norms <= 0.5 * (1 + ROUNDING))
  assert np.all((x + whole.delta >= 0) & (x + whole.delta <= 1))


def test_a_target_that_never_changes_keeps_the_clean_examples():
  keys, x, logits_of = problem()
  y = np.arange(BATCH) % 2  # of equal logits the first class wins
  result = transfer(logits_of(1), sign_attack)(keys, lambda x: jnp.ones((len(x), 3)), x, y)
  assert not np.any(result.delta)
  np.testing.assert_array_equal(result.fooled, y == 1)


def test_a_transfer_needs_a_source():
  with pytest.raises(ro.InputError, match="at least one source net"):
    transfer([], sign_attack)
