"""The share of each process in an evaluation, and the verdict of all shares together.

ids = ids_of(process=1, processes=4, total=1000)    # 1, 5, 9, ...
save(path, Share(ids, found, costs))
whole = joined([load(path, ids, x), ...])
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from robust_opt.errors import InputError
from robust_opt.evaluation.autoattack import Verdict
from robust_opt.evaluation.outcome import Cost
from robust_opt.files import read_sealed, write_sealed


class Share(NamedTuple):
  """What a process found.

  Attributes:
    ids: [n] int32, the indices of its examples in the data set.
    verdict: of these examples.
    costs: by attack.
  """

  ids: np.ndarray
  verdict: Verdict
  costs: dict[str, Cost]


def ids_of(process: int, processes: int, total: int) -> np.ndarray:
  """The indices [n] int32 of the examples of a process, strided: a data set may be sorted.

  Raises:
    InputError: there are fewer examples than processes.
  """
  if total < processes:
    raise InputError(
      f"--num_processes must be at most the number of examples, {total}, but was {processes}."
    )
  return np.arange(process, total, processes, dtype=np.int32)


def save(path: Path, share: Share) -> None:
  """Writes a share; of its images those of broken examples."""
  names, prediction, broken_by, images, _ = share.verdict
  arrays = {
    "ids": share.ids,
    "names": names,
    "prediction": prediction,
    "broken_by": broken_by,
    "images": images[broken_by > 0],
    "attacks": tuple(share.costs),
    "costs": np.array([tuple(cost) for cost in share.costs.values()], np.float64),
  }
  write_sealed(path, arrays)


def load(path: Path, ids: np.ndarray, x: np.ndarray) -> Share | None:
  """The share of these examples; None if it is absent, damaged, or of other examples.

  ids [n] are their indices in the data set x [N, *S].
  """
  try:
    with read_sealed(path, "share of an evaluation") as arrays:
      if not np.array_equal(arrays["ids"], ids):
        return None
      images, broken_by = x[ids], arrays["broken_by"]
      images[broken_by > 0] = arrays["images"]
      found = Verdict(tuple(map(str, arrays["names"])), arrays["prediction"], broken_by, images)
      rows = zip(map(str, arrays["attacks"]), arrays["costs"].tolist(), strict=True)
      return Share(ids, found, {name: Cost.of(row) for name, row in rows})
  except InputError:
    return None


def joined(parts: Sequence[Share]) -> Share:
  """All shares as one: examples in their order; of seconds the largest, since they run at once."""
  ids = np.concatenate([share.ids for share in parts])
  order = np.argsort(ids)
  columns = zip(*(share.verdict[1:4] for share in parts), strict=True)
  names = parts[0].verdict.names
  prediction, broken_by, images = (np.concatenate(column)[order] for column in columns)
  found = Verdict(names, prediction, broken_by, images)
  costs = {name: [share.costs[name] for share in parts if name in share.costs] for name in names}
  return Share(ids[order], found, {name: _total(each) for name, each in costs.items() if each})


def _total(costs: Sequence[Cost]) -> Cost:
  slowest = {name: max(getattr(cost, name) for cost in costs) for name in ("seconds", "compiling")}
  return sum(costs, Cost())._replace(**slowest)
