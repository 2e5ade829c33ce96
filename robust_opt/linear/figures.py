"""The pictures of the theory of linear models, from arrays; matplotlib alone, no jax.

coefficient_paths(found.strengths, found.lasso, found.robust, Path("paths.png"))
optimality_gap({"linf": run.gap / run.optimum.value}, Path("gap.png"))
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from robust_opt.figures import COLOURS, NORM_NAMES, new_figure, save


def coefficient_paths(
  strengths: np.ndarray, lasso: np.ndarray, robust: np.ndarray, path: Path
) -> None:
  """The coefficients of the lasso (lines) and of the robust solution (rings) on each other.

  Args:
    strengths: [R], lambda of the lasso, > 0.
    lasso: [R, n].
    robust: [R, n].
    path: PNG to write.
  """
  figure = new_figure(5.4, 3.6)
  axis = figure.subplots()
  order = np.argsort(strengths)
  for column in range(lasso.shape[1]):
    colour = COLOURS[column % len(COLOURS)]
    first = column == 0  # one entry of each kind in the legend
    axis.plot(
      strengths[order], lasso[order, column], color=colour, lw=1, label="lasso" if first else None
    )
    axis.plot(
      strengths[order],
      robust[order, column],
      color=colour,
      ls="none",
      marker="o",
      ms=5,
      mfc="none",
      label="robust least squares" if first else None,
    )
  axis.set_xscale("log")
  axis.set(xlabel=r"strength of the lasso, $\lambda = r\,|Xw + b - y|_2$", ylabel="coefficients")
  axis.grid(alpha=0.3)
  axis.legend(frameon=False)
  save(figure, path)


def optimality_gap(gaps: Mapping[str, np.ndarray], path: Path) -> None:
  """The distance of Algorithm 1 to the certified optimum against the epoch, on a log axis.

  Args:
    gaps: 'linf', 'l2', 'l1' or another label -> [epochs + 1], > 0, from before the first epoch on.
    path: PNG to write.
  """
  figure = new_figure(5.4, 3.6)
  axis = figure.subplots()
  for (label, gap), colour in zip(gaps.items(), COLOURS * len(gaps)):
    axis.plot(np.arange(len(gap)), gap, color=colour, lw=1.2, label=NORM_NAMES.get(label, label))
  axis.set_yscale("log")
  axis.set(xlabel="epoch", ylabel="objective minus certified optimum")
  axis.grid(alpha=0.3)
  axis.legend(frameon=False)
  save(figure, path)
