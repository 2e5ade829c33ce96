"""The processes of one command, of which the first alone writes and prints.

  study = on_first("claim", claim) or claim()      # one after the other
  wait_for_all("attacked")                         # hours, if need be
  on_first("report", report)                       # the others stay until it is done

In a single process nothing waits. Training needs none of this: its collectives keep it in step.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import orbax.checkpoint as ocp

from robust_opt.errors import RunError

T = TypeVar("T")
# Waiting ends earlier if a process dies: the coordination service misses its heartbeat.
_LONGEST_MS = 30 * 24 * 60 * 60 * 1000


def is_first() -> bool:
  """Whether this process writes and prints."""
  return jax.process_index() == 0


def wait_for_all(name: str) -> None:
  """Waits until every process has called this with the same name, which is used once a command.

  `multihost_utils.sync_global_devices` would occupy the devices, and its collective times out.

  Raises:
    RunError: another process has ended.
  """
  try:
    ocp.multihost.get_barrier_sync_fn()(key=f"robust_opt: {name}", timeout_ms=_LONGEST_MS)
  except jax.errors.JaxRuntimeError as error:
    raise RunError(
      f"Another process has ended ({str(error).splitlines()[0]}); start the same command again in "
      "all of them to resume."
    ) from error


def on_first(name: str, function: Callable[[], T]) -> T | None:
  """function() in the first process, None in the others, which wait for it, even if it fails."""
  try:
    return function() if is_first() else None
  finally:
    wait_for_all(name)
