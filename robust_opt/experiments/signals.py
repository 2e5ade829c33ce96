"""SIGTERM: training saves its state first, everything else stops at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from robust_opt.errors import PreemptedError


@contextmanager
def _sigterm(handler: Callable[..., object]) -> Iterator[None]:
  """Within the block SIGTERM calls the handler, in the main thread, which handles signals."""
  try:
    before = signal.signal(signal.SIGTERM, handler)
  except ValueError:  # another thread
    yield
    return
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


@contextmanager
def sigterm_ends_the_run() -> Iterator[None]:
  """Within the block SIGTERM raises a PreemptedError: outside of training nothing can be lost."""

  def end(*_: object) -> None:
    raise PreemptedError(
      "SIGTERM: stopped outside of training, where nothing is lost; the same command goes on."
    )

  with _sigterm(end):
    yield


@contextmanager
def sigterm_flag() -> Iterator[Callable[[], bool]]:
  """Within the block SIGTERM only sets a flag, on which all processes agree."""
  seen: list[bool] = []

  def requested() -> bool:
    if jax.process_count() == 1:
      return bool(seen)
    return bool(multihost_utils.process_allgather(np.array(bool(seen))).any())

  with _sigterm(lambda *_: seen.append(True)):
    yield requested
