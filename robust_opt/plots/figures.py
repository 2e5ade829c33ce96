"""The pictures of a run, from arrays; matplotlib alone, no jax."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from robust_opt.files import atomic_write

NORM_NAMES = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by colour-blind readers


def training_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
  """Loss, and held-out clean and robust accuracy, against the epoch.

  Args:
    records: of metrics.jsonl; those at the end of an epoch hold the accuracies.
    path: PNG to write.
  """
  ends = [r for r in records if "heldout/clean_accuracy" in r]
  figure = new_figure(8.0, 3.2)
  left, right = figure.subplots(1, 2)
  marker = "o" if len(ends) < 30 else None
  epochs, losses = _column(records, "epoch"), _column(records, "train/loss")
  left.plot(epochs, losses, color=COLOURS[0], marker="o" if len(records) < 30 else None, ms=3)
  left.set(xlabel="epoch", ylabel="training loss at the perturbed batch")
  left.set_ylim(bottom=0)
  for name, colour in (("clean", COLOURS[0]), ("robust", COLOURS[1])):
    values = 100 * _column(ends, f"heldout/{name}_accuracy")
    right.plot(_column(ends, "epoch"), values, color=colour, marker=marker, ms=3, label=name)
  right.set(xlabel="epoch", ylabel="held-out accuracy (%)")
  right.legend()
  for axis in (left, right):
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axis.set_xlim(0, 1.03 * max([1.0, *epochs]))
    axis.grid(alpha=0.3)
  save(figure, path)


def example_grid(
  clean: np.ndarray,
  delta: np.ndarray,
  labels: np.ndarray,
  clean_predictions: np.ndarray,
  robust_predictions: np.ndarray,
  path: Path,
  title: str = "",
) -> None:
  """Clean image, perturbation and perturbed image, with what the net takes them for.

  Args:
    clean: [N, H, W, C] in [0, 1], C 1 or 3.
    delta: [N, H, W, C].
    labels: [N], the true classes.
    clean_predictions: [N].
    robust_predictions: [N].
    path: PNG to write.
    title: of the whole picture.
  """
  count = len(clean)
  figure = new_figure(1.15 * count + 0.8, 4.3)
  axes = np.asarray(figure.subplots(3, count, squeeze=False))
  for column in range(count):
    span = float(np.abs(delta[column]).max())
    # The perturbation is stretched to the full range around grey, or it could not be seen.
    stretched = 0.5 + delta[column] / (2 * span) if span > 0 else np.full_like(clean[column], 0.5)
    pictures = (clean[column], stretched, np.clip(clean[column] + delta[column], 0, 1))
    predictions = (clean_predictions[column], None, robust_predictions[column])
    for axis, picture, prediction in zip(axes[:, column], pictures, predictions):
      axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
      axis.set(xticks=[], yticks=[])
      if prediction is None:
        axis.set_xlabel(f"max {span:.3f}", fontsize=8)
      else:
        right = prediction == labels[column]
        colour = "black" if right else COLOURS[1]
        words = f"taken for {prediction}"
        axis.set_xlabel(words, fontsize=9, color=colour, weight="normal" if right else "bold")
    axes[0, column].set_title(f"class {labels[column]}", fontsize=9)
  for axis, words in zip(axes[:, 0], ("clean", "perturbation\n(stretched)", "perturbed")):
    axis.set_ylabel(words, fontsize=9)
  figure.suptitle(title, fontsize=10)
  save(figure, path)


def accuracy_against_radius(sweeps: Sequence[Mapping[str, Any]], path: Path) -> None:
  """Accuracy against the radius of the attack, a panel for each norm.

  Args:
    sweeps: each {"norm", "radii" [K] in pixels, "accuracy" [K], "radius": the run's own or None,
      "label": legend entry}.
    path: PNG to write.
  """
  norms = list(dict.fromkeys(s["norm"] for s in sweeps))
  figure = new_figure(3.1 * len(norms) + 0.6, 3.4)
  axes = figure.subplots(1, len(norms), squeeze=False, sharey=True)[0]
  for axis, norm in zip(axes, norms):
    mine = [s for s in sweeps if s["norm"] == norm]
    for sweep, colour in zip(mine, COLOURS * len(mine)):
      accuracy = 100 * np.asarray(sweep["accuracy"])
      axis.plot(sweep["radii"], accuracy, color=colour, marker="o", ms=3, label=sweep["label"])
    for radius in {s["radius"] for s in mine} - {None}:
      axis.axvline(radius, color="0.5", lw=1, ls=":", zorder=0, label="radius in the table")
    axis.set(xlabel=f"radius, {NORM_NAMES.get(norm, norm)} (pixels in [0, 1])", ylim=(-3, 103))
    axis.grid(alpha=0.3)
  axes[0].set_ylabel("test accuracy (%)")
  entries = dict(zip(*reversed(axes[0].get_legend_handles_labels())))
  figure.legend(
    entries.values(), entries.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
  )
  save(figure, path)


def _column(records: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
  return np.array([np.nan if r[key] is None else r[key] for r in records], dtype=float)


def new_figure(width: float, height: float) -> Figure:
  """An empty figure, its sides in inches."""
  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)  # no global state, no display
  return figure


def save(figure: Figure, path: Path) -> None:
  """Writes a PNG, whole or not at all."""
  with matplotlib.rc_context(), atomic_write(path) as file:
    figure.savefig(file, format="png", dpi=130)
