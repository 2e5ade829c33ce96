"""A study of many parts in one work directory: parts that are done are skipped, the rest is timed.

  study = Study(workdir, description={"dataset": "digits", ...}, work=120.0)
  with study.timed("train l2"):
    ...
    study.progress(1.0, "l2: epoch 3 of 30")
  value = study.once("sweep l2", workdir / "l2" / "sweep.json", made_from=sha, compute=f, work=5.0)

On a terminal there is a bar over the whole study; elsewhere plain lines, one for each report.
"""

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from robust_opt.errors import InputError
from robust_opt.experiments import config as config_lib
from robust_opt.experiments.workdir import REVISION
from robust_opt.files import leftovers, write_json
from robust_opt.training import sharding

# Flags that say where things lie, not what they are.
PLACES = ("workdir", "output", "data_dir", "cache_dir", "known")
# Of a study, that must be done before what is left of it is told.
SMALLEST_SHARE = 0.05


class Study:
  """A work directory, what it is about, how long its parts took, and how far it is."""

  def __init__(
    self,
    workdir: Path,
    description: dict[str, Any],
    work: float,
    flag: str = "--workdir",
    same: config_lib.Same = config_lib.equal,
  ) -> None:
    """Claims a new or empty directory, or goes on with one of the same description.

    Args:
      workdir: the directory.
      description: JSON values: all that the results depend on, beside REVISION. Where they depend
        on data, it holds a digest of the data, not only its name.
      work: the whole study's, in units of the caller; reports add up to it.
      flag: by which the user named the directory.
      same: (key, old, new) -> whether two values of a description agree.

    Raises:
      InputError: the directory holds something else.
    """
    self.workdir = workdir
    _claim(workdir, description | {"revision": REVISION}, flag, same)
    self._times = workdir / "seconds.json"
    self._work, self._done, self._skipped = work, 0.0, 0.0
    self._began = time.monotonic()
    self._console = Console()
    self._bar = Progress(
      TextColumn("{task.description}"),
      BarColumn(bar_width=20),
      TextColumn("{task.percentage:>3.0f} %"),
      TimeElapsedColumn(),
      TextColumn("left"),
      TimeRemainingColumn(),
      console=self._console,
      disable=not self._console.is_terminal,
    )
    self._task = self._bar.add_task("starting", total=work)
    self._bar.start()

  def close(self) -> None:
    """Ends the bar."""
    self._bar.stop()

  def progress(self, work: float, words: str, skipped: bool = False) -> None:
    """Reports work that is done; `skipped` if it was done by an earlier run."""
    self._done += work
    self._skipped += work if skipped else 0.0
    self._bar.update(self._task, completed=self._done, description=words)
    if not self._console.is_terminal:
      seconds = time.monotonic() - self._began
      fresh = self._done - self._skipped
      rest = max(0.0, self._work - self._done)
      # The first part is seldom like the others: it compiles.
      told = fresh >= SMALLEST_SHARE * self._work
      left = f", about {seconds * rest / fresh:.0f} s left" if told else ""
      share = min(1.0, self._done / self._work)
      print(f"[{100 * share:5.1f} %] {words} ({seconds:.0f} s{left})", flush=True)

  @contextmanager
  def timed(self, part: str) -> Iterator[None]:
    """Adds the wall time of the block to the part's, whether it ends well or not."""
    began = time.monotonic()
    try:
      yield
    finally:
      times = self.seconds()
      times[part] = round(times.get(part, 0.0) + time.monotonic() - began, 3)
      write_json(self._times, times)

  def seconds(self) -> dict[str, float]:
    """Wall seconds by part, over all runs of this study."""
    return json.loads(self._times.read_text()) if self._times.exists() else {}

  def made_by(self, module: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """How the results came about, for their manifest: JSON values.

    Args:
      module: of the command that is running.
      numbers: what it was told, or its preset's.
    """
    return {
      "command": command(module, sys.argv[1:]),
      "numbers": numbers,
      "device": sharding.devices_in_words(),
      "versions": {name: metadata.version(name) for name in ("jax", "flax", "optax", "numpy")},
      "wall_seconds": self.seconds(),
    }

  def once(
    self, part: str, path: Path, made_from: str, compute: Callable[[], Any], work: float
  ) -> Any:
    """compute()'s JSON value: read from `path` if it was made from the same, else made and written.

    Args:
      part: its name.
      path: where the value lies.
      made_from: hash of everything that it is computed from beside the study's description.
      compute: () -> JSON value.
      work: of this part.
    """
    try:
      stored = json.loads(path.read_text(encoding="utf-8"))
      if stored["made_from"] == made_from:
        self.progress(work, f"{part}: done before", skipped=True)
        return stored["value"]
    except (OSError, ValueError, KeyError, TypeError):
      pass  # absent, or cut short: it is made again
    with self.timed(part):
      value = compute()
      write_json(path, {"made_from": made_from, "value": value})
    self.progress(work, part)
    return json.loads(path.read_text(encoding="utf-8"))["value"]


def command(module: str, arguments: Sequence[str]) -> str:
  """What a user would type to get the same results; where things lay is nobody's business."""
  kept = []
  left = iter(arguments)
  for argument in left:
    name, equals, _ = argument.lstrip("-").partition("=")
    if name not in PLACES:
      kept.append(argument)
    elif not equals:
      next(left, None)  # --workdir DIR, in two arguments
  return " ".join([f"python -m {module}", *map(shlex.quote, kept)])


def sha256_of(*parts: str) -> str:
  """One hash of several strings."""
  return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def file_sha256(path: Path) -> str:
  """SHA-256 of a file's bytes."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _claim(workdir: Path, description: dict[str, Any], flag: str, same: config_lib.Same) -> None:
  path = workdir / "study.json"
  description = json.loads(json.dumps(description))
  if path.exists():
    try:
      old = json.loads(path.read_text(encoding="utf-8"))
      if not isinstance(old, dict):
        raise ValueError("it describes no study")
    except ValueError as error:
      raise InputError(f"{flag}={workdir}: its study.json cannot be read ({error}).") from error
    changed = config_lib.differences(old, description, same)
    if changed:
      raise InputError(
        f"{flag}={workdir} holds another study; choose a new directory, or the same flags. "
        f"What differs: {'; '.join(changed)}."
      )
  elif workdir.exists() and (
    not workdir.is_dir() or set(workdir.iterdir()) - {*leftovers(workdir)}
  ):
    raise InputError(
      f"{flag}={workdir} must be a new or empty directory, or one of an earlier study, "
      f"but it holds something else."
    )
  else:
    write_json(path, description)
