"""Programs that commands keep: where, printed once, and left to JAX's own settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import jax
from robust_opt import commands
commands.with_sentences(lambda argv: print(jax.config.jax_compilation_cache_dir))([])
"""


def run(**environment):
  """Standard output and standard error of a command that prints JAX's folder of programs."""
  inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM],
    env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout.strip(), done.stderr


@pytest.mark.slow
def test_programs_are_kept_beside_the_cached_data(tmp_path):
  folder, printed = run(XDG_CACHE_HOME=str(tmp_path))
  assert Path(folder).parent == tmp_path / "robust_opt" / "programs"
  assert Path(folder).is_dir()
  assert f"Compiled programs are kept in {folder}" in printed
  assert run(XDG_CACHE_HOME=str(tmp_path)) == (folder, "")  # said once
  own = str(tmp_path / "own")
  assert run(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=own) == (own, "")
  (tmp_path / "file").touch()
  assert run(XDG_CACHE_HOME=str(tmp_path / "file")) == ("None", "")  # cannot be written
