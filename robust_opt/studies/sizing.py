"""Sizes a study for a budget of wall time: the epochs of its networks, from dry runs.

  options = sized(options, run, budget_s=600.0)     # --budget_s of every study with --epochs
  epochs_that_fit(500.0, first=40.0, slope=2.5, most=120)

The study is run in temporary directories. The first run is the whole of one epoch; its wall time,
compilation included, is the intercept. The second is of two epochs, with every value of
`Study.once` taken from the first, so that attacks on the networks are paid for once. It shows how
many updates an epoch adds to every training, and how long each takes when all is compiled: the
slope. What was chosen is kept in the work directory and used again on resume.
"""

import contextlib
import dataclasses
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from robust_opt import tables
from robust_opt.errors import InputError
from robust_opt.experiments import config as config_lib
from robust_opt.experiments.meter import Training, metered
from robust_opt.files import write_json
from robust_opt.studies import options as options_lib
from robust_opt.studies.options import Options
from robust_opt.studies.study import SIZING, dry_run, refuse_foreign

# Of the time left: two runs of a program differ by a few percent.
SHARE = 0.95


def epochs_that_fit(left: float, first: float, slope: float, most: int) -> int:
  """The largest E in [1, most] with first + (E - 1) slope <= left, in seconds; 0: not even one."""
  if first > left:
    return 0
  if first + (most - 1) * slope <= left:
    return most
  return 1 + int((left - first) / slope)


def another_epoch(one: Sequence[Training], two: Sequence[Training]) -> float:
  """Seconds that the trainings of a study take longer for an epoch more.

  Args:
    one: the trainings of the study of one epoch, in their order.
    two: of two epochs. A training need not have as many epochs as the study says: it may have twice
      as many, or always the same.
  """
  pairs = zip(one, two, strict=True)
  return sum((b.updates - a.updates) * b.seconds_per_update for a, b in pairs)


@dataclasses.dataclass(frozen=True)
class Sizing:
  """What was measured, and the number of epochs chosen for it; all times in seconds."""

  budget_s: float
  epochs: int
  most_epochs: int  # of the preset
  one_epoch_s: float  # the whole study, of one epoch
  another_epoch_s: float  # of all trainings
  dry_runs_s: float
  expected_s: float  # of the study of so many epochs

  def __str__(self) -> str:
    return (
      f"--budget_s={self.budget_s:g}: dry runs took {self.dry_runs_s:.1f} s; one epoch takes "
      f"{self.one_epoch_s:.1f} s, every other {self.another_epoch_s:.2f} s; --epochs={self.epochs} "
      f"of {self.most_epochs}, in some {self.expected_s:.0f} s."
    )


def sized(
  options: Options[Any],
  run: Callable[[Any], Any],
  budget_s: float,
  clock: Callable[[], float] = time.monotonic,
) -> Options[Any]:
  """The options with as many epochs as fit the budget; on resume those of the first time.

  Args:
    options: of the study; its preset has `epochs`.
    run: the study.
    budget_s: wall seconds, for the dry runs and the study together.
    clock: in seconds.

  Raises:
    InputError: dry runs and one epoch do not fit, or the directory holds another study.
  """
  identity = {"budget_s": budget_s, **options_lib.description(options)}
  identity = json.loads(json.dumps(identity))
  path = options.workdir / SIZING
  if not (sizing := _stored(path, identity)):
    refuse_foreign(options.workdir, "--workdir")
    sizing = measure(options, run, budget_s, clock)
    write_json(path, {"of": identity, "sizing": dataclasses.asdict(sizing)})
  print(sizing, flush=True)
  return with_epochs(options, sizing.epochs)


def measure(
  options: Options[Any], run: Callable[[Any], Any], budget_s: float, clock: Callable[[], float]
) -> Sizing:
  """Dry runs of the study, and the largest number of epochs that fits what they leave."""
  began, most, one_epoch = clock(), options.epochs, 0.0

  def check() -> None:
    """The study takes at least as long as its first dry run has, again."""
    elapsed = clock() - began
    if elapsed + (one_epoch or elapsed) > budget_s:
      raise InputError(
        f"--budget_s={budget_s:g} is too little for dry runs and a study of one epoch: the dry "
        f"runs have taken {elapsed:.1f} s and the study takes as long as the first again; pass a "
        "larger one, or --epochs=1 without it."
      )

  def run_dry(folder: Path, epochs: int, known: Path | None = None) -> list[Training]:
    words = f"--budget_s={budget_s:g}: dry run, {tables.counted(epochs, 'epoch')}"
    print(words, file=sys.stderr, flush=True)
    quiet = contextlib.redirect_stdout(io.StringIO())
    with dry_run(check, known), quiet, metered() as trainings:
      run(with_epochs(options, epochs, folder / str(epochs)))
    check()
    return trainings

  with tempfile.TemporaryDirectory(prefix="robust_opt_dry_run_") as name:
    folder = Path(name)
    one = run_dry(folder, 1)
    one_epoch = clock() - began
    slope = another_epoch(one, run_dry(folder, 2, folder / "1")) if most > 1 else 0.0
  elapsed = clock() - began
  left = SHARE * (budget_s - elapsed)
  epochs = max(1, epochs_that_fit(left, one_epoch, slope, most))
  expected = one_epoch + (epochs - 1) * slope
  return Sizing(budget_s, epochs, most, *_rounded(one_epoch, slope, elapsed, expected))


def with_epochs(options: Options[Any], epochs: int, workdir: Path | None = None) -> Options[Any]:
  """The same study of another number of epochs, and in another directory if one is given."""
  preset = dataclasses.replace(options.preset, epochs=epochs)
  return dataclasses.replace(options, preset=preset, workdir=workdir or options.workdir)


def _rounded(*seconds: float) -> list[float]:
  return [round(value, 3) for value in seconds]


def _stored(path: Path, identity: dict[str, Any]) -> Sizing | None:
  """Of an earlier run of the same study for the same budget; None if there was none."""
  if not path.exists():
    if (path.parent / "study.json").exists():
      raise InputError(
        f"--workdir={path.parent} holds a study that was begun without --budget_s; choose a new "
        "directory, or the same flags."
      )
    return None
  try:
    stored = json.loads(path.read_text(encoding="utf-8"))
    of, sizing = stored["of"], Sizing(**stored["sizing"])
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(f"--workdir={path.parent}: its {SIZING} cannot be read ({error}).") from error
  if changed := config_lib.differences(of, identity):
    raise InputError(
      f"--workdir={path.parent} holds a study sized for other flags; choose a new directory, or "
      f"the same flags. Differences: {'; '.join(changed)}."
    )
  return sizing
