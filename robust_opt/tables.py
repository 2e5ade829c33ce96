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
from robust_opt.statistics import mean_interval


class Percent(NamedTuple):
  """An accuracy over seeds, for one cell: in Markdown '99.12 +- 0.05', in CSV two columns.

  Attributes:
    mean: in [0, 1].
    half_width: of the 95 % interval, NaN for one seed.
    seeds: the value of every seed.
  """

  mean: float
  half_width: float
  seeds: tuple[float, ...]

  @classmethod
  def of(cls, values: ArrayLike) -> "Percent":
    """From the values of all seeds, [S]."""
    interval = mean_interval(values)
    seeds = tuple(map(float, np.asarray(values)))
    return cls(float(interval.mean), float(interval.half_width), seeds)

  def __str__(self) -> str:
    if math.isnan(self.half_width):
      return f"{100 * self.mean:.2f}"
    return f"{100 * self.mean:.2f} ± {100 * self.half_width:.2f}"


def counted(number: int, noun: str) -> str:
  """'1 seed', '3 seeds', '10,000 examples'."""
  return f"{number:,} {noun}{'' if number == 1 else 's'}"


def interval_note(seeds: int) -> str:
  """How the Percents of a table are to be read, as the beginning of a note."""
  if seeds == 1:
    return "One seed, so no interval."
  return f"Mean ± half width of the 95 % t interval over {counted(seeds, 'seed')}."


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
  """As CSV: an accuracy becomes its percentage and, in a column of its own, its half width."""
  accuracies = {c for c in table.columns for row in table.rows if isinstance(row.get(c), Percent)}
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  names = [[c, f"{c}, half width"] if c in accuracies else [c] for c in table.columns]
  writer.writerow([name for group in names for name in group])
  for row in table.rows:
    cells: list[Any] = []
    for column in table.columns:
      cell = row.get(column)
      if isinstance(cell, Percent):
        width = "" if math.isnan(cell.half_width) else f"{100 * cell.half_width:.4f}"
        cells += [f"{100 * cell.mean:.4f}", width]
      else:
        cells += [cell, None] if column in accuracies else [cell]
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
