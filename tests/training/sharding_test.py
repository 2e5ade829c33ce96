"""One step, four placements, the same numbers: jit, jit over a mesh, pmap and shard_map.

Every placement adds the terms of a sum in its own order, and a sign in the ascent may turn where a
gradient is almost 0. The placements are therefore compared in float64.
"""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from nets import BatchNormNet, PlainNet
from rounding import assert_close, widest

import robust_opt as ro
from robust_opt import models, training
from robust_opt.data.datasets import load
from robust_opt.training import sharding

DEVICES, BATCH, STEPS = 8, 24, 3
pytestmark = pytest.mark.devices(DEVICES)
BRIGHT = 0.36
# Two ascent gradients and one of the parameters, each forward and back through sums over 64 pixels,
# 24 units, 10 classes and 24 examples.
TERMS = 3 * 2 * (64 + 24 + 10 + BATCH)


class CountingNet(nn.Module):
  """Its state holds the number of its training batches, and whether one had a bright image."""

  @nn.compact
  def __call__(self, x, train=False):
    count = self.variable("statistics", "count", jnp.zeros, (), jnp.int32)
    seen = self.variable("statistics", "seen", jnp.zeros, (), bool)
    if train:
      count.value += 1
      seen.value |= jnp.any(jnp.mean(x, (1, 2, 3)) > BRIGHT)
    return nn.Dense(10)(x.reshape(x.shape[0], -1))


# (net, whether the ascent runs in train mode)
NETS = {
  "plain": (PlainNet(), False),
  "counting": (CountingNet(), False),
  "batch_norm": (BatchNormNet(), True),
}


@pytest.fixture(scope="module", autouse=True)
def in_float64():
  with jax.enable_x64(True):
    yield


def digits(count=BATCH * STEPS):
  data = load("digits", "train")
  return ro.ArrayData(data.images[:count] / 255, data.labels[:count])


def make_step(name, axis_name=None):
  """(step, fresh state): two steps of ascent from a random start, momentum."""
  net, train_mode = NETS[name]
  params, model_state = widest(models.init(net, jax.random.key(0), (8, 8, 1)))
  net = net.clone(axis_name=axis_name) if name == "batch_norm" else net
  optimizer = optax.sgd(0.2, momentum=0.9)
  step = ro.make_train_step(
    models.from_linen(net),
    optimizer,
    ro.robust(),
    ro.ascend(ro.pgd(ro.LInf(0.1), ro.LInf(0.06)), 2),
    ascent_in_train_mode=train_mode,
    axis_name=axis_name,
  )
  return step, ro.init_state(params, model_state, optimizer)


def loop(step, state, place=lambda batch: batch):
  metrics = []
  for i in range(STEPS):
    batch = training.take(digits(), jnp.arange(i * BATCH, (i + 1) * BATCH, dtype=jnp.int32))
    state, one = step(state, place(batch), jax.random.fold_in(jax.random.key(9), i))
    metrics.append(one)
  return jax.device_get((state, metrics))


@functools.cache
def on_one_device(name):
  step, state = make_step(name)
  return loop(jax.jit(step), state)


def over_a_mesh(name):
  step, state = make_step(name)
  mesh = sharding.data_mesh()
  split = NamedSharding(mesh, PartitionSpec(sharding.AXIS))
  placed = jax.jit(step, out_shardings=sharding.replicated(mesh))
  return loop(placed, sharding.replicate(state, mesh), lambda b: jax.device_put(b, split))


def under_pmap(name):
  step, state = make_step(name, axis_name="data")
  mapped = jax.pmap(step, "data", in_axes=(None, 0, None), out_axes=None)

  def place(batch):
    return jax.tree.map(lambda a: a.reshape(DEVICES, -1, *a.shape[1:]), batch)

  return loop(mapped, state, place)


def under_shard_map(name, check_vma=False):
  step, state = make_step(name, axis_name="data")
  P = PartitionSpec
  mapped = jax.shard_map(
    step,
    mesh=sharding.data_mesh(),
    in_specs=(P(), P("data"), P()),
    out_specs=P(),
    check_vma=check_vma,
  )
  return loop(jax.jit(mapped), state)


def under_shard_map_checked(name):
  """The default of shard_map, which by itself would sum the gradients over the devices."""
  return under_shard_map(name, check_vma=True)


@pytest.mark.parametrize(
  "placement",
  [over_a_mesh, under_pmap]
  + [
    pytest.param(how, marks=pytest.mark.slow) for how in (under_shard_map, under_shard_map_checked)
  ],
)
def test_step_is_the_same_wherever_it_runs(placement):
  expected, expected_metrics = on_one_device("batch_norm")
  state, metrics = placement("batch_norm")
  # Some entries are nothing but rounding: a bias before batch normalization has no gradient.
  close = functools.partial(assert_close, terms=TERMS, steps=STEPS, scale=1.0)
  close((state, metrics), (expected, expected_metrics))
  assert int(state.step) == STEPS


@pytest.mark.parametrize("placement", [under_pmap, under_shard_map_checked])
def test_counters_stay_counters(placement):
  state, _ = placement("counting")
  statistics = state.model_state["statistics"]
  assert (statistics["count"].dtype, int(statistics["count"])) == (np.int32, STEPS)
  means = digits().images.mean((1, 2, 3))
  of_first_device = np.arange(len(means)) % BATCH < BATCH // DEVICES
  assert means[of_first_device].max() < BRIGHT < means.max()
  assert statistics["seen"].dtype == bool
  assert bool(statistics["seen"])


def scan_of(mesh=None):
  step, state = make_step("plain")
  data, key, plan = digits(80), jax.random.key(3), ro.EpochPlan(80, 16)
  if mesh is None:
    return jax.jit(ro.make_scan(step, plan), static_argnums=3), (state, data, key)
  run = ro.make_scan(step, plan, place_batch=sharding.batch_placer(mesh))
  placed = tuple(sharding.replicate(a, mesh) for a in (state, data, key))
  replicated = sharding.replicated(mesh)
  return jax.jit(run, static_argnums=3, out_shardings=replicated), placed


def test_scan_over_a_mesh_is_the_scan_on_one_device():
  one, arguments = scan_of()
  expected = jax.device_get(one(*arguments, 5))
  over, arguments = scan_of(sharding.data_mesh())
  program = over.lower(*arguments, 5).compile()
  state, metrics = program(*arguments)
  assert_close(jax.device_get((state, metrics)), expected, terms=TERMS, steps=5, scale=1.0)
  for leaf in jax.tree.leaves(state):
    assert leaf.sharding.is_fully_replicated
    assert len(leaf.sharding.device_set) == DEVICES
  hlo = program.as_text()
  assert "all-reduce" in hlo
  # Each device multiplies its 2 of 16 examples by the first layer, never all of them.
  assert "f64[2,16]" in hlo
  assert "f64[16,16]" not in hlo


def test_evaluation_over_a_mesh_is_the_evaluation_on_one_device():
  net = PlainNet()
  params, model_state = widest(models.init(net, jax.random.key(0), (8, 8, 1)))

  def attack(radius):
    return ro.ascend(ro.pgd(ro.L2(radius), ro.L2(radius / 2)), 2)

  def run(place, *arguments):
    evaluate = ro.make_evaluate(models.from_linen(net), ro.robust(), attack, 16, place_batch=place)
    return jax.jit(evaluate)(*arguments)

  arguments = params, model_state, digits(50), jnp.float64(0.3), jax.random.key(1)
  mesh = sharding.data_mesh()
  expected = run(lambda batch: batch, *arguments)
  out = run(sharding.batch_placer(mesh), *(sharding.replicate(a, mesh) for a in arguments))
  chex.assert_trees_all_equal(jax.device_get(out), jax.device_get(expected))
