"""Tables of a study as Markdown, CSV and JSON, from rows of plain values; no jax, no pandas.

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


class Percent(NamedTuple):
  """An accuracy over seeds, for one cell: in Markdown '99.12 [98.90, 99.30]'.

  Attributes:
    mean: over the seeds that learned, in [0, 1]; NaN if all failed.
    low: of the 95 % interval (`statistics.accuracy_interval`); NaN if all failed.
    high: likewise.
    seeds: the value of every seed, failed ones included.
    failed: which of them failed to learn.
    examples: how many images each value is a mean over.
  """

  mean: float
  low: float
  high: float
  seeds: tuple[float, ...]
  failed: tuple[bool, ...]
  examples: int

  @classmethod
  def of(
    cls, values: ArrayLike, examples: int, learned: Sequence[bool] | np.ndarray | None = None
  ) -> "Percent":
    """From the values of all seeds.

    Args:
      values: [S], in [0, 1].
      examples: how many images each is a mean over; the smallest count where they differ.
      learned: [S], False for a seed that failed to learn, which is counted apart; None: all did.
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
  """Of the names in robust_opt.sets.BALLS; sets other than balls keep their own name."""
  return _NORMS.get(name, NormName(name, name, name))


def ball_name(norm: str, radius: float) -> str:
  """'l_inf 0.1'."""
  return f"{norm_name(norm).text} {radius:.4g}"


def counted(number: int, noun: str) -> str:
  """'1 seed', '3 seeds', '10,000 examples'."""
  return f"{number:,} {noun}{'' if number == 1 else 's'}"


def interval_note(seeds: int) -> str:
  """How the Percents of a table are to be read, as the beginning of a note."""
  if seeds == 1:
    return "One seed [95 % interval for the draw of the test examples alone]."
  return (
    f"Mean of {counted(seeds, 'seed')} [95 % interval for the draw of the seeds and of the test "
    "examples that they share]."
  )


class Table(NamedTuple):
  """Rows by column name; a missing or None cell is empty. Notes stand below the table."""

  title: str
  columns: Sequence[str]
  rows: Sequence[dict[str, Any]]
  notes: Sequence[str] = ()


def markdown(table: Table) -> str:
  """As a GitHub table; a '|' within a cell is escaped."""

  def line(cells: Sequence[Any]) -> str:
    words = ("" if cell is None else str(cell).replace("|", "\\|") for cell in cells)
    return "| " + " | ".join(words) + " |"

  lines = [f"**{table.title}**", "", line(table.columns), "|---" * len(table.columns) + "|"]
  lines += [line([row.get(column) for column in table.columns]) for row in table.rows]
  for note in table.notes:
    lines += ["", note]
  return "\n".join(lines) + "\n"


def comma_separated(table: Table) -> str:
  """As CSV: an accuracy becomes its mean, the ends of its interval, and every seed's value."""
  accuracies = {c for c in table.columns for row in table.rows if isinstance(row.get(c), Percent)}
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  parts = ("low", "high", "by seed")
  names = [[c, *(f"{c}, {p}" for p in parts)] if c in accuracies else [c] for c in table.columns]
  writer.writerow([name for group in names for name in group])
  for row in table.rows:
    cells: list[Any] = []
    for column in table.columns:
      cell = row.get(column)
      if isinstance(cell, Percent):
        values = (cell.mean, cell.low, cell.high)
        cells += ["" if math.isnan(value) else f"{100 * value:.4f}" for value in values]
        cells.append(cell.by_seed())
      else:
        cells += [cell, None, None, None] if column in accuracies else [cell]
    writer.writerow(cells)
  return file.getvalue()


def write(table: Table, stem: Path) -> None:
  """Writes stem.md, stem.csv and stem.json (every seed's value), each whole or not at all."""
  for suffix, text in ((".md", markdown(table)), (".csv", comma_separated(table))):
    with atomic_write(stem.with_suffix(suffix)) as file:
      file.write(text.encode())
  rows = [{column: _json(row.get(column)) for column in table.columns} for row in table.rows]
  value = {"title": table.title, "rows": rows, "notes": list(table.notes)}
  write_json(stem.with_suffix(".json"), json.loads(json.dumps(value)))


def _json(cell: Any) -> Any:
  """Strict JSON: what is not finite becomes null."""
  if isinstance(cell, Percent):
    return {key: _json(value) for key, value in cell._asdict().items()}
  if isinstance(cell, (tuple, list)):
    return [_json(value) for value in cell]
  if isinstance(cell, dict):
    return {key: _json(value) for key, value in cell.items()}
  if isinstance(cell, float) and not math.isfinite(cell):
    return None
  return cell
