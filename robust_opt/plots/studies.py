"""The pictures of a study of several nets and seeds, from arrays; matplotlib alone, no jax.

Each function writes a PNG and a PDF, stem.png and stem.pdf; the same arrays give the same bytes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from robust_opt.files import atomic_write
from robust_opt.plots.figures import NORM_NAMES, new_figure
from robust_opt.statistics import Interval

_COLOURS = ("#000000", "#cc79a7", "#009e73", "#0072b2", "#d55e00")  # for colour-blind readers too
_MARKERS = ("s", "v", "^", "o", "D")


def adversarial_rows(
  rows: Sequence[Mapping[str, Any]], stem: Path, title: str = "", columns: int = 10
) -> None:
  """Rows of adversarial examples with 'true class -> what the net says' below each.

  Args:
    rows: each {"name": a norm or other words, "images" [M, H, W, C], shown clipped to [0, 1],
      "labels" [M], "predictions" [M]}.
    stem: path without suffix.
    title: of the whole picture.
    columns: examples shown of each row, at most.
  """
  count = max(1, min(columns, max(len(row["images"]) for row in rows)))
  figure = new_figure(0.85 * count + 0.7, 1.12 * len(rows) + 0.5)
  axes = np.asarray(figure.subplots(len(rows), count, squeeze=False))
  for line, row in zip(axes, rows):
    line[0].set_ylabel(NORM_NAMES.get(row["name"], row["name"]), fontsize=11)
    for place, axis in enumerate(line):
      axis.set(xticks=[], yticks=[])
      if place >= len(row["images"]):
        axis.set_frame_on(False)
        continue
      picture = np.clip(row["images"][place], 0, 1).squeeze()
      axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
      words = f"{row['labels'][place]} → {row['predictions'][place]}"
      axis.set_xlabel(words, fontsize=8, labelpad=2)
  figure.suptitle(title, fontsize=10)
  _save(figure, stem)


def accuracy_against_radius(panels: Sequence[Sequence[Mapping[str, Any]]], stem: Path) -> None:
  """A grid of panels, accuracy against the radius of the attack, one curve a net.

  Args:
    panels: rows of panels, each {"title", "norm", "radius": that of training or None,
      "curves": {net: {"radii" [K] in pixels, "interval": statistics.Interval of [K]}}}.
    stem: path without suffix.
  """
  columns = max(len(row) for row in panels)
  figure = new_figure(3.1 * columns, 2.7 * len(panels) + 0.3)
  axes = np.asarray(figure.subplots(len(panels), columns, squeeze=False, sharey=True))
  for line, row in zip(axes, panels):
    for axis, panel in zip(line, row):
      if panel["radius"] is not None:
        axis.axvline(panel["radius"], color="0.6", lw=1, ls=":")
      for index, (net, curve) in enumerate(panel["curves"].items()):
        _banded(axis, index, net, curve["radii"], curve["interval"], marks=True)
      norm = NORM_NAMES.get(panel["norm"], panel["norm"])
      axis.set(xlabel=f"radius, {norm} (pixels in [0, 1])", ylim=(-3, 103))
      axis.set_title(panel["title"], fontsize=9)
      axis.grid(alpha=0.3)
    line[0].set_ylabel("test accuracy (%)")
  axes[0, 0].legend(frameon=False, fontsize=8)
  _save(figure, stem)


def convergence(curves: Mapping[str, Mapping[str, Any]], stem: Path, lowest: float) -> None:
  """Clean test accuracy against the number of updates (logarithmic), one curve a net.

  Args:
    curves: {net: {"steps" [P], "interval": statistics.Interval of [P]}}.
    stem: path without suffix.
    lowest: accuracy at which the vertical axis begins, in [0, 1].
  """
  figure = new_figure(6.0, 3.6)
  axis = figure.subplots()
  for index, (net, curve) in enumerate(curves.items()):
    _banded(axis, index, net, curve["steps"], curve["interval"], marks=False)
  axis.set(xlabel="updates (logarithmic)", ylabel="clean test accuracy (%)", xscale="log")
  axis.set_ylim(bottom=100 * lowest, top=100.0)
  axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
  axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
  axis.xaxis.set_minor_formatter(NullFormatter())
  axis.grid(alpha=0.3)
  axis.legend(frameon=False, fontsize=8, loc="lower right")
  _save(figure, stem)


def _banded(axis: Axes, index: int, label: str, x: Any, interval: Interval, marks: bool) -> None:
  """A mean with its interval as a band."""
  colour = _COLOURS[index % len(_COLOURS)]
  marker = _MARKERS[index % len(_MARKERS)] if marks else None
  name = label if label not in NORM_NAMES else f"robust {NORM_NAMES[label]}"
  axis.plot(x, 100 * interval.mean, color=colour, marker=marker, ms=3, lw=1.2, label=name)
  axis.fill_between(x, 100 * interval.low, 100 * interval.high, color=colour, alpha=0.2, lw=0)


def _save(figure: Figure, stem: Path) -> None:
  with matplotlib.rc_context({"pdf.fonttype": 42}):
    with atomic_write(stem.with_suffix(".png")) as file:
      figure.savefig(file, format="png", dpi=100)
    with atomic_write(stem.with_suffix(".pdf")) as file:
      # A date would make every file another one.
      figure.savefig(file, format="pdf", metadata={"CreationDate": None})
