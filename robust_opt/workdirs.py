"""Which directory a run may write to: a new one, or its own."""

import hashlib
import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from robust_opt import config as config_lib
from robust_opt import constructed
from robust_opt.errors import InputError
from robust_opt.files import leftovers, write_json

# Beside config.json, where a run trains on constructed data: which, as the path may change.
TRAIN_FILES = "train_files.json"


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
    made_of, now = _read_train_files(workdir), _train_files(config)
    if made_of != now:
      changed.append(f"what lies in dataset.train_files: {made_of} -> {now}")
    if changed:
      raise InputError(
        f"--workdir={workdir} holds another experiment; choose a new directory, or the same "
        f"config. What differs: {'; '.join(changed)}."
      )
  elif workdir.exists():
    # A kill may have come between the two files of `claim`.
    ours = {*leftovers(workdir), workdir / TRAIN_FILES}
    foreign = [workdir] if not workdir.is_dir() else set(workdir.iterdir()) - ours
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
      if config.dataset.train_files:
        write_json(workdir / TRAIN_FILES, {"card_sha256": _train_files(config)})
      write_json(workdir / "config.json", config_lib.as_dict(config))


def _train_files(config: ConfigDict) -> str | None:
  """Which constructed data set a config trains on, wherever it lies; None: a real one."""
  path = config.dataset.train_files
  if not path:
    return None
  card = json.dumps(constructed.read_card(Path(path)), sort_keys=True)
  return hashlib.sha256(card.encode()).hexdigest()


def _read_train_files(workdir: Path) -> str | None:
  """The same of an earlier run."""
  try:
    return json.loads((workdir / TRAIN_FILES).read_text(encoding="utf-8"))["card_sha256"]
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"--workdir={workdir}: its {TRAIN_FILES} cannot be read ({error}); choose a new directory."
    ) from error
