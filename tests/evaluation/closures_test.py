"""A function that closes over its weights answers by those that it has when it is called."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_opt as ro
from robust_opt import losses
from robust_opt.attacks import fab, minimal, square, szegedy, transfer, white_box
from robust_opt.certificates import certify_smoothed
from robust_opt.data import constructed
from robust_opt.evaluation import trust
from robust_opt.experiments import seeds
from robust_opt.theory import explanations

BOX = (0.0, 1.0)
RNG = np.random.default_rng(0)
X = RNG.random((4, 3, 3, 1)).astype(np.float32)
Y = np.array([0, 1, 2, 0])
KEYS = jax.random.split(jax.random.key(0), 4)
DIRECTION = RNG.choice([-1.0, 1.0], X.shape).astype(np.float32)
STEEPEST = ro.steepest(ro.LInf(0.2))
TOWARDS = constructed.TARGETED._replace(num_steps=3)
PGD = ro.ascend(ro.pgd(ro.L2(0.3), ro.L2(0.1)), 2, keep_best=True)
ASCENT = white_box.ascent(PGD, losses.cross_entropy)


def robustified(logits_fn):
  return ro.robustify(lambda x: losses.cross_entropy(logits_fn(x), Y), STEEPEST, argnum=0)(X)


def evaluated(logits_fn):
  def apply(params, model_state, x, *, train, key):
    return logits_fn(x), model_state

  evaluate = ro.make_evaluate(apply, ro.robust(), lambda radius: ro.steepest(ro.L2(radius)), 4)
  return evaluate({}, {}, ro.ArrayData(X, Y), jnp.float32(0.1), jax.random.key(0))


def attacked(attack):
  return lambda logits_fn: attack(KEYS, logits_fn, X, Y)


def turned(logits_fn):
  spatial = ro.grid_search(ro.sets.Transforms(30.0, 1.0), 3, 1)
  return spatial(lambda x: losses.cross_entropy(logits_fn(x), Y), None, X)[1].value


def over_seeds(vmapped):
  return lambda logits_fn: seeds.over_seeds(logits_fn, (0,), vmapped=vmapped)(X[:, None])


USES = {
  "robustify": robustified,
  "make_evaluate": evaluated,
  "ascent": attacked(ASCENT),
  "square": attacked(square.square(ro.LInf(0.2, BOX), num_queries=3)),
  "fab": attacked(fab.fab(ro.L2(1.0, BOX), num_steps=2)),
  "deepfool": attacked(minimal.deepfool(ro.L2(math.inf, BOX), num_steps=2)),
  "transfer": attacked(transfer.transfer(lambda x: x.reshape(4, -1)[:, :3], ASCENT)),
  "szegedy": attacked(szegedy.szegedy(ro.L2(math.inf, BOX), num_steps=2)),
  "grid_search": turned,
  "epsilon_sweep": lambda f: explanations.epsilon_sweep(f, X, DIRECTION, jnp.linspace(-1, 1, 3)),
  "plane": lambda f: explanations.plane(f, X, DIRECTION, DIRECTION[::-1], 1.0, 3),
  "smallest_angle": lambda f: explanations.smallest_angle(
    f, X, Y, DIRECTION, jnp.linspace(0, 1, 3)
  ),
  "effective_weights": lambda f: explanations.effective_weights(f, X),
  "towards": lambda f: constructed.towards(f, X, (Y + 1) % 3, TOWARDS),
  "smoothed": lambda f: certify_smoothed(KEYS, f, X, 0.01, n0=10, n=100),
  "trust_report": lambda f: trust.report(
    f, X, Y, ro.LInf(0.1, BOX), num_steps=2, num_queries=2, batch_size=4
  ),
  "over_seeds_vmapped": over_seeds(True),
  "over_seeds_looped": over_seeds(False),
}


SLOW = ("ascent", "square", "fab", "deepfool", "transfer", "szegedy", "towards", "trust_report")


@pytest.mark.parametrize(
  "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in USES]
)
def test_new_weights_give_a_new_answer(name):
  w = np.random.default_rng(1).normal(size=(9, 3)).astype(np.float32)
  now = {"w": w}

  def logits_fn(x):
    return (x - 0.5).reshape(len(x), -1) @ now["w"]

  before = USES[name](logits_fn)
  now["w"] = -w
  after = USES[name](logits_fn)
  expected = USES[name](lambda x: (x - 0.5).reshape(len(x), -1) @ -w)
  jax.tree.map(np.testing.assert_array_equal, after, expected)
  same = jax.tree.map(lambda a, b: bool(np.all(np.asarray(a) == np.asarray(b))), before, after)
  assert not all(jax.tree.leaves(same))
