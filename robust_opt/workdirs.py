"""Which directory a run may write to: a new one, or its own."""

import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from robust_opt import config as config_lib
from robust_opt.errors import InputError
from robust_opt.files import leftovers, write_json


def check(workdir: Path, config: ConfigDict) -> None:
  """Refuses a directory that holds another experiment, or anything that is none of ours."""
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
    changed = config_lib.differences(old, config_lib.as_dict(config))
    if changed:
      raise InputError(
        f"--workdir={workdir} holds another experiment; choose a new directory, or the same "
        f"config. What differs: {'; '.join(changed)}."
      )
  elif workdir.exists():
    foreign = [workdir] if not workdir.is_dir() else set(workdir.iterdir()) - {*leftovers(workdir)}
    if foreign:
      raise InputError(
        f"--workdir={workdir} must be a new or empty directory, or one of an earlier run, but "
        f"{min(foreign).name} is none of ours."
      )


def claim(workdir: Path, config: ConfigDict) -> None:
  """Writes the resolved config, once."""
  if jax.process_index() == 0:
    for path in leftovers(workdir):
      path.unlink(missing_ok=True)
    if not (workdir / "config.json").exists():
      write_json(workdir / "config.json", config_lib.as_dict(config))
