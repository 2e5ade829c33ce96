"""How long the updates of every training take, to size long runs.

with metered() as trainings:
  experiment.run(config, workdir)
trainings[0].updates, trainings[0].seconds_per_update
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Training(NamedTuple):
  """One call of engine.train."""

  updates: int
  seconds_per_update: float  # with what is measured and saved on the way


_TRAININGS: ContextVar[list[Training] | None] = ContextVar("trainings", default=None)


@contextmanager
def metered() -> Iterator[list[Training]]:
  """A list that gets every training of the block."""
  trainings: list[Training] = []
  token = _TRAININGS.set(trainings)
  try:
    yield trainings
  finally:
    _TRAININGS.reset(token)


def record(scans: Sequence[tuple[int, float]], saving: float = 0.0) -> None:
  """Adds a training, of the (updates, seconds) of its scans and the seconds an update of `saving`.

  The two are apart since every training saves after its last update, be it ever so short.
  Where half of the updates are done after a scan, time counts from there on: what runs for the
  first time, compiles.
  """
  trainings = _TRAININGS.get()
  if trainings is None or not scans:
    return
  total, done, kept = sum(updates for updates, _ in scans), 0, []
  for updates, seconds in scans:
    if 2 * done >= total:
      kept.append((updates, seconds))
    done += updates
  updates, seconds = map(sum, zip(*(kept or scans), strict=True))
  trainings.append(Training(total, seconds / updates + saving))
