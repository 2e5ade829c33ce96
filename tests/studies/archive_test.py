"""The archive of a study: it holds the results and values, and nothing large."""

import zipfile

import pytest

from robust_opt.errors import InputError
from robust_opt.studies import archive

RESULTS = ("results/claims.md", "results/claims.csv", "results/manifest.json", "results/a.png")
VALUES = ("study.json", "sizing.json", "l2/sweep_l2_pgd.json", "nets/mlp/1/summary.json")
OTHERS = (
  *("l2/checkpoints/1/_METADATA.json", "l2/checkpoints/1/arrays", "collections/seed0.npz"),
  *("l2/metrics.jsonl", "results/.claims.md.x.part", "l2/tensorboard/events"),
)


@pytest.fixture
def workdir(tmp_path):
  for name in RESULTS + VALUES + OTHERS:
    path = tmp_path / "mnist" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"content of {name}")
  return tmp_path / "mnist"


def test_it_holds_what_results_has_and_the_values_of_the_parts(workdir, tmp_path):
  written = archive.write(workdir, tmp_path / "new" / "a.zip")
  with zipfile.ZipFile(tmp_path / "new" / "a.zip") as file:
    contents = {name: file.read(name) for name in file.namelist()}
  assert contents == {f"mnist/{n}": (workdir / n).read_bytes() for n in RESULTS + VALUES}
  assert written == (sorted(RESULTS + VALUES), [])


def test_a_large_file_is_left_out_and_named(workdir, tmp_path):
  (workdir / "results" / "large.json").write_bytes(bytes(archive.LARGEST + 1))
  (workdir / "results" / "fits.json").write_bytes(bytes(archive.LARGEST))
  written = archive.write(workdir, tmp_path / "a.zip")
  assert written.left_out == ["results/large.json"]
  assert "results/fits.json" in written.names
  assert (tmp_path / "a.zip").stat().st_size < 10_000


def test_equal_results_give_equal_bytes(workdir, tmp_path):
  archive.write(workdir, tmp_path / "a.zip")
  for path in workdir.rglob("*"):
    path.touch()
  archive.write(workdir, tmp_path / "b.zip")
  assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_another_name_is_refused_before_the_study(tmp_path):
  for name in ("results", "results.tar.gz"):
    with pytest.raises(InputError, match=r"--archive must be a file that ends in \.zip"):
      archive.check_path(tmp_path / name)
  archive.check_path(tmp_path / "a.zip")
