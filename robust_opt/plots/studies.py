"""The figures of a study of several networks and seeds, from arrays."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from robust_opt.plots import base
from robust_opt.plots.base import band, finish, new_figure, one_panel, save
from robust_opt.tables import norm_name


def adversarial_rows(
  rows: Sequence[Mapping[str, Any]], path: Path, title: str = "", columns: int = 10
) -> None:
  """Rows of adversarial examples, each with 'true class -> predicted class' below it.

  Each row is {"name": a norm or another name, "images": [M, H, W, C], "labels": [M],
  "predictions": [M]}, of which at most `columns` are shown.
  """
  pictures = [
    [
      base.Picture(image, f"{label} → {prediction}")
      for image, label, prediction in zip(row["images"], row["labels"], row["predictions"])
    ][:columns]
    for row in rows
  ]
  names = [norm_name(row["name"]).tex for row in rows]
  base.image_rows(list(zip(names, pictures)), path, title)


def accuracy_against_radius(panels: Sequence[Sequence[Mapping[str, Any]]], path: Path) -> None:
  """Rows of panels, accuracy against the radius of the attack, one curve per network.

  Each panel is {"title", "norm", "radius": that of training or None, "curves": {network: {"radii":
  [K], in pixels, "interval": statistics.Interval of [K]}}}.
  """
  columns = max(len(row) for row in panels)
  figure = new_figure(3.1 * columns + 0.4, 2.7 * len(panels) + 0.3)
  axes = np.asarray(figure.subplots(len(panels), columns, squeeze=False, sharey=True))
  for line, row in zip(axes, panels):
    for axis, panel in zip(line, row):
      if panel["radius"] is not None:
        axis.axvline(panel["radius"], color="0.6", lw=1, ls=":")
      for index, (net, values) in enumerate(panel["curves"].items()):
        band(axis, index, net, values["radii"], values["interval"])
      label = f"radius, {norm_name(panel['norm']).tex} (pixels in [0, 1])"
      finish(axis, label, "", legend=False, ylim=base.PERCENT)
      axis.set_title(panel["title"], fontsize=9)
    line[0].set_ylabel("test accuracy (%)")
  axes[0, 0].legend(frameon=False, fontsize=8)
  save(figure, path)


def convergence(curves: Mapping[str, Mapping[str, Any]], path: Path, lowest: float) -> None:
  """Clean test accuracy against the number of updates (logarithmic), from `lowest` in [0, 1] on.

  `curves`: {network: {"steps" [P], "interval": statistics.Interval of [P]}}.
  """
  with one_panel(path, 6.0) as axis:
    for index, (net, values) in enumerate(curves.items()):
      band(axis, index, net, values["steps"], values["interval"], marker=None)
    finish(axis, "updates (logarithmic)", "clean test accuracy (%)", xscale="log")
    axis.set_ylim(bottom=100 * lowest, top=100.0)
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
