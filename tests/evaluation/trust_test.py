"""The report on an evaluation: healthy nets pass, and every broken one is caught by its check."""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import io_callback
from scipy import stats

import robust_opt as ro
from robust_opt.data import datasets
from robust_opt.evaluation import autoattack, batches, trust, trust_checks

RADIUS = 0.2
NUM_EXAMPLES = 100
# 100 examples, 40 at a time: the last batch is not whole.
SETTINGS = {"batch_size": 40, "num_steps": 20, "num_queries": 200}
NAMES = (
  "clean accuracy",
  "logits",
  "levels",
  "repeatable",
  "batches",
  "gradients",
  "finite gradients",
  "slope",
  "pixels",
  "unbounded radius",
  "radii",
  "steps",
  "restarts",
  "noise",
  "black box",
)


class Fault(NamedTuple):
  """What is wrong with a net: numbers, so that all nets are one program; 0 is nothing wrong."""

  units: float = 0.0  # log10 of what the net takes pixels to be multiplied by
  levels: float = 0.0  # that pixels are rounded to
  ripple: float = 0.0  # height of a ripple on the pixels, far finer than they are
  backwards: float = 0.0  # 1: the gradient has the wrong sign
  near: float = 0.0  # 1: there is a gradient only at images of 256 levels
  reach: float = 0.0  # there is a gradient only where no pixel of the left edge exceeds this
  confidence: float = 0.0  # log10 of the gain of the logits
  batch_norm: float = 0.0  # 1: with the statistics of the batch
  softmax: float = 0.0  # 1: probabilities


HEALTHY = Fault()


def net(params, fault, x):
  """An MLP, [B, 8, 8, 1] -> [B, 10]."""
  x = 10.0**fault.units * hidden_gradient(fault, x.reshape(x.shape[0], -1))
  levels = jnp.where(fault.levels > 0, fault.levels, 1.0)
  x = jnp.where(fault.levels > 0, jnp.round(levels * x) / levels, x)
  x = x + fault.ripple * jnp.sin(1e4 * x)
  hidden = x @ params["w0"] + params["b0"]
  normal = (hidden - hidden.mean(0)) / jnp.sqrt(hidden.var(0) + 1e-5)
  hidden = jax.nn.relu(jnp.where(fault.batch_norm > 0, normal, hidden))
  logits = 10.0**fault.confidence * (hidden @ params["w1"] + params["b1"])
  return jnp.where(fault.softmax > 0, jax.nn.softmax(logits), logits)


def hidden_gradient(fault, x):
  """x [B, n] itself, with another derivative."""
  constant = jax.lax.stop_gradient(x)
  off_grid = jnp.any(jnp.abs(255 * x - jnp.round(255 * x)) > 1e-3, axis=1, keepdims=True)
  far = jnp.any(x[:, ::8] > fault.reach, axis=1, keepdims=True)
  x = jnp.where((fault.near > 0) & off_grid, constant, x)
  x = jnp.where((fault.reach > 0) & far, constant, x)
  return x + 2 * fault.backwards * (constant - x)


@functools.cache
def digits(split):
  images = datasets.load("digits", split)
  return images.images.astype(np.float32) / 255, images.labels


def examples():
  x, y = digits("test")
  return x[:NUM_EXAMPLES], y[:NUM_EXAMPLES]


@functools.cache
def trained(radius):
  """The parameters after a second of training, against PGD of four steps; none at radius 0."""
  return train(jnp.float32(radius))


@jax.jit
def train(radius):
  x, y = map(jnp.asarray, digits("train"))
  w0_key, w1_key = jax.random.split(jax.random.key(0))
  params = {
    "w0": jax.random.normal(w0_key, (64, 64)) / 8,
    "b0": jnp.zeros(64),
    "w1": jax.random.normal(w1_key, (64, 10)) / 8,
    "b1": jnp.zeros(10),
  }
  ball = ro.LInf(radius, (0.0, 1.0))
  attack = ro.ascend(ro.pgd(ball, ro.LInf(radius / 2), random_start=False), 4)
  optimizer = optax.adam(0.01)

  def loss(params, x, y):
    return ro.losses.cross_entropy(net(params, HEALTHY, x), y).mean()

  def step(carry, key):
    params, state = carry
    ids = jax.random.randint(key, (100,), 0, len(y))
    gradient = jax.grad(ro.robustify(loss, attack))(params, x[ids], y[ids])
    updates, state = optimizer.update(gradient, state)
    return (optax.apply_updates(params, updates), state), None

  keys = jax.random.split(jax.random.key(1), 400)
  return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]


def run(fault=HEALTHY, trained_at=0.1, radius=RADIUS, shift=0, seed=0):
  """The report of a net; all nets share one compilation."""
  logits_fn = jax.tree_util.Partial(net, trained(trained_at), Fault(*map(jnp.float32, fault)))
  x, y = examples()
  return trust.report(logits_fn, x, (y + shift) % 10, ball(radius), seed=seed, **SETTINGS)


def ball(radius, make=ro.LInf):
  return make(radius, box=(0.0, 1.0))


def failures(checks):
  return {check.name: check.measured for check in checks if check.failed}


def unclear(checks):
  return {check.name: check.measured for check in checks if check.passed is None}


@pytest.mark.slow
@pytest.mark.parametrize("trained_at", [0.0, 0.1])
def test_healthy_nets_pass(trained_at):
  checks = run(trained_at=trained_at)
  assert tuple(check.name for check in checks) == NAMES
  assert all(check.passed is True for check in checks), checks
  meanings = {check.meaning for check in checks}
  assert len(meanings) == len(checks)
  assert all(re.fullmatch(r"[A-Z].*[^.]\.", meaning) for meaning in meanings)


# What is run, and the checks that are meant for it.
BROKEN = {
  "saturated": ({"fault": Fault(confidence=4.0)}, {"gradients"}),
  "quantized": ({"fault": Fault(levels=4.0)}, {"gradients", "noise", "black box"}),
  "shattered": ({"fault": Fault(ripple=0.02)}, {"black box"}),
  "backwards": ({"fault": Fault(backwards=1.0)}, {"slope", "black box"}),
  "flat beside the data": ({"fault": Fault(near=1.0)}, {"unbounded radius", "steps"}),
  "flat for some starts": ({"fault": Fault(reach=0.12)}, {"restarts"}),
  "flat far away": ({"fault": Fault(reach=0.12), "trained_at": 0.0, "radius": 0.05}, {"radii"}),
  "wrong units": ({"fault": Fault(units=-2.4)}, {"clean accuracy"}),
  "wrong order of labels": ({"shift": 1}, {"clean accuracy"}),
  "batch norm in train mode": ({"fault": Fault(batch_norm=1.0)}, {"batches"}),
  "probabilities": ({"fault": Fault(softmax=1.0)}, {"logits"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_net_is_caught_by_the_check_meant_for_it(name):
  arguments, meant = BROKEN[name]
  checks = run(**arguments)
  assert meant <= failures(checks).keys(), failures(checks)


def test_every_check_has_a_net_that_fails_it():
  """The test above, that of random nets, and gradient_checks_test hold it to that."""
  elsewhere = {"repeatable", "levels", "finite gradients", "pixels"}
  assert set.union(elsewhere, *(meant for _, meant in BROKEN.values())) == set(NAMES)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report():
  assert run(seed=3) == run(seed=3)
  assert run(seed=3) != run(seed=4)


# --- A linear net, whose distances are known ---

WEIGHTS = np.array([2.0, -1.0, 0.5, 0.25], np.float32)
DUAL = {"l2": 2, "l1": np.inf}  # the order of the norm of the weights
DISTANCES = np.array(
  [0.2, 0.3, 0.4, 0.7, 1.5, 1.6, 1.7, 3.0, 5.0, 6.0]
)  # to the boundary, in radii
LINEAR_RADIUS = 0.02


def linear(x):
  """[B, 4] -> [B, 2]; its answers are known in every norm, as long as the box is far."""
  score = (x - 0.5) @ WEIGHTS
  return jnp.stack([-score, score], axis=1)


def linear_examples(norm):
  scores = DISTANCES * LINEAR_RADIUS * np.linalg.norm(WEIGHTS, DUAL[norm])
  scores = np.concatenate([scores, -scores] * 2)
  x = 0.5 + scores[:, None] * WEIGHTS / np.sum(WEIGHTS**2)
  return x.astype(np.float32), (scores > 0).astype(np.int32)


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.slow
def test_the_counts_of_a_linear_net_are_exact(norm):
  x, y = linear_examples(norm)
  parts = []
  checks = trust.report(
    linear,
    x,
    y,
    ball(LINEAR_RADIUS, ro.sets.BALLS[norm]),
    num_steps=4,
    num_queries=20,
    progress=parts.append,
  )
  assert parts == list(trust.PARTS)
  assert failures(checks) == {}
  measured = {check.name: check.measured for check in checks}
  standing = [40, *(4 * np.sum(DISTANCES[:, None] > trust.FACTORS, axis=0))]
  diameter = {"l2": 2, "l1": 4}[norm]
  radii = [0.0, *(factor * LINEAR_RADIUS for factor in trust.FACTORS), diameter]
  told = dict(re.findall(r"([\d.]+): (\d+)", measured["radii"]))
  assert {float(radius): int(count) for radius, count in told.items()} == pytest.approx(
    dict(zip(radii, [*standing, 0]))
  )
  at_radius = 4 * int(np.sum(DISTANCES > 1))
  assert f"1 (FGSM): {at_radius}, 4: {at_radius};" in measured["steps"]  # one step is enough
  assert f"leave {', '.join([str(at_radius)] * 5)}: the last breaks 0;" in measured["restarts"]
  assert f"break 0 of the {at_radius} that" in measured["black box"]
  assert measured["gradients"].startswith("the gradient of the cross-entropy is exactly 0 at 0 of")


# --- How many are too many ---


def verdict_of(num_square, num_examples, num_apgd=50, names=("clean", "apgd-ce", "square")):
  """A verdict of so many examples, of which none is misclassified when clean."""
  broken_by = np.full(num_examples, autoattack.ROBUST, np.int32)
  broken_by[:num_apgd] = 1
  broken_by[num_apgd : num_apgd + num_square] = 2
  return autoattack.Verdict(names, np.zeros_like(broken_by), broken_by, np.zeros((num_examples, 4)))


# Of 500 and fewer what could be chance; of many 0.2 points, from which AutoAttack warns too.
@pytest.mark.parametrize(("num_examples", "allowed"), [(200, 2), (500, 3), (10_000, 19)])
def test_what_square_breaks_after_the_other_attacks_is_flagged(num_examples, allowed):
  for more in (0, allowed, allowed + 1):
    check = trust_checks.black_box_of_verdict(verdict_of(more, num_examples))
    assert check.passed == (more <= allowed)
    assert f"Square breaks {more} of the {num_examples - 50} that" in check.measured
    assert check.measured.endswith(f"of {num_examples}; up to {allowed} are not flagged")


def test_restarts_are_held_against_the_evaluation():
  """Without one, the last start is held against those before it."""
  right, broken_by = np.arange(200), verdict_of(0, 200).broken_by
  for more in (0, 2, 3):
    starts = [right, np.arange(50 + more, 200)]
    check = trust_checks.restarts(right, starts, broken_by)
    assert check.passed == (more <= 2)
    assert f"2 more starts break {more} of the 150 that the evaluation does not" in check.measured
    assert check.measured.endswith("of 200; up to 2 can be chance")
  assert trust_checks.restarts(right, [right, right[20:], right[22:]], None).passed
  assert not trust_checks.restarts(right, [right, right[11:]], None).passed


@pytest.mark.slow
def test_a_verdict_is_counted_on_all_examples_and_the_rest_on_a_sample():
  x, y = linear_examples("l2")
  # No two the same, by a direction that the net does not see.
  x += 1e-4 * np.arange(40, dtype=np.float32)[:, None] * np.array([1, 2, 0, 0], np.float32)
  seen = []

  def net(x):
    if not isinstance(x, jax.core.Tracer):
      seen.append(np.asarray(x))
    return linear(x)

  given = {"u": ball(LINEAR_RADIUS, ro.L2), "num_steps": 4, "num_queries": 20, "seed": 1}
  verdict = verdict_of(10, 40, num_apgd=20)._replace(prediction=np.argmax(linear(x), axis=1))
  checks = trust.report(net, x, y, examples=20, verdict=verdict, **given)
  measured = {check.name: check.measured for check in checks}
  assert "Square breaks 10 of the 20 that gradients do not break, of 40" in measured["black box"]
  assert "black box" in failures(checks)
  assert measured["clean accuracy"].startswith("20 of 20 are")
  sample = next(images for images in seen if len(images) == 20)
  ids = [int(np.flatnonzero((x == image).all(axis=1))[0]) for image in sample]
  assert min(ids) < 10
  assert max(ids) >= 30
  with pytest.raises(ro.InputError, match="The verdict must be of this network"):
    trust.report(lambda x: -linear(x), x, y, examples=20, verdict=verdict, **given)
  # A verdict without Square is no yardstick: the report measures on the sample alone.
  verdict = verdict._replace(names=("clean", "apgd-ce", "apgd-t"))
  checks = trust.report(linear, x, y, examples=20, verdict=verdict, **given)
  assert checks == trust.report(linear, x, y, examples=20, **given)


# --- What cannot be told ---

SKEWED = np.repeat([0, 1], [194, 6])
BALANCED = np.arange(200) % 10
RARE = np.repeat([0, 1], [199, 1])


@pytest.mark.parametrize(
  ("prediction", "y", "passed"),
  [
    (np.where(np.arange(200) < 198, SKEWED, 0), SKEWED, True),
    (np.zeros(200, int), SKEWED, False),
    (BALANCED, BALANCED, True),
    ((BALANCED + 1) % 10, BALANCED, False),
    (np.zeros(200, int), BALANCED, False),
    (np.zeros(200, int), np.zeros(200, int), None),
    (np.ones(200, int), np.zeros(200, int), None),
    (RARE, RARE, None),
    (np.zeros(200, int), RARE, None),
    (np.arange(5), np.arange(5), None),
    (np.zeros(1, int), np.zeros(1, int), None),
  ],
)
def test_clean_accuracy_is_balanced_and_told_only_where_it_can_be(prediction, y, passed):
  assert trust_checks.clean_accuracy(prediction, y, seed=0).passed is passed


def test_chance_is_that_of_shuffled_answers():
  """Of two classes of 100, answered 100 times each, a shuffle is hypergeometric."""
  y = np.repeat([0, 1], 100)
  measured = trust_checks.clean_accuracy(y, y, seed=0).measured
  (by_chance,) = re.findall(r"up to ([\d.]+)% can be chance", measured)
  low, high = stats.hypergeom.ppf([0.998, 0.9995], 200, 100, 100)
  assert low <= float(by_chance) <= high


@pytest.mark.slow
def test_checks_that_cannot_decide_do_not_fail():
  x, y = linear_examples("l2")
  report = functools.partial(trust.report, num_steps=1, num_queries=1)
  checks = report(linear, x[:1], y[:1], ball(LINEAR_RADIUS, ro.L2))
  assert failures(checks) == {}
  assert {"clean accuracy", "batches"} <= unclear(checks).keys()
  # Wrong on everything: nothing to attack, and only the accuracy says so.
  checks = report(linear, x, 1 - y, ball(LINEAR_RADIUS, ro.L2))
  assert failures(checks).keys() == {"clean accuracy"}
  assert unclear(checks).keys() == {
    "levels",
    "gradients",
    *NAMES[NAMES.index("unbounded radius") :],
  }
  # A radius of the diameter and more, at which nothing is left.
  assert failures(report(linear, x, y, ball(3.0, ro.L2))) == {}


def python_noise():
  """Drawn in Python: another answer every time, unless someone jits it."""
  rng = np.random.default_rng(0)
  return lambda x: linear(x) + rng.normal(size=2).astype(np.float32)


def callback_noise():
  """Drawn by a callback: another answer every time, under jit too."""
  rng = np.random.default_rng(0)
  shape = jax.ShapeDtypeStruct((2,), jnp.float32)
  draw = functools.partial(io_callback, lambda: rng.normal(size=2).astype(np.float32), shape)
  return lambda x: linear(x) + draw()


@pytest.mark.parametrize("noisy", [python_noise, callback_noise])
@pytest.mark.slow
def test_a_net_that_answers_at_random_is_caught(noisy):
  x, y = linear_examples("l2")
  checks = trust.report(noisy(), x, y, ball(LINEAR_RADIUS, ro.L2), num_steps=1, num_queries=1)
  assert "repeatable" in failures(checks)


@pytest.mark.parametrize(
  ("changed", "words"),
  [
    ({"u": ro.L2(0.1)}, "The trust report needs a set with a finite box"),
    ({"u": ro.sets.L0(2, box=(0.0, 1.0))}, "The trust report takes ro.LInf, ro.L2 or ro.L1"),
    ({"u": ball(0.0)}, "radius must be"),
    ({"num_steps": 0}, "num_steps must be an integer >= 1, but was 0"),
    ({"num_queries": 0}, "num_queries must be an integer >= 1, but was 0"),
    ({"examples": 0}, "examples must be an integer >= 1, but was 0"),
    ({"verdict": autoattack.Verdict(("clean",), *np.zeros((3, 9)))}, "of the same 40 examples"),
    ({"y": np.full(40, 2)}, "Labels must lie in"),
    ({"logits_fn": lambda x: jnp.full((x.shape[0], 2), jnp.nan)}, "must be finite"),
  ],
)
def test_what_cannot_be_attacked_is_refused(changed, words):
  x, y = linear_examples("l2")
  arguments = {"logits_fn": linear, "x": x, "y": y, "u": ball(LINEAR_RADIUS, ro.L2)}
  with pytest.raises(ro.InputError, match=words):
    trust.report(**{**arguments, **changed})


def test_a_net_that_is_asked_of_no_examples_answers_none():
  x, _ = linear_examples("l2")
  assert batches.plain_logits(linear, x[:0], 10).shape == (0, 2)
  np.testing.assert_array_equal(batches.plain_logits(linear, x, 7), linear(x))


def test_written_down():
  checks = [
    trust.Check("a", True, "3 of 4", "It is broken."),
    trust.Check("b", False, "4 of 4", "It is masked."),
    trust.Check("c", None, "0 of 0", "It is blind."),
  ]
  assert [check.failed for check in checks] == [False, True, False]
  assert trust.to_markdown(checks) == (
    "| check | passed | measured | a failure means |\n"
    "| --- | --- | --- | --- |\n"
    "| a | yes | 3 of 4 | It is broken. |\n"
    "| b | NO | 4 of 4 | It is masked. |\n"
    "| c | not measurable | 0 of 0 | It is blind. |\n"
  )
