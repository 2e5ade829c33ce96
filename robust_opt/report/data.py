"""What finished runs have left, read into plain values: the ground of the report.

  runs = read_all([Path("runs/mnist_linf"), Path("runs/mnist_standard")])
  runs[0].results[0].rate.accuracy, runs[0].evaluations[0].stored.robust_accuracy

Nothing is computed here beyond intervals, and nothing is written. Radii are in pixels of [0, 1].
"""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from scipy import stats

from robust_opt.errors import InputError
from robust_opt.evaluation import verdict
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import overrides
from robust_opt.experiments.metrics import read_metrics

CONFIDENCE = 0.95

Parsed = TypeVar("Parsed")


class Rate(NamedTuple):
  """So many of so many test examples."""

  correct: int
  total: int

  @property
  def accuracy(self) -> float:
    """In [0, 1]."""
    return self.correct / self.total

  @property
  def interval(self) -> tuple[float, float]:
    """Wilson's 95 % interval of the accuracy: it knows the draw of the examples, and no more."""
    found = stats.binomtest(self.correct, self.total).proportion_ci(CONFIDENCE, "wilson")
    return float(found.low), float(found.high)


class Result(NamedTuple):
  """Test accuracy of a run, clean or under one attack.

  Attributes:
    norm: of the ball, as in robust_opt.sets.BALLS; None for clean.
    radius: of the ball; 0 for clean.
    num_steps: of the attack; 0 for clean.
    trained_on: whether the run was trained against this attack.
    rate: how many test examples are classified correctly.
  """

  norm: str | None
  radius: float
  num_steps: int
  trained_on: bool
  rate: Rate


class Sweep(NamedTuple):
  """Accuracy against the radius in one norm: rates [K] at radii [K]."""

  norm: str
  radii: tuple[float, ...]
  rates: tuple[Rate, ...]


class Evaluation(NamedTuple):
  """What `python -m robust_opt.evaluate` left.

  Attributes:
    name: of its folder.
    stored: the verdict.
    clean: how many are right without any attack.
    robust: how many stand all attacks.
    attacks: {"after", "broke", "standing", "accuracy"} of each attack, in their order.
    checks: {"name", "passed", "measured", "meaning"} of the trust report, "passed" None where it
      was not measurable; empty: not made.
    after_rounding: the accuracy that the images leave as 8-bit files; None in old files.
  """

  name: str
  stored: verdict.StoredVerdict
  clean: Rate
  robust: Rate
  attacks: tuple[Mapping[str, Any], ...]
  checks: tuple[Mapping[str, Any], ...]
  after_rounding: float | None


class Run(NamedTuple):
  """A finished run.

  Attributes:
    name: the end of its path that tells it from the other runs.
    workdir: where it lies.
    title: its own, in words.
    results: clean first, then the norm that it was trained in.
    sweeps: accuracy against the radius.
    records: of metrics.jsonl.
    evaluations: those that are finished.
    unfinished: names of those that are not.
    picture: the PNG of examples that every run draws, or None.
    config: flat, key -> value.
    summary: the whole of summary.json.
  """

  name: str
  workdir: Path
  title: str
  results: tuple[Result, ...]
  sweeps: tuple[Sweep, ...]
  records: tuple[Mapping[str, Any], ...]
  evaluations: tuple[Evaluation, ...]
  unfinished: tuple[str, ...]
  picture: bytes | None
  config: Mapping[str, Any]
  summary: Mapping[str, Any]


def read_all(workdirs: Sequence[Path]) -> list[Run]:
  """The runs in the order that they are named in, each once.

  Raises:
    InputError: a sentence for each of them that cannot be reported on.
  """
  unique = list({path.resolve(): path for path in reversed(workdirs)}.values())[::-1]
  if not unique:
    raise InputError("Name at least one run: --workdir=RUN [RUN ...].")
  runs, problems = [], []
  for path, name in zip(unique, names([path.resolve() for path in unique])):
    try:
      runs.append(read(path, name))
    except InputError as error:
      problems.append(str(error))
  if problems:
    raise InputError("\n".join(problems))
  return runs


def names(paths: Sequence[Path]) -> list[str]:
  """The shortest ends of the paths that tell all of them apart."""
  depth = 1
  while True:
    ends = [str(Path(*path.parts[-depth:])) for path in paths]
    if len(set(ends)) == len(ends) or depth > max(len(path.parts) for path in paths):
      return ends
    depth += 1


def read(workdir: Path, name: str) -> Run:
  """One run.

  Raises:
    InputError: it is absent, no run, not finished, or one of its files is damaged.
  """
  where = f"--workdir={workdir}"
  if not workdir.is_dir():
    raise InputError(f"{where} must be the directory of a run, but there is none.")
  if not (workdir / "config.json").is_file():
    raise InputError(f"{where} must be the directory of a run, but it holds no config.json.")
  if not (workdir / "summary.json").is_file():
    raise InputError(
      f"{where} holds a run that is not finished (no summary.json); the command that started it "
      f"goes on with it."
    )
  summary = _parsed(workdir / "summary.json", "summary of a run", _summary)
  metrics = workdir / "metrics.jsonl"
  records = tuple(read_metrics(metrics)) if metrics.is_file() else ()
  if not records:
    raise InputError(f"{metrics} holds no record of the training that can be read.")
  folders = sorted(path for path in (workdir / "evaluations").glob("*") if path.is_dir())
  finished = [f for f in folders if (f / "summary.json").is_file()]
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
  results = tuple(map(_result, value["results"]))
  sweeps = tuple(
    Sweep(
      sweep["norm"],
      tuple(map(float, sweep["radii"])),
      tuple(Rate(correct, sweep["total"]) for correct in sweep["correct"]),
    )
    for sweep in value["sweeps"]
  )
  rates = [row.rate for row in results] + [rate for sweep in sweeps for rate in sweep.rates]
  if len(results) < 2 or not all(0 <= rate.correct <= rate.total > 0 for rate in rates):
    raise ValueError("its counts are none")
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


def _evaluation(folder: Path) -> Evaluation:
  stored = verdict.load(folder / "verdict.npz")

  def convert(value: Mapping[str, Any]) -> Evaluation:
    total, standing = len(stored.labels), round(stored.robust_accuracy * len(stored.labels))
    attacks = tuple(
      _row(row, ("after", "broke", "standing", "accuracy")) for row in value["attacks"]
    )
    checks = tuple(_row(row, ("name", "passed", "measured", "meaning")) for row in value["trust"])
    if (value["total"], attacks[-1]["standing"]) != (total, standing):
      raise ValueError("its counts are not those of the verdict.npz beside it")
    return Evaluation(
      name=folder.name,
      stored=stored,
      clean=Rate(attacks[0]["standing"], total),
      robust=Rate(standing, total),
      attacks=attacks,
      checks=checks,
      after_rounding=value.get("accuracy_after_rounding"),
    )

  return _parsed(folder / "summary.json", "summary of an evaluation", convert)


def _row(row: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
  return {key: row[key] for key in keys}


def _parsed(path: Path, kind: str, convert: Callable[[Mapping[str, Any]], Parsed]) -> Parsed:
  try:
    return convert(json.loads(path.read_text(encoding="utf-8")))
  except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
    reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    raise InputError(f"{path} is no {kind} that can be read ({reason}).") from error


def command(module: str, flags: Sequence[str]) -> str:
  """For a shell, a flag on each line."""
  return " \\\n  ".join([f"python -m {module}", *map(shlex.quote, flags)])


def training_command(run: Run) -> str | None:
  """What trains the same net again; None if the run's config has other keys than ours."""
  flags = overrides.flags_of(run.config)
  return None if flags is None else command("robust_opt.main", [*flags, "--workdir=NEW_RUN"])


def evaluation_command(run: Run, evaluation: Evaluation) -> str:
  """What makes the same evaluation again, or finds it."""
  claim = evaluation.stored.claim
  given: dict[str, Any] = {
    "norm": claim.norm,
    "radius": repr(claim.radius),
    "version": claim.version,
  }
  given |= {"seed": claim.seed, "batch_size": claim.batch_size}
  source = claim.source
  given |= {key: source[key] for key in ("examples", "checkpoint") if source.get(key)}
  flags = [f"--{key}={value}" for key, value in given.items()]
  return command("robust_opt.evaluate", [f"--workdir={run.workdir}", *flags])
