"""Robust optimization of linear models is regularization: every equivalence, in numbers.

  python -m pip install ".[run,theory]"
  python -m robust_opt.papers.linear_theory --output=runs/linear_theory

On data that scikit-learn bundles (diabetes: 442 patients; breast cancer: 569), some ten seconds on
two cores. Writes equivalences.md, .csv and .json, paths.png (coefficients of the lasso and of the
robust solution, which coincide) and gap.png (Algorithm 1 converging to the certified optimum).
Sources: Xu, Caramanis and Mannor 2009 and 2010; Goodfellow et al. 2015; Shaham et al. 2015, whose
section 5 builds on them.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn import datasets, linear_model

from robust_opt import commands, tables
from robust_opt.errors import InputError
from robust_opt.files import write_json
from robust_opt.plots import linear
from robust_opt.sets import ball_of
from robust_opt.studies import claims
from robust_opt.studies.claims import Claim
from robust_opt.studies.study import command
from robust_opt.theory.linear import comparisons, counterparts, solve

RADII = {"linf": 0.1, "l2": 0.5, "l1": 1.0}  # of the classification, in standard deviations
EPOCHS, BATCH_SIZE, LEARNING_RATE = 1000, 32, 1.0
BUDGET = 5.0  # of the noise on all patients together, for the support vector machine
EQUAL = 1e-6  # the largest difference between two solutions that are the same


Data = tuple[np.ndarray, np.ndarray]  # inputs [N, n], standardized, and targets [N]


def regression() -> Data:
  """Diabetes: disease progression of 442 patients from 10 measurements, both standardized."""
  x, y = datasets.load_diabetes(return_X_y=True)
  return stats.zscore(x), stats.zscore(y)


def classification() -> Data:
  """Breast cancer: 569 tumours, 30 measurements, benign 1 or malignant -1."""
  x, y = datasets.load_breast_cancer(return_X_y=True)
  return stats.zscore(x), np.where(y == 1, 1.0, -1.0)


def run(output: Path) -> tables.Table:
  """Computes and writes everything; returns the table."""
  if output.exists() and not output.is_dir():
    raise InputError(f"--output={output} must be a folder, but is a file.")
  jax.config.update("jax_enable_x64", True)
  try:
    paths = comparisons.paths(*regression(), np.geomspace(0.01, 8.0, 25))
    key = jax.random.key(0)
    runs = {
      norm: comparisons.algorithm1_gap(
        *classification(), ball_of(norm)(radius), key, EPOCHS, BATCH_SIZE, LEARNING_RATE
      )
      for norm, radius in RADII.items()
    }
    rows = [*regressions(paths), *classifications(runs)]
  finally:
    jax.config.update("jax_enable_x64", False)
  output.mkdir(parents=True, exist_ok=True)
  columns = ["claim", "data", "largest difference", "holds"]
  table = claims.table("Robust linear models", rows, columns, answer="holds")
  tables.write(table, output / "equivalences")
  linear.coefficient_paths(paths.strengths, paths.lasso, paths.robust, output / "paths.png")
  linear.optimality_gap({norm: run.gap for norm, run in runs.items()}, output / "gap.png")
  made_by = command("robust_opt.papers.linear_theory", sys.argv[1:])
  write_json(output / "manifest.json", {"command": made_by, "radii": RADII})
  print(tables.markdown(table))
  print(f"Everything is in {output}")
  return table


def regressions(paths: comparisons.Paths) -> list[Claim]:
  """Robust least squares: the lasso, scikit-learn's lasso, ridge."""
  x, y = regression()
  reference = [
    linear_model.Lasso(alpha=strength / len(y), tol=1e-12, max_iter=1_000_000).fit(x, y).coef_
    for strength in paths.strengths
  ]
  robust = solve.least_squares(x, y, "frobenius", 1.0)
  residual = np.linalg.norm(x @ robust.w + robust.b - y)
  ridge = linear_model.Ridge(alpha=residual / np.linalg.norm(robust.w), solver="svd").fit(x, y)
  differences = {
    "robust to noise on every column = lasso": paths.robust - paths.lasso,
    "... = scikit-learn's lasso": paths.robust - np.stack(reference),
    "robust to noise of bounded Frobenius norm = ridge": robust.w - ridge.coef_,
    "duality gap of all of these, relative": paths.gap,
  }
  return [_equality(claim, "diabetes", difference) for claim, difference in differences.items()]


def classifications(runs: dict[str, comparisons.Algorithm1Run]) -> list[Claim]:
  """The exact worst case, the support vector machine, and Algorithm 1."""
  inputs, labels = classification()
  x, y = jnp.asarray(inputs), jnp.asarray(labels)
  rows = []
  for norm, result in runs.items():
    w, b = jnp.asarray(result.optimum.w), jnp.asarray(result.optimum.b)
    u = ball_of(norm)(RADII[norm])
    closed = counterparts.margin_loss(w, b, x, y, u)
    delta = counterparts.margin_perturbation(w, x, y, u)
    attained = counterparts.logistic(y * ((x + delta) @ w + b))
    name = f"softplus(r |w|_q - y (w'x + b)) is attained, {norm}"
    rows.append(_equality(name, "breast cancer", closed - attained))
  for norm in RADII:
    u = ball_of(norm)(BUDGET)
    svm = solve.svm(inputs, labels, u)
    worst = float(counterparts.total_hinge_loss(jnp.asarray(svm.w), jnp.asarray(svm.b), x, y, u))
    name = f"robust SVM = regularised SVM, {norm}"
    rows.append(_equality(name, "breast cancer", (worst - svm.value) / svm.value))
  for norm, result in runs.items():
    gap = float(result.gap[-1] / result.optimum.value)
    words = f"{gap:.1e} of the optimum after {EPOCHS} epochs"
    cells = {"data": "breast cancer", "largest difference": words}
    rows.append(Claim(f"Algorithm 1 converges to the optimum, {norm}", gap < 1e-3, cells))
  return rows


def _equality(claim: str, data: str, difference: ArrayLike) -> Claim:
  """The claim that a difference is rounding."""
  largest = float(np.abs(np.asarray(difference)).max())
  return Claim(claim, largest < EQUAL, {"data": data, "largest difference": f"{largest:.1e}"})


if __name__ == "__main__":
  commands.run_to_folder(run)
