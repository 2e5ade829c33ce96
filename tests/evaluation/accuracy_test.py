"""Every example counts once, and its answer depends on nothing but itself.

In float64: at another batch size the sums have another order, and a sign in the ascent could turn.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import BatchNormNet, PlainNet
from rounding import assert_close, widest

import robust_opt as ro
from robust_opt import models
from robust_opt.data.datasets import load
from robust_opt.evaluation.accuracy import perturb
from robust_opt.training import take

COUNT = 23
pytestmark = pytest.mark.usefixtures("float64")
# Two ascent steps, each forward and back through 64 pixels, 24 units and 10 classes.
close = functools.partial(assert_close, terms=2 * (64 + 24 + 10), steps=2, scale=1.0)


NETS = {"mlp": PlainNet(), "batch_norm": BatchNormNet(rate=0.5)}


def one_step(radius):
  return ro.steepest(ro.L2(radius))


def random_start(radius):
  return ro.ascend(ro.pgd(ro.LInf(radius), ro.LInf(radius / 2)), 2)


def digits(count=COUNT):
  data = load("digits", "test")
  return ro.ArrayData(widest(data.images[:count] / 255), data.labels[:count])


def setup(name, steps=30):
  """A net that has learned a little, so that answers differ from example to example."""
  apply = models.from_linen(NETS[name])
  params, model_state = widest(models.init(NETS[name], jax.random.key(0), (8, 8, 1)))
  train = load("digits", "train")
  batch = take(ro.ArrayData(widest(train.images / 255), train.labels), jnp.arange(200))

  @jax.jit
  def descend(params, model_state):
    def loss(params):
      logits, new = apply(params, model_state, batch.x, train=True, key=jax.random.key(0))
      return jnp.mean(ro.losses.cross_entropy(logits, batch.y)), new

    grads, new = jax.grad(loss, has_aux=True)(params)
    return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), new

  for _ in range(steps):
    params, model_state = descend(params, model_state)
  return apply, params, model_state


@pytest.fixture(scope="module", params=list(NETS))
def trained(request):
  with jax.enable_x64(True):
    return setup(request.param)


@functools.cache
def compiled(apply, make_attack, batch_size):
  return jax.jit(ro.make_evaluate(apply, ro.robust(), make_attack, batch_size))


def evaluate(trained, make_attack=one_step, batch_size=10, data=None, radius=0.6):
  run = compiled(trained[0], make_attack, batch_size)
  data = digits() if data is None else data
  return run(*trained[1:], data, jnp.asarray(radius, float), jax.random.key(4))


@pytest.mark.parametrize(
  ("make_attack", "radius"),
  [pytest.param(one_step, 0.6, marks=pytest.mark.slow), (random_start, 0.15)],
)
def test_answers_do_not_depend_on_the_batch_size(trained, make_attack, radius):
  """Sizes that leave a remainder, that do not, and one larger than the data."""
  whole = evaluate(trained, make_attack, COUNT, radius=radius)
  chex.assert_shape(list(whole), (COUNT,))
  chex.assert_type(list(whole), bool)
  assert 0 < whole.robust_correct.sum() < whole.clean_correct.sum() <= COUNT
  for size in (10, 1, 40)[: 3 if make_attack is one_step else 2]:
    chex.assert_trees_all_equal(evaluate(trained, make_attack, size, radius=radius), whole)


def test_perturbations_with_random_starts_move_along_with_their_ids(trained):
  """Not just the answers: every delta is the same alone, in a batch and in another order."""
  apply, params, model_state = trained
  order = np.random.default_rng(1).permutation(12)

  @jax.jit
  def deltas(ids):
    batch = take(digits(), ids)
    attack, key = random_start(0.15), jax.random.key(4)
    return perturb(apply, params, model_state, ro.robust(), attack, batch, key).delta

  whole = deltas(jnp.arange(12))
  close(deltas(jnp.asarray(order)), whole[order])
  close(deltas(jnp.arange(3, 4)), whole[3:4])
  assert len({tuple(np.ravel(d)) for d in whole}) == 12


def test_answers_are_those_of_every_example_alone(trained):
  """By hand, without batches: evaluation mode, and the steepest step of length 0.6."""
  apply, params, model_state = trained
  data, result = digits(), evaluate(trained)

  def logits(x):
    return apply(params, model_state, x[None], train=False, key=None)[0][0]

  @jax.jit
  def by_hand(x, label):
    g = jax.grad(lambda x: -jax.nn.log_softmax(logits(x))[label])(x)
    x_adv = x + 0.6 * g / jnp.sqrt(jnp.sum(g**2))
    return jnp.argmax(logits(x)) == label, jnp.argmax(logits(x_adv)) == label

  answers = np.array([by_hand(*example) for example in zip(data.images, data.labels)])
  np.testing.assert_array_equal(result.clean_correct, answers[:, 0])
  np.testing.assert_array_equal(result.robust_correct, answers[:, 1])


def test_padding_is_counted_nowhere():
  """A net that is wrong on the last example alone: padding repeats that one."""
  data = ro.ArrayData(np.zeros((COUNT, 2, 2, 1), np.uint8), np.array([0] * (COUNT - 1) + [1]))
  constant = np.eye(2, dtype=np.float32)[0]

  def apply(params, model_state, x, *, train, key):
    return jnp.broadcast_to(constant, (x.shape[0], 2)) + 0.0 * jnp.sum(x), model_state

  result = evaluate((apply, {}, {}), data=data)
  assert int(result.clean_correct.sum()) == int(result.robust_correct.sum()) == COUNT - 1
  assert int(result.zero_gradient.sum()) == COUNT


def test_radius_0_is_the_clean_example_exactly(trained):
  for make_attack in (one_step, random_start):
    result = evaluate(trained, make_attack, radius=0.0)
    np.testing.assert_array_equal(result.robust_correct, result.clean_correct)


def test_sweep_over_radii_compiles_once(trained):
  apply, params, model_state = trained
  traces = []

  def counted(*args, **kwargs):
    traces.append(1)
    return apply(*args, **kwargs)

  run = jax.jit(ro.make_evaluate(counted, ro.robust(), one_step, 10))
  correct, traced = [], None
  for radius in np.linspace(0, 2, 9):
    out = run(params, model_state, digits(), jnp.asarray(radius), jax.random.key(0))
    correct.append(int(out.robust_correct.sum()))
    traced = traced or len(traces)
  assert run._cache_size() == 1
  assert len(traces) == traced
  assert correct[0] > correct[-1]


def test_what_is_wrong_when_clean_is_not_robust():
  """z_1 - z_0 = x^2 - 0.01: label 1 is wrong at 0.05, and right after one long step from there."""

  def apply(params, model_state, x, *, train, key):
    pixel = x.reshape(x.shape[0], -1)[:, 0]
    return jnp.stack([0.0 * pixel, pixel**2 - 0.01], axis=-1), model_state

  data = ro.ArrayData(np.float32([0.05, 0.9]).reshape(2, 1, 1, 1), np.array([1, 1]))
  batch = take(data, jnp.arange(2))
  attacked = perturb(apply, {}, {}, ro.robust(), one_step(0.5), batch, jax.random.key(0))
  assert ro.losses.correct(attacked.robust_logits, batch.y).tolist() == [True, True]
  result = evaluate((apply, {}, {}), data=data, radius=0.5)
  assert result.clean_correct.tolist() == result.robust_correct.tolist() == [False, True]


@pytest.mark.parametrize(
  ("labels", "outputs"), [(np.zeros(4), 3), (np.zeros((4, 3), int), 3), (np.zeros(4, int), 1)]
)
def test_accuracy_needs_classes(labels, outputs):
  """Labels of a regression, several labels an example, and a net of one logit."""

  def apply(params, model_state, x, *, train, key):
    return jnp.zeros((x.shape[0], outputs)), model_state

  data = ro.ArrayData(np.zeros((4, 2, 2, 1), np.float32), labels)
  with pytest.raises(
    ro.InputError, match=r"^Accuracy needs integer labels \[B\] and logits \[B, C\]"
  ):
    evaluate((apply, {}, {}), data=data)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_logits_that_are_not_finite_count_as_wrong(bad):
  """argmax of NaN is 0: a net that answers nothing else would be right on every 0."""

  def apply(params, model_state, x, *, train, key):
    return jnp.full((x.shape[0], 10), bad) + 0.0 * jnp.sum(x), model_state

  data = ro.ArrayData(digits().images, np.zeros(COUNT, np.int32))
  result = evaluate((apply, {}, {}), data=data)
  assert not result.clean_correct.any()
  assert not result.robust_correct.any()


def test_zero_gradients_are_marked_where_they_are():
  """Half of the examples saturate a ReLU layer that sees them: no gradient, no perturbation."""

  def apply(params, model_state, x, *, train, key):
    seen = jnp.maximum(x.reshape(x.shape[0], -1) - 0.5, 0.0)  # dark images disappear
    return seen @ jnp.ones((4, 2)) * jnp.array([1.0, -1.0]), model_state

  images = np.zeros((10, 2, 2, 1), np.uint8)
  images[::2] = 255
  result = evaluate((apply, {}, {}), data=ro.ArrayData(images, np.zeros(10, np.int32)))
  np.testing.assert_array_equal(result.zero_gradient, np.arange(10) % 2 == 1)


def test_float_images_are_taken_as_pixels_already():
  data = load("digits", "test")
  data = ro.ArrayData(data.images[:COUNT], data.labels[:COUNT])
  floats = ro.ArrayData(np.float32(data.images / 255), data.labels)
  trained = setup("mlp", steps=5)
  chex.assert_trees_all_equal(evaluate(trained, data=floats), evaluate(trained, data=data))
