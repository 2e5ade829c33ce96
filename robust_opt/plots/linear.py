"""The pictures of the theory of linear models, from arrays; matplotlib alone, no jax.

coefficient_paths(found.strengths, found.lasso, found.robust, Path("paths.png"))
optimality_gap({"linf": run.gap / run.optimum.value}, Path("gap.png"))
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from robust_opt.plots.figures import COLOURS, NORM_NAMES, new_figure, save


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


def adversary_and_decay(
  strengths: np.ndarray,
  errors: Mapping[str, tuple[np.ndarray, np.ndarray]],
  pulls: Mapping[str, np.ndarray],
  path: Path,
) -> None:
  """Left: test errors against the strength; right: how hard |w|_1 is still pulled down.

  Args:
    strengths: [R], ascending; the first may be 0.
    errors: label -> (clean [R], adversarial [R]), in [0, 1].
    pulls: the same labels -> [R].
    path: PNG to write.
  """
  figure = new_figure(8.6, 3.5)
  left, right = figure.subplots(1, 2)
  for (label, (clean, adversarial)), colour, marker in zip(errors.items(), COLOURS, "os"):
    shared = {"color": colour, "marker": marker, "ms": 4, "lw": 1.2}
    left.plot(strengths, 100 * clean, label=f"{label}, clean", **shared)
    left.plot(
      strengths, 100 * adversarial, ls="--", mfc="none", label=f"{label}, adversarial", **shared
    )
    right.plot(strengths, pulls[label], **shared)
  for axis in (left, right):
    axis.set_xscale("symlog", linthresh=strengths[strengths > 0].min())
    axis.set_xlabel(r"strength, $\epsilon$ or $\lambda$")
    axis.grid(alpha=0.3)
  figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
  left.set(ylabel="error on the test set (%)", ylim=(-3, 103))
  right.set_ylabel(r"pull on $|w|_1$")
  save(figure, path)
