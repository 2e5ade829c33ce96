"""The figures of the theory of linear models, from arrays.

coefficient_paths(paths.strengths, paths.lasso, paths.robust, Path("paths.png"))
optimality_gap({"linf": run.gap / run.optimum.value}, Path("gap.png"))
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from robust_opt.plots.base import COLORS, PERCENT, curve, finish, new_figure, one_panel, save
from robust_opt.tables import norm_name


def coefficient_paths(
  strengths: np.ndarray, lasso: np.ndarray, robust: np.ndarray, path: Path
) -> None:
  """The coefficients [R, n] of the lasso (lines) and of the robust solution (rings).

  Against the strengths of the lasso [R], > 0, on a log axis.
  """
  order = np.argsort(strengths)
  rings = {"ls": "none", "marker": "o", "ms": 5, "mfc": "none"}
  kinds = (("lasso", lasso, {"lw": 1, "marker": None}), ("robust least squares", robust, rings))
  with one_panel(path) as axis:
    for column in range(lasso.shape[1]):
      color = COLORS[column % len(COLORS)]
      for label, values, style in kinds:
        shown = label if column == 0 else None  # one legend entry for each kind
        curve(axis, 0, strengths[order], values[order, column], label=shown, color=color, **style)
    words = r"strength of the lasso, $\lambda = r\,|Xw + b - y|_2$"
    finish(axis, words, "coefficients", xscale="log")


def optimality_gap(gaps: Mapping[str, np.ndarray], path: Path) -> None:
  """The distance of Algorithm 1 to the certified optimum against the epoch, on a log axis.

  `gaps`: a norm or another label -> [epochs + 1], > 0, from before the first epoch on.
  """
  with one_panel(path) as axis:
    for index, (label, gap) in enumerate(gaps.items()):
      curve(axis, index, np.arange(len(gap)), gap, label=norm_name(label).tex, marker=None)
    finish(axis, "epoch", "objective minus certified optimum", yscale="log")


def adversary_and_decay(
  strengths: np.ndarray,
  errors: Mapping[str, tuple[np.ndarray, np.ndarray]],
  pulls: Mapping[str, np.ndarray],
  path: Path,
) -> None:
  """Left: test errors against the strength [R]; right: the pull [R] on |w|_1 that remains.

  `errors`: label -> (clean [R], adversarial [R]), in [0, 1].
  """
  figure = new_figure(8.6, 3.5)
  left, right = figure.subplots(1, 2)
  for index, (label, (clean, adversarial)) in enumerate(errors.items()):
    curve(left, index, strengths, 100 * clean, label=f"{label}, clean")
    words = f"{label}, adversarial"
    curve(left, index, strengths, 100 * adversarial, label=words, ls="--", mfc="none")
    curve(right, index, strengths, pulls[label])
  for axis, name in ((left, "error on the test set (%)"), (right, r"pull on $|w|_1$")):
    axis.set_xscale("symlog", linthresh=strengths[strengths > 0].min())
    finish(axis, r"strength, $\epsilon$ or $\lambda$", name, legend=False)
  left.set_ylim(PERCENT)
  figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
  save(figure, path)
