"""Training on data that do not fit on the device: the examples of a few steps at a time.

  stream = Stream(train, plan, key, limit=2**30, workers=4, mesh=sharding.data_mesh())
  data = stream.take(step, 100)              # of the next 100 updates, on the devices

The examples of a step are those of the in-memory path (`training.scan.ids_of_steps`), so that a
training resumes from its step alone. While the devices compute, the next examples are read, decoded
(by Grain, where images are files) and copied. Every process reads its own part of each batch.
"""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from robust_opt import extras
from robust_opt.data.datasets import Dataset
from robust_opt.errors import InputError
from robust_opt.training import ArrayData, EpochPlan
from robust_opt.training.scan import ids_of_steps
from robust_opt.training.sharding import AXIS, data_mesh
from robust_opt.types import Array

_SHARE = 0.25  # of a device's memory that a data set may take
_THREADS = 8  # each decodes a batch ahead


def device_limit(limit: int) -> float:
  """The bytes of data kept on a device: the limit, or a quarter of the device's memory if it is 0.

  Where a device does not tell its memory, as a CPU, there is no limit.
  """
  if limit:
    return limit
  stats = jax.local_devices()[0].memory_stats() or {}
  return _SHARE * stats.get("bytes_limit", float("inf"))


def placed(split: Dataset, limit: float, put: Callable[[Any], Any]) -> ArrayData:
  """A split on the devices, or on the host if it is larger than the limit."""
  count = len(split.images)
  if split.images.nbytes > limit:
    return ArrayData(split.images, split.labels[:count])
  return put(ArrayData(np.asarray(split.images), split.labels[:count]))


def parts(
  data: ArrayData, batch_size: int, limit: float, put: Callable[[Any], Any]
) -> Iterator[ArrayData]:
  """Data on the devices as they are; data on the host in whole batches within the limit."""
  if isinstance(data.images, jax.Array):
    yield data
    return
  count = len(data.labels)
  batches = int(limit * count // (data.images.nbytes * batch_size))
  size = max(1, batches) * batch_size
  for start in range(0, count, size):
    part = slice(start, start + size)
    ids = np.arange(count, dtype=np.int32)[part]
    yield put(ArrayData(np.asarray(data.images[part]), data.labels[part], ids))


class Resident(NamedTuple):
  """A training set that is on the devices."""

  data: ArrayData
  max_steps: int = 2**31

  def shapes(self, num_steps: int) -> ArrayData:
    """Of what `take` returns."""
    return self.data

  def take(self, step: int, num_steps: int) -> ArrayData:
    """The whole data set, whatever the steps are."""
    return self.data


class Stream:
  """The examples of consecutive steps, images [num_steps, B, *S], split over a mesh by B."""

  def __init__(
    self, data: Dataset, plan: EpochPlan, key: Array, limit: float, workers: int, mesh: Mesh
  ) -> None:
    """Reads nothing yet.

    Args:
      data: on the host.
      plan: the batches of an epoch.
      key: of the training, as for `make_scan`.
      limit: bytes of images on a device: those of one call, and of the next that loads meanwhile.
      workers: processes that decode images; 0: threads of this process.
      mesh: of all devices.
    """
    batch_bytes = plan.batch_size * data.images.nbytes // len(data.labels)
    self.max_steps = int(max(1, min(limit, 2**62) // (2 * batch_bytes)))
    self._data, self._plan, self._workers = data, plan, workers
    self._ids = jax.jit(functools.partial(ids_of_steps, plan, key), static_argnums=1)
    self._sharding = NamedSharding(mesh, PartitionSpec(None, AXIS))
    self._rows = _local_rows(NamedSharding(mesh, PartitionSpec(AXIS)), plan.batch_size)
    self._pool = ThreadPoolExecutor(1)
    self._pending: tuple[tuple[int, int], Future[ArrayData]] | None = None
    self._batches: tuple[int, Iterator[np.ndarray]] | None = None

  def take(self, step: int, num_steps: int) -> ArrayData:
    """The examples of num_steps updates from `step` on; starts to load as many after them."""
    wanted = (step, num_steps)
    if self._pending is None or self._pending[0] != wanted:
      self._submit(wanted)
    assert self._pending is not None
    data = self._pending[1].result()
    self._submit((step + num_steps, num_steps))
    return data

  def shapes(self, num_steps: int) -> ArrayData:
    """What `take` returns, as jax.ShapeDtypeStruct."""
    batch = (num_steps, self._plan.batch_size)
    of: Any = functools.partial(jax.ShapeDtypeStruct, sharding=self._sharding)
    images, labels = self._data.images, self._data.labels
    return ArrayData(
      of((*batch, *images.shape[1:]), images.dtype),
      of((*batch, *labels.shape[1:]), labels.dtype),
      of(batch, np.int32),
    )

  def _submit(self, wanted: tuple[int, int]) -> None:
    self._pending = wanted, self._pool.submit(self._load, *wanted)

  def _load(self, step: int, num_steps: int) -> ArrayData:
    """Runs in the one thread of the pool, so that calls never overlap."""
    if self._batches is None or self._batches[0] != step:
      self._batches = step, self._images_from(step)
    images = np.stack(list(islice(self._batches[1], num_steps)))
    self._batches = step + num_steps, self._batches[1]
    ids = np.asarray(self._ids(step, num_steps))[:, self._rows]
    local = ArrayData(images, self._data.labels[ids], ids)
    put = functools.partial(jax.make_array_from_process_local_data, self._sharding)
    return jax.tree.map(put, local)

  def _images_from(self, step: int) -> Iterator[np.ndarray]:
    """The images of this process's rows, batch by batch, without an end."""
    while True:
      rest = self._plan.num_steps - step % self._plan.num_steps
      ids = np.asarray(self._ids(step, rest))[:, self._rows]
      yield from read_batches(self._data.images, ids, self._workers)
      step += rest


Source = Resident | Stream


def source_of(
  config: ConfigDict,
  train: Dataset,
  plan: EpochPlan,
  key: Array,
  limit: float,
  put: Callable[[Any], Any],
) -> Source:
  """The training set on the devices, or a stream of it if it is larger than the limit."""
  if train.images.nbytes > limit:
    return Stream(train, plan, key, limit, config.data.workers, data_mesh())
  return Resident(placed(train, limit, put))


def resident(source: Source) -> ArrayData:
  """The training set on the devices; an InputError if it is streamed."""
  if isinstance(source, Resident):
    return source.data
  raise InputError(
    "Several seeds train on data on the device, but these exceed --config.data.max_device_bytes or "
    "a quarter of its memory: train one seed at a time."
  )


def read_batches(images: Any, ids: np.ndarray, workers: int) -> Iterator[np.ndarray]:
  """images[row] for every row of ids [M, B]; files are decoded ahead, in order."""
  if isinstance(images, np.ndarray):
    yield from (images[row] for row in ids)
    return
  extras.require("data", "grain")
  import grain

  ahead = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS)
  # Batched before it is split between workers, who take turns: the order stays.
  decoded = grain.MapDataset.source(images[ids.ravel()]).batch(ids.shape[1])
  batches = decoded.to_iter_dataset(ahead)
  if workers:
    batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
  yield from batches


def _local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
  """The rows of a batch that are on the devices of this process."""
  slices = sharding.addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))
