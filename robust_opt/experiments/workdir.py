"""Which directory a run may write to: a new one, or its own."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from robust_opt.data import datasets
from robust_opt.errors import InputError
from robust_opt.experiments import build
from robust_opt.experiments import config as config_lib
from robust_opt.experiments.loggers import LOGGERS
from robust_opt.files import leftovers, write_json

# Raise it with every change after which the same inputs give other numbers: directories of an older
# revision are then refused, so that nobody is shown the old numbers or a mixture of both.
REVISION = 2
# Beside config.json: what a run depends on that its config does not say, SHA-256 of its data; and
# the names of the classes, so that predictions can be named without the data.
INPUTS = "inputs.json"
_NAMES = ("num_classes", "classes")  # of INPUTS, no part of what is computed
# What a run leaves that has no checkpoint, all of which the same command makes again.
_WITHOUT_CHECKPOINT = {"config.json", INPUTS, "metrics.jsonl", "checkpoints", *LOGGERS}


def check(workdir: Path, config: ConfigDict) -> None:
  """Refuses a directory that holds another experiment, or unexpected files."""
  if (workdir / "config.json").exists():
    old = _read(workdir, "config.json")
    if not stopped_early(workdir):
      _refuse(workdir, config_lib.differences(old, config_lib.as_dict(config)))
  elif workdir.exists():
    # A kill may have come between the two files of `claim`.
    ours = {*leftovers(workdir), workdir / INPUTS}
    foreign = set(workdir.iterdir()) - ours if workdir.is_dir() else {workdir}
    if foreign:
      raise InputError(
        f"--workdir={workdir} must be a new or empty directory, or one of an earlier run, but it "
        f"holds the unexpected file {min(foreign).name}."
      )


def claim(
  workdir: Path, config: ConfigDict, splits: build.Splits, init_sha256: str | None = None
) -> None:
  """Writes the resolved config and INPUTS once; refuses other data or revisions of the code.

  A directory whose run has stopped before its first checkpoint is claimed anew. init_sha256 is of
  the weights that config.init_from names; None: they were not read, and are not compared.
  """
  present = {name: split for name, split in splits._asdict().items() if split is not None}
  digests = {name: datasets.fingerprint(split) for name, split in present.items()}
  inputs: dict[str, Any] = {"revision": REVISION, "data": digests}
  if init_sha256 is not None:
    inputs["init_from"] = init_sha256
  anew = stopped_early(workdir)
  if anew:
    logging.info("%s holds a run without a checkpoint: starting over there.", workdir)
  elif (workdir / "config.json").exists():
    ignored = _NAMES if init_sha256 is not None else (*_NAMES, "init_from")
    known = {key: value for key, value in read_inputs(workdir).items() if key not in ignored}
    _refuse(workdir, config_lib.differences(known, inputs))
  if jax.process_index() == 0:
    for path in leftovers(workdir):
      path.unlink(missing_ok=True)
    if anew:
      (workdir / "metrics.jsonl").unlink(missing_ok=True)
      for name in LOGGERS:
        shutil.rmtree(workdir / name, ignore_errors=True)
    if anew or not (workdir / "config.json").exists():
      names = splits.train.class_names
      write_json(workdir / INPUTS, inputs | {"num_classes": len(names), "classes": names})
      write_json(workdir / "config.json", config_lib.as_dict(config))


def is_new(workdir: Path) -> bool:
  """Whether it holds no run, or one that was stopped before its first checkpoint."""
  return not (workdir / "config.json").exists() or stopped_early(workdir)


def stopped_early(workdir: Path) -> bool:
  """Whether all that it holds is of a run that was stopped before its first checkpoint."""
  if not (workdir / INPUTS).exists() or not (workdir / "config.json").exists():
    return False
  names = {path.name for path in set(workdir.iterdir()) - set(leftovers(workdir))}
  saved = any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))
  return not saved and names <= _WITHOUT_CHECKPOINT


def read_inputs(workdir: Path) -> dict[str, Any]:
  """INPUTS of an earlier run; {} of a run before such a file was written."""
  return _read(workdir, INPUTS) if (workdir / INPUTS).exists() else {}


def _read(workdir: Path, name: str) -> dict[str, Any]:
  try:
    value = json.loads((workdir / name).read_text(encoding="utf-8"))
    if not isinstance(value, dict):
      raise ValueError("it holds no object")
    return value
  except (OSError, ValueError) as error:
    raise InputError(
      f"--workdir={workdir}: its {name} cannot be read ({error}); choose a new directory."
    ) from error


def _refuse(workdir: Path, changed: list[str]) -> None:
  if changed:
    raise InputError(
      f"--workdir={workdir} holds another experiment; choose a new directory, or the same "
      f"config. What differs: {'; '.join(changed)}."
    )
