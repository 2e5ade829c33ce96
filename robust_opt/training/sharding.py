"""Sharding over a mesh of all devices of all processes: batches are split, the rest replicated.

  mesh = sharding.data_mesh()
  state = sharding.replicate(state, mesh)
  run = jax.jit(make_scan(step, plan, place_batch=sharding.batch_placer(mesh)), ...)

On one device this is the identity.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from robust_opt.errors import InputError
from robust_opt.types import Batch, PyTree

AXIS = "data"


def devices_in_words() -> str:
  """The number and kind of the devices, as in '4 x NVIDIA H100'."""
  return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def connect(
  coordinator: str,
  num_processes: int | None,
  process_id: int | None,
  *,
  shared: bool,
  flag: str = "--workdir",
) -> None:
  """Joins the processes of one run, if there are several.

  `coordinator` is host:port of process 0 (with num_processes and process_id), "auto" to read the
  cluster's environment, or empty; `shared` is whether all processes share one work directory, which
  `flag` names in messages.

  Raises:
    InputError: the arguments are inconsistent.
  """
  if not coordinator:
    if (num_processes, process_id) != (None, None):
      raise InputError("--num_processes and --process_id need --coordinator=host:port, or auto.")
    return
  if not shared:
    raise InputError(f"--coordinator={coordinator} needs {flag}, a directory that all share.")
  if coordinator == "auto":
    jax.distributed.initialize()
    return
  if process_id not in range(num_processes or 0) or not re.fullmatch(r".+:\d+", coordinator):
    raise InputError(
      "--coordinator must be host:port, with --num_processes and --process_id from 0 to one less, "
      f"but they were {coordinator}, {num_processes} and {process_id}."
    )
  jax.distributed.initialize(coordinator, num_processes, process_id)


def data_mesh() -> Mesh:
  """All devices of all processes in one axis, over which batches are split."""
  return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def local_mesh() -> Mesh:
  """The devices of this process in one axis, for work that each process does on its own."""
  devices = jax.local_devices()
  return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
  """Copies the arrays of a tree, the same in every process, to every device; not other leaves."""
  sharding = replicated(mesh)

  def put(leaf: Any) -> Any:
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
      return leaf
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      data = put(jax.random.key_data(leaf))
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

  return jax.tree.map(put, tree)


def batch_placer(mesh: Mesh) -> Callable[[Batch], Batch]:
  """Inside a jitted function: splits a batch over the mesh along its first axis."""
  sharding = NamedSharding(mesh, PartitionSpec(AXIS))

  def place(batch: Batch) -> Batch:
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, sharding), batch)

  return place
