"""The study of robust linear models: every equivalence on real data, in small."""

import json

import numpy as np
import pytest

from robust_opt.errors import InputError
from robust_opt.papers import linear_theory
from robust_opt.theory.linear import comparisons


@pytest.mark.slow
def test_the_study(tmp_path, monkeypatch):
  monkeypatch.setattr(linear_theory, "EPOCHS", 20)
  rows = linear_theory.run(tmp_path / "out").rows
  exact = [row for row in rows if not row["claim"].startswith("Algorithm 1")]
  assert len(exact) == 10
  assert all(row["holds"] == "yes" for row in exact)
  for name in ("equivalences.md", "equivalences.csv", "equivalences.json", "paths.png", "gap.png"):
    assert (tmp_path / "out" / name).stat().st_size > 100
  manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
  assert str(tmp_path) not in manifest["command"]


def test_the_two_solutions_agree_on_real_data():
  found = comparisons.paths(*linear_theory.regression(), np.array([0.1, 2.0, 6.0]))
  np.testing.assert_allclose(found.robust, found.lasso, atol=1e-9)
  assert found.gap < 1e-11
  zeros = (found.robust == 0).sum(axis=1)
  assert zeros[0] < zeros[1] < zeros[2] < 10  # exactly 0, ever more of them


def test_a_file_is_no_folder(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="must be a folder"):
    linear_theory.run(tmp_path / "file")
