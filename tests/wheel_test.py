"""The wheel does its main job where there is no checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(*arguments, **given):
  done = subprocess.run(
    [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, **given
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.mark.slow
def test_a_wheel_trains_evaluates_and_reports(tmp_path):
  source = tmp_path / "source"
  # A copy, since building leaves folders behind; of what belongs to the package alone.
  copied = subprocess.run(
    ["git", "-C", str(ROOT), "ls-files", "robust_opt", "pyproject.toml", "README.md", "LICENSE"],
    capture_output=True, text=True, check=True,
  ).stdout.split()  # fmt: skip
  for name in copied:
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_bytes((ROOT / name).read_bytes())
  python("-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, source)
  (wheel,) = tmp_path.glob("robust_opt-*.whl")
  names = zipfile.ZipFile(wheel).namelist()
  assert {"robust_opt/py.typed", "robust_opt/templates/report.html"} <= set(names)
  assert all(name.split("/")[0].startswith("robust_opt") for name in names)  # nothing else

  installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
  python("-m", "pip", "install", "-q", "--no-deps", "--target", installed, wheel)
  elsewhere.mkdir()
  one_device = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  given = {"cwd": elsewhere, "env": {**one_device, "PYTHONPATH": str(installed)}}
  where = python("-c", "import robust_opt; print(robust_opt.__file__)", **given)
  assert Path(where.strip()).is_relative_to(installed)
  run = ("--workdir=run", "--config.training.epochs=1", "--config.dataset.test_examples=40")
  python("-m", "robust_opt.main", *run, **given)
  assert json.loads((elsewhere / "run" / "summary.json").read_text())["results"]
  attack = ("--workdir=run", "--norm=linf", "--radius=0.1", "--version=quick", "--notrust")
  python("-m", "robust_opt.evaluate", *attack, "--examples=20", **given)
  python("-m", "robust_opt.report", "--workdir=run", **given)
  assert "AutoAttack" in (elsewhere / "run" / "report.html").read_text(encoding="utf-8")
