"""The figures of a run, from arrays."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from robust_opt.plots.base import Picture, curve, finish, image_rows, new_figure, save


def training_curves(records: Sequence[Mapping[str, Any]], attack: str, path: Path) -> None:
  """Training loss, and held-out clean and robust accuracy, against the epoch.

  `records`: of metrics.jsonl; those at the end of an epoch hold the accuracies. `attack`: that of
  the robust accuracy, in words.
  """
  ends = [record for record in records if "heldout/clean_accuracy" in record]
  figure = new_figure(8.0, 3.2)
  left, right = figure.subplots(1, 2)
  epochs, losses = _column(records, "epoch"), _column(records, "train/loss")
  curve(left, 0, epochs, losses, marker="o" if len(records) < 30 else None)
  finish(left, "epoch", "training loss on the perturbed batch", legend=False)
  left.set_ylim(bottom=0)
  labels = {"clean": "clean", "robust": f"robust ({attack})"}
  for index, name in enumerate(labels):
    values = 100 * _column(ends, f"heldout/{name}_accuracy")
    marker = {"marker": None} if len(ends) >= 30 else {}
    curve(right, index, _column(ends, "epoch"), values, label=labels[name], **marker)
  finish(right, "epoch", "held-out accuracy (%)")
  for axis in (left, right):
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axis.set_xlim(0, 1.03 * max([1.0, *epochs]))
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
  """Clean images [N, H, W, C] in [0, 1], perturbations and perturbed images, with predictions [N].

  Each perturbation is shown scaled to its largest entry, around gray; its caption states the scale.
  """
  spans = np.abs(delta).max(axis=(1, 2, 3)).tolist()
  scales = [1 / (2 * span or 1) for span in spans]
  scaled = [
    Picture(0.5 + scale * d, f"{scale:.{int(scale < 10)}f}x, max {span:.2g}")
    for d, scale, span in zip(delta, scales, spans)
  ]
  rows = [
    ("clean", _classified(clean, labels, clean_predictions)),
    ("perturbation\n(scaled)", scaled),
    ("perturbed", _classified(clean + delta, labels, robust_predictions)),
  ]
  image_rows(rows, path, title, [f"class {label}" for label in labels])


def _classified(images: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> list[Picture]:
  return [
    Picture(image, f"predicted {prediction}", highlight=bool(prediction != label))
    for image, label, prediction in zip(images, labels, predictions)
  ]


def _column(records: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
  return np.array([np.nan if record[key] is None else record[key] for record in records], float)
