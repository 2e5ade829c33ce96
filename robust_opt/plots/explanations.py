"""The figures of `robust_opt.theory.explanations`, from arrays.

  logits_against_epsilon(epsilons, logits[:, :6], labels[:6], Path("sweep.png"))
  class_slices(predictions[:4], labels[:4], extent=1.0, num_classes=10, path=Path("slices.png"))

Each function writes one PNG. Color-blind readers can tell classes apart too: curves by their
dashes, regions by their number.
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

from robust_opt.plots import base
from robust_opt.plots.base import COLORS, DASHES, curve, finish, new_figure, one_panel, save

# The "muted" scheme of Paul Tol, for color-blind readers: https://sronpersonalpages.nl/~pault/.
_CLASSES = (
  *("#332288", "#cc6677", "#117733", "#88ccee", "#882255"),
  *("#999933", "#44aa99", "#aa4499", "#ddcc77", "#777777"),
)
_LEGEND_ENTRIES = 12  # classes in a legend, at most


def growth_with_dimension(
  dimensions: Sequence[int], worst: np.ndarray, noise: np.ndarray, path: Path
) -> None:
  """Change [D] of a linear activation against the number of inputs [D], on log axes.

  `worst`: by eps sign(w); `noise`: by random signs of the same size.
  """
  with one_panel(path) as axis:
    curve(axis, 0, dimensions, worst, label=r"$\epsilon\,$sign$(w)$, grows as $n$")
    words = r"$\epsilon\,\times$ random signs, grows as $\sqrt{n}$"
    curve(axis, 1, dimensions, noise, label=words, ls="--")
    change = r"change of the activation $\langle w, x \rangle$"
    finish(axis, "number of inputs, $n$", change, xscale="log", yscale="log")


def logits_against_epsilon(
  epsilons: np.ndarray, logits: np.ndarray, labels: np.ndarray, path: Path, columns: int = 3
) -> None:
  """Logits [E, P, C] along a line through each example, at `epsilons` [E], ascending.

  One panel each, shaded where the class is wrong; the logit of the label is thick and black. With
  more than ten classes, those that are never the largest are gray.
  """
  count, num_classes = logits.shape[1:]
  labels_of_axes = (r"$\epsilon$", "logits")
  figure, axes = base.panels(count, columns, (3.0, 2.5), labels_of_axes, legend=1.3, sharex=True)
  predictions = logits.argmax(axis=-1)
  colors = _class_colors(np.unique(predictions).tolist(), num_classes)
  styles: dict[int, dict[str, Any]] = {
    k: {"color": color, "ls": DASHES[index % len(DASHES)], "lw": 1.2, "zorder": 2}
    for index, (k, color) in enumerate(colors.items())
  }
  for index, axis in enumerate(axes):
    label = int(labels[index])
    for k in range(num_classes):
      style = styles.get(k, {"color": "0.8", "ls": "-", "lw": 0.5, "zorder": 1})
      if k == label:
        style = {"color": "black", "ls": "-", "lw": 2.2, "zorder": 3}
      axis.plot(epsilons, logits[:, index, k], **style)
    _shade(axis, epsilons, predictions[:, index] != label)
    axis.axvline(0, color="0.4", lw=0.8, ls=":")
    axis.set_xlim(epsilons[0], epsilons[-1])
    axis.set_title(f"class {label}", fontsize=9)
  entries: list[Artist] = [Line2D([], [], color="black", lw=2.2, label="true class")]
  # The true class of every panel is black in all of them.
  named = [k for k in styles if np.any(np.asarray(labels) != k)]
  entries += [Line2D([], [], label=f"class {k}", **styles[k]) for k in named[:_LEGEND_ENTRIES]]
  if len(named) > _LEGEND_ENTRIES:
    entries.append(Line2D([], [], ls="none", label=f"and {len(named) - _LEGEND_ENTRIES} more"))
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
  """Predicted classes [P, R, R] on slices x + a u + b v, a and b up to `extent`; a cross at x.

  -1 (not finite) stays white. With up to ten classes, a class has the same color in every figure.
  `directions` are the names of u, which is horizontal, and of v.
  """
  figure, axes = base.panels(len(predictions), columns, (2.3, 2.5), directions, fontsize=9)
  figure.set_layout_engine("compressed")  # for images, whose aspect ratio is fixed
  shown = [k for k in np.unique(predictions).tolist() if k >= 0]
  color_of = _class_colors(shown, num_classes)
  colors = ListedColormap([color_of.get(k, "white") for k in range(num_classes)])
  for index, axis in enumerate(axes):
    picture = predictions[index].T  # the rows of an image are vertical; a is horizontal
    axis.imshow(
      picture, cmap=colors.with_extremes(under="white"), vmin=-0.5, vmax=num_classes - 0.5,
      origin="lower", extent=(-extent, extent, -extent, extent), interpolation="nearest",
    )  # fmt: skip
    axis.plot(0, 0, marker="+", color="white", ms=9, mew=3)
    axis.plot(0, 0, marker="+", color="black", ms=8, mew=1.2)
    _number_regions(axis, picture, extent)
    axis.set_title(f"class {labels[index]}", fontsize=9)
    axis.set(xticks=[-extent, 0, extent], yticks=[-extent, 0, extent])
    axis.tick_params(labelsize=8)
  if len(shown) <= _LEGEND_ENTRIES:
    entries = [Patch(color=color_of[k], label=f"class {k}") for k in shown]
    if (predictions < 0).any():
      entries.append(Patch(fc="white", ec="0.5", label="not finite"))
    figure.legend(handles=entries, loc="outside right center", frameon=False, fontsize=8)
  save(figure, path)


def error_against_angle(angles: np.ndarray, errors: Mapping[str, np.ndarray], path: Path) -> None:
  """Error [A], in [0, 1], of each network on examples rotated by angles [A], in radians."""
  with one_panel(path) as axis:
    for index, (net, error) in enumerate(errors.items()):
      dashes = DASHES[index // len(COLORS) % len(DASHES)]
      curve(axis, index, np.degrees(angles), 100 * np.asarray(error), label=net, ls=dashes)
    finish(axis, "angle towards the gradient (degrees)", "error (%)", ylim=base.PERCENT)


def transfer_heat_map(
  accuracy: np.ndarray, sources: Sequence[str], targets: Sequence[str], path: Path
) -> None:
  """The error in percent of every target on the examples made against every source.

  `accuracy`: [M, N] in [0, 1], a row for each source; NaN is left blank.
  """
  error = 100 * (1 - np.asarray(accuracy, float))
  figure = new_figure(0.85 * len(targets) + 3.2, 0.5 * len(sources) + 2.0)
  axis = figure.subplots()
  image = axis.imshow(error, cmap="cividis", vmin=0, vmax=100, aspect="auto")
  for (row, column), value in np.ndenumerate(error):
    if np.isfinite(value):
      # The lower half of the map is dark.
      color = "white" if value < 50 else "black"
      axis.text(column, row, f"{value:.1f}", ha="center", va="center", color=color, fontsize=9)
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
  """A linear classifier's weights and perturbation [H, W], examples [N, H, W] without and with it.

  As figure 2 of Goodfellow et al. 2015, for logistic regression of 3 against 7. `errors`, on clean
  and on perturbed test examples, in [0, 1], are written below these.
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
  for index, images in enumerate((clean, perturbed)):
    picture = _tiled(np.clip(images, 0, 1))
    axes[2 + index].imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    below[2 + index].set_axis_off()
    if errors is not None:
      words = f"error {100 * errors[index]:.1f} %"
      below[2 + index].text(0.5, 0.5, words, ha="center", va="center", fontsize=9)
  titles = ("weights", "perturbation", "clean examples", "perturbed examples")
  for axis, title in zip(axes, titles):
    axis.set_title(title, fontsize=10)
    axis.set(xticks=[], yticks=[])
  save(figure, path)


def _class_colors(shown: Sequence[int], num_classes: int) -> dict[int, str]:
  """Class -> color: fixed for up to ten classes, else told apart among those that are shown."""
  if num_classes <= len(_CLASSES):
    return dict(enumerate(_CLASSES[:num_classes]))
  if len(shown) <= len(_CLASSES):
    return dict(zip(shown, _CLASSES))
  shades = colormaps["viridis"](np.linspace(0, 1, len(shown)))
  return {k: to_hex(shade) for k, shade in zip(shown, shades)}


def _shade(axis: Axes, epsilons: np.ndarray, wrong: np.ndarray) -> None:
  """Shades every run of wrong values, up to the middle between it and the next right one."""
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
  count, height, width = images.shape
  framed = np.ones((rows * side, height + 1, width + 1))
  framed[:count, :-1, :-1] = images
  grid = framed.reshape(rows, side, height + 1, width + 1).swapaxes(1, 2)
  return grid.reshape(rows * (height + 1), side * (width + 1))[:-1, :-1]


def labeled_rows(rows: Mapping[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
  """Images [P, H, W, C] of several data sets, a row each, with the labels [P] below them."""
  pictures = [
    (name, [base.Picture(image, str(label)) for image, label in zip(images, labels)])
    for name, (images, labels) in rows.items()
  ]
  base.image_rows(pictures, path)


def gaussian_model(
  mean: np.ndarray,
  covariances: Sequence[np.ndarray],
  labels: Sequence[str],
  budgets: np.ndarray,
  cosines: np.ndarray,
  path: Path,
) -> None:
  """Left: K learned covariances [2, 2], labeled by their budgets, and their gradients.

  Right: cosines [M] of the angle between gradient and mean against budgets [M], the first 0.
  """
  figure = new_figure(7.6, 3.4)
  left, right = figure.subplots(1, 2)
  turn = np.linspace(0, 2 * np.pi, 200)
  circle = np.stack([np.cos(turn), np.sin(turn)])
  for covariance, label, color in zip(covariances, labels, COLORS):
    variances, axes = np.linalg.eigh(covariance)
    x, y = (axes * np.sqrt(variances)) @ circle
    # The ellipse of one standard deviation grows with the budget; its shape is what matters.
    size = np.sqrt(np.max(variances))
    left.plot(x / size, y / size, color=color, lw=1.2, label=label)
    gradient = np.linalg.solve(covariance, mean)
    gradient = 1.3 * gradient / np.linalg.norm(gradient)
    left.annotate("", gradient, (0, 0), arrowprops={"arrowstyle": "->", "color": color})
  towards = 1.3 * mean / np.linalg.norm(mean)
  left.plot([0, towards[0]], [0, towards[1]], color="black", ls=":", lw=1, label="mean")
  left.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal", xticks=[], yticks=[])
  left.legend(frameon=False, fontsize=7, title="budget", title_fontsize=7, loc="lower left")
  right.plot(budgets[1:], cosines[1:], color=COLORS[0], lw=1.2)
  right.axhline(cosines[0], color="black", ls=":", lw=1, label="no adversary")
  right.set_xscale("log")
  right.set(xlabel="budget of the adversary", ylabel="cosine of gradient and mean")
  right.grid(alpha=0.3)
  right.legend(frameon=False)
  save(figure, path)
