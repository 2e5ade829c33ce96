"""Reads finished runs and their evaluations into plain values.

  runs = read_runs([Path("runs/mnist_linf"), Path("runs/mnist_standard")])
  runs[0].results[0].rate.accuracy, runs[0].evaluations[0].robust.interval

Nothing is computed except intervals. Radii are in pixels of [0, 1].
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from robust_opt.errors import InputError
from robust_opt.evaluation import verdict
from robust_opt.evaluation.trust_checks import Check
from robust_opt.experiments import config as config_lib
from robust_opt.experiments.metrics import read_metrics
from robust_opt.statistics import accuracy_interval

Parsed = TypeVar("Parsed")


class Rate(NamedTuple):
  """`correct` of `total` test examples are classified correctly."""

  correct: int
  total: int

  @property
  def accuracy(self) -> float:
    """In [0, 1]."""
    return self.correct / self.total

  @property
  def interval(self) -> tuple[float, float]:
    """Wilson's 95 % interval of the accuracy, for the draw of the test examples only."""
    _, low, high = accuracy_interval([self.accuracy], self.total)
    return float(low), float(high)


class Result(NamedTuple):
  """Test accuracy of a run, clean or under one attack."""

  norm: str | None  # of the ball, as in robust_opt.sets.BALLS; None for clean
  radius: float  # of the ball; 0 for clean
  num_steps: int  # of the attack; 0 for clean
  trained_on: bool  # whether the run was trained against this attack
  rate: Rate


class Sweep(NamedTuple):
  """Accuracy against the radius in one norm: rates [K] at radii [K]."""

  norm: str
  radii: tuple[float, ...]
  rates: tuple[Rate, ...]


class Evaluation(NamedTuple):
  """A result of `python -m robust_opt.evaluate`."""

  name: str  # of its folder
  stored: verdict.StoredVerdict
  clean: Rate  # without any attack
  robust: Rate  # under all attacks
  attacks: tuple[Mapping[str, Any], ...]  # after, broke, standing, accuracy of each, in order
  checks: tuple[Check, ...]  # of the trust report; empty without one
  after_rounding: float | None  # with the adversarial images rounded to 8 bits; None in old files


class Run(NamedTuple):
  """A finished run."""

  name: str  # the end of its path, as long as needed to differ from the other runs
  workdir: Path
  title: str
  results: tuple[Result, ...]  # clean, then the norm of training, then others
  sweeps: tuple[Sweep, ...]  # accuracy against the radius
  records: tuple[Mapping[str, Any], ...]  # of metrics.jsonl
  evaluations: tuple[Evaluation, ...]  # the finished ones
  unfinished: tuple[str, ...]  # names of the others
  picture: bytes | None  # examples.png
  config: Mapping[str, Any]  # flat, key -> value
  summary: Mapping[str, Any]  # the whole of summary.json


def read_runs(workdirs: Sequence[Path]) -> list[Run]:
  """The runs in the given order, each once.

  Raises:
    InputError: one sentence for each of them that cannot be read.
  """
  unique = list({path.resolve(): path for path in reversed(workdirs)}.values())[::-1]
  if not unique:
    raise InputError("Name at least one run: --workdir=RUN [RUN ...].")
  runs, problems = [], []
  for path, name in zip(unique, short_names([path.resolve() for path in unique])):
    try:
      runs.append(_read_run(path, name))
    except InputError as error:
      problems.append(str(error))
  if problems:
    raise InputError("\n".join(problems))
  return runs


def short_names(paths: Sequence[Path]) -> list[str]:
  """The shortest ends of the paths that are all different."""
  depth, names = 1, [path.name for path in paths]
  while len(set(names)) < len(names):
    depth += 1
    names = [str(Path(*path.parts[-depth:])) for path in paths]
  return names


def _read_run(workdir: Path, name: str) -> Run:
  flag = f"--workdir={workdir}"
  if not (workdir / "config.json").is_file():
    reason = "it holds no config.json" if workdir.is_dir() else "it does not exist"
    raise InputError(f"{flag} must be the directory of a run, but {reason}.")
  if not (workdir / "summary.json").is_file():
    raise InputError(
      f"{flag} holds a run that is not finished (no summary.json); the command that started it "
      f"resumes it."
    )
  summary = _parsed(workdir / "summary.json", "the summary of a run", _summary)
  metrics = workdir / "metrics.jsonl"
  records = tuple(read_metrics(metrics)) if metrics.is_file() else ()
  if not records:
    raise InputError(f"{metrics} holds no readable record of the training.")
  folders = sorted(path for path in (workdir / "evaluations").glob("*") if path.is_dir())
  finished = [folder for folder in folders if (folder / "summary.json").is_file()]
  picture = workdir / "examples.png"
  return Run(
    name=name,
    workdir=workdir,
    records=records,
    evaluations=tuple(map(_evaluation, finished)),
    unfinished=tuple(folder.name for folder in folders if folder not in finished),
    picture=picture.read_bytes() if picture.is_file() else None,
    **summary,
  )


def _summary(value: Mapping[str, Any]) -> dict[str, Any]:
  results, sweeps = tuple(map(_result, value["results"])), tuple(map(_sweep, value["sweeps"]))
  rates = [result.rate for result in results] + [rate for sweep in sweeps for rate in sweep.rates]
  if len(results) < 2 or not all(0 <= rate.correct <= rate.total > 0 for rate in rates):
    raise ValueError("its counts are impossible")
  return {
    "title": str(value["title"]),
    "results": results,
    "sweeps": sweeps,
    "config": config_lib.flattened(value["config"]),
    "summary": value,
  }


def _result(row: Mapping[str, Any]) -> Result:
  rate = Rate(row["correct"], row["total"])
  if row["set"] is None:
    return Result(None, 0.0, 0, row["trained_on"], rate)
  norm, radius = row["set"]["name"], float(row["set"]["radius"])
  return Result(norm, radius, row["attack"]["num_steps"], row["trained_on"], rate)


def _sweep(row: Mapping[str, Any]) -> Sweep:
  rates = tuple(Rate(correct, row["total"]) for correct in row["correct"])
  return Sweep(row["norm"], tuple(map(float, row["radii"])), rates)


def _evaluation(folder: Path) -> Evaluation:
  stored = verdict.load(folder / "verdict.npz")

  def convert(value: Mapping[str, Any]) -> Evaluation:
    total = len(stored.labels)
    robust = Rate(round(stored.robust_accuracy * total), total)
    keys = ("after", "broke", "standing", "accuracy")
    attacks = tuple({key: row[key] for key in keys} for row in value["attacks"])
    if Rate(attacks[-1]["standing"], value["total"]) != robust:
      raise ValueError("its counts are not those of the verdict.npz beside it")
    return Evaluation(
      name=folder.name,
      stored=stored,
      clean=Rate(attacks[0]["standing"], total),
      robust=robust,
      attacks=attacks,
      checks=tuple(Check(**row) for row in value["trust"]),
      after_rounding=value.get("accuracy_after_rounding"),
    )

  return _parsed(folder / "summary.json", "the summary of an evaluation", convert)


def _parsed(path: Path, kind: str, convert: Callable[[Mapping[str, Any]], Parsed]) -> Parsed:
  try:
    return convert(json.loads(path.read_text(encoding="utf-8")))
  except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
    reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    raise InputError(f"{path} cannot be read as {kind} ({reason}).") from error
