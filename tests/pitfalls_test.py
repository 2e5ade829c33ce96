"""Faults that other systems have in many places, looked for in every place of this one."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

import robust_opt as ro
from robust_opt import commands, evaluate
from robust_opt.attacks import fab, minimal, square, szegedy, white_box
from robust_opt.certificates import bounds, exact, smoothing
from robust_opt.evaluation import accuracy, batches, collection, inputs, trust
from robust_opt.experiments import build, config, metrics
from robust_opt.theory import explanations

PACKAGE = Path(ro.__file__).parent


# The units of a radius are said where it is typed, and where an accuracy is read.


@pytest.mark.parametrize(
  "function", [ro.sets.Ball, ro.autoattack, trust.report, config.standardized, ro.Batch]
)
def test_docstrings_say_pixels(function):
  assert "pixels" in function.__doc__


def test_errors_configs_flags_and_tables_say_pixels(monkeypatch):
  with pytest.raises(ro.InputError, match=r"radius must be .* in pixels of \[0, 1\]"):
    inputs.check_set(ro.L2(0.0))
  lines = inspect.getsource(config).splitlines()
  typed = [line for line in lines if re.search(r"radius=0.1\)|evaluation\.radii = ", line)]
  assert len(typed) == 2
  assert all("pixels" in line for line in typed)
  helped = {}
  for kind in ("float", "string", "integer", "boolean", "enum"):
    define = lambda name, *words, **_: helped.update({name: words[-1]})  # noqa: E731
    monkeypatch.setattr(flags, f"DEFINE_{kind}", define)
  monkeypatch.setattr(commands, "define_number", define)
  monkeypatch.setattr(commands, "define_source_flags", lambda: None)
  evaluate.define_flags()
  assert "in pixels of [0, 1]" in helped["radius"]
  assert (
    "pixels of [0, 1]"
    in metrics.result_table(
      {"title": "", "results": [], "config": {"set": {"name": "L2", "radius": 0.1, "box": None}}}
    ).caption
  )


# Whatever is measured, is measured of a net in evaluation mode, dropout and all.

X, Y = np.random.default_rng(0).random((6, 4)).astype(np.float32), np.arange(6) % 3


def by_evaluate(apply):
  run = ro.make_evaluate(apply, ro.robust(), lambda r: ro.steepest(ro.L2(r)), 4)
  run({}, {}, ro.ArrayData(X, Y), jnp.float32(0.1), jax.random.key(0))


def by_collection(apply):
  ascend = collection.make_ascend(apply, ro.robust(), ro.steepest, 4)
  ascend({}, {}, ro.L2(0.1), X, Y)


MEASURED = {
  "evaluation": by_evaluate,
  "a net for AutoAttack and the trust report": lambda apply: accuracy.logits_of(apply, {}, {})(X),
  "a collection's examples": by_collection,
  "a collection's answers": lambda apply: collection.make_logits_of(apply, 4)({}, {}, X),
}


@pytest.mark.parametrize("what", MEASURED)
def test_what_is_measured_is_in_evaluation_mode(what):
  modes = set()

  def apply(params, model_state, x, *, train, key):
    modes.add((train, key))
    return x[:, :3], model_state

  MEASURED[what](apply)
  assert modes == {(False, None)}


# Numbers are random by keys that are handed down, never by a clock or a generator for all.

GLOBAL_RANDOMNESS = re.compile(
  r"^\s*(import random|from random import)"
  r"|np\.random\.(?!default_rng\(\w|PCG64\(\w|Generator\b)"
  r"|(key|PRNGKey|default_rng|PCG64)\([^()]*(time|urandom|getpid|uuid)"
  r"|os\.urandom|secrets\.|uuid4\(|time_ns\(\)|^\w+ = jax\.random\.(key|PRNGKey)\(",
  re.MULTILINE,
)


def test_no_global_generator_and_no_seed_from_the_clock():
  # The ID of a run on a server of logs, which enters no computation.
  allowed = {"loggers.py": "lambda: uuid.uuid4().hex"}
  for path in PACKAGE.rglob("*.py"):
    text = path.read_text(encoding="utf-8")
    exception = allowed.get(path.name)
    if exception:
      assert text.count(exception) == 1
      text = text.replace(exception, "")
    found = GLOBAL_RANDOMNESS.search(text)
    assert found is None, (path, found)


@pytest.mark.parametrize(
  "fault",
  [
    "import random\n",
    "x = np.random.normal(3)",
    "rng = np.random.default_rng()",
    "key = jax.random.key(int(time.time()))",
    "KEY = jax.random.key(0)\n",
    "seed = uuid.uuid4().int",
  ],
)
def test_such_a_generator_would_be_seen(fault):
  assert GLOBAL_RANDOMNESS.search(fault)


# One class: the label would always win.

ONE = lambda x: x.reshape(len(x), -1)[:, :1]  # noqa: E731
IMAGES, ZEROS = np.full((2, 4), 0.5, np.float32), np.zeros(2, np.int32)
BALL = ro.L2(0.1, box=(0.0, 1.0))
ATTACKS = {
  "ascent": lambda: white_box.ascent(ro.steepest(ro.L2(0.1)), ro.losses.cross_entropy),
  "targeted_ascent": lambda: white_box.targeted_ascent(
    ro.steepest(ro.L2(0.1)), ro.losses.targeted_margin, 0
  ),
  "fab": lambda: fab.fab(BALL, num_steps=1),
  "fab_t": lambda: fab.fab(BALL, num_steps=1, target_rank=0),
  "square": lambda: square.square(BALL, num_queries=2),
  "deepfool": lambda: minimal.deepfool(BALL, num_steps=1),
  "fast_minimum_norm": lambda: minimal.fast_minimum_norm(BALL, num_steps=1),
  "szegedy": lambda: szegedy.szegedy(BALL, num_steps=1, num_constants=1),
}
TAKES_LOGITS = {
  **{
    name: lambda z, y, name=name: getattr(ro.losses, name)(z, y)
    for name in ("cross_entropy", "margin", "dlr", "correct")
  },
  "targeted_margin": lambda z, y: ro.losses.targeted_margin(z, y, y),
  "targeted_dlr": lambda z, y: ro.losses.targeted_dlr(z, y, y),
  "kl_divergence": lambda z, y: ro.losses.kl_divergence(z, z),
  "predicted": lambda z, y: ro.losses.predicted(z),
  "probabilities": lambda z, y: ro.losses.probabilities(z, "softmax"),
  "confidence_on_mistakes": explanations.confidence_on_mistakes,
  "effective_weights": lambda z, y: explanations.effective_weights(ONE, z),
  "plane": lambda z, y: explanations.plane(ONE, z, z, z, 1.0, 3),
  "smallest_angle": lambda z, y: explanations.smallest_angle(ONE, z, y, z, np.float32([0.0, 1.0])),
  "transfer_matrix": lambda z, y: explanations.transfer_matrix([ONE], [z], y),
  "margins": lambda z, y: bounds.margins(ONE, z, y, ro.L2(0.1)),
  "linear_margin": lambda z, y: exact.linear_margin(
    jnp.ones((1, 1)), jnp.zeros(1), z, y, ro.L2(0.1)
  ),
  "linear_distance": lambda z, y: exact.linear_distance(
    jnp.ones((1, 1)), jnp.zeros(1), z, y, ro.L2
  ),
  "class_counts": lambda z, y: smoothing.class_counts(jax.random.key(0), ONE, z, 0.1, 10),
  **{
    name: lambda z, y, make=make: make()(jax.random.key(0), ONE, z, y)
    for name, make in ATTACKS.items()
  },
}


@pytest.mark.parametrize("name", TAKES_LOGITS)
def test_logits_of_one_class_are_refused(name):
  """While a function is traced: by the shape."""
  with pytest.raises(ro.InputError, match=r"at least 2 classes, .* but have 1"):
    jax.eval_shape(TAKES_LOGITS[name], jnp.full((2, 1), 0.5), jnp.zeros(2, int))


def test_predictions_of_one_class_are_refused():
  with pytest.raises(ro.InputError, match="at least 2 classes"):
    batches.predictions(ONE, IMAGES, 2)
  with pytest.raises(ro.InputError, match="at least 2 classes"):
    collection.correct(ONE, IMAGES, ZEROS)


def test_a_class_that_is_present_or_absent_by_itself_may_be_the_only_one():
  logits = jnp.array([[0.3], [-2.0]])
  np.testing.assert_allclose(
    ro.losses.one_vs_all(logits, ZEROS), np.logaddexp(0, -logits[:, 0]), rtol=1e-6
  )
  np.testing.assert_allclose(ro.losses.independent(-jnp.abs(logits), ZEROS), [0.3, 2.0], rtol=1e-6)


# A number of classes other than ten.


@pytest.mark.parametrize("num_classes", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_training_measuring_and_collecting_take_any_number_of_classes(num_classes):
  """A linear net of weights that are its own examples, whose accuracies are known."""
  rng = np.random.default_rng(num_classes)
  weights = rng.normal(size=(12, num_classes)).astype(np.float32)
  x = rng.random((40, 12)).astype(np.float32)
  y = np.argmax(x @ weights, -1).astype(np.int32)
  y[0] = (y[0] + 1) % num_classes

  def apply(params, model_state, x, *, train, key):
    return x @ params, model_state

  steepest = lambda norm, r: ro.steepest(ro.sets.BALLS[norm](r))  # noqa: E731
  run = jax.jit(ro.make_evaluate(apply, ro.robust(), lambda r: steepest("l2", r), 16))
  key = jax.random.key(0)
  found = run(weights, {}, ro.ArrayData(x, y), jnp.float32(0.2), key)
  assert int(found.clean_correct.sum()) == 39
  lost = exact.linear_margin(weights, np.zeros(num_classes, np.float32), x, y, ro.L2(0.2)) > 0
  assert np.all(lost[~np.asarray(found.robust_correct)])

  optimizer = build.optimizer(config.digits(), steps_per_epoch=1)
  step = ro.make_train_step(apply, optimizer, ro.robust(), steepest("l2", 0.2))
  state = ro.init_state(jnp.zeros_like(weights), {}, optimizer)
  _, metrics_ = jax.jit(step)(state, ro.Batch(x, y, np.arange(40)), key)
  np.testing.assert_allclose(metrics_.loss, np.log(num_classes), rtol=1e-5)

  logits_of = lambda images: collection.make_logits_of(apply, 16)(weights, {}, images)  # noqa: E731
  make_ascend = collection.make_ascend(apply, ro.robust(), ro.steepest, 16)
  ascend = lambda *args: make_ascend(weights, {}, *args)  # noqa: E731
  examples = collection.collect(logits_of, ascend, x, y, [ro.L2(0.2)], "net")
  fooled = np.asarray(found.clean_correct & ~found.robust_correct)
  np.testing.assert_array_equal(examples.source_ids, np.flatnonzero(fooled))
