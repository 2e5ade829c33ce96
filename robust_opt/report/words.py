"""What the report says of runs, in words and rows: from values to strings, for the template.

verdict(run)           # the sentence at the head, with its two large numbers
result_table(runs)     # the runs side by side
config_rows(runs)      # key, the value of every run, whether they differ
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from robust_opt.report.data import Evaluation, Rate, Result, Run, command
from robust_opt.statistics import accuracy_interval
from robust_opt.tables import NORM_NAMES, counted
from robust_opt.training.overfitting import Overfitting, in_words

# Where things lie is no part of what is computed.
_PLACES = ("data.data_dir", "data.cache_dir")


class Verdict(NamedTuple):
  """The head of the page for one run.

  Attributes:
    clean: accuracy.
    robust: accuracy with its words.
    by: by which attack, short.
    sentence: the whole of it.
    doubt: what speaks against believing it, a sentence; may be empty.
  """

  clean: str
  robust: str
  by: str
  sentence: str
  doubt: str


class Cell(NamedTuple):
  """A cell of the table of results; all empty where a run does not have the row."""

  value: str = ""
  interval: str = ""
  counted: str = ""
  trained: bool = False


class Row(NamedTuple):
  """A row of the table of results; `mean` over seeds is empty unless the runs are seeds."""

  what: str
  cells: tuple[Cell, ...]
  mean: str = ""


def percent(accuracy: float) -> str:
  """Two decimals: an example of a set of 10,000."""
  return f"{100 * accuracy:.2f}\u00a0%"


def interval(rate: Rate) -> str:
  """Of 95 %."""
  low, high = rate.interval
  return f"{100 * low:.1f} to {100 * high:.1f}"


def ball(norm: str, radius: float) -> str:
  """A norm and its radius."""
  sign = NORM_NAMES[norm].sign if norm in NORM_NAMES else norm
  return sign if math.isnan(radius) else f"{sign} {radius:.4g}"


def ensemble_name(version: str) -> str:
  """How the ensemble of an evaluation is called."""
  known = {"standard": "AutoAttack", "quick": "AutoAttack, quick version"}
  return known.get(version, f"ensemble {version}")


def evaluation_title(evaluation: Evaluation) -> str:
  """Attack, ball and count."""
  claim = evaluation.stored.claim
  name = f"{ensemble_name(claim.version)}, {ball(claim.norm, claim.radius)}"
  return f"{name}, {evaluation.robust.total:,} images"


def result_title(result: Result) -> str:
  """'clean', or ball and steps."""
  if result.norm is None:
    return "clean"
  return f"{ball(result.norm, result.radius)}, {counted(result.num_steps, 'step')}"


def overfitting(run: Run) -> str:
  """The warning of the run; empty if its training did not overfit."""
  detected = run.summary.get("overfitting")
  return in_words(Overfitting(**detected)) if detected else ""


def breakable(name: str) -> Markup:
  """A name that may be broken behind its joints, where a column is narrow."""
  return Markup(re.sub(r"([_/.-])", r"\1<wbr>", str(escape(name))))


def verdict(run: Run) -> Verdict:
  """By the strongest evidence that the run holds."""
  clean, own = run.results[0], run.results[1]
  evaluation = strongest(run)
  head = (
    f"Right on {percent(clean.rate.accuracy)} of {clean.rate.total:,} clean test images "
    f"(95 % interval {interval(clean.rate)})"
  )
  if evaluation is None:
    sentence = (
      f"{head}, and on {percent(own.rate.accuracy)} ({interval(own.rate)}) of them under "
      f"{result_title(own)}{', the attack of its training' if own.trained_on else ''}."
    )
    weak = (
      "No ensemble of attacks has been run: a single attack gives an upper bound, often far too "
      "high."
    )
    return Verdict(
      percent(clean.rate.accuracy), percent(own.rate.accuracy), result_title(own), sentence, weak
    )
  robust, claim = evaluation.robust, evaluation.stored.claim
  which = (
    f"all {robust.total:,}" if robust.total == clean.rate.total else f"the first {robust.total:,}"
  )
  sentence = (
    f"{head}; of {which}, {percent(robust.accuracy)} ({interval(robust)}) stand "
    f"{ensemble_name(claim.version)}, over {ball(claim.norm, claim.radius)}."
  )
  if evaluation.checks and not doubt(evaluation):
    sentence += f" {_passed(evaluation.checks)}"
  return Verdict(
    percent(clean.rate.accuracy),
    percent(robust.accuracy),
    f"{ensemble_name(claim.version)}, {ball(claim.norm, claim.radius)}",
    sentence,
    doubt(evaluation),
  )


def doubt(evaluation: Evaluation) -> str:
  """Why an evaluation should not be believed as it stands; empty if nothing speaks against it."""
  failed = [check["name"] for check in evaluation.checks if check["passed"] is False]
  if failed:
    plural = "checks" if len(failed) > 1 else "check"
    return (
      f"The trust report fails {len(failed)} {plural} ({', '.join(failed)}): do not believe the "
      f"number before you understand why."
    )
  return "" if evaluation.checks else "The measurement itself was not checked (--notrust)."


def _passed(checks: Sequence[Mapping[str, Any]]) -> str:
  """How many checks pass, where none fails."""
  unclear = [check["name"] for check in checks if check["passed"] is None]
  if not unclear:
    return f"All {len(checks)} checks of the trust report pass."
  return (
    f"{len(checks) - len(unclear)} of {len(checks)} checks of the trust report pass; not "
    f"measurable on these images: {', '.join(unclear)}."
  )


def strongest(run: Run) -> Evaluation | None:
  """The evaluation in the run's own ball, by the standard ensemble, on the most images."""
  own = run.results[1]

  def rank(evaluation: Evaluation) -> tuple[bool, bool, bool, int]:
    claim = evaluation.stored.claim
    return (
      claim.norm == own.norm,
      claim.radius == own.radius,
      claim.version == "standard",
      evaluation.robust.total,
    )

  return max(run.evaluations, key=rank, default=None)


def evaluate_command(run: Run) -> str:
  """What makes an evaluation where there is none."""
  own = run.results[1]
  flags = [f"--workdir={run.workdir}", f"--norm={own.norm}", f"--radius={own.radius!r}"]
  return command("robust_opt.evaluate", flags)


def radius_tables(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
  """The numbers of the curves: for each norm a title and rows of radius and cells."""
  swept: dict[str, dict[float, dict[int, Rate]]] = {}
  for place, run in enumerate(runs):
    for sweep in run.sweeps:
      radii = swept.setdefault(sweep.norm, {})
      for radius, rate in zip(sweep.radii, sweep.rates):
        # Radii are products of floats: what prints alike is one row.
        radii.setdefault(float(f"{radius:.4g}"), {})[place] = rate

  def cells(rates: dict[int, Rate]) -> list[str]:
    found = (rates.get(place) for place in range(len(runs)))
    return [
      "" if rate is None else f"{percent(rate.accuracy)} ({interval(rate)})" for rate in found
    ]

  return [
    (
      f"radius in {NORM_NAMES[norm].sign}",
      [(f"{radius:.4g}", cells(rates)) for radius, rates in sorted(radii.items())],
    )
    for norm, radii in swept.items()
  ]


def result_table(runs: Sequence[Run]) -> list[Row]:
  """Clean, the attacks of the runs, then the evaluations; each row holds every run."""
  results = [{result_title(r): (r.rate, r.trained_on) for r in run.results} for run in runs]
  evaluations = [{evaluation_title(e): (e.robust, False) for e in run.evaluations} for run in runs]
  seeds = are_seeds(runs)
  return [*_result_rows(results, seeds), *_result_rows(evaluations, seeds)]


def _result_rows(columns: Sequence[Mapping[str, tuple[Rate, bool]]], seeds: bool) -> list[Row]:
  """A row for each title, with a cell for each run: rate, and whether the run trained on it."""
  table = []
  for title in dict.fromkeys(title for column in columns for title in column):
    entries = [column.get(title) for column in columns]
    cells = tuple(Cell() if entry is None else _cell(*entry) for entry in entries)
    rates = [entry[0] for entry in entries if entry is not None]
    table.append(Row(title, cells, _mean(rates) if seeds and len(rates) == len(columns) else ""))
  return table


def _cell(rate: Rate, trained: bool) -> Cell:
  count = f"{rate.correct:,} of {rate.total:,}"
  return Cell(percent(rate.accuracy), interval(rate), count, trained)


def _mean(rates: Sequence[Rate]) -> str:
  found = accuracy_interval([rate.accuracy for rate in rates], min(rate.total for rate in rates))
  mean, low, high = (100 * float(value) for value in found)
  return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def are_seeds(runs: Sequence[Run]) -> bool:
  """Whether the runs are one experiment with several seeds."""
  rest = [{k: v for k, v in run.config.items() if k not in ("seed", *_PLACES)} for run in runs]
  seeds = {run.config.get("seed") for run in runs}
  return len(runs) > 1 and len(seeds) == len(runs) and all(other == rest[0] for other in rest)


class ConfigRow(NamedTuple):
  """A key of the config or a fact of the run, its value in every run, and whether they differ."""

  key: str
  values: tuple[str, ...]
  differs: bool


def config_rows(runs: Sequence[Run]) -> list[ConfigRow]:
  """All keys of all resolved configs, in order."""
  return _rows([run.config for run in runs])


def provenance_rows(runs: Sequence[Run]) -> list[ConfigRow]:
  """Versions, hashes, device and sizes."""
  facts = []
  for run in runs:
    summary = run.summary
    facts.append(
      {
        "checkpoint": f"{summary.get('checkpoint', 'last')}, step {summary.get('step')}",
        "training examples": summary.get("train_examples"),
        "held-out examples": summary.get("heldout_examples"),
        "device": summary.get("device"),
        **{f"version of {name}": text for name, text in summary.get("versions", {}).items()},
        "peak memory (MB)": summary.get("peak_memory_mb"),
        "SHA-256 of the weights": summary.get("params_sha256"),
        **{
          f"SHA-256 of the {split} data": digest
          for split, digest in summary.get("data_sha256", {}).items()
        },
      }
    )
  return _rows(facts)


def _rows(columns: Sequence[Any]) -> list[ConfigRow]:
  keys = list(dict.fromkeys(key for column in columns for key in column))
  rows = []
  for key in keys:
    values = tuple(_text(column[key]) if key in column else "(absent)" for column in columns)
    rows.append(ConfigRow(key, values, len(set(values)) > 1))
  return rows


def _text(value: Any) -> str:
  return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
