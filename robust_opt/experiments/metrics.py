"""Where a run's numbers go: JSON lines, the logger of its config, and the terminal.

with MetricWriter(workdir, resume_step=0) as writer:
  writer.write(step, {"train/loss": 0.3})     # a line {"step": ..., "train/loss": ...}
"""

import contextlib
import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from absl import logging
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from robust_opt import tables
from robust_opt.evaluation.headline import Headline, attack_over, of_attack
from robust_opt.experiments.loggers import open_logger
from robust_opt.files import atomic_write, name_in_errors
from robust_opt.sets import BALLS, words
from robust_opt.tables import Rate
from robust_opt.training import progress

PICTURES = ("curves.png", "accuracy.png", "examples.png")  # of a finished run


class MetricWriter:
  """Appends to metrics.jsonl, and to the logger that a config names (`loggers`).

  Lines of the steps that a resumed run repeats are dropped first: every step occurs once.

  Raises:
    InputError: from the constructor, if the logger cannot be opened.
    WriteError: from the constructor and from `write`, if the disk is full, say.
  """

  def __init__(
    self,
    workdir: Path,
    resume_step: int,
    logger: str = "tensorboard",
    config: Mapping[str, Any] = MappingProxyType({}),
  ) -> None:
    self._path, written = workdir / "metrics.jsonl", resume_step
    if self._path.exists():
      records = read_metrics(self._path)
      written = max([written, *(r["step"] for r in records)])
      kept = [json.dumps(r) + "\n" for r in records if r["step"] <= resume_step]
      with atomic_write(self._path) as file:
        file.write("".join(kept).encode())
    with name_in_errors(self._path):
      self._logger = open_logger(logger, workdir, resume_step, written, config)
      self._lines = self._path.open("a", encoding="utf-8")

  def write(self, step: int, values: Mapping[str, float | int]) -> None:
    """Writes scalars of one step; a value that is not finite becomes null in the JSON."""
    finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
    with name_in_errors(self._path):
      self._lines.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
      self._lines.flush()
      self._logger.write(step, values)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    with contextlib.suppress(OSError):  # `write` has raised if the disk is full
      self._lines.close()
    with contextlib.suppress(OSError):
      self._logger.close(failed=exception[0] is not None)


def read_metrics(path: Path) -> list[dict[str, Any]]:
  """The records of a metrics.jsonl, without lines that a kill cut short or that are damaged."""
  records = []
  for line in path.read_bytes().splitlines():
    try:
      record = json.loads(line)
    except ValueError:
      continue
    if isinstance(record, dict) and isinstance(record.get("step"), int):
      records.append(record)
  return records


class ProgressDisplay:
  """A live bar on a terminal, log lines elsewhere."""

  def __init__(self, total_steps: int, done_steps: int, epochs: int, enabled: bool) -> None:
    console = Console(stderr=True)
    self._epochs = epochs
    self._live = enabled and console.is_terminal
    self._log = enabled and not self._live
    # Of fixed widths, so that the bar does not jump. 80 columns leave a bar of six or more.
    words = (
      "{task.description} loss {task.fields[loss]:>6} {task.fields[clean]:>12} "
      "{task.fields[robust]:>13} {task.fields[rate]:>9}"
    )
    self._bar = Progress(
      TextColumn(words, table_column=Column(no_wrap=True)),
      BarColumn(bar_width=None, table_column=Column(min_width=1, max_width=20, ratio=1)),
      TimeRemainingColumn(compact=True, table_column=Column(min_width=5, no_wrap=True)),
      TextColumn("left"),
      console=console,
      disable=not self._live,
      expand=False,
    )
    fields: dict[str, Any] = {"loss": "-", "clean": "", "robust": "", "rate": "compiling"}
    name = self._name(1 + done_steps * epochs // max(1, total_steps))
    self._task = self._bar.add_task(name, total=total_steps, completed=done_steps, **fields)

  def steps(self, step: int, epoch: int, loss: float, examples_per_second: float) -> None:
    """After a scan of training steps."""
    rate = f"{examples_per_second:,.0f}/s"
    name, loss_text = self._name(epoch), f"{loss:.4f}"[:6]
    self._bar.update(self._task, completed=step, description=name, loss=loss_text, rate=rate)

  def epoch(self, epoch: int, values: Mapping[str, float | int]) -> None:
    """After an epoch and its evaluation on the held-out examples."""
    clean, robust = values["heldout/clean_accuracy"], values["heldout/robust_accuracy"]
    words = f"clean {100 * clean:.1f}%", f"robust {100 * robust:.1f}%"
    self._bar.update(self._task, clean=words[0], robust=words[1])
    if self._log:
      logging.info(
        f"epoch {epoch}/{self._epochs}, loss {values['train/loss']:.4f}, held-out clean "
        f"{100 * clean:.2f} %, robust {100 * robust:.2f} %, "
        f"{values['train/examples_per_second']:,.0f} examples/s"
      )

  def say(self, sentence: str) -> None:
    """A warning: above the bar, or in the log."""
    if self._live:
      self._bar.console.print(sentence, style="yellow", highlight=False)
    elif self._log:
      logging.warning("%s", sentence)

  def _name(self, epoch: int) -> str:
    return f"epoch {epoch:>{len(str(self._epochs))}}/{self._epochs}"

  def __enter__(self) -> Self:
    self._bar.start()
    return self

  def __exit__(self, *exception: object) -> None:
    self._bar.stop()


def result_table(summary: Mapping[str, Any]) -> Table:
  """The end of a run: accuracies with their counts, for the terminal."""
  left: dict[str, Any] = {"title_justify": "left", "caption_justify": "left", "pad_edge": False}
  where = ", or ".join(dict.fromkeys(map(words.box_in_words, set_configs(summary))))
  caption = f"radii in pixels of [0, 1]; attacks: {where}"
  table = Table(title=summary["title"], caption=caption, box=box.SIMPLE_HEAD, **left)
  table.add_column("test examples", no_wrap=True)
  table.add_column("accuracy", justify="right", no_wrap=True)
  table.add_column("correct", justify="right", no_wrap=True)
  table.add_column("zero gradients", justify="right")
  for row in summary["results"]:
    correct = f"{row['correct']:,} of {row['total']:,}"
    zeros = "" if row["zero_gradients"] is None else f"{row['zero_gradients']:,}"
    table.add_row(result_name(row), f"{row['correct'] / row['total']:.2%}", correct, zeros)
  return table


def set_configs(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The configs of the sets that a run was attacked in, in the order of its results.

  Balls of other norms than the set of the training have its box.
  """
  own, others = summary["config"]["set"], summary["results"][2:]
  return [own, *({**row["set"], "box": own.get("box")} for row in others)]


def headline(summary: Mapping[str, Any], *, unicode: bool = False) -> Headline:
  """The clean accuracy and that under the run's own attack."""
  clean, own = (Rate(row["correct"], row["total"]) for row in summary["results"][:2])
  result = summary["results"][1]
  attack = attack_over(result["attack"]["num_steps"], summary["config"]["set"], unicode=unicode)
  return of_attack(clean, own, attack, result["trained_on"])


def evaluation_flags(summary: Mapping[str, Any]) -> list[str]:
  """The flags of robust_opt.evaluate over the set of the run, or else over a ball; [] for none."""
  own = summary["config"]["set"]
  measured = [row["set"] for row in summary["results"][1:]]
  balls = [u for u in measured if u["name"] in BALLS and u["radius"] > 0]
  if own["name"] == "Transforms":
    return ["--version=grid"]
  fitted = own["name"] == "TangentAt"  # to the training set
  if measured[0]["name"] not in BALLS and summary["results"][1]["trained_on"] and not fitted:
    return ["--version=pgd"]
  return [f"--norm={u['name']}" for u in balls[:1]] + [f"--radius={u['radius']}" for u in balls[:1]]


def closing_lines(summary: Mapping[str, Any]) -> list[str]:
  """Warnings below the table, of what the accuracies should not be read without."""
  found = summary.get("not_learning")
  if not found:
    return []
  warmup = "warmup" in summary["config"]["attack"]
  return [progress.in_words(progress.NotLearning(**found), warmup=warmup)]


def next_steps(workdir: Path, summary: Mapping[str, Any]) -> list[str]:
  """Where the pictures are, and the commands to go on with, as they can be typed."""
  run, chosen = shlex.quote(str(workdir)), evaluation_flags(summary)
  arguments = shlex.join([f"--workdir={workdir}", *chosen])
  ensemble = [f"  python -m robust_opt.evaluate {arguments}"] if chosen else []
  return [
    f"Everything about this run is in {workdir}",
    f"Pictures: {', '.join(PICTURES)}",
    f"Next, {'an ensemble of attacks, and ' if chosen else ''}a page to read:",
    *ensemble,
    f"  python -m robust_opt.report {run}",
  ]


def result_name(result: Mapping[str, Any]) -> str:
  """What an entry of summary["results"] measures: 'clean' or 'l_inf 0.1, 1 step (training)'."""
  if result["set"] is None:
    return "clean"
  name = tables.ball_name(result["set"]["name"], result["set"]["radius"])
  steps = tables.counted(result["attack"]["num_steps"], "step")
  return f"{name}, {steps}{' (training)' if result['trained_on'] else ''}"


def print_table(table: Table) -> None:
  """Prints to standard output, where a pipe finds it."""
  Console().print(table)


def print_sentences(*sentences: str) -> None:
  """Prints a paragraph, wrapped to the width of the terminal."""
  Console(highlight=False).print(" ".join(filter(None, sentences)), markup=False)
