"""Tables of a study as Markdown, CSV and JSON, from rows of plain values.

table = Table("Table 1", columns=["net", "clean"], rows=[{"net": "l2", "clean": cell}], notes=[])
write(table, results / "table1")          # table1.md, table1.csv, table1.json
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from robust_opt.files import atomic_write, write_json
from robust_opt.statistics import accuracy_interval

FAILED_NOTE = (
  "A seed whose clean accuracy is that of chance has failed to learn: it is counted apart and in "
  "no mean."
)


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

  @property
  def percent(self) -> str:
    """'97.14 %': two decimals resolve one example of 10,000."""
    return f"{100 * self.accuracy:.2f} %"

  @property
  def range(self) -> str:
    """The interval in percent: '96.8 to 97.5'."""
    low, high = self.interval
    return f"{100 * low:.1f} to {100 * high:.1f}"


class Percent(NamedTuple):
  """An accuracy over seeds, for one cell: in Markdown '99.12 [98.90, 99.30]'."""

  mean: float  # over the seeds that learned, in [0, 1]; NaN if all failed
  low: float  # of the 95 % interval (`statistics.accuracy_interval`); NaN if all failed
  high: float
  seeds: tuple[float, ...]  # the value of every seed, failed ones included
  failed: tuple[bool, ...]  # which of them failed to learn
  examples: int  # the number of images per value

  @classmethod
  def of(
    cls, values: ArrayLike, examples: int, learned: Sequence[bool] | np.ndarray | None = None
  ) -> "Percent":
    """From the values of all seeds [S] in [0, 1].

    `examples` is the smallest number of images per value; `learned` [S] is False for a seed that
    failed to learn, None if all learned.
    """
    array = np.asarray(values, np.float64)
    kept = np.ones(len(array), bool) if learned is None else np.asarray(learned, bool)
    seeds, failed = tuple(array.tolist()), tuple((~kept).tolist())
    if seeds and not kept.any():
      return cls(math.nan, math.nan, math.nan, seeds, failed, examples)
    mean, low, high = accuracy_interval(array[kept], examples)
    return cls(float(mean), float(low), float(high), seeds, failed, examples)

  def __str__(self) -> str:
    failed, count = sum(self.failed), len(self.seeds)
    if failed == count:
      return f"all {counted(count, 'seed')} failed" if count > 1 else "failed"
    words = f"{100 * self.mean:.2f} [{100 * self.low:.2f}, {100 * self.high:.2f}]"
    return f"{words}, {failed} of {count} failed" if failed else words

  def by_seed(self) -> str:
    """'99.10, 98.95, 11.35 (failed)'."""
    pairs = zip(self.seeds, self.failed)
    return ", ".join(f"{100 * v:.2f}{' (failed)' if failed else ''}" for v, failed in pairs)


class NormName(NamedTuple):
  """A norm as plain text, with Unicode signs, and as TeX for matplotlib."""

  text: str
  sign: str
  tex: str


_NORMS = {
  "linf": NormName("l_inf", "\u2113\u221e", r"$\ell_\infty$"),
  "l2": NormName("l_2", "\u2113\u2082", r"$\ell_2$"),
  "l1": NormName("l_1", "\u2113\u2081", r"$\ell_1$"),
}


def norm_name(name: str) -> NormName:
  """The notation of a norm in robust_opt.sets.BALLS; other sets keep their name."""
  return _NORMS.get(name, NormName(name, name, name))


def ball_name(norm: str, radius: float) -> str:
  """'l_inf 0.1'."""
  return f"{norm_name(norm).text} {radius:.4g}"


def counted(number: int, noun: str) -> str:
  """'1 seed', '3 seeds', '10,000 examples'."""
  return f"{number:,} {noun}{'' if number == 1 else 's'}"


def interval_note(seeds: int) -> str:
  """The explanation of the Percents of a table, as the beginning of a note."""
  if seeds == 1:
    return "One seed [95 % interval for the draw of the test examples alone]."
  draw = "for the draw of the seeds and of the test examples that they share"
  return f"Mean of {counted(seeds, 'seed')} [95 % interval {draw}]."


class Table(NamedTuple):
  """Rows by column name; a missing or None cell is empty. Notes follow the table."""

  title: str
  columns: Sequence[str]
  rows: Sequence[dict[str, Any]]
  notes: Sequence[str] = ()


def markdown(table: Table) -> str:
  """The table in GitHub Markdown; '|' within a cell is escaped."""

  def line(cells: Sequence[Any]) -> str:
    words = ("" if cell is None else str(cell).replace("|", "\\|") for cell in cells)
    return "| " + " | ".join(words) + " |"

  lines = [f"**{table.title}**", "", line(table.columns), "|---" * len(table.columns) + "|"]
  lines += [line([row.get(column) for column in table.columns]) for row in table.rows]
  return "\n".join([*lines, *(f"\n{note}" for note in table.notes)]) + "\n"


def comma_separated(table: Table) -> str:
  """The table as CSV: an accuracy becomes its mean, its interval, and the value of every seed."""
  accuracies = {c for c in table.columns for row in table.rows if isinstance(row.get(c), Percent)}
  parts = ("", ", low", ", high", ", by seed")
  names = [c + part for c in table.columns for part in (parts if c in accuracies else parts[:1])]
  file = io.StringIO()
  writer = csv.DictWriter(file, names, lineterminator="\n")
  writer.writeheader()
  for row in table.rows:
    cells: dict[str, Any] = {}
    for c in table.columns:
      cell = cells[c] = row.get(c)
      if isinstance(cell, Percent):
        values = {c: cell.mean, f"{c}, low": cell.low, f"{c}, high": cell.high}
        cells |= {n: "" if math.isnan(v) else f"{100 * v:.4f}" for n, v in values.items()}
        cells[f"{c}, by seed"] = cell.by_seed()
    writer.writerow(cells)
  return file.getvalue()


def write(table: Table, stem: Path) -> None:
  """Writes stem.md, stem.csv and stem.json (with the values of all seeds), each atomically."""
  for suffix, text in ((".md", markdown(table)), (".csv", comma_separated(table))):
    with atomic_write(stem.with_suffix(suffix)) as file:
      file.write(text.encode())
  cells = [[(c, row.get(c)) for c in table.columns] for row in table.rows]
  rows = [{c: v._asdict() if isinstance(v, Percent) else v for c, v in row} for row in cells]
  value = json.dumps({"title": table.title, "rows": rows, "notes": list(table.notes)})
  # Numbers that are not finite become null.
  write_json(stem.with_suffix(".json"), json.loads(value, parse_constant=lambda _: None))
