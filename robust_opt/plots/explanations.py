"""The pictures of `robust_opt.theory.explanations`, from arrays; matplotlib alone, no jax.

  logits_against_epsilon(epsilons, logits[:, :6], labels[:6], Path("sweep.png"))
  class_slices(predictions[:4], labels[:4], extent=1.0, num_classes=10, path=Path("slices.png"))

Each function writes one PNG. Classes are told apart by colour-blind readers too: curves by the
kind of line beside the colour, regions by their number.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_hex
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from scipy import ndimage

from robust_opt.plots.figures import COLOURS, new_figure, save

# Ten colours that colour-blind readers can tell apart: the "muted" scheme of Paul Tol.
_CLASSES = (
  *("#332288", "#cc6677", "#117733", "#88ccee", "#882255"),
  *("#999933", "#44aa99", "#aa4499", "#ddcc77", "#777777"),
)
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "v", "D")
_MOST_ENTRIES = 12  # of a legend of classes


def growth_with_dimension(
  dimensions: Sequence[int], worst: np.ndarray, noise: np.ndarray, path: Path
) -> None:
  """Change of a linear activation against the number of inputs, both axes logarithmic.

  Args:
    dimensions: [D], ascending.
    worst: [D], by eps sign(w).
    noise: [D], by random signs of the same size.
    path: PNG to write.
  """
  figure = new_figure(5.4, 3.6)
  axis = figure.subplots()
  curves = (
    (worst, r"$\epsilon\,$sign$(w)$, grows as $n$", "-", "o"),
    (noise, r"$\epsilon\,\times$ random signs, grows as $\sqrt{n}$", "--", "s"),
  )
  for (values, words, line, marker), colour in zip(curves, COLOURS):
    axis.plot(dimensions, values, color=colour, ls=line, marker=marker, ms=4, label=words)
  axis.set(xscale="log", yscale="log", xlabel="number of inputs, $n$")
  axis.set_ylabel(r"change of the activation $\langle w, x \rangle$")
  axis.grid(alpha=0.3)
  axis.legend(frameon=False, fontsize=9)
  save(figure, path)


def logits_against_epsilon(
  epsilons: np.ndarray, logits: np.ndarray, labels: np.ndarray, path: Path, columns: int = 3
) -> None:
  """Logits along a line through each example, a panel each; shaded where the class is wrong.

  With more than ten classes, those that are never the largest are grey.

  Args:
    epsilons: [E], ascending.
    logits: [E, P, C].
    labels: [P], drawn thick and black.
    path: PNG to write.
    columns: panels beside each other, at most.
  """
  count, num_classes = logits.shape[1:]
  columns = min(columns, count)
  rows = math.ceil(count / columns)
  figure = new_figure(3.0 * columns + 1.3, 2.5 * rows + 0.3)
  axes = np.asarray(figure.subplots(rows, columns, squeeze=False, sharex=True)).reshape(-1)
  predictions = logits.argmax(axis=-1)
  styles = _class_lines(np.unique(predictions).tolist(), num_classes)
  for place, axis in enumerate(axes):
    if place >= count:
      axis.set_axis_off()
      continue
    label = int(labels[place])
    for k in range(num_classes):
      style = styles.get(k, {"color": "0.8", "ls": "-", "lw": 0.5, "zorder": 1})
      if k == label:
        style = {"color": "black", "ls": "-", "lw": 2.2, "zorder": 3}
      axis.plot(epsilons, logits[:, place, k], **style)
    _shade(axis, epsilons, predictions[:, place] != label)
    axis.axvline(0, color="0.4", lw=0.8, ls=":")
    axis.set_xlim(epsilons[0], epsilons[-1])
    axis.set_title(f"class {label}", fontsize=9)
    # Columns that end a row above the last have nothing below them.
    if place + columns >= count:
      axis.set_xlabel(r"$\epsilon$")
      axis.tick_params(labelbottom=True)
    if place % columns == 0:
      axis.set_ylabel("logits")
  entries: list[Artist] = [Line2D([], [], color="black", lw=2.2, label="true class")]
  # What is the true class of every panel is black in all of them.
  named = [k for k in styles if np.any(np.asarray(labels) != k)]
  entries += [Line2D([], [], label=f"class {k}", **styles[k]) for k in named[:_MOST_ENTRIES]]
  if len(named) > _MOST_ENTRIES:
    entries.append(Line2D([], [], ls="none", label=f"and {len(named) - _MOST_ENTRIES} more"))
  entries.append(Patch(color="0.5", alpha=0.25, lw=0, label="misclassified"))
  figure.legend(handles=entries, loc="outside right center", frameon=False, fontsize=8)
  save(figure, path)


def class_slices(
  predictions: np.ndarray,
  labels: np.ndarray,
  extent: float,
  num_classes: int,
  path: Path,
  columns: int = 4,
  directions: tuple[str, str] = ("$a$", "$b$"),
) -> None:
  """Predicted classes on slices x + a u + b v, a panel for each example; a cross at x.

  Args:
    predictions: [P, R, R], first along u; -1 is left white.
    labels: [P].
    extent: largest a and b.
    num_classes: C; up to ten, a class has the same colour in every picture.
    path: PNG to write.
    columns: panels beside each other, at most.
    directions: what the axes are called, along u and along v.
  """
  count = len(predictions)
  columns = min(columns, count)
  rows = math.ceil(count / columns)
  figure = new_figure(2.3 * columns + 1.2, 2.5 * rows + 0.2)
  figure.set_layout_engine("compressed")  # for pictures, whose sides have a fixed ratio
  axes = np.asarray(figure.subplots(rows, columns, squeeze=False)).reshape(-1)
  shown = [k for k in np.unique(predictions).tolist() if k >= 0]
  colour_of = _class_colours(shown, num_classes)
  colours = ListedColormap([colour_of.get(k, "white") for k in range(num_classes)])
  for place, axis in enumerate(axes):
    if place >= count:
      axis.set_axis_off()
      continue
    picture = predictions[place].T  # rows of a picture are vertical: a goes to the right
    axis.imshow(
      picture,
      cmap=colours.with_extremes(under="white"),
      vmin=-0.5,
      vmax=num_classes - 0.5,
      origin="lower",
      extent=(-extent, extent, -extent, extent),
      interpolation="nearest",
    )
    axis.plot(0, 0, marker="+", color="white", ms=9, mew=3)
    axis.plot(0, 0, marker="+", color="black", ms=8, mew=1.2)
    _number_regions(axis, picture, extent)
    axis.set_title(f"class {labels[place]}", fontsize=9)
    axis.set(xticks=[-extent, 0, extent], yticks=[-extent, 0, extent])
    axis.tick_params(labelsize=8)
    if place + columns >= count:
      axis.set_xlabel(directions[0], fontsize=9)
    if place % columns == 0:
      axis.set_ylabel(directions[1], fontsize=9)
  if len(shown) <= _MOST_ENTRIES:
    entries = [Patch(color=colour_of[k], label=f"class {k}") for k in shown]
    if (predictions < 0).any():
      entries.append(Patch(fc="white", ec="0.5", label="not finite"))
    figure.legend(handles=entries, loc="outside right center", frameon=False, fontsize=8)
  save(figure, path)


def error_against_angle(angles: np.ndarray, errors: Mapping[str, np.ndarray], path: Path) -> None:
  """Error on examples that are turned towards the gradient, one curve a net.

  Args:
    angles: [A], in radians; drawn in degrees.
    errors: name of the net -> [A], in [0, 1].
    path: PNG to write.
  """
  figure = new_figure(5.4, 3.6)
  axis = figure.subplots()
  for index, (net, error) in enumerate(errors.items()):
    axis.plot(
      np.degrees(angles),
      100 * np.asarray(error),
      color=COLOURS[index % len(COLOURS)],
      ls=_LINES[index // len(COLOURS) % len(_LINES)],
      marker=_MARKERS[index % len(_MARKERS)],
      ms=3.5,
      label=net,
    )
  axis.set(xlabel="angle towards the gradient (degrees)", ylabel="error (%)", ylim=(-3, 103))
  axis.grid(alpha=0.3)
  axis.legend(frameon=False, fontsize=9)
  save(figure, path)


def transfer_heat_map(
  accuracy: np.ndarray, sources: Sequence[str], targets: Sequence[str], path: Path
) -> None:
  """The error of every net on the examples made against every net, in percent.

  Args:
    accuracy: [M, N] in [0, 1], a row for each source; NaN is left blank.
    sources: M names, of the nets that the examples are made against.
    targets: N names, of the nets that classify them.
    path: PNG to write.
  """
  error = 100 * (1 - np.asarray(accuracy, float))
  figure = new_figure(0.85 * len(targets) + 3.2, 0.5 * len(sources) + 2.0)
  axis = figure.subplots()
  image = axis.imshow(error, cmap="cividis", vmin=0, vmax=100, aspect="auto")
  for (row, column), value in np.ndenumerate(error):
    if np.isfinite(value):
      # The lower half of the map is dark.
      colour = "white" if value < 50 else "black"
      axis.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=9)
  axis.set_xticks(range(len(targets)), targets, rotation=30, ha="right", rotation_mode="anchor")
  axis.set_yticks(range(len(sources)), sources)
  axis.tick_params(labelsize=9, length=0)
  axis.set(xlabel="classified by", ylabel="made against")
  figure.colorbar(image, ax=axis, label="error (%)")
  save(figure, path)


def weights_and_examples(
  weights: np.ndarray,
  perturbation: np.ndarray,
  clean: np.ndarray,
  perturbed: np.ndarray,
  path: Path,
  errors: tuple[float, float] | None = None,
) -> None:
  """A linear classifier's weights, the perturbation, examples without and with it, in a row.

  As figure 2 of Goodfellow et al. 2015, for logistic regression of 3 against 7.

  Args:
    weights: [H, W].
    perturbation: [H, W], of the second class's examples, say: eps sign(w).
    clean: [N, H, W], laid out in a square, shown clipped to [0, 1].
    perturbed: [N, H, W].
    path: PNG to write.
    errors: on clean and on perturbed test examples, in [0, 1], to be written below these.
  """
  figure = new_figure(10.0, 3.2)
  figure.set_layout_engine("compressed")  # for pictures, whose sides have a fixed ratio
  axes, below = figure.subplots(2, 4, height_ratios=(1, 0.05))
  for axis, picture, bar_axis in zip(axes, (weights, perturbation), below):
    span = float(np.abs(picture).max()) or 1.0
    shown = axis.imshow(picture, cmap="RdBu_r", vmin=-span, vmax=span, interpolation="nearest")
    bar = figure.colorbar(shown, cax=bar_axis, orientation="horizontal", ticks=[-span, 0, span])
    numbers = [f"{value:.2g}".replace("-", "\N{MINUS SIGN}") for value in (-span, 0, span)]
    bar.ax.set_xticklabels(numbers, fontsize=8)
  for place, images in enumerate((clean, perturbed)):
    picture = _tiled(np.clip(images, 0, 1))
    axes[2 + place].imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    below[2 + place].set_axis_off()
    if errors is not None:
      words = f"error {100 * errors[place]:.1f} %"
      below[2 + place].text(0.5, 0.5, words, ha="center", va="center", fontsize=9)
  titles = ("weights", "perturbation", "clean examples", "perturbed examples")
  for axis, title in zip(axes, titles):
    axis.set_title(title, fontsize=10)
    axis.set(xticks=[], yticks=[])
  save(figure, path)


def _class_colours(shown: Sequence[int], num_classes: int) -> dict[int, str]:
  """Class -> colour: fixed for up to ten classes, else told apart among those that are shown."""
  if num_classes <= len(_CLASSES):
    return dict(enumerate(_CLASSES[:num_classes]))
  if len(shown) <= len(_CLASSES):
    return dict(zip(shown, _CLASSES))
  shades = colormaps["viridis"](np.linspace(0, 1, len(shown)))
  return {k: to_hex(shade) for k, shade in zip(shown, shades)}


def _class_lines(shown: Sequence[int], num_classes: int) -> dict[int, dict[str, Any]]:
  colours = _class_colours(shown, num_classes)
  return {
    k: {"color": colour, "ls": _LINES[place % len(_LINES)], "lw": 1.2, "zorder": 2}
    for place, (k, colour) in enumerate(colours.items())
  }


def _shade(axis: Axes, epsilons: np.ndarray, wrong: np.ndarray) -> None:
  """Greys every run of wrong values, to half way to the next right one."""
  middles = (epsilons[1:] + epsilons[:-1]) / 2
  edges = np.concatenate([epsilons[:1], middles, epsilons[-1:]])
  turns = np.flatnonzero(np.diff(np.concatenate([[False], wrong, [False]]).astype(int)))
  for begin, end in turns.reshape(-1, 2):
    axis.axvspan(edges[begin], edges[end], color="0.5", alpha=0.25, lw=0, zorder=0)


def _number_regions(axis: Axes, picture: np.ndarray, extent: float) -> None:
  """Writes the class into every region that has room for it, where it is widest."""
  resolution = len(picture)
  for k in np.unique(picture[picture >= 0]):
    parts, count = ndimage.label(picture == k)
    for part in range(1, count + 1):
      # The frame bounds a region too, and so does the cross at x.
      inside = np.pad(parts == part, 1)
      middle, arm = (resolution + 1) // 2, resolution // 25
      inside[middle - arm : middle + arm + 1, middle - arm : middle + arm + 1] = False
      depth = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
      if depth.max() < 0.05 * resolution:
        continue
      row, column = np.unravel_index(depth.argmax(), depth.shape)
      a, b = 2 * extent * (np.array([column, row]) + 0.5) / resolution - extent
      words = axis.text(a, b, str(k), ha="center", va="center", color="white", fontsize=8)
      words.set_path_effects([withStroke(linewidth=2, foreground="black")])


def _tiled(images: np.ndarray) -> np.ndarray:
  """[N, H, W] -> the images in a square or nearly so, with white lines between them."""
  side = math.ceil(math.sqrt(len(images)))
  rows = math.ceil(len(images) / side)
  height, width = images.shape[1:]
  sheet = np.ones((rows * (height + 1) - 1, side * (width + 1) - 1))
  for place, image in enumerate(images):
    row, column = divmod(place, side)
    top, left = row * (height + 1), column * (width + 1)
    sheet[top : top + height, left : left + width] = image
  return sheet


def labelled_rows(rows: Mapping[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
  """Images of several data sets under each other, the label of each above it.

  Args:
    rows: name of the set -> (images [P, H, W, C] in [0, 1], labels [P]).
    path: PNG to write.
  """
  count = max(len(labels) for _, labels in rows.values())
  figure = new_figure(1.1 + 0.8 * count, 0.95 * len(rows))
  axes = figure.subplots(len(rows), count, squeeze=False)
  for line, (name, (images, labels)) in zip(axes, rows.items(), strict=True):
    for axis in line:
      axis.set_axis_off()
    for axis, image, label in zip(line, images, labels):
      axis.imshow(np.squeeze(np.clip(image, 0, 1)), cmap="gray", vmin=0, vmax=1)
      axis.set_title(str(label), fontsize=8, pad=2)
    line[0].text(-0.35, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
  save(figure, path)


def gaussian_model(
  mean: np.ndarray,
  covariances: Sequence[np.ndarray],
  labels: Sequence[str],
  budgets: np.ndarray,
  cosines: np.ndarray,
  path: Path,
) -> None:
  """Left: learnt covariances and the gradients that follow; right: how they turn to the mean.

  Args:
    mean: [2].
    covariances: K matrices [2, 2], learnt at growing budgets.
    labels: K budgets, in words.
    budgets: [M], the first 0.
    cosines: [M], of the angle between gradient and mean.
    path: PNG to write.
  """
  figure = new_figure(7.6, 3.4)
  left, right = figure.subplots(1, 2)
  turn = np.linspace(0, 2 * np.pi, 200)
  circle = np.stack([np.cos(turn), np.sin(turn)])
  for covariance, label, colour in zip(covariances, labels, COLOURS):
    variances, axes = np.linalg.eigh(covariance)
    x, y = (axes * np.sqrt(variances)) @ circle
    # The ellipse of one standard deviation grows with the budget; its shape is what matters.
    size = np.sqrt(np.max(variances))
    left.plot(x / size, y / size, color=colour, lw=1.2, label=label)
    gradient = np.linalg.solve(covariance, mean)
    gradient = 1.3 * gradient / np.linalg.norm(gradient)
    left.annotate("", gradient, (0, 0), arrowprops={"arrowstyle": "->", "color": colour})
  towards = 1.3 * mean / np.linalg.norm(mean)
  left.plot([0, towards[0]], [0, towards[1]], color="black", ls=":", lw=1, label="mean")
  left.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal", xticks=[], yticks=[])
  left.legend(frameon=False, fontsize=7, title="budget", title_fontsize=7, loc="lower left")
  right.plot(budgets[1:], cosines[1:], color=COLOURS[0], lw=1.2)
  right.axhline(cosines[0], color="black", ls=":", lw=1, label="no adversary")
  right.set_xscale("log")
  right.set(xlabel="budget of the adversary", ylabel="cosine of gradient and mean")
  right.grid(alpha=0.3)
  right.legend(frameon=False)
  save(figure, path)
