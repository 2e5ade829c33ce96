"""SIGTERM and Ctrl-C (SIGINT): training saves its state first, everything else stops at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from robust_opt.errors import PreemptedError

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class _Signaled(KeyboardInterrupt):
  """Its argument is the number; no `except Exception` takes it for a damaged file, say."""


@contextmanager
def _handled_by(handler: Callable[[int], None]) -> Iterator[None]:
  """Within the block both signals call the handler, in the main thread, which handles signals.

  One that is ignored remains so, as Ctrl-C for a command in the background of a script.
  """
  before = {}
  try:
    for number in _NAMES:
      if signal.getsignal(number) == signal.SIG_IGN:
        continue
      before[number] = signal.signal(number, lambda number, frame: handler(number))
  except ValueError:  # another thread
    yield
    return
  try:
    yield
  finally:
    for number, old in before.items():
      signal.signal(number, old)


@contextmanager
def signals_end_the_run() -> Iterator[None]:
  """Within the block a signal raises a PreemptedError: outside of training nothing can be lost."""

  def end(number: int) -> None:
    raise _Signaled(number)

  try:
    with _handled_by(end):
      yield
  except _Signaled as signaled:
    words = "stopped outside of training, where nothing is lost; the same command goes on"
    raise preempted(signaled.args[0], words) from None


def preempted(number: int, words: str) -> PreemptedError:
  """The error for a signal: 'SIGTERM: stopped ....'."""
  return PreemptedError(f"{_NAMES[signal.Signals(number)]}: {words}.", number)


@contextmanager
def signal_flag() -> Iterator[Callable[[], int]]:
  """Within the block signals only set a flag, on which all processes agree: a number, or 0.

  A second Ctrl-C is a KeyboardInterrupt, for a step or a save that does not end.
  """
  seen: list[int] = []

  def note(number: int) -> None:
    if number == signal.SIGINT and number in seen:
      raise KeyboardInterrupt
    seen.append(number)

  def requested() -> int:
    first = seen[0] if seen else 0
    if jax.process_count() == 1:
      return first
    return int(multihost_utils.process_allgather(np.array(first)).max())

  with _handled_by(note):
    yield requested
