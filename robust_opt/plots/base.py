"""What all figures share: colors, panels, curves, rows of images, and writing them to files.

  with one_panel(Path("loss.png")) as axis:
    curve(axis, 0, epochs, losses, label="loss")
    finish(axis, "epoch", "loss")

matplotlib without global state or a display; no jax.
"""

import html
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from robust_opt.files import atomic_write
from robust_opt.statistics import Interval
from robust_opt.tables import norm_name

# For color-blind readers: https://jfly.uni-koeln.de/color/. Markers and dashes repeat the message.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000")
MARKERS = ("o", "s", "^", "v", "D")
DASHES = ("-", "--", "-.", ":")
PERCENT = (-3, 103)  # limits of an axis of percentages


def new_figure(width: float, height: float) -> Figure:
  """An empty figure; width and height in inches."""
  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  return figure


@contextmanager
def one_panel(path: Path, width: float = 5.4, height: float = 3.6) -> Iterator[Axes]:
  """A figure of one panel, saved at the end of the block."""
  figure = new_figure(width, height)
  yield figure.subplots()
  save(figure, path)


def panels(
  count: int,
  columns: int,
  size: tuple[float, float],
  labels: tuple[str, str],
  fontsize: float = 10,
  legend: float = 1.2,
  **options: Any,
) -> tuple[Figure, list[Axes]]:
  """A figure of `count` panels, at most `columns` in a row, with room for a legend on the right.

  The size of a panel and the width of the legend are in inches. `labels`, of x and y, are on the
  lowest panel of each column and on the first of each row. `options`: of `Figure.subplots`.
  """
  columns = min(columns, count)
  rows = math.ceil(count / columns)
  figure = new_figure(size[0] * columns + legend, size[1] * rows + 0.3)
  axes = np.asarray(figure.subplots(rows, columns, squeeze=False, **options)).reshape(-1).tolist()
  for axis in axes[count:]:
    axis.set_axis_off()
  used = axes[:count]
  for axis in used[-columns:]:
    axis.set_xlabel(labels[0], fontsize=fontsize)
    axis.tick_params(labelbottom=True)
  for axis in used[::columns]:
    axis.set_ylabel(labels[1], fontsize=fontsize)
  return figure, used


def curve(axis: Axes, index: int, x: Any, y: Any, **style: Any) -> None:
  """The index-th curve of an axis: color and marker tell it apart; `style` overrides them."""
  shared = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
  axis.plot(x, y, **{**shared, "ms": 3.5, "lw": 1.2, **style})


def band(axis: Axes, index: int, label: str, x: Any, interval: Interval, **style: Any) -> None:
  """A mean accuracy in percent, with its interval shaded."""
  name = norm_name(label).tex
  name = label if name == label else f"robust {name}"
  curve(axis, index, x, 100 * interval.mean, label=name, **style)
  color = COLORS[index % len(COLORS)]
  axis.fill_between(x, 100 * interval.low, 100 * interval.high, color=color, alpha=0.2, lw=0)


def finish(axis: Axes, xlabel: str, ylabel: str, legend: bool = True, **properties: Any) -> None:
  """Labels, a grid and a legend without frame; `properties` are those of `Axes.set`."""
  axis.set(xlabel=xlabel, ylabel=ylabel, **properties)
  axis.grid(alpha=0.3)
  if legend:
    axis.legend(frameon=False, fontsize=9)


class Picture(NamedTuple):
  """One image of a row: [H, W] or [H, W, C], shown clipped to [0, 1], with a caption below."""

  image: np.ndarray
  caption: str = ""
  highlight: bool = False


def image_rows(
  rows: Sequence[tuple[str, Sequence[Picture]]],
  path: Path,
  title: str = "",
  columns: Sequence[str] = (),
) -> None:
  """Rows (name, images) with captions, the name on the left, below the titles of the columns."""
  count = max(1, *(len(pictures) for _, pictures in rows))
  width = 0.95 * count + 0.8
  title = textwrap.fill(title, round(14 * width))
  figure = new_figure(width, 1.22 * len(rows) + 0.5 + 0.17 * title.count("\n"))
  axes = np.asarray(figure.subplots(len(rows), count, squeeze=False))
  for line, (name, pictures) in zip(axes, rows):
    line[0].set_ylabel(name, fontsize=9)
    for axis in line:
      axis.set(xticks=[], yticks=[])
      axis.set_frame_on(False)
    for axis, picture in zip(line, pictures):
      axis.set_frame_on(True)
      shown = np.clip(picture.image, 0, 1)
      if shown.shape[2:] == (1,):  # the channel axis alone: height or width may be 1 too
        shown = shown[..., 0]
      axis.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
      color, weight = (COLORS[1], "bold") if picture.highlight else ("black", "normal")
      axis.set_xlabel(picture.caption, fontsize=8, labelpad=2, color=color, weight=weight)
  for axis, words in zip(axes[0], columns):
    axis.set_title(words, fontsize=9)
  figure.suptitle(title, fontsize=10)
  save(figure, path)


def save(figure: Figure, path: Path) -> None:
  """Writes a PNG or PDF, by the suffix of the path, or both if it has none.

  Each file is written whole or not at all; the same figure gives the same bytes.
  """
  for suffix in [path.suffix] if path.suffix else [".png", ".pdf"]:
    target = path.with_suffix(suffix)
    metadata = {"CreationDate": None} if suffix == ".pdf" else None
    with matplotlib.rc_context({"pdf.fonttype": 42}), atomic_write(target) as file:
      figure.savefig(file, format=suffix[1:], dpi=130, metadata=metadata)


def to_svg(
  figure: Figure, name: str, title: str, description: str, colors: Mapping[str, str]
) -> str:
  """The figure as an <svg> element for a page, its text in the page's font.

  An artist's gid "class-run-0" becomes the class "run-0" of its group. Title and description are
  read out by screen readers.

  Args:
    figure: with a transparent background, say.
    name: identifier, unique on the page.
    title: of the figure.
    description: of the figure.
    colors: color in the figure (#rrggbb) -> color in CSS, such as var(--text).
  """
  file = StringIO()
  with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
    figure.savefig(file, format="svg", metadata={"Date": None})
  width, height = (72 * inches for inches in figure.get_size_inches())
  body = file.getvalue()
  unused = r'^.*?</metadata>|<style.*?</style>|<g id="[^"]*"/>|xlink:(?=href)'
  body = re.sub(unused, "", body, flags=re.DOTALL)
  body = re.sub(r'<g id="class-([\w-]+)">', r'<g class="\1">', body)
  body = re.sub(r'<g id="[^"]*">', "<g>", body)
  body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
  body = re.sub(r"font-family:[^;\"]*;?", "", body)
  body = re.sub(r"#[0-9a-f]{6}", lambda color: colors.get(color[0], color[0]), body)
  return (
    f'<svg viewBox="0 0 {width:g} {height:g}" role="img" '
    f'aria-labelledby="{name}-title {name}-description">'
    f'<title id="{name}-title">{html.escape(title)}</title>'
    f'<desc id="{name}-description">{html.escape(description)}</desc>{body}'
  )
