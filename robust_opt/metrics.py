"""Where a run's numbers go: JSON lines, TensorBoard events (no TensorFlow), and the terminal.

with MetricWriter(workdir, resume_step=0) as writer:
  writer.write(step, {"train/loss": 0.3})     # a line {"step": ..., "train/loss": ...}
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from absl import logging
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from tensorboardX import SummaryWriter

from robust_opt.files import atomic_write


class MetricWriter:
  """Appends to metrics.jsonl and to the TensorBoard events of a work directory.

  A resumed run repeats the steps since its checkpoint: the lines of those are dropped first, so
  that every step stands there once.
  """

  def __init__(self, workdir: Path, resume_step: int) -> None:
    path = workdir / "metrics.jsonl"
    if path.exists():
      kept = [json.dumps(r) + "\n" for r in read_metrics(path) if r["step"] <= resume_step]
      with atomic_write(path) as file:
        file.write("".join(kept).encode())
    self._lines = path.open("a", encoding="utf-8")
    self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)

  def write(self, step: int, values: Mapping[str, float | int]) -> None:
    """Writes scalars of one step; a value that is not finite becomes null in the JSON."""
    finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
    self._lines.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
    self._lines.flush()
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  def __enter__(self) -> "MetricWriter":
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    self._lines.close()
    self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
  """The records of a metrics.jsonl; a last line cut short by a kill is left out."""
  records = []
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return records


class ProgressDisplay:
  """A live bar on a terminal, log lines elsewhere.

  The bar shows the epoch, loss, held-out clean and robust accuracy, examples/s and time left.
  """

  def __init__(self, total_steps: int, done_steps: int, epochs: int, enabled: bool) -> None:
    self._console = Console(stderr=True)
    self._epochs = epochs
    self._live = enabled and self._console.is_terminal
    self._log = enabled and not self._live
    self._accuracies = ""
    self._bar = Progress(
      TextColumn("{task.description}"),
      BarColumn(bar_width=20),
      TextColumn("{task.percentage:>3.0f} % {task.fields[words]}"),
      TimeElapsedColumn(),
      TextColumn("left"),
      TimeRemainingColumn(),
      console=self._console,
      disable=not self._live,
    )
    self._task = self._bar.add_task("compiling", total=total_steps, completed=done_steps, words="")

  def steps(self, step: int, epoch: int, loss: float, examples_per_second: float) -> None:
    """After a scan of training steps."""
    words = f"loss {loss:.4f}{self._accuracies} {examples_per_second:,.0f} examples/s"
    description = f"epoch {epoch}/{self._epochs}"
    self._bar.update(self._task, completed=step, description=description, words=words)

  def epoch(self, epoch: int, values: Mapping[str, float | int]) -> None:
    """After an epoch and its evaluation on the held-out examples."""
    clean, robust = values["heldout/clean_accuracy"], values["heldout/robust_accuracy"]
    self._accuracies = f" clean {clean:.2%} robust {robust:.2%}"
    if self._log:
      logging.info(
        "epoch %d/%d loss %.4f held-out clean %.2f %% robust %.2f %%, %.0f examples/s",
        epoch,
        self._epochs,
        values["train/loss"],
        100 * clean,
        100 * robust,
        values["train/examples_per_second"],
      )

  def __enter__(self) -> "ProgressDisplay":
    self._bar.start()
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    self._bar.stop()


def result_table(summary: Mapping[str, Any]) -> Table:
  """The end of a run: accuracies with their counts, for the terminal."""
  table = Table(title=summary["title"], title_justify="left")
  table.add_column("test examples")
  table.add_column("accuracy", justify="right")
  table.add_column("correct", justify="right")
  table.add_column("zero gradients", justify="right")
  for row in summary["results"]:
    correct = f"{row['correct']:,} of {row['total']:,}"
    zeros = "" if row["zero_gradients"] is None else f"{row['zero_gradients']:,}"
    table.add_row(row["what"], f"{row['correct'] / row['total']:.2%}", correct, zeros)
  return table


def print_table(table: Table) -> None:
  """Prints to standard output, where a pipe finds it."""
  Console().print(table)
