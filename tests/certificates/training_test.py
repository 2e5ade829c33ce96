"""Certified training: the objective in closed form, its gradient, and what a trained net proves."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from main_test import run_main
from nets import BatchNormNet
from rounding import assert_close, widest

import robust_opt as ro
from robust_opt import losses, models
from robust_opt.certificates import bounds, training
from robust_opt.errors import InputError
from robust_opt.evaluation.autoattack import ROBUST
from robust_opt.experiments import build, combinations, methods
from robust_opt.experiments import config as config_lib
from robust_opt.training import init_state

UNIT = (0.0, 1.0)
B, C = 6, 4


def problem(*sizes):
  """Weights and biases of dense layers, x and x_adv [B, 5], y [B]."""
  rng = np.random.default_rng(0)
  weights = [widest(rng.normal(size=s)) for s in zip((5, *sizes), (*sizes, C), strict=True)]
  offsets = [widest(rng.normal(size=w.shape[1])) for w in weights]
  x, x_adv = widest(rng.random((2, B, 5)))
  return [*zip(weights, offsets, strict=True)], x, x_adv, jnp.asarray(rng.integers(0, C, B))


def net(layers, x):
  for w, b in layers[:-1]:
    x = jax.nn.relu(x @ w + b)
  return x @ layers[-1][0] + layers[-1][1]


def forward_of(layers):
  return lambda x, train=True: (net(layers, x), {})


@functools.partial(jax.jit, static_argnames="share")
@chex.assert_max_traces(n=4)
def loss_of(layers, x, x_adv, y, u, alpha, share=1.0):
  return ro.ibp(u, alpha, share).outer(forward_of(layers), x, x_adv, y)[0]


@pytest.mark.usefixtures("float64")
def test_without_a_nonlinear_layer_the_worst_logits_are_the_closed_form():
  """One program for every radius and alpha; alpha 0 is adversarial training, 1 bounds alone."""
  layers, x, x_adv, y = problem()
  (w, _), z = layers[0], net(layers, x)
  radius = widest(np.linspace(0, 0.5, B))
  own = jnp.arange(B), y
  gain = jnp.sum(jnp.abs(w.T[None] - w.T[y][:, None]), axis=-1)
  worst = losses.cross_entropy(z - z[own][:, None] + radius[:, None] * gain, y)
  attacked = losses.cross_entropy(net(layers, x_adv), y)
  u = ro.LInf(radius)
  for alpha in (0.0, 0.3, 1.0):
    expected = (1 - alpha) * attacked + alpha * worst
    assert_close(loss_of(layers, x, x_adv, y, u, alpha), expected, terms=60, scale=10.0)


@pytest.mark.usefixtures("float64")
def test_at_radius_0_value_and_gradient_are_those_of_the_cross_entropy():
  layers, x, _, y = problem(7)
  bounded = lambda layers: loss_of(layers, x, x, y, ro.LInf(jnp.zeros(B), UNIT), 1.0).sum()  # noqa: E731
  plain = lambda layers: losses.cross_entropy(net(layers, x), y).sum()  # noqa: E731
  expected = jax.jit(jax.value_and_grad(plain))(layers)
  assert_close(jax.jit(jax.value_and_grad(bounded))(layers), expected, terms=100, scale=10.0)


@pytest.mark.usefixtures("float64")
def test_gradients_are_right():
  layers, x, x_adv, y = problem(7)
  u = ro.LInf(jnp.full(B, 0.1), UNIT)
  check_grads(lambda layers: loss_of(layers, x, x_adv, y, u, 0.5), (layers,), 1, modes=["rev"])


def test_the_bounds_are_those_of_the_certificate():
  """Through convolutions, as `ro.certify` has them before its allowance for rounding."""
  rng = np.random.default_rng(0)
  x, y = rng.random((3, 8, 8, 1)).astype(np.float32), np.array([0, 1, 2])
  small = models.ConvNet(num_classes=C, features=(2,), hidden=(6,))
  params, _ = models.init(small, jax.random.key(0), (8, 8, 1))
  logits_fn = jax.tree_util.Partial(lambda p, x: small.apply({"params": p}, x), params)
  ends = np.clip(x - 0.1, 0, 1), np.clip(x + 0.1, 0, 1)
  found = jax.jit(training.worst_logits)(logits_fn, *ends, y)
  proved = jax.jit(bounds.margins, static_argnames="method")(
    logits_fn, x, y, ro.LInf(0.1, UNIT), method="ibp"
  )
  assert np.all(found <= -proved.bounds)
  np.testing.assert_allclose(found, -(proved.bounds + proved.slack), rtol=1e-3)
  np.testing.assert_array_equal(found[np.arange(3), y], 0)


def test_a_small_box_is_around_the_adversarial_example_and_within_the_ball():
  x, r = np.full((1, 3), 0.5, np.float32), 0.2
  x_adv = x + np.float32([[0.2, -0.05, 0.0]])
  lower, upper = training._box(ro.LInf(r, (0.0, 0.65)), x, x_adv, 0.4)
  np.testing.assert_allclose(lower, [[0.54, 0.37, 0.42]], rtol=1e-6)
  np.testing.assert_allclose(upper, [[0.65, 0.53, 0.58]], rtol=1e-6)
  whole = training._box(ro.LInf(r), x, x_adv, 1.0)
  np.testing.assert_allclose(whole, [x - r, x + r], rtol=1e-6)


def test_bounds_are_those_of_the_evaluated_network():
  """By running statistics and without dropout, while the other part updates the statistics."""
  x, y = jax.random.uniform(jax.random.key(1), (4, 3)), jnp.arange(4) % 3
  noisy = BatchNormNet(rate=0.5)
  apply, optimizer = models.apply_of(noisy), optax.sgd(0.1)
  state = init_state(*models.init(noisy, jax.random.key(0), (3,)), optimizer)
  u = ro.LInf(0.1)
  step = ro.make_train_step(apply, optimizer, ro.ibp(u, alpha=1.0), ro.steepest(u))

  @jax.jit
  def both(state):
    evaluated = lambda x: apply(state.params, state.model_state, x, train=False, key=None)[0]  # noqa: E731
    worst = training.worst_logits(evaluated, x - 0.1, x + 0.1, y)
    after, metrics = step(state, ro.Batch(x, y, jnp.arange(4)), jax.random.key(0))
    return after, metrics.loss, losses.cross_entropy(worst, y).mean()

  after, loss, expected = both(state)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  moved = jax.tree.map(lambda a, b: np.any(a != b), after.model_state, state.model_state)
  assert all(jax.tree.leaves(moved))


def configured(name):
  c = config_lib.digits()
  c.set.box = UNIT
  methods.ALL[name].apply(c)
  return c


def test_alpha_and_the_radius_grow_together_and_compile_once():
  c = configured("ibp")
  c.training.epochs = 2
  layers, x, x_adv, y = problem()
  u, scheduled = ro.LInf(0.5), build.objective(c, ro.LInf(0.5), 10)  # ten updates of warm-up

  @jax.jit
  @chex.assert_max_traces(n=1)
  def at(step):
    return scheduled.at(step).outer(forward_of(layers), x, x_adv, y)[0]

  for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (19, 1.0)):
    expected = loss_of(layers, x, x_adv, y, ro.LInf(jnp.full(B, share * u.radius)), 0.5 * share)
    assert_close(at(jnp.int32(step)), expected, terms=60, scale=10.0)


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: ro.ibp(ro.L2(0.5)), "ibp takes ro.LInf, .* not an L2"),
    (lambda: ro.ibp(ro.LInf(0.5), alpha=1.5), r"alpha .* must be in \[0, 1\], but was 1.5"),
    (lambda: ro.ibp(ro.LInf(0.5), share=0.0), "share must be > 0, but was 0.0"),
    (
      lambda: jax.eval_shape(
        lambda x: ro.ibp(ro.LInf(0.1)).outer(forward_of([(x.T, 0.0)]), x, x, x[:, 0])[0],
        jnp.zeros((3, 5)),
      ),
      r"ibp needs classes, integers \[B\], but the labels are float32 \[3\]",
    ),
  ],
)
def test_what_it_does_not_take(call, words):
  with pytest.raises(InputError, match=words):
    call()


def test_what_configs_do_not_combine():
  c = configured("ibp")
  c.training.label_smoothing = 0.1
  with pytest.raises(InputError, match="another than mart, virtual and ibp"):
    combinations.check(c)
  config_lib.choose(c, "objective", "robust")
  with pytest.raises(InputError, match=r"attack.warmup=0.5 .*objective.name must be ibp, but was"):
    combinations.check(c)


def test_a_control_without_a_warm_up_is_written_as_before():
  assert config_lib.as_dict(configured("standard"))["attack"] == {"name": "none"}
  written = config_lib.as_dict(configured("ibp"))
  assert written["attack"] == {"name": "none", "warmup": 0.5}
  assert config_lib.as_dict(config_lib.from_dict(written)) == written


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_certified_training_is_proved_where_adversarial_training_is_not(monkeypatch, tmp_path):
  """And image by image: certified <= robust under attack <= correct."""
  u, certified = ro.LInf(0.1, UNIT), {}
  options = ["--config.set.box=(0.0,1.0)", "--config.evaluation.sweep=(0.0,1.0)"]
  options += ["--config.model.name=MLP", "--config.model.widths=(64,)"]
  options += [f"--config.evaluation.radii.{norm}=0.0" for norm in ("l1", "l2")]
  bounded = ["--config.objective.name=ibp", "--config.attack.name=none"]
  for name, own in {"fgsm": [], "ibp": [*bounded, "--config.attack.warmup=0.5"]}.items():
    assert run_main(monkeypatch, *options, *own, f"--workdir={tmp_path / name}") == 0
    run = ro.load_run(tmp_path / name)
    x, y = np.asarray(run.test.images[:100], np.float32) / 255, run.test.labels[:100]
    certified[name] = ro.certify(run.logits_fn, x, y, u, "ibp").certified
  verdict = ro.autoattack(run.logits_fn, x, y, u, version="quick")
  robust, correct = verdict.broken_by == ROBUST, verdict.prediction == y
  assert np.all(certified["ibp"] <= robust)
  assert np.all(robust <= correct)
  assert certified["ibp"].mean() > 0.5
  assert certified["fgsm"].mean() < 0.1
