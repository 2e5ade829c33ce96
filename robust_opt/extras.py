"""Checks for optional packages, which `python -m pip install .` does not install.

  extras.require("run", "matplotlib")   # first in the __init__ of the package that imports it
  extras.command("prepare")             # for a message of one's own

The extras themselves are in pyproject.toml.
"""

import importlib.util
import sys

from robust_opt.errors import MissingExtraError


def command(extra: str) -> str:
  """The command that installs an extra, in words."""
  return f'python -m pip install ".[{extra}]" in a clone of robust_opt'


def require(extra: str, *modules: str) -> None:
  """Checks that the modules of an extra are installed, without importing them.

  Raises:
    MissingExtraError: one of them is not installed. During the import of a command (`python -m
      robust_opt.main`) the process ends with that sentence and the exit code instead.
  """
  missing = [module for module in modules if not _installed(module)]
  if not missing:
    return
  error = MissingExtraError(
    f"{missing[0]} is not installed; install the packages for this part of robust_opt with "
    f"{command(extra)}."
  )
  # Not sys.argv or __main__: Python sets them only after it has imported the parent packages.
  option, module = sys.orig_argv[1:3] if len(sys.orig_argv) > 2 else ("", "")
  if option != "-m" or module.split(".")[0] != "robust_opt":
    raise error
  print(f"robust_opt: {error}", file=sys.stderr)
  sys.exit(error.exit_code)


def _installed(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # its parent is absent
    return False
