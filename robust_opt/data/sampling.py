"""Random splits of data sets that no version of NumPy changes.

is_test = stratified(labels, len(labels) // 5, seed=0)        # [N] bool, a fifth of every class
"""

import numpy as np

from robust_opt.errors import InputError


def random_order(num_examples: int, seed: int) -> np.ndarray:
  """A permutation of range(num_examples).

  NumPy guarantees the raw numbers of a bit generator across versions, but not `permutation`.

  Raises:
    InputError: seed < 0.
  """
  if seed < 0:
    raise InputError(f"seed={seed!r} is not allowed: 0, 1, ... are")
  return np.argsort(np.random.PCG64(seed).random_raw(num_examples), kind="stable")


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
  """A mask [N] of `count` examples: the same fraction of every class, to within one example.

  Args:
    labels: [N] int.
    count: 0 to N.
    seed: 0, 1, ...; the same seed selects the same examples.
  """
  rank = np.empty(len(labels))  # of each example within its class, in (0, 1)
  order = random_order(len(labels), seed)
  for label in np.unique(labels):
    members = order[labels[order] == label]
    rank[members] = (np.arange(len(members)) + 0.5) / len(members)
  mask = np.zeros(len(labels), bool)
  mask[np.argsort(rank, kind="stable")[:count]] = True
  return mask
