"""Reads finished runs, their evaluations, and evaluations alone into plain values.

  runs = read_runs([Path("runs/mnist_linf"), Path("runs/mine/verdict.npz")])
  runs[0].results[0].rate.accuracy, runs[0].evaluations[0].robust.interval

Nothing is computed except intervals. Radii are in pixels of [0, 1].
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from robust_opt.errors import InputError
from robust_opt.evaluation import verdict
from robust_opt.evaluation.trust_checks import Check
from robust_opt.experiments import config as config_lib
from robust_opt.experiments.metrics import read_metrics, set_configs
from robust_opt.studies.ensemble import VERDICT
from robust_opt.tables import Rate

Parsed = TypeVar("Parsed")


_NETWORK = ("model", "weights", "workdir")  # flags of robust_opt.evaluate that name it


class Result(NamedTuple):
  """Test accuracy of a run, clean or under one attack."""

  set: Mapping[str, Any] | None  # the config of the set; None for clean
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

  path: Path  # of the verdict.npz
  network: str  # a run's title, or --model
  stored: verdict.StoredVerdict
  clean: Rate  # without any attack
  robust: Rate  # under all attacks
  attacks: tuple[Mapping[str, Any], ...]  # after, broke, standing, accuracy of each, in order
  checks: tuple[Check, ...]  # of the trust report; empty without one
  after_rounding: float | None  # with the adversarial images rounded to 8 bits; None in old files
  ssim: float | None = None  # the mean of the adversarial images; None of small ones, in old files


class Run(NamedTuple):
  """A finished run; or an evaluation alone, as of --model, which has the first four fields."""

  name: str  # the end of its path, as long as needed to differ from the other runs
  workdir: Path
  title: str  # the network
  evaluations: tuple[Evaluation, ...]  # the finished ones
  unfinished: tuple[str, ...] = ()  # names of the others
  results: tuple[Result, ...] = ()  # clean, then the norm of training, then others
  sweeps: tuple[Sweep, ...] = ()  # accuracy against the radius
  records: tuple[Mapping[str, Any], ...] = ()  # of metrics.jsonl
  picture: bytes | None = None  # examples.png
  config: Mapping[str, Any] = MappingProxyType({})  # flat, key -> value
  summary: Mapping[str, Any] = MappingProxyType({})  # the whole of summary.json


def read_runs(paths: Sequence[Path]) -> list[Run]:
  """What the paths hold, in their order, each once.

  A path is the directory of a run, that of an evaluation, or a verdict.npz. An evaluation that is
  part of one of the runs is not repeated.

  Raises:
    InputError: one sentence for each of them that cannot be read.
  """
  folders = {_folder(path).resolve(): path for path in reversed(paths)}
  unique = [
    path
    for folder, path in reversed(folders.items())
    if not (folder.parent.name == "evaluations" and folder.parent.parent in folders)
  ]
  if not unique:
    raise InputError("Name at least one run or evaluation: python -m robust_opt.report PATH ...")
  runs, problems = [], []
  for path, name in zip(unique, short_names([_folder(path).resolve() for path in unique])):
    try:
      runs.append(_read(path, name))
    except InputError as error:
      problems.append(str(error))
  if problems:
    raise InputError("\n".join(problems))
  return runs


def _folder(path: Path) -> Path:
  """What names a run or an evaluation: of its verdict.npz, the directory."""
  return path.parent if path.name == VERDICT else path


def _read(path: Path, name: str) -> Run:
  if (path / "config.json").is_file():
    return _read_run(path, name)
  file = path / VERDICT if path.is_dir() else path
  if file.is_file():
    evaluation = _evaluation(file)
    return Run(name, file.parent, evaluation.network, (evaluation,))
  reason = f"it holds neither config.json nor {VERDICT}" if path.is_dir() else "it does not exist"
  if (path / "parts").is_dir():
    reason = "its evaluation is not finished; the command that started it resumes it"
  raise InputError(
    f"{path} must be the directory of a run, that of an evaluation, or a {VERDICT}, but {reason}."
  )


def short_names(paths: Sequence[Path]) -> list[str]:
  """The shortest ends of the paths that are all different."""
  depth, names = 1, [path.name for path in paths]
  while len(set(names)) < len(names):
    depth += 1
    names = [str(Path(*path.parts[-depth:])) for path in paths]
  return names


def _read_run(workdir: Path, name: str) -> Run:
  if not (workdir / "summary.json").is_file():
    raise InputError(
      f"{workdir} holds a run that is not finished (no summary.json); the command that started it "
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
    evaluations=tuple(_evaluation(folder / VERDICT) for folder in finished),
    unfinished=tuple(folder.name for folder in folders if folder not in finished),
    picture=picture.read_bytes() if picture.is_file() else None,
    **summary,
  )


def _summary(value: Mapping[str, Any]) -> dict[str, Any]:
  sets = [None, *set_configs(value)]
  results = tuple(_result(row, u) for row, u in zip(value["results"], sets, strict=True))
  sweeps = tuple(map(_sweep, value["sweeps"]))
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


def _result(row: Mapping[str, Any], config: Mapping[str, Any] | None) -> Result:
  rate = Rate(row["correct"], row["total"])
  if row["set"] is None:
    return Result(None, None, 0.0, 0, row["trained_on"], rate)
  norm, radius = row["set"]["name"], float(row["set"]["radius"])
  return Result(config, norm, radius, row["attack"]["num_steps"], row["trained_on"], rate)


def _sweep(row: Mapping[str, Any]) -> Sweep:
  rates = tuple(Rate(correct, row["total"]) for correct in row["correct"])
  return Sweep(row["norm"], tuple(map(float, row["radii"])), rates)


def _evaluation(path: Path) -> Evaluation:
  """A verdict, and what the summary beside it adds."""
  stored = verdict.load(path)
  attacks, total = verdict.accuracies(stored.verdict), len(stored.labels)
  source = stored.claim.source
  found = Evaluation(
    path=path,
    network=next((str(source[key]) for key in _NETWORK if source.get(key)), "a network"),
    stored=stored,
    clean=Rate(attacks[0]["standing"], total),
    robust=Rate(attacks[-1]["standing"], total),
    attacks=tuple(attacks),
    checks=(),
    after_rounding=None,
  )

  def summarized(value: Mapping[str, Any]) -> Evaluation:
    if (value["attacks"][-1]["standing"], value["total"]) != found.robust:
      raise ValueError("its counts are not those of the verdict.npz beside it")
    return found._replace(
      network=value.get("net", found.network),
      checks=tuple(Check(**row) for row in value["trust"]),
      after_rounding=value.get("accuracy_after_rounding"),
      ssim=value.get("ssim"),
    )

  summary = path.parent / "summary.json"
  if path.name != VERDICT or not summary.is_file():
    return found
  return _parsed(summary, "the summary of an evaluation", summarized)


def _parsed(path: Path, kind: str, convert: Callable[[Mapping[str, Any]], Parsed]) -> Parsed:
  try:
    return convert(json.loads(path.read_text(encoding="utf-8")))
  except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
    reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    raise InputError(f"{path} cannot be read as {kind} ({reason}).") from error
