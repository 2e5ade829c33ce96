"""Robust optimisation of linear models is regularisation: every equivalence, in numbers.

  python -m pip install ".[run,theory]"
  python -m robust_opt.papers.linear_theory --output=runs/linear_theory

On data that scikit-learn bundles (diabetes: 442 patients; breast cancer: 569), some ten seconds on
two cores. Writes equivalences.md, .csv and .json, paths.png (the lasso and the robust solution on
each other) and gap.png (Algorithm 1 on its way to the certified optimum). Sources: Xu, Caramanis
and Mannor 2009 and 2010; Goodfellow et al. 2015; Shaham et al. 2015, whose section 5 builds on
them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from sklearn import datasets, linear_model

from robust_opt import commands, tables
from robust_opt.errors import InputError
from robust_opt.files import write_json
from robust_opt.plots import linear
from robust_opt.sets import ball_of
from robust_opt.studies.study import command
from robust_opt.theory.linear import comparisons, counterparts, solve

NORMS = ("linf", "l2", "l1")
RADII = {"linf": 0.1, "l2": 0.5, "l1": 1.0}  # of the classification, in standard deviations
EPOCHS, BATCH_SIZE, LEARNING_RATE = 1000, 32, 1.0
BUDGET = 5.0  # of the noise on all patients together, for the support vector machine
EQUAL = 1e-6


class Data(NamedTuple):
  """Inputs [N, n] of mean 0 and standard deviation 1, and targets [N]."""

  x: np.ndarray
  y: np.ndarray


def regression() -> Data:
  """Diabetes: disease progression of 442 patients from 10 measurements, both standardised."""
  x, y = datasets.load_diabetes(return_X_y=True)
  return Data(_standardised(x), _standardised(y))


def classification() -> Data:
  """Breast cancer: 569 tumours, 30 measurements, benign 1 or malignant -1."""
  x, y = datasets.load_breast_cancer(return_X_y=True)
  return Data(_standardised(x), np.where(y == 1, 1.0, -1.0))


def _standardised(a: np.ndarray) -> np.ndarray:
  return (a - a.mean(axis=0)) / a.std(axis=0)


def run(output: Path) -> list[dict[str, Any]]:
  """Computes and writes everything; the rows of the table."""
  if output.exists() and not output.is_dir():
    raise InputError(f"--output={output} must be a folder, but is a file.")
  jax.config.update("jax_enable_x64", True)
  try:
    found = comparisons.paths(*regression(), np.geomspace(0.01, 8.0, 25))
    runs = {
      norm: comparisons.algorithm1_gap(
        *classification(),
        ball_of(norm)(radius),
        jax.random.key(0),
        EPOCHS,
        BATCH_SIZE,
        LEARNING_RATE,
      )
      for norm, radius in RADII.items()
    }
    rows = [*regressions(found), *classifications(runs)]
  finally:
    jax.config.update("jax_enable_x64", False)
  output.mkdir(parents=True, exist_ok=True)
  tables.write(
    tables.Table("Robust linear models", ["claim", "data", "largest difference", "holds"], rows),
    output / "equivalences",
  )
  linear.coefficient_paths(found.strengths, found.lasso, found.robust, output / "paths.png")
  linear.optimality_gap({norm: run.gap for norm, run in runs.items()}, output / "gap.png")
  write_json(
    output / "manifest.json",
    {"command": command("robust_opt.papers.linear_theory", sys.argv[1:]), "radii": RADII},
  )
  return rows


def regressions(found: comparisons.Paths) -> list[dict[str, Any]]:
  """Robust least squares: the lasso, scikit-learn's lasso, ridge."""
  x, y = regression()
  reference = [
    linear_model.Lasso(alpha=strength / len(y), tol=1e-12, max_iter=1_000_000).fit(x, y).coef_
    for strength in found.strengths
  ]
  robust = solve.least_squares(x, y, "frobenius", 1.0)
  residual = np.linalg.norm(x @ robust.w + robust.b - y)
  ridge = linear_model.Ridge(alpha=residual / np.linalg.norm(robust.w), solver="svd").fit(x, y)
  return [
    _row("robust to noise on every column = lasso", "diabetes", found.robust - found.lasso),
    _row("... = scikit-learn's lasso", "diabetes", found.robust - np.stack(reference)),
    _row("robust to noise of bounded Frobenius norm = ridge", "diabetes", robust.w - ridge.coef_),
    _row("duality gap of all of these, relative", "diabetes", np.array(found.gap)),
  ]


def classifications(runs: dict[str, comparisons.Algorithm1Run]) -> list[dict[str, Any]]:
  """The exact worst case, the support vector machine, and Algorithm 1."""
  inputs, labels = classification()
  x, y = jnp.asarray(inputs), jnp.asarray(labels)
  rows = []
  for norm, one in runs.items():
    w, b = jnp.asarray(one.optimum.w), jnp.asarray(one.optimum.b)
    u = ball_of(norm)(RADII[norm])
    closed = counterparts.margin_loss(w, b, x, y, u)
    delta = counterparts.margin_perturbation(w, x, y, u)
    attained = counterparts.logistic(y * ((x + delta) @ w + b))
    name = f"softplus(r |w|_q - y (w'x + b)) is attained, {norm}"
    rows.append(_row(name, "breast cancer", np.asarray(closed - attained)))
  for norm in NORMS:
    u = ball_of(norm)(BUDGET)
    svm = solve.svm(inputs, labels, u)
    worst = float(counterparts.total_hinge_loss(jnp.asarray(svm.w), jnp.asarray(svm.b), x, y, u))
    name = f"robust SVM = regularised SVM, {norm}"
    rows.append(_row(name, "breast cancer", np.array((worst - svm.value) / svm.value)))
  for norm, one in runs.items():
    last = float(one.gap[-1] / one.optimum.value)
    rows.append(
      {
        "claim": f"Algorithm 1 converges to the optimum, {norm}",
        "data": "breast cancer",
        "largest difference": f"{last:.1e} of the optimum after {EPOCHS} epochs",
        "holds": "yes" if last < 1e-3 else "no",
      }
    )
  return rows


def _row(claim: str, data: str, difference: np.ndarray) -> dict[str, Any]:
  largest = float(np.abs(difference).max())
  holds = "yes" if largest < EQUAL else "no"
  return {"claim": claim, "data": data, "largest difference": f"{largest:.1e}", "holds": holds}


def main(argv: Sequence[str]) -> None:
  """Flags to a run."""
  commands.refuse_positional(argv)
  output = Path(flags.FLAGS.output)
  run(output)
  print((output / "equivalences.md").read_text(encoding="utf-8"))
  print(f"Everything is in {output}")


def define_flags() -> None:
  """Only where this file is the program, so that importing it defines none."""
  flags.DEFINE_string("output", None, "Folder for the tables and pictures.", required=True)


if __name__ == "__main__":
  define_flags()
  app.run(commands.with_sentences(main), flags_parser=commands.parse)
