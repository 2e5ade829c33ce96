"""Accuracies in the cells of a table: how they print, and what CSV and JSON keep of them."""

import csv
import json

import numpy as np

from robust_opt import tables
from robust_opt.statistics import accuracy_interval


def test_an_accuracy_in_every_form(tmp_path):
  learned = tables.Percent.of([0.98, 0.1135, 0.97], 10_000, [True, False, True])
  failed = tables.Percent.of([0.1, 0.1], 100, [False, False])
  table = tables.Table("title", ["net", "clean"], [{"net": "a", "clean": learned},
                                                   {"net": "b", "clean": failed}])  # fmt: skip
  mean, low, high = accuracy_interval([0.98, 0.97], 10_000)
  assert str(learned) == f"97.50 [{100 * low:.2f}, {100 * high:.2f}], 1 of 3 failed"
  assert learned.by_seed() == "98.00, 11.35 (failed), 97.00"
  assert str(failed) == "all 2 seeds failed"
  tables.write(table, tmp_path / "table")
  with (tmp_path / "table.csv").open() as file:
    first, second = csv.DictReader(file)
  assert (first["clean"], first["clean, by seed"]) == ("97.5000", learned.by_seed())
  ends = [float(first[f"clean, {end}"]) for end in ("low", "high")]
  np.testing.assert_allclose(ends, [100 * low, 100 * high], atol=1e-4)
  assert (second["clean"], second["clean, low"]) == ("", "")
  cells = [row["clean"] for row in json.loads((tmp_path / "table.json").read_text())["rows"]]
  assert cells[0] == {
    "mean": float(mean), "low": float(low), "high": float(high),
    "seeds": [0.98, 0.1135, 0.97], "failed": [False, True, False], "examples": 10_000,
  }  # fmt: skip
  assert cells[1]["mean"] is None
