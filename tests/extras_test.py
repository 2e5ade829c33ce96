"""What the package imports: the public names, few modules, and one sentence for a missing extra."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import robust_opt as ro
from robust_opt import extras
from robust_opt.errors import InputError

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
HEAVY = {
  *("ml_collections", "matplotlib", "orbax", "sklearn", "tensorboardX", "tensorflow_datasets"),
  *("scipy.special", "scipy.stats", "jinja2", "PIL", "requests", "cvxpy"),
}


def test_the_package_exposes_its_public_names_and_nothing_else():
  dunders = {name for name in dir(ro) if name.startswith("__")}
  assert set(dir(ro)) - dunders == set(ro.__all__)
  assert all(hasattr(ro, name) for name in ro.__all__)


def test_importing_the_package_imports_no_heavy_library():
  """Those of the experiments are imported with the first run."""
  code = """
import sys, jax, flax.linen, optax
before = set(sys.modules)
import robust_opt
print(*(set(sys.modules) - before))
assert "robust_opt.experiments" not in sys.modules
robust_opt.load_run
assert "robust_opt.experiments" in sys.modules
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert not HEAVY & set(done.stdout.split())


def test_what_is_installed_is_not_asked_for():
  extras.require("run", "json", "importlib.util")


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.part"])
def test_a_missing_package_is_one_sentence_that_names_the_command(module):
  with pytest.raises(ImportError, match=r'python -m pip install "\.\[run\]" in a clone') as caught:
    extras.require("run", "json", module)
  assert isinstance(caught.value, InputError)
  assert str(caught.value).startswith(f"{module} is not installed;")


def test_a_command_prints_the_sentence(monkeypatch, capsys):
  monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "robust_opt.main"])
  with pytest.raises(SystemExit) as caught:
    extras.require("run", "no_such_package")
  assert caught.value.code == InputError.exit_code
  assert capsys.readouterr().err.startswith("robust_opt: no_such_package is not installed;")


def test_every_command_to_install_runs_the_pip_of_its_python_in_a_clone():
  root = Path(__file__).parents[1]
  for path in (root / name for name in ("robust_opt", "docs", "recipes", "benchmarks", "colab")):
    for file in [*path.rglob("*.py"), *path.rglob("*.md")]:
      text = file.read_text("utf-8")
      assert not re.search(r"(?<!python -m )pip install", text), file
      assert not re.search(r"install\s+.?robust_opt\[", text), file


def test_extras_that_the_code_names_exist():
  package = Path(extras.__file__).parent
  named = set()
  for path in package.rglob("*.py"):
    for line in path.read_text("utf-8").splitlines():
      if line.strip().startswith("extras.require("):
        named.add(line.split('"')[1])
  assert named - {"run"}
  assert named <= PROJECT["optional-dependencies"].keys()
