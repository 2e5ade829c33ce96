"""The words and rows of the report, from the values of robust_opt.report.data.

headline(run)          # two numbers and a sentence
measured(run)          # what they were measured on, and how
result_table(runs)     # the runs side by side
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape

from robust_opt.evaluation.headline import (
  Headline,
  attack_over,
  ensemble,
  ensemble_over,
  of_ensemble,
  of_targeted,
  target_in_words,
)
from robust_opt.experiments import metrics, overrides
from robust_opt.report.data import Evaluation, Rate, Result, Run
from robust_opt.sets.words import box_in_words, threat_model
from robust_opt.tables import Percent, counted, norm_name
from robust_opt.training.overfitting import Overfitting, in_words


class Row(NamedTuple):
  """A row of the table of results."""

  title: str
  cells: tuple[tuple[Rate, bool] | None, ...]  # of every run, with whether it was trained on this
  mean: str  # over the runs, as if they were seeds; empty if one has no such result


class FactRow(NamedTuple):
  """A key of the config or a fact, its value in every run, and whether they differ."""

  key: str
  values: tuple[str, ...]
  differs: bool


def percent(accuracy: float) -> str:
  """'97.14 %', without a line break."""
  return unbroken(f"{100 * accuracy:.2f} %")


def unbroken(text: str) -> str:
  """The same, where a number and its percent sign stay on one line."""
  return text.replace(" %", "\u00a0%")


def result_title(result: Result) -> str:
  """'clean', or steps and threat model."""
  return attack_over(result.num_steps, result.set, unicode=True) if result.set else "clean"


def attack_title(evaluation: Evaluation) -> str:
  """Ensemble and threat model."""
  claim = evaluation.stored.claim
  toward = f" toward {target_in_words(claim.target)}" if claim.target else ""
  return f"{ensemble_over(claim.version, claim.set, unicode=True)}{toward}"


def evaluation_title(evaluation: Evaluation) -> str:
  """Ensemble, threat model, count, and the data if they are not the run's own."""
  data = str(evaluation.stored.claim.source.get("data") or "")
  of_data = f" of {Path(data).name}" if data else ""
  return f"{attack_title(evaluation)}, {counted(evaluation.robust.total, 'image')}{of_data}"


def breakable(name: str) -> Markup:
  """A name that may wrap after its separators, for narrow columns."""
  return Markup(re.sub(r"([_/.-])", r"\1<wbr>", str(escape(name))))


def overfitting(run: Run) -> str:
  """The warning of the run; empty if its training did not overfit."""
  detected = run.summary.get("overfitting")
  return in_words(Overfitting(**detected)) if detected else ""


def headline(run: Run) -> Headline:
  """By the strongest evaluation of the run, or by its own attack where there is none."""
  evaluation = strongest(run)
  if evaluation is None:
    return metrics.headline(run.summary, unicode=True)
  claim, clean = evaluation.stored.claim, evaluation.clean
  own = bool(run.results) and not claim.source.get("data")  # of the whole test set
  attack, checks = attack_title(evaluation), evaluation.checks
  data = Path(claim.source.get("data") or "").name
  first = bool(claim.source.get("examples"))
  if claim.target:
    outcome = evaluation.stored.verdict
    success = Rate(int(np.sum(outcome.broken_by > 0)), outcome.num_attacked)
    return of_targeted(clean, success, attack, claim.target, checks, first, data)
  ration = evaluation.stored.verdict.ration
  whole = run.results[0].rate if own else clean
  bound = ration and ration.bound
  return of_ensemble(whole, evaluation.robust, attack, checks, first and not own, data, bound)


def measured(run: Run) -> dict[str, str]:
  """What the headline was measured on, and how: network, data, threat model, attack."""
  evaluation, sizes = strongest(run), run.results
  name = run.config.get("data.name", "")
  if evaluation is None:
    own = run.results[1]
    data, u = f"{counted(own.rate.total, 'test image')} of {name}", own.set or {}
    attack = counted(own.num_steps, "step") + (", as in training" if own.trained_on else "")
  else:
    claim, total = evaluation.stored.claim, evaluation.robust.total
    source, first = claim.source, "the first " if claim.source.get("examples") else ""
    whole = f" of {sizes[0].rate.total:,}" if first and sizes and not source.get("data") else ""
    images = f"{first}{total:,}{whole} test images"
    data, u = f"{images} of {source.get('data') or name or run.title}", claim.set
    attack = f"{ensemble(claim.version)}: {', '.join(evaluation.stored.verdict.names[1:])}"
  model = threat_model(u, unicode=True)
  return {"network": run.title, "data": data, "threat model": model, "attack": attack}


def boxes_of_training(runs: Sequence[Run]) -> str:
  """Whether pixels may leave [0, 1] in the runs' own measurements; by run if they differ."""
  boxes = {run.name: box_in_words(run.results[1].set or {}) for run in runs if run.results}
  if len(set(boxes.values())) > 1:
    return "; ".join(f"{name}: {words}" for name, words in boxes.items())
  return next(iter(boxes.values()), "")


def strongest(run: Run) -> Evaluation | None:
  """The one on its test set, in its own ball, by the standard ensemble, on the most images."""
  norm, radius = run.results[1][1:3] if run.results else (None, 0.0)

  def rank(evaluation: Evaluation) -> tuple[bool, bool, bool, bool, bool, int]:
    claim = evaluation.stored.claim
    same_norm, same_radius = claim.norm == norm, claim.radius == radius
    standard, total = claim.version == "standard", evaluation.robust.total
    own, any_class = not claim.source.get("data"), not claim.target
    return any_class, own, same_norm, same_radius, standard, total

  return max(run.evaluations, key=rank, default=None)


def radius_tables(runs: Sequence[Run]) -> dict[str, dict[float, list[Rate | None]]]:
  """The numbers of the radius charts: title -> radius -> rate of each run."""
  tables: dict[str, dict[float, list[Rate | None]]] = {}
  for index, run in enumerate(runs):
    for sweep in run.sweeps:
      rows = tables.setdefault(f"radius in {norm_name(sweep.norm).sign}", {})
      for radius, rate in zip(sweep.radii, sweep.rates):
        # Radii are products of floats: those that print alike share a row.
        rows.setdefault(float(f"{radius:.4g}"), [None] * len(runs))[index] = rate
  return {title: dict(sorted(rows.items())) for title, rows in tables.items()}


def result_table(runs: Sequence[Run]) -> list[Row]:
  """Clean, the attacks of the runs, then the evaluations, with a cell for every run."""
  results = [
    {result_title(r): (r.rate, r.trained_on) for r in run.results}
    or {"clean": (run.evaluations[0].clean, False)}
    for run in runs
  ]
  evaluations = [{evaluation_title(e): (e.robust, False) for e in run.evaluations} for run in runs]
  columns = [a | b for a, b in zip(results, evaluations)]
  rows = []
  for title in dict.fromkeys(title for column in [*results, *evaluations] for title in column):
    cells = tuple(column.get(title) for column in columns)
    rates = [cell[0] for cell in cells if cell is not None]
    mean = Percent.of([rate.accuracy for rate in rates], min(rate.total for rate in rates))
    rows.append(Row(title, cells, str(mean) if len(rates) == len(runs) else ""))
  return rows


def are_seeds(runs: Sequence[Run]) -> bool:
  """Whether the runs are one experiment with several seeds."""
  aside = ("seed", "data.data_dir", "data.cache_dir")  # locations do not affect results
  rest = [{k: v for k, v in run.config.items() if k not in aside} for run in runs]
  seeds = {run.config.get("seed") for run in runs}
  return len(runs) > 1 and len(seeds) == len(runs) and all(other == rest[0] for other in rest)


def facts(summary: Mapping[str, Any]) -> dict[str, Any]:
  """Versions, hashes, device and sizes of a run."""
  versions, hashes = summary.get("versions", {}), summary.get("data_sha256", {})
  return {
    "checkpoint": f"{summary.get('checkpoint', 'last')}, step {summary.get('step')}",
    "training examples": summary.get("train_examples"),
    "held-out examples": summary.get("heldout_examples"),
    "device": summary.get("device"),
    **{f"version of {name}": version for name, version in versions.items()},
    "peak memory (MB)": summary.get("peak_memory_mb"),
    "SHA-256 of the weights": summary.get("params_sha256"),
    **{f"SHA-256 of the {split} data": sha256 for split, sha256 in hashes.items()},
  }


def fact_rows(columns: Sequence[Mapping[str, Any]]) -> list[FactRow]:
  """All keys of the configs or facts of the runs, in order."""
  rows = []
  for key in dict.fromkeys(key for column in columns for key in column):
    values = tuple(_text(column[key]) if key in column else "(absent)" for column in columns)
    rows.append(FactRow(key, values, len(set(values)) > 1))
  return rows


def _text(value: Any) -> str:
  return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def training_command(run: Run) -> str | None:
  """Trains the same network again; None if no flags make its config."""
  flags = overrides.flags_of(run.config)
  return None if flags is None else _command("robust_opt.main", [*flags, "--workdir=NEW_RUN"])


def evaluation_command(run: Run, evaluation: Evaluation) -> str:
  """Makes the same evaluation again, or prints the finished one."""
  claim = evaluation.stored.claim
  values: dict[str, Any] = {key: value for key, value in claim.source.items() if value}
  if run.results:
    values = {"workdir": run.workdir} | {k: v for k, v in values.items() if k != "workdir"}
  else:
    values["output"] = run.workdir
  values |= {**claim.flags, "version": claim.version, "seed": claim.seed}
  ration = evaluation.stored.verdict.ration
  values |= {"share": ration.share} if ration else {}
  values |= {"batch_size": claim.batch_size}
  precisions = {"precision": claim.precision, "search_precision": claim.search_precision}
  values |= {key: name for key, name in precisions.items() if name != "float32"}
  values |= {"target": claim.target} if claim.target else {}
  return _command("robust_opt.evaluate", [f"--{key}={value}" for key, value in values.items()])


def verification_command(evaluation: Evaluation) -> str:
  """Checks every claim of the evaluation."""
  return _command("robust_opt.verify", [str(evaluation.path)])


def first_evaluation_command(run: Run) -> str:
  """Evaluates a run over its own set, or a ball."""
  flags = [f"--workdir={run.workdir}", *metrics.evaluation_flags(run.summary)]
  return _command("robust_opt.evaluate", flags)


def _command(module: str, flags: Sequence[str]) -> str:
  """A shell command with one flag per line."""
  return " \\\n  ".join([f"python -m {module}", *map(shlex.quote, flags)])
