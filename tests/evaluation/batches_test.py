"""How examples and targets become batches: none twice, none of the broken, little padding."""

import types

import jax
import numpy as np
import pytest

from robust_opt.evaluation import batches
from robust_opt.evaluation.batches import Lanes, Packing

CPU = batches.packing(100, "cpu")
GPU = batches.packing(1024, "gpu")


def lanes_of(count, targets):
  ranks = np.repeat(np.arange(targets), count)
  return Lanes(np.tile(np.arange(count), targets), ranks, ranks)


def simulate(count, targets, packing, breaks, few_break=False):
  """The batches (ids, ranks, size) of a phase where `breaks` [count] is the rank that succeeds."""
  pending, found, used = lanes_of(count, targets), [], frozenset()
  while len(pending.ids):
    lanes, size = batches.next_batch(pending, packing, used, few_break)
    found.append((lanes.ids, lanes.ranks, size))
    used |= {size}
    broken = lanes.ids[lanes.ranks == breaks[lanes.ids]]
    rest = Lanes(*(column[len(lanes.ids) :] for column in pending))
    pending = Lanes(*(column[~np.isin(rest.ids, broken)] for column in rest))
  return found


@pytest.mark.parametrize("packing", [CPU, GPU, Packing((8, 1), True), Packing((1, 1), False)])
@pytest.mark.parametrize(("count", "targets"), [(1, 9), (7, 9), (80, 9), (151, 9), (223, 1)])
@pytest.mark.parametrize("few_break", [False, True])
def test_every_lane_runs_once_unless_its_example_is_broken(packing, count, targets, few_break):
  breaks = np.random.default_rng(count).integers(0, 3 * targets, count)
  found = simulate(count, targets, packing, breaks, few_break)
  ran = [(i, rank) for ids, ranks, _ in found for i, rank in zip(ids, ranks, strict=True)]
  assert len(set(ran)) == len(ran)
  # All up to the first success; later ones only if they shared its batch.
  assert {(i, r) for i in range(count) for r in range(min(breaks[i] + 1, targets))} <= set(ran)
  for ids, ranks, size in found:
    assert size in packing.sizes
    assert len(ids) <= size
    assert np.all(np.diff(ranks) >= 0)
  last = dict(ran)
  assert all(last[i] >= min(breaks[i], targets - 1) for i in range(count))


def old_images(counts, batch_size):
  """The padded images if every rank is split on its own, into whole batches and eighths."""
  small, total = max(1, batch_size // 8), 0
  for count in counts:
    while count > 0:
      size = batch_size if count >= batch_size - small else small
      count, total = count - size, total + size
  return total


@pytest.mark.parametrize("count", [5, 13, 80, 151, 500])
def test_a_cpu_sees_fewer_images_than_with_one_target_after_the_other(count):
  never = np.full(count, 99)
  found = simulate(count, 9, CPU, never)
  assert sum(size for *_, size in found) <= old_images(9 * [count], 100)
  assert sum(size for *_, size in found) - 9 * count < 12


def test_where_few_break_whole_batches_hold_all_targets():
  for few_break, count in ((False, 60), (True, 7 + 2)):  # 700 and 20 of 720 lanes
    found = simulate(80, 9, CPU, np.full(80, 99), few_break)
    assert len(found) == count


def test_an_accelerator_takes_few_batches_and_few_programs():
  assert GPU.sizes[:6] == (1024, 896, 768, 640, 512, 448)
  assert GPU.sizes[-4:] == (112, 96, 80, 64)
  cases = {(151, 9): [768, 768], (151, 1): [160], (20, 9): [192], (1100, 1): [640, 640]}
  for (count, targets), sizes in cases.items():
    found = simulate(count, targets, GPU, np.full(count, 99))
    assert [size for *_, size in found] == sizes
  # As examples are broken, what is left over takes a program that exists.
  found = simulate(200, 9, GPU, np.zeros(200, int))
  assert [size for *_, size in found] == [1024]
  assert batches.padded_size(300, GPU, frozenset({512})) == 512
  assert batches.padded_size(200, GPU, frozenset({512})) == 224
  for devices in (2, 3, 8):
    assert all(size % devices == 0 for size in batches.packing(96 * devices, "gpu", devices).sizes)


def test_padding_repeats_the_last_lane():
  padded = batches.pad(lanes_of(3, 1), 5)
  np.testing.assert_array_equal(padded.ids, [0, 1, 2, 2, 2])
  assert padded.ids.dtype == np.int32


def fake_devices(monkeypatch, gigabytes, platform="gpu"):
  stats = {"bytes_limit": gigabytes * 2**30} if gigabytes else None
  device = types.SimpleNamespace(platform=platform, memory_stats=lambda: stats)
  monkeypatch.setattr(jax, "local_devices", lambda: [device])


X = np.zeros((10_000, 32, 32, 3), np.float32)


def wide_net(x):
  h = jax.nn.relu(x.reshape(len(x), -1) @ np.zeros((3072, 20_000), np.float32))
  return h @ np.zeros((20_000, 10), np.float32)


def test_the_batch_follows_device_and_memory(monkeypatch):
  small = lambda x: x.reshape(len(x), -1)[:, :10]  # noqa: E731
  fake_devices(monkeypatch, None, platform="cpu")
  assert batches.default_batch_size(small, X) == 100
  fake_devices(monkeypatch, 100)
  assert batches.default_batch_size(small, X) == 4096
  assert batches.default_batch_size(small, X[:512]) == 1024
  assert batches.default_batch_size(small, X[:1500]) == 2048
  assert batches.default_batch_size(small, X, 6) == 6 * 512  # of each device a power of two
  fake_devices(monkeypatch, 1)
  assert batches.default_batch_size(wide_net, X) == 256
  fake_devices(monkeypatch, 0.1)
  assert batches.default_batch_size(wide_net, X) == 128
  fake_devices(monkeypatch, None)
  assert batches.default_batch_size(small, X) == 4096
  blind = lambda x: jax.pure_callback(np.asarray, x[:, :2, 0, 0], x[:, :2, 0, 0])  # noqa: E731
  assert batches.default_batch_size(blind, X) == 4096


def test_the_usual_batch_of_a_cpu_fits_any_number_of_devices(monkeypatch):
  fake_devices(monkeypatch, None, platform="cpu")
  net = lambda x: x  # noqa: E731
  assert [batches.default_batch_size(net, X, n) for n in (1, 2, 4, 8)] == [100, 112, 128, 128]
