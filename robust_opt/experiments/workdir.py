"""Which directory a run may write to: a new one, or its own."""

import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from robust_opt.data import datasets
from robust_opt.errors import InputError
from robust_opt.experiments import build
from robust_opt.experiments import config as config_lib
from robust_opt.files import leftovers, write_json

# Raise it with every change after which the same inputs give other numbers: directories of an older
# revision are then refused, so that nobody is shown the old numbers or a mixture of both.
REVISION = 2
# Beside config.json: what a run depends on that its config does not say, such as the data itself.
INPUTS = "inputs.json"


def check(workdir: Path, config: ConfigDict) -> None:
  """Refuses a directory that holds another experiment, or unexpected files."""
  path = workdir / "config.json"
  if path.exists():
    try:
      old = json.loads(path.read_text(encoding="utf-8"))
      if not isinstance(old, dict):
        raise ValueError("it holds no config")
    except (OSError, ValueError) as error:
      raise InputError(
        f"--workdir={workdir}: its config.json cannot be read ({error}), so that it is not known "
        f"what was run there; choose a new directory."
      ) from error
    _refuse(workdir, config_lib.differences(old, config_lib.as_dict(config)))
  elif workdir.exists():
    # A kill may have come between the two files of `claim`.
    ours = {*leftovers(workdir), workdir / INPUTS}
    foreign = [workdir] if not workdir.is_dir() else set(workdir.iterdir()) - ours
    if foreign:
      raise InputError(
        f"--workdir={workdir} must be a new or empty directory, or one of an earlier run, but it "
        f"holds the unexpected file {min(foreign).name}."
      )


def check_inputs(workdir: Path, splits: build.Splits) -> None:
  """Refuses the directory of a run on other data, or of another revision of the code."""
  _refuse(workdir, config_lib.differences(read_inputs(workdir), inputs(splits)))


def claim(workdir: Path, config: ConfigDict, splits: build.Splits) -> None:
  """Writes the resolved config, and the digests of the data in INPUTS, once.

  Raises:
    InputError: the directory holds a run on other data, or of another revision of the code.
  """
  if (workdir / "config.json").exists():
    check_inputs(workdir, splits)
  if jax.process_index() == 0:
    for path in leftovers(workdir):
      path.unlink(missing_ok=True)
    if not (workdir / "config.json").exists():
      write_json(workdir / INPUTS, inputs(splits))
      write_json(workdir / "config.json", config_lib.as_dict(config))


def inputs(splits: build.Splits) -> dict[str, Any]:
  """Inputs of a run other than its config: SHA-256 of the data, revision of the code."""
  digests = {name: datasets.fingerprint(split) for name, split in splits._asdict().items()}
  return {"revision": REVISION, "data": digests}


def read_inputs(workdir: Path) -> dict[str, Any]:
  """The same of an earlier run; {} of a run before such a file was written."""
  try:
    found = json.loads((workdir / INPUTS).read_text(encoding="utf-8"))
    if not isinstance(found, dict):
      raise ValueError("it holds no object")
    return found
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    raise InputError(
      f"--workdir={workdir}: its {INPUTS} cannot be read ({error}); choose a new directory."
    ) from error


def _refuse(workdir: Path, changed: list[str]) -> None:
  if changed:
    raise InputError(
      f"--workdir={workdir} holds another experiment; choose a new directory, or the same "
      f"config. What differs: {'; '.join(changed)}."
    )
