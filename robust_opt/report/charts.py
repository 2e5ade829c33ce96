"""The charts of the report, as SVG in the colors of the page.

  charts = radius_charts(runs)       # each Chart(title, svg)

A run has the same color, marker and dashes in every chart. What belongs to run i has the class
run-i, by which the page hides it; colors are the CSS variables of report.css.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from robust_opt.plots import base
from robust_opt.report.data import Run
from robust_opt.sets import BALLS
from robust_opt.tables import Rate, norm_name

SERIES = 6  # colors --series-0 to --series-5
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
MARKS = ("\u25cf", "\u25a0", "\u25c6", "\u25b2", "\u25bc", "\u271a", "\u2716")  # the same as text
DASHES = ("-", "--", ":", "-.", (0, (8, 2)))
NUMBERED_CLASSES = 20  # with more classes, the counts in a confusion matrix would overlap

# Colors in the figures that stand for colors of the page.
_TEXT, _GRID, _AXIS = "#f0f000", "#f0f001", "#f0f002"
_SERIES = [f"#f1f00{i}" for i in range(SERIES)]
_CSS = {_TEXT: "var(--text)", _GRID: "var(--line)", _AXIS: "var(--quiet)"}
_CSS |= {color: f"var(--series-{i})" for i, color in enumerate(_SERIES)}
_CELLS = 0.18, 0.53, 0.78  # of a confusion matrix; opacity is the share, so it suits both schemes

# key of metrics.jsonl -> (title, unit of its axis)
_CURVES = {
  "train/loss": ("Training loss", "loss"),
  "heldout/clean_accuracy": ("Held-out accuracy, clean", "accuracy (%)"),
  "heldout/robust_accuracy": ("Held-out accuracy, own attack", "accuracy (%)"),
  "heldout/pgd_accuracy": ("Held-out accuracy, PGD", "accuracy (%)"),
}


class Chart(NamedTuple):
  """A title in words, and an <svg> element with a description for screen readers."""

  title: str
  svg: str


def radius_charts(runs: Sequence[Run]) -> list[Chart]:
  """Accuracy against the radius, a chart for each norm; evaluations are large open markers."""
  swept = [sweep.norm for run in runs for sweep in run.sweeps]
  claims = [e.stored.claim for run in runs if not run.sweeps for e in run.evaluations]
  evaluated = [claim.norm for claim in claims if not math.isnan(claim.radius)]
  norms = dict.fromkeys([*swept, *(norm for norm in evaluated if norm in BALLS)])
  return [_radius_chart(runs, norm) for norm in norms]


def _radius_chart(runs: Sequence[Run], norm: str) -> Chart:
  sign = norm_name(norm).sign
  figure, axis = _axes(f"radius in {sign} (pixels in [0, 1])", "test accuracy (%)", width=4.0)
  words = []
  for index, run in enumerate(runs):
    for sweep in (sweep for sweep in run.sweeps if sweep.norm == norm):
      _accuracies(axis, index, sweep.radii, sweep.rates, lw=1.8, ms=5)
      first, last = (
        f"{100 * rate.accuracy:.1f} % at radius {radius:.4g}"
        for rate, radius in ((sweep.rates[k], sweep.radii[k]) for k in (0, -1))
      )
      words.append(f"{run.name}: from {first} to {last}")
    in_norm = [e for e in run.evaluations if e.stored.claim.norm == norm]
    evaluations = [e for e in in_norm if not math.isnan(e.stored.claim.radius)]
    if evaluations:
      radii = [evaluation.stored.claim.radius for evaluation in evaluations]
      rates = [evaluation.robust for evaluation in evaluations]
      if not run.sweeps:
        radii, rates = [0.0, *radii], [evaluations[0].clean, *rates]
      _accuracies(axis, index, radii, rates, ls="none", ms=12, mfc="none", mew=2)
      found = (f"{100 * rate.accuracy:.1f} % at {r:.4g}" for rate, r in zip(rates, radii))
      words.append(f"{run.name}, ensemble of attacks: {', '.join(found)}")
  axis.set_ylim(0, 100)
  title = f"Over {sign}"
  alt = f"Test accuracy against the radius of the attack in {sign}. {'; '.join(words)}."
  return Chart(title, base.to_svg(figure, f"radius-{norm}", title, alt, _CSS))


def training_charts(runs: Sequence[Run]) -> list[Chart]:
  """Loss and held-out accuracies against the epoch, a chart for each that any run has logged."""
  return [chart for key in _CURVES if (chart := _training_chart(runs, key)) is not None]


def _training_chart(runs: Sequence[Run], key: str) -> Chart | None:
  title, unit = _CURVES[key]
  is_accuracy = unit == "accuracy (%)"
  factor, suffix = (100, " %") if is_accuracy else (1, "")
  figure, axis = _axes("epoch", unit)
  words = []
  for index, run in enumerate(runs):
    points = [(r["epoch"], r[key]) for r in run.records if r.get(key) is not None]
    if not points:
      continue
    epochs, values = np.array(points, float).T
    marker = {} if len(points) <= 30 else {"marker": None}
    axis.plot(epochs, factor * values, **_style(index), lw=1.8, ms=5, **marker)
    words.append(f"{run.name}: {factor * values[-1]:.4g}{suffix} after epoch {epochs[-1]:.4g}")
  if not words:
    return None
  axis.set_ylim(0, 100 if is_accuracy else None)
  axis.set_xlim(left=0)
  alt = f"{title} against the epoch. {'; '.join(words)}."
  name = "training-" + key.replace("/", "-").replace("_", "-")
  return Chart(title, base.to_svg(figure, name, title, alt, _CSS))


def confusion_chart(name: str, title: str, confusion: np.ndarray) -> Chart:
  """A matrix [C, C] of counts, true class by predicted class, on colors by the share of the class.

  `name` is an identifier, unique on the page.
  """
  totals = confusion.sum(axis=1, keepdims=True)
  shares = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
  figure, axis = _axes("class predicted under attack", "true class", width=4.2, height=4.0)
  colors = np.concatenate([np.full((*shares.shape, 3), _CELLS), 0.7 * shares[..., None]], axis=2)
  axis.imshow(colors, interpolation="none")
  axis.grid(False)
  axis.spines["bottom"].set_visible(False)
  if len(confusion) <= NUMBERED_CLASSES:
    axis.set(xticks=range(len(confusion)), yticks=range(len(confusion)))
    for (row, column), count in np.ndenumerate(confusion):
      if count:
        axis.text(column, row, str(count), ha="center", va="center", color=_TEXT, fontsize=9)
  wrong = confusion - np.diag(np.diag(confusion))
  label, prediction = np.unravel_index(np.argmax(wrong), wrong.shape)
  alt = f"True class by class predicted under attack: {np.trace(confusion)} of {totals.sum()} agree"
  if wrong.any():
    most = wrong[label, prediction]
    alt += f"; the most frequent error, {most} times, is class {prediction} for class {label}"
  return Chart(title, base.to_svg(figure, name, title, f"{alt}.", _CSS))


def _axes(xlabel: str, ylabel: str, width: float = 4.8, height: float = 3.0) -> tuple[Any, Any]:
  """A transparent figure and its axes, in colors of the page."""
  figure = base.new_figure(width, height)
  figure.patch.set_visible(False)
  axis = figure.subplots()
  axis.patch.set_visible(False)
  axis.spines[["top", "right", "left"]].set_visible(False)
  axis.spines["bottom"].set_color(_AXIS)
  axis.tick_params(length=0, labelcolor=_TEXT, labelsize=10)
  axis.grid(color=_GRID, lw=0.8)
  axis.set_axisbelow(True)
  axis.set_xlabel(xlabel, color=_TEXT, fontsize=10)
  axis.set_ylabel(ylabel, color=_TEXT, fontsize=10)
  return figure, axis


def _style(index: int) -> dict[str, Any]:
  return {
    "color": _SERIES[index % SERIES],
    "marker": MARKERS[index % len(MARKERS)],
    "ls": DASHES[index % len(DASHES)],
    "gid": f"class-run-{index}",
    "clip_on": False,
  }


def _accuracies(axis: Any, index: int, x: Any, rates: Sequence[Rate], **style: Any) -> None:
  """Accuracies in percent with their intervals."""
  accuracy = np.array([rate.accuracy for rate in rates])
  low, high = np.array([rate.interval for rate in rates]).T
  errors = 100 * np.maximum(0, [accuracy - low, high - accuracy])
  shared = _style(index) | {"elinewidth": 1.1, "capsize": 2.5} | style
  for artist in axis.errorbar(x, 100 * accuracy, yerr=errors, **shared).get_children():
    artist.set_gid(f"class-run-{index}")
