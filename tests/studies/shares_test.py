"""Shares of an evaluation: they cover the data set, survive the disk, and join in its order."""

import numpy as np
import pytest

from robust_opt.errors import InputError
from robust_opt.evaluation.autoattack import Verdict
from robust_opt.evaluation.outcome import Cost
from robust_opt.studies import shares
from robust_opt.studies.shares import Share

NAMES = ("clean", "apgd-ce", "square")
X = np.random.default_rng(0).random((7, 2, 2)).astype(np.float32)
BROKEN_BY = np.array([0, 1, -1, 2, 1, -1, 2], np.int32)
MOVED = np.where((BROKEN_BY > 0)[:, None, None], 1 - X, X)


def share(ids, costs):
  return Share(ids, Verdict(NAMES, ids + 10, BROKEN_BY[ids], MOVED[ids], ids + 20), costs)


def test_every_example_is_in_one_share_and_shares_are_of_nearly_equal_size():
  for processes in (1, 2, 3, 7):
    ids = [shares.ids_of(process, processes, 7) for process in range(processes)]
    assert sorted(np.concatenate(ids)) == list(range(7))
    assert max(map(len, ids)) - min(map(len, ids)) <= 1
  with pytest.raises(InputError, match="at most the number of examples, 7, but was 8"):
    shares.ids_of(0, 8, 7)


def test_a_file_is_the_share_of_these_examples_or_nothing(tmp_path):
  ids, path = np.array([1, 3, 5], np.int32), tmp_path / "share.npz"
  assert shares.load(path, ids, X) is None
  for costs in ({"square": Cost(1.5, 0.5, 2, 3, 1, 40, 0)}, {}):
    saved = share(ids, costs)
    shares.save(path, saved)
    loaded = shares.load(path, ids, X)
    assert (loaded.verdict.names, loaded.costs) == (NAMES, costs)
    pairs = zip([loaded.ids, *loaded.verdict[1:]], [ids, *saved.verdict[1:]], strict=True)
    for ours, theirs in pairs:
      np.testing.assert_array_equal(ours, theirs, strict=True)
  assert shares.load(path, ids[:2], X) is None  # of another number of processes
  path.write_bytes(path.read_bytes()[:40])
  assert shares.load(path, ids, X) is None


def test_joined_they_are_the_whole_and_cost_what_they_cost_together():
  slow, fast = Cost(3.0, 0.5, 1, 4, 2, 10, 20), Cost(1.0, 0.7, 2, 3, 0, 30, 40)
  costs = ({"square": slow}, {"apgd-ce": fast, "square": fast})
  parts = [share(shares.ids_of(i, 2, 7), costs[i]) for i in range(2)]
  whole = shares.joined(parts)
  expected = (np.arange(7) + 10, BROKEN_BY, MOVED, np.arange(7) + 20)
  np.testing.assert_array_equal(whole.ids, np.arange(7))
  assert whole.verdict.names == NAMES
  for ours, theirs in zip(whole.verdict[1:5], expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert list(whole.costs.items()) == [
    ("apgd-ce", fast),
    ("square", Cost(3.0, 0.7, 3, 7, 2, 40, 60)),
  ]
