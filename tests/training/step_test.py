"""Algorithm 1 against closed forms, what it may not compute, and the scan over an epoch.

Programs that ought to compute the same are compared in float64: signs of gradients, and steps on
top of steps, amplify rounding.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import BatchNormNet, PlainNet, digits_batch
from programs import equations, multiply_adds
from rounding import assert_close, rounding, widest

import robust_opt as ro
from robust_opt import models, training
from robust_opt.data import augmentation, mixing, pipeline
from robust_opt.data.datasets import load
from robust_opt.experiments import build, config
from robust_opt.training import optimizers

SETS = {"linf": ro.LInf, "l2": ro.L2, "l1": ro.L1}
LR = 0.5
NET, IMAGES = models.SoftmaxRegression(), np.zeros((30, 8, 8, 1), np.uint8)
FLOAT64 = pytest.mark.usefixtures("float64")
# Forward and back in the ascent and in the descent, each through sums over 64 pixels, two layers of
# up to 24 units, 10 classes and 12 examples.
TERMS = 4 * (64 + 2 * 24 + 10 + 12)


def setup(net, optimizer, seed=0):
  params, model_state = widest(models.init(net, jax.random.key(seed), (8, 8, 1)))
  return models.from_linen(net), ro.init_state(params, model_state, optimizer)


def warm(state, seed=7):
  """Running statistics that differ from the fresh 0 and 1, and from any batch's."""
  noise = np.random.default_rng(seed)
  model_state = jax.tree.map(lambda a: a + noise.uniform(0.1, 0.5, a.shape), state.model_state)
  return state.replace(model_state=widest(model_state))


def steepest_in_numpy(norm, g, radius):
  if norm == "linf":
    return radius * np.sign(g)
  if norm == "l2":
    return radius * g / np.linalg.norm(g, axis=1, keepdims=True)
  delta = np.zeros_like(g)
  rows, columns = np.arange(len(g)), np.argmax(np.abs(g), axis=1)
  delta[rows, columns] = radius * np.sign(g[rows, columns])
  return delta


# One step


@FLOAT64
@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.1), ("l2", 0.7), ("l1", 1.5)])
def test_step_is_algorithm_1_in_closed_form(norm, radius):
  """Softmax regression in float64: grad_x J = W (p - e_y) / std, grad_W J = z_adv (p_adv - e_y)."""
  mean, std = 0.3, 0.4
  net, optimizer = models.SoftmaxRegression(mean=mean, std=std), optax.sgd(LR)
  apply, state = setup(net, optimizer)
  batch = digits_batch()
  step = ro.make_train_step(apply, optimizer, ro.robust(), ro.steepest(SETS[norm](radius)))
  new, metrics = jax.jit(step)(state, batch, jax.random.key(0))

  W = np.float64(state.params["Dense_0"]["kernel"])
  x, e = np.float64(batch.x).reshape(12, -1), np.eye(10)[batch.y]

  def forward(x):
    z = (x - mean) / std
    exp = np.exp(z @ W)  # the bias starts at 0
    return z, exp / exp.sum(axis=1, keepdims=True)

  _, p = forward(x)
  delta = steepest_in_numpy(norm, (p - e) @ W.T / std, radius)
  z, p = forward(x + delta)
  expected = {
    "Dense_0": {"kernel": W - LR * z.T @ (p - e) / len(x), "bias": -LR * np.mean(p - e, axis=0)}
  }
  loss = np.mean(-np.log(p[np.arange(12), batch.y]))
  # Standardized pixels are of the size of 1 / std.
  assert_close((new.params, metrics.loss), (expected, loss), terms=TERMS, scale=1 / std)
  assert (int(new.step), int(metrics.zero_gradients)) == (1, 0)
  chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


def no_attack():
  return ro.ascend(ro.frank_wolfe(ro.LInf(0.3)), num_steps=0)


@FLOAT64
@pytest.mark.parametrize("attack", [no_attack(), ro.steepest(ro.L2(0.0))])
def test_no_steps_or_no_radius_is_standard_training(attack):
  optimizer = optax.sgd(LR, momentum=0.9)
  apply, state = setup(models.MLP(widths=(16,)), optimizer)
  step = jax.jit(ro.make_train_step(apply, optimizer, ro.robust(), attack))

  @jax.jit
  def plain(params, opt_state, batch):
    def mean_loss(params):
      logits, _ = apply(params, {}, batch.x, train=True, key=None)
      return jnp.mean(ro.losses.cross_entropy(logits, batch.y))

    loss, grads = jax.value_and_grad(mean_loss)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  params, opt_state, batch = state.params, state.opt_state, digits_batch()
  for i in range(3):
    state, metrics = step(state, batch, jax.random.key(i))
    params, opt_state, loss = plain(params, opt_state, batch)
    assert int(metrics.zero_gradients) == 0
    assert_close(metrics.loss, loss, terms=TERMS, steps=3)
  assert_close(state.params, params, terms=TERMS, steps=3)


@FLOAT64
def test_a_curriculum_is_the_attack_of_each_step():
  """The radius at step t of 4 is t / 4 of the last: step by step the same as with that radius."""
  optimizer, batch = optax.sgd(LR), digits_batch()
  apply, state = setup(models.SoftmaxRegression(), optimizer)

  def make_step(attack):
    return ro.make_train_step(apply, optimizer, ro.robust(), attack)

  def attack_at(step):
    return ro.steepest(ro.LInf(0.4 * jnp.minimum(step.astype(float) / 4, 1)))

  scheduled = jax.jit(make_step(ro.ScheduledAttack(attack_at)))
  fixed = jax.jit(lambda radius, *args: make_step(ro.steepest(ro.LInf(radius)))(*args))
  for i, share in enumerate((0.0, 0.25, 0.5, 0.75, 1.0, 1.0)):
    key = jax.random.key(i)
    expected, _ = fixed(0.4 * share, state, batch, key)
    state, _ = scheduled(state, batch, key)
    assert_close(state.params, expected.params, terms=TERMS)
  assert scheduled._cache_size() == 1


@FLOAT64
def test_only_every_third_update_has_an_adversary():
  """The others are standard updates, at no cost of an ascent, within one program."""
  config_ = config.digits()
  config_.attack.every = 3
  u, shape = ro.LInf(0.1), IMAGES.shape[1:]
  optimizer, batch = optax.sgd(LR), digits_batch()
  _, state = setup(NET, optimizer)
  sometimes = jax.jit(build.update(config_, NET, optimizer, u, shape, 5))
  config_.attack.every = 1
  always = jax.jit(build.update(config_, NET, optimizer, u, shape, 5))
  config.choose(config_, "attack", "none")
  never = jax.jit(build.update(config_, NET, optimizer, u, shape, 5))
  for i in range(5):
    key = jax.random.key(i)
    expected, reported = (always if i % 3 == 0 else never)(state, batch, key)
    state, metrics = sometimes(state, batch, key)
    assert_close((state.params, metrics.loss), (expected.params, reported.loss), terms=TERMS)
  assert sometimes._cache_size() == 1


@pytest.mark.slow
def test_the_ascent_may_compute_in_fewer_bits():
  """Only the direction is coarser: most signs stay, and the descent is in float32."""
  seen = {}

  def recording(name):
    def outer(forward, x, x_adv, y):
      seen[name] = x_adv - x
      logits, model_state = forward(x_adv)
      assert logits.dtype == jnp.float32
      return ro.losses.cross_entropy(logits, y), model_state

    return ro.robust()._replace(outer=outer)

  net, optimizer, batch = models.DigitsCNN(), optax.sgd(LR), digits_batch()
  apply, state = setup(net, optimizer)
  few = models.from_linen(net.clone(dtype=jnp.bfloat16))
  for name, ascent_apply in (("full", None), ("few", few)):
    step = ro.make_train_step(
      apply, optimizer, recording(name), ro.steepest(ro.LInf(0.1)), ascent_apply=ascent_apply
    )
    step(state, batch, jax.random.key(0))
  same = np.mean(np.sign(seen["few"]) == np.sign(seen["full"]))
  assert 0.9 < same < 1.0


def test_a_config_may_let_its_radius_grow():
  config_ = config.digits()
  config_.training.epochs, config_.attack.warmup = 8, 0.25
  attack = build.training_attack(config_, ro.LInf(0.1), steps_per_epoch=5)
  x = jnp.full((2, 4), 0.5)
  for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (99, 1.0)):
    delta, _ = attack.at(jnp.int32(step))(lambda x: x.sum(-1), jax.random.key(0), x)
    np.testing.assert_allclose(delta, share * 0.1, rtol=rounding(terms=4))
  config_.attack.warmup = 0.0
  assert not isinstance(build.training_attack(config_, ro.LInf(0.1), 5), ro.ScheduledAttack)


# Adversarial weights, averages of weights


@FLOAT64
def test_adversarial_weights_are_as_long_as_told_and_taken_away_again():
  """The update is the gradient at the perturbed weights, from the unperturbed ones."""
  gamma, batch, optimizer = 0.1, digits_batch(), optax.sgd(LR)
  apply, state = setup(PlainNet(), optimizer)

  def mean_loss(params):
    logits, _ = apply(params, {}, batch.x, train=True, key=None)
    return jnp.mean(ro.losses.cross_entropy(logits, batch.y))

  gradient_at = jax.jit(jax.grad(mean_loss))
  gradient = gradient_at(state.params)
  perturb = optimizers.adversarial_weights(gamma)
  v = jax.jit(perturb)(state.params, gradient)
  for w, g, added in zip(*map(jax.tree.leaves, (state.params, gradient, v))):
    if w.ndim < 2:
      np.testing.assert_array_equal(added, 0)
    else:
      length = gamma * np.linalg.norm(w)
      assert_close(added, length * g / np.linalg.norm(g), terms=TERMS + w.size)
  shifted = gradient_at(jax.tree.map(jnp.add, state.params, v))
  expected = jax.tree.map(lambda w, g: w - LR * g, state.params, shifted)
  step = ro.make_train_step(apply, optimizer, ro.robust(), no_attack(), perturb_weights=perturb)
  after, _ = jax.jit(step)(state, batch, jax.random.key(0))
  assert_close(after.params, expected, terms=TERMS + 64 * 16)


def test_an_average_of_weights_is_kept_and_found():
  optimizer = optax.chain(optax.sgd(LR), optimizers.weight_average(0.5))
  apply, state = setup(models.SoftmaxRegression(), optimizer)
  step = jax.jit(ro.make_train_step(apply, optimizer, ro.robust(), no_attack()))
  average = state.params
  chex.assert_trees_all_equal(training.evaluated(state)[0], state.params)
  for t in range(1, 13):
    state, _ = step(state, digits_batch(), jax.random.key(t))
    keep = min(0.5, t / (t + 9))
    average = jax.tree.map(lambda a, w, k=keep: k * a + (1 - k) * w, average, state.params)
  assert_close(training.evaluated(state)[0], average, terms=4, steps=12)
  _, fresh = setup(models.SoftmaxRegression(), optimizer)
  jax.jit(lambda state: state, donate_argnums=0)(fresh)  # no buffer of it is there twice
  _, plain = setup(models.SoftmaxRegression(), optax.sgd(LR))
  assert training.evaluated(plain)[0] is plain.params


def test_batch_statistics_are_averaged_as_the_weights_are():
  optimizer = optax.chain(optax.sgd(LR), optimizers.weight_average(0.5))
  apply, state = setup(BatchNormNet(), optimizer)
  step = jax.jit(ro.make_train_step(apply, optimizer, ro.robust(), no_attack()))
  averages = training.evaluated(state)
  chex.assert_trees_all_equal(averages, (state.params, state.model_state))
  for t in range(1, 4):
    state, _ = step(state, digits_batch(), jax.random.key(t))
    keep, newest = min(0.5, t / (t + 9)), (state.params, state.model_state)
    averages = jax.tree.map(lambda a, w, k=keep: k * a + (1 - k) * w, averages, newest)
  assert_close(training.evaluated(state), averages, terms=4, steps=3)
  plain = state.replace(opt_state=())
  assert training.evaluated(plain) == (state.params, state.model_state)


def test_soft_labels_of_the_scan_are_those_of_the_loss():
  def smoothed_loss(logits, y):
    return ro.losses.cross_entropy(logits, mixing.smoothed(y, 10, 0.1))

  data, key = ro.ArrayData(*digits_batch(8)[:2]), jax.random.key(0)
  plan, optimizer = ro.EpochPlan(8, 4), optax.sgd(LR)
  apply, state = setup(models.SoftmaxRegression(), optimizer)

  def after(objective, **kwargs):
    step = ro.make_train_step(apply, optimizer, objective, ro.steepest(ro.LInf(0.1)))
    return ro.make_scan(step, plan, **kwargs)(state, data, key, 4)

  by_scan = after(ro.robust(), mix=pipeline.mix((), 10, 0.1))
  chex.assert_trees_all_equal(by_scan, after(ro.robust(smoothed_loss)))
  chex.assert_trees_all_equal(
    after(ro.robust(), mix=pipeline.mix(("flip",), 10)), after(ro.robust())
  )


@pytest.mark.parametrize("batch_size", [0, 9])
def test_an_epoch_without_a_whole_batch_is_refused(batch_size):
  with pytest.raises(ro.InputError, match=f"must be 1 to 8, .* but was {batch_size}"):
    ro.make_scan(lambda *_: None, ro.EpochPlan(8, batch_size))


def test_a_parameter_may_be_called_average():
  params = {"average": jnp.ones(3)}
  for optimizer, kept in (
    (optax.adam(LR), params),
    (optax.chain(optax.adam(LR), optimizers.weight_average(0.5)), params),
  ):
    state = ro.init_state(params, {}, optimizer)  # Adam's moments are {"average": zeros}
    chex.assert_trees_all_equal(training.evaluated(state)[0], kept)


# What the ascent may not compute


def test_ascent_costs_a_forward_pass_and_an_input_gradient():
  """With L layers: 3 L - 1 products descend (no input gradient in the first), 2 L ascend."""
  net, optimizer, batch = models.MLP(widths=(16, 12)), optax.sgd(LR), digits_batch()
  apply, state = setup(net, optimizer)
  layers, forward = 3, 12 * (64 * 16 + 16 * 12 + 12 * 10)

  def cost(attack):
    step = ro.make_train_step(apply, optimizer, ro.robust(), attack)
    jaxpr = jax.make_jaxpr(step)(state, batch, jax.random.key(0)).jaxpr
    products = list(equations(jaxpr, "dot_general"))
    return [len(products), sum(map(multiply_adds, products))]

  first = 12 * 64 * 16
  algorithm_1 = cost(ro.steepest(ro.L2(0.1)))
  assert algorithm_1 == [5 * layers - 1, 5 * forward - first]
  # However many steps: the body of the ascent stands there once.
  assert cost(ro.ascend(ro.frank_wolfe(ro.L2(0.1)), 7)) == algorithm_1


# Modes


def recording(apply, calls):
  """The model, noting (train, key) of every call."""

  def recorded(params, model_state, x, *, train, key):
    calls.append((train, key))
    return apply(params, model_state, x, train=train, key=key)

  return recorded


@FLOAT64
@pytest.mark.parametrize("train_mode", [False, True])
def test_running_statistics_are_touched_by_the_descent_alone(train_mode):
  net, optimizer = BatchNormNet(0.5), optax.sgd(LR)
  apply, state = setup(net, optimizer)
  state, batch, calls = warm(state), digits_batch(), []
  step = ro.make_train_step(
    recording(apply, calls),
    optimizer,
    ro.robust(),
    ro.steepest(ro.LInf(0.2)),
    ascent_in_train_mode=train_mode,
  )

  @jax.jit
  def run(state, batch, key):
    new, _ = step(state, batch, key)
    return new, calls[0][1], calls[-1][1]

  new, ascent_key, descent_key = run(state, batch, jax.random.key(3))
  assert (calls[0][0], calls[-1][0]) == (train_mode, True)
  assert ascent_key != descent_key  # other masks
  variables = {"params": state.params, **state.model_state}

  @functools.partial(jax.jit, static_argnums=1)
  def by_hand(x, train, key):
    return net.apply(variables, x, train=train, rngs={"dropout": key}, mutable=["batch_stats"])

  def total(x):
    logits, _ = by_hand(x, train_mode, ascent_key)
    return jnp.sum(ro.losses.cross_entropy(logits, batch.y))

  x_adv = batch.x + 0.2 * jnp.sign(jax.jit(jax.grad(total))(batch.x))
  _, expected = by_hand(x_adv, True, descent_key)
  assert_close(new.model_state, expected, terms=TERMS)
  _, clean = by_hand(batch.x, True, descent_key)
  with pytest.raises(AssertionError):
    chex.assert_trees_all_close(new.model_state, clean, rtol=1e-3)


@FLOAT64
def test_random_starts_depend_on_the_id_alone():
  """Shuffling a batch moves every example's delta along with it."""
  optimizer, attack = optax.sgd(LR), ro.ascend(ro.pgd(ro.LInf(0.2), ro.LInf(0.05)), 2)
  apply, state = setup(PlainNet(), optimizer)

  def outer(forward, x, x_adv, y):
    return jnp.zeros(y.shape), x_adv - x  # leaves the step as its model_state

  step = ro.make_train_step(apply, optimizer, ro.robust()._replace(outer=outer), attack)
  delta = jax.jit(lambda batch, key: step(state, batch, key)[0].model_state)
  batch, order = digits_batch(), np.random.default_rng(0).permutation(12)
  straight = delta(batch, jax.random.key(5))
  shuffled = delta(jax.tree.map(lambda a: a[order], batch), jax.random.key(5))
  assert_close(straight[order], shuffled, terms=TERMS)
  assert np.abs(straight - delta(batch, jax.random.key(6))).max() > 0.05
  renamed = delta(batch._replace(ids=batch.ids + 100), jax.random.key(5))
  assert np.abs(straight - renamed).max() > 0.05


# Degenerate gradients


@FLOAT64
@pytest.mark.parametrize(("norm", "num_steps"), [("linf", 3), ("l2", 1)])
def test_zero_gradients_leave_the_example_and_are_counted(norm, num_steps):
  optimizer = optax.sgd(LR)
  apply, state = setup(models.MLP(widths=(16,)), optimizer)
  last = jax.tree.map(jnp.zeros_like, state.params["Dense_1"])
  state = state.replace(params={**state.params, "Dense_1": last})
  attack = ro.ascend(ro.frank_wolfe(SETS[norm](0.4)), num_steps)
  step = ro.make_train_step(apply, optimizer, ro.robust(), attack)
  batch = digits_batch()
  new, metrics = jax.jit(step)(state, batch, jax.random.key(0))
  assert int(metrics.zero_gradients) == 12
  assert_close(metrics.loss, np.log(10.0), terms=TERMS)
  chex.assert_tree_all_finite(new)
  standard = ro.make_train_step(apply, optimizer, ro.robust(), no_attack())
  expected, _ = jax.jit(standard)(state, batch, jax.random.key(0))  # delta was 0
  assert_close(new.params, expected.params, terms=TERMS)
  _, after = jax.jit(step)(new, batch, jax.random.key(1))
  assert int(after.zero_gradients) == 0


# The scan


def counting_step(state, batch, key):
  """Learns nothing; reports which examples it saw and with which key."""
  return state.replace(step=state.step + 1), (batch, jax.random.key_data(key))


def walk(num_examples=20, batch_size=5, shuffle=True, epochs=1, seed=0, first_epoch=0):
  """(batch stacked over the steps, keys) of some epochs."""
  plan = ro.EpochPlan(num_examples, batch_size, shuffle)
  run = ro.make_scan(counting_step, plan)
  images = np.arange(num_examples * 4, dtype=np.uint8).reshape(num_examples, 2, 2, 1)
  data = ro.ArrayData(images, np.arange(num_examples, dtype=np.int32) % 3)
  state = ro.TrainState(jnp.int32(first_epoch * plan.num_steps), {}, {}, ())
  out = []
  for _ in range(epochs):
    state, seen = run(state, data, jax.random.key(seed), plan.num_steps)
    out.append(seen)
  return jax.tree.map(lambda *a: np.concatenate(a), *out)


def test_epoch_visits_every_example_once():
  batch, _ = walk()
  np.testing.assert_array_equal(np.sort(batch.ids.reshape(-1)), np.arange(20))
  assert not np.array_equal(batch.ids.reshape(-1), np.arange(20))
  images = np.arange(80, dtype=np.uint8).reshape(20, 2, 2, 1)
  np.testing.assert_array_equal(batch.y, batch.ids % 3)
  np.testing.assert_allclose(batch.x, images[batch.ids] / np.float32(255.0), rtol=rounding())
  chex.assert_type([batch.x, batch.y, batch.ids], [np.float32, np.int32, np.int32])
  in_order, _ = walk(shuffle=False, epochs=2)
  np.testing.assert_array_equal(in_order.ids.reshape(-1), np.tile(np.arange(20), 2))


def test_remainder_waits_for_another_epoch():
  batch, _ = walk(num_examples=23, epochs=6)
  epochs = batch.ids.reshape(6, 20)
  assert all(len(set(ids)) == 20 for ids in epochs)
  assert set(epochs.reshape(-1)) == set(range(23))


def test_order_and_keys_derive_from_key_and_epoch():
  batch, keys = walk(epochs=3)
  orders = batch.ids.reshape(3, 20)
  assert len({tuple(order) for order in orders}) == 3
  assert len({tuple(key) for key in keys}) == 12
  third, third_keys = walk(first_epoch=2)
  np.testing.assert_array_equal(third.ids.reshape(-1), orders[2])
  np.testing.assert_array_equal(third_keys, keys[8:])
  assert not np.array_equal(walk(seed=1)[0].ids.reshape(-1), orders[0])


@pytest.mark.parametrize(("num_examples", "shuffle"), [(20, False), (23, True)])
def test_steps_go_on_across_the_ends_of_epochs(num_examples, shuffle):
  run = ro.make_scan(counting_step, ro.EpochPlan(num_examples, 5, shuffle))
  data = ro.ArrayData(np.zeros((num_examples, 2, 2, 1), np.uint8), np.zeros(num_examples, np.int32))
  state = ro.TrainState(jnp.int32(3), {}, {}, ())
  _, (batch, keys) = run(state, data, jax.random.key(0), 9)
  expected, expected_keys = walk(num_examples, shuffle=shuffle, epochs=3)
  np.testing.assert_array_equal(batch.ids, expected.ids[3:12])
  np.testing.assert_array_equal(keys, expected_keys[3:12])


@pytest.fixture(scope="module")
def digits_run():
  """(jitted scan, its state, data, the step, key): random starts, dropout and momentum."""
  optimizer = optax.sgd(0.1, momentum=0.9)
  attack = ro.ascend(ro.pgd(ro.LInf(0.1), ro.LInf(0.05)), 2)
  digits = load("digits", "train")
  with jax.enable_x64(True):
    apply, state = setup(BatchNormNet(0.3), optimizer)
    data = ro.ArrayData(widest(digits.images[:64] / 255), jnp.asarray(digits.labels[:64]))
  step = ro.make_train_step(apply, optimizer, ro.robust(), attack)
  run = jax.jit(ro.make_scan(step, ro.EpochPlan(64, 8)), static_argnums=3, donate_argnums=0)

  def run_on_a_copy(state, num_steps):
    return run(jax.tree.map(jnp.copy, state), data, jax.random.key(2), num_steps)

  return run, run_on_a_copy, state, data, step


@FLOAT64
def test_scan_of_many_steps_is_many_scans_to_the_bit(digits_run):
  run, on_copy, state, data, _ = digits_run
  whole, metrics = on_copy(state, 8)
  half, first = on_copy(state, 4)
  old = jax.tree.leaves(half)
  parts, second = run(half, data, jax.random.key(2), 4)
  chex.assert_trees_all_equal(parts, whole)
  np.testing.assert_array_equal(np.concatenate([first.loss, second.loss]), metrics.loss)
  chex.assert_shape(metrics, (8,))
  chex.assert_type(metrics.zero_gradients, jnp.int32)
  # The state was donated: it is gone, and neither data nor the new state is.
  assert all(leaf.is_deleted() for leaf in old)
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((parts, data)))
  on_copy(whole, 8)  # another epoch
  assert run._cache_size() == 2  # one program for each number of steps


@FLOAT64
def test_scan_is_a_loop_of_steps(digits_run):
  _, on_copy, state, data, step = digits_run
  scanned, metrics = on_copy(state, 8)
  walk = ro.make_scan(counting_step, ro.EpochPlan(64, 8))
  _, (batches, keys) = walk(state, data, jax.random.key(2), 8)
  jitted, losses = jax.jit(step), []
  for i in range(8):
    batch = jax.tree.map(lambda a, i=i: a[i], batches)
    state, one = jitted(state, batch, jax.random.wrap_key_data(keys[i]))
    losses.append(one.loss)
  assert int(scanned.step) == int(state.step) == 8
  # A bias before batch normalization has no gradient: it is nothing but rounding.
  assert_close((scanned, metrics.loss), (state, np.stack(losses)), terms=TERMS, steps=8, scale=1.0)


def test_augmentation_is_drawn_anew_every_epoch_for_every_example():
  plan = ro.EpochPlan(16, 8, shuffle=False)
  images = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 1), np.uint8)
  data = ro.ArrayData(images, np.zeros(16, np.int32))
  run = ro.make_scan(counting_step, plan, augment=augmentation.flip)
  state = ro.TrainState(jnp.int32(0), {}, {}, ())
  flipped = []
  for _ in range(4):
    state, (batch, _) = run(state, data, jax.random.key(0), 2)
    clean = images[batch.ids] / np.float32(255)
    same = np.isclose(batch.x, clean).all(axis=(2, 3, 4))
    mirrored = np.isclose(batch.x, clean[:, :, :, ::-1]).all(axis=(2, 3, 4))
    assert np.all(same ^ mirrored)
    flipped.append(mirrored.reshape(-1))
  assert 0.25 < np.mean(flipped) < 0.75
  assert np.all(np.std(flipped, axis=0).mean() > 0.2)


# The optimizer and its schedules


def test_optimizer_is_the_authors_dampened_sgd():
  """Torch: g += wd theta; v = m v + (1 - damp) g; theta -= lr_t v, damp = m, lr_0 = 1e-2.

  optax has no dampening, but v / (1 - m) obeys its rule, with lr_0 (1 - m) = 1e-3. That is exact
  when v starts at 0. Torch's first step sets v = g instead, undampened: its first update is ten
  times ours, and the gap in v shrinks by m = 0.9 an update after that.
  """
  config_ = config.mnist()
  optimizer = build.optimizer(config_, steps_per_epoch=550)
  rng = np.random.default_rng(0)
  theta = rng.normal(size=7)
  params, opt_state = jnp.float32(theta), optimizer.init(jnp.float32(theta))
  v, first_updates = np.zeros(7), {}
  for t in range(5):
    gradient = rng.normal(size=7)
    g = gradient + 1e-3 * theta
    if t == 0:
      first_updates["torch"] = -1e-2 * g
    v = 0.9 * v + (1 - 0.9) * g
    before = theta
    theta = theta - 1e-2 / (1 + 5e-6 * t) * v
    updates, opt_state = optimizer.update(jnp.float32(gradient), opt_state, params)
    params = optax.apply_updates(params, updates)
    assert_close(updates, theta - before, terms=8, steps=5)
    if t == 0:
      assert_close(10 * updates, first_updates["torch"], terms=8)
  assert_close(params, theta, terms=8, steps=5)


@pytest.mark.parametrize(
  ("name", "own", "points"),
  [
    ("constant", {}, {0: 1.0, 99: 1.0}),
    ("inverse_time", {"rate": 0.5}, {0: 1.0, 2: 0.5, 18: 0.1}),
    # halved every 2 epochs of 10 steps
    ("halving", {"epochs": 2.0}, {0: 1.0, 19: 1.0, 20: 0.5, 39: 0.5, 40: 0.25}),
    # 4 epochs of 10 steps
    ("cosine", {}, {0: 1.0, 20: 0.5, 40: 0.0}),
    ("triangular", {}, {0: 0.0, 10: 0.5, 20: 1.0, 30: 0.5, 40: 0.0}),
  ],
)
def test_schedules(name, own, points):
  config_ = config.digits()
  config_.training.epochs = 4
  config_.optimizer.learning_rate = 2.0
  config.choose(config_, "schedule", name, **own)
  schedule = build.schedule(config_, steps_per_epoch=10)
  for step, fraction in points.items():
    assert_close(schedule(jnp.int32(step)), 2.0 * fraction, terms=8, scale=2.0)
