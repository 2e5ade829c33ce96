"""A study in one work directory: parts that are done are skipped, the others are timed.

  with Study(workdir, description={"dataset": "digits", ...}, work=120.0) as study:
    with study.timed("train l2"):
      ...
      study.progress(1.0, "l2: epoch 3 of 30")
    value = study.once("sweep l2", workdir / "l2" / "sweep.json", sha256, compute, work=5.0)
  study.publish({"accuracy": table}, manifest, shown=["accuracy"])

On a terminal a bar shows the progress of the whole study; elsewhere each report is a line.
"""

import dataclasses
import hashlib
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from robust_opt import tables
from robust_opt.errors import InputError
from robust_opt.experiments import config as config_lib
from robust_opt.experiments.workdir import REVISION
from robust_opt.files import leftovers, write_json
from robust_opt.training import sharding

# Flags that say where files are, not what is computed.
PLACES = ("workdir", "output", "data_dir", "cache_dir", "known", "archive")
# Beside study.json: what studies.sizing measured for --budget_s, and chose.
SIZING = "sizing.json"
# The share of a study that must be done before the time left is estimated.
SMALLEST_SHARE = 0.05
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "matplotlib")


@dataclasses.dataclass(frozen=True)
class _DryRun:
  """A run whose time is measured and whose results are thrown away."""

  check: Callable[[], None]
  known: Path | None


_DRY_RUN: ContextVar[_DryRun | None] = ContextVar("dry_run", default=None)


@contextmanager
def dry_run(check: Callable[[], None], known: Path | None = None) -> Iterator[None]:
  """Within the block studies are dry runs.

  Args:
    check: called at every report of progress; what it raises ends the run.
    known: the work directory of the same study, done: its values of `Study.once` are taken as they
      are, for a run that shows how long the rest takes.
  """
  token = _DRY_RUN.set(_DryRun(check, known))
  try:
    yield
  finally:
    _DRY_RUN.reset(token)


class Study:
  """A work directory, the study that it holds, the time of each part, and the progress."""

  def __init__(
    self,
    workdir: Path,
    description: dict[str, Any],
    work: float,
    flag: str = "--workdir",
    same: config_lib.Same = config_lib.equal,
    quiet: bool = False,
  ) -> None:
    """Claims a new or empty directory, or resumes the study of the same description.

    Args:
      workdir: the directory, which `flag` names in messages.
      description: JSON values: all that the results depend on, besides REVISION. Where they depend
        on data, it holds a digest of the data, not only its name.
      work: of the whole study, in units of the caller; progress reports add up to it.
      flag: of the command.
      same: (key, old, new) -> whether two values of a description agree.
      quiet: whether progress is not shown, as in all but the first of several processes.

    Raises:
      InputError: the directory holds something else.
    """
    _claim(workdir, description | {"revision": REVISION}, flag, same)
    self.workdir, self._times = workdir, workdir / "seconds.json"
    self._work, self._done, self._fresh = work, 0.0, 0.0
    self._began, self._console = time.monotonic(), Console(quiet=quiet)
    self._quiet = quiet
    self._bar = Progress(
      "{task.description}",
      BarColumn(bar_width=20),
      "{task.percentage:>3.0f} %",
      TimeElapsedColumn(),
      "left",
      TimeRemainingColumn(),
      console=self._console,
      disable=quiet or not self._console.is_terminal,
    )
    self._task = self._bar.add_task("starting", total=work)
    self._bar.start()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends the bar."""
    self._bar.stop()

  def progress(self, work: float, words: str, skipped: bool = False) -> None:
    """Reports that work is done; `skipped` if an earlier run did it."""
    if dry := _DRY_RUN.get():
      dry.check()
    self._done += work
    self._fresh += 0.0 if skipped else work
    self._bar.update(self._task, completed=self._done, description=words)
    if self._quiet or self._console.is_terminal:
      return
    seconds, share = time.monotonic() - self._began, min(1.0, self._done / self._work)
    left = ""
    # The first part is slower than the others, since it compiles.
    if self._fresh >= SMALLEST_SHARE * self._work:
      left = f", about {seconds * (1 - share) * self._work / self._fresh:.0f} s left"
    print(f"[{100 * share:5.1f} %] {words} ({seconds:.0f} s{left})", flush=True)

  @contextmanager
  def timed(self, part: str) -> Iterator[None]:
    """Adds the wall time of the block to that of the part, even if the block fails."""
    began = time.monotonic()
    try:
      yield
    finally:
      times = self.seconds()
      times[part] = round(times.get(part, 0.0) + time.monotonic() - began, 3)
      write_json(self._times, times)

  def seconds(self) -> dict[str, float]:
    """Wall seconds of each part, over all runs of this study."""
    return json.loads(self._times.read_text()) if self._times.exists() else {}

  def manifest(self, module: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """How the results were made, as JSON values: by the command of a module, with a preset."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    sizing = self._sizing()
    epochs = [f"--epochs={sizing['epochs']}"] if sizing else []
    return {
      "command": " ".join([command(module, sys.argv[1:]), *epochs]),
      "numbers": numbers,
      **({"sizing": sizing} if sizing else {}),
      "device": sharding.devices_in_words(),
      "versions": versions | {"python": platform.python_version()},
      "wall_seconds": self.seconds(),
    }

  def _sizing(self) -> dict[str, Any]:
    """What --budget_s measured and chose; {} if it was not given."""
    path = self.workdir / SIZING
    return json.loads(path.read_text(encoding="utf-8"))["sizing"] if path.exists() else {}

  def publish(
    self,
    results: Mapping[str, tables.Table | dict[str, Any]],
    manifest: dict[str, Any],
    shown: Sequence[str] = (),
  ) -> None:
    """Writes workdir/results and prints the tables named in `shown`; empty: all.

    Tables are written as Markdown, CSV and JSON, the manifest last.
    """
    folder = self.workdir / "results"
    for name, result in {**results, "manifest": manifest}.items():
      if not isinstance(result, tables.Table):
        write_json(folder / f"{name}.json", result)
        continue
      tables.write(result, folder / name)
      if name in (shown or results):
        print(tables.markdown(result))
    print(f"Everything about this study is in {self.workdir}")

  def once(
    self,
    part: str,
    path: Path,
    made_from: str,
    compute: Callable[..., Any],
    *args: Any,
    work: float = 0.0,
  ) -> Any:
    """compute(*args), a JSON value: read from `path` if it was made from the same, else written.

    `made_from` is a hash of all that it is computed from, besides the study's description; `part`
    is its name in messages and times.
    """
    dry = _DRY_RUN.get()
    known = dry.known / path.relative_to(self.workdir) if dry and dry.known else None
    with suppress(OSError, ValueError, KeyError, TypeError):  # absent or truncated: computed again
      stored = json.loads((known or path).read_text(encoding="utf-8"))
      if known or stored["made_from"] == made_from:
        self.progress(work, f"{part}: done before", skipped=True)
        return stored["value"]
    with self.timed(part):
      value = compute(*args)
      write_json(path, {"made_from": made_from, "value": value})
    self.progress(work, part)
    return json.loads(path.read_text(encoding="utf-8"))["value"]


def command(module: str, arguments: Sequence[str]) -> str:
  """The command that gives the same results, without the flags that say where files are."""
  kept = []
  left = iter(arguments)
  for argument in left:
    name, equals, _ = argument.lstrip("-").partition("=")
    if name not in (*PLACES, "budget_s"):  # the epochs chosen for a budget are named instead
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


def refuse_foreign(workdir: Path, flag: str) -> None:
  """InputError if the directory of a new study holds something else."""
  ours = {*leftovers(workdir), workdir / SIZING}
  if set(workdir.iterdir()) - ours if workdir.is_dir() else workdir.exists():
    raise InputError(
      f"{flag}={workdir} must be a new or empty directory, or one of an earlier study, but it "
      "holds something else."
    )


def _claim(workdir: Path, description: dict[str, Any], flag: str, same: config_lib.Same) -> None:
  path = workdir / "study.json"
  description = json.loads(json.dumps(description))
  if not path.exists():
    refuse_foreign(workdir, flag)
    write_json(path, description)
    return
  try:
    old = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(old, dict):
      raise ValueError("it must hold a JSON object")
  except ValueError as error:
    raise InputError(f"{flag}={workdir}: its study.json cannot be read ({error}).") from error
  if changed := config_lib.differences(old, description, same):
    raise InputError(
      f"{flag}={workdir} holds another study; choose a new directory, or the same flags. "
      f"Differences: {'; '.join(changed)}."
    )
