"""What an evaluation reports and keeps while it runs.

def report(progress: Progress): print(progress.attack, progress.remaining, progress.cost.seconds)
store = {}
cache = ResumeCache(store.get, store.__setitem__)
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

ROBUST = -1  # in Verdict.broken_by
LEFT_OUT = -2  # there: classified correctly, and the label is the target
CLEAN = "clean"  # the first name: misclassified without any attack


class ResumeCache(NamedTuple):
  """Storage for finished batches, by name; the default stores nothing.

  Attributes:
    load: name -> the saved arrays, or None.
    save: (name, arrays) -> None.
  """

  load: Callable[[str], Mapping[str, np.ndarray] | None] = lambda name: None
  save: Callable[[str, Mapping[str, np.ndarray]], None] = lambda name, arrays: None

  def stored(
    self, name: str, covered: Mapping[str, np.ndarray], needed: Iterable[str]
  ) -> Mapping[str, np.ndarray] | None:
    """A finished batch; None if it is absent or of other lanes, as of another packing."""
    arrays = self.load(name)
    if arrays is None or not {*covered, *needed} <= arrays.keys():
      return None
    same = all(np.array_equal(arrays[key], array) for key, array in covered.items())
    return arrays if same else None


class Cost(NamedTuple):
  """What batches cost.

  Attributes:
    seconds: of attack and check, with `compiling`.
    compiling: seconds of them in which programs were made.
    batches: their number.
    lanes: examples under attack, each target of one counted.
    padding: repeated lanes, which fill the batches.
    forward: images shown to the net for logits alone, padding included.
    gradient: images shown to the net for a gradient, padding included.
  """

  seconds: float = 0.0
  compiling: float = 0.0
  batches: int = 0
  lanes: int = 0
  padding: int = 0
  forward: int = 0
  gradient: int = 0

  def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]
    return Cost.of(a + b for a, b in zip(self, other, strict=True))

  @classmethod
  def of(cls, values: Iterable[float]) -> "Cost":
    """Cost from its numbers, as of an array."""
    seconds, compiling, *counts = values
    return cls(seconds, compiling, *map(int, counts))


class Progress(NamedTuple):
  """The state that is reported after every batch.

  Attributes:
    attack: the name of the phase.
    target: the lowest rank of a target class in the batch; None if it is untargeted.
    remaining: the number of examples that are still robust.
    total: the number of examples.
    done: the completed fraction of the work.
    cost: of the batch; if an earlier run finished it, what it cost then.
  """

  attack: str
  target: int | None
  remaining: int
  total: int
  done: float
  cost: Cost = Cost()
