"""Robust linear models to high accuracy, certified by a duality gap.

  solution = margin(x, y, ro.LInf(0.1))             # robust logistic regression
  solution = least_squares(x, y, "columns", 0.1)    # the square-root lasso
  solution.value - solution.gap <= the true minimum <= solution.value

x [N, n], y [N]; NumPy, float64; sets without a box, of one radius > 0. cvxpy (an extra, `theory`:
python -m pip install ".[theory]") computes w and b, but its report is not trusted: `value` is the
objective computed here, and `gap` its distance to the dual objective at a point made feasible here.
By weak duality the minimum lies between value - gap and value, up to the rounding of float64. The
intercept b is neither penalized nor subject to noise. The duals are Lagrangian, with 1/p + 1/q = 1.
"""

import contextlib
import math
import operator
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from robust_opt import extras
from robust_opt.errors import InputError
from robust_opt.sets import Ball
from robust_opt.theory.linear import counterparts

_TOLERANCES = (1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8)
_DEAD = 1e-6  # a group of weights below this fraction of the largest counts as 0
_NEWTON_STEPS = 6
_DUAL_ORDERS = {math.inf: 1, 2: 2, 1: math.inf}  # p -> q
_GAP = operator.attrgetter("gap")
_Certified = TypeVar("_Certified")


class Solution(NamedTuple):
  """A minimizer and its certificate."""

  w: np.ndarray  # [n], the weights
  b: float  # the intercept
  value: float  # the objective at (w, b)
  gap: float  # value minus a lower bound of the minimum


def margin(x: np.ndarray, y: np.ndarray, u: Ball, loss: str = "logistic") -> Solution:
  """min over w, b of mean_i phi(y_i (w'x_i + b) - r |w|_q).

  Its dual, over a [N] with sum_i a_i y_i = 0 and |sum_i a_i y_i x_i|_p <= r sum_i a_i:

    max of mean_i e(a_i),   logistic     -a log a - (1 - a) log(1 - a),   0 <= a <= 1
                            hinge        a,                               0 <= a <= 1
                            exponential  a - a log a,                     0 <= a

  y holds -1 and 1. It is an InputError if, except for the hinge, a hyperplane separates the classes
  at this radius: then the infimum is 0 and no w attains it.
  """
  x, y = _labeled(x, y)
  p, q, radius = _geometry(u, "margin")
  counterparts.check_loss(loss)
  inside, slack = _strictly_inside(x, y, p, radius)
  if slack <= 1e-9 * radius and loss != "hinge":
    raise InputError(
      f"A hyperplane separates the classes at radius {radius}: the {loss} loss has no minimum."
    )
  cp, score = _cvxpy(), _Score(x)
  t, m = cp.Variable(), cp.Variable(len(y))
  phi = {"logistic": cp.logistic(-m), "hinge": cp.pos(1 - m), "exponential": cp.exp(-m)}[loss]
  reached = cp.multiply(y, score.values) - radius / score.scale * t >= m

  def certify() -> Solution:
    w, b = score.point()
    value = margin_objective(w, b, x, y, u, loss)

    # Clip to the domain, balance so that sum a y = 0, then shrink until the norm is small enough.
    a = _balanced(np.clip(reached.dual_value, 0, np.inf if loss == "exponential" else 1), y)
    excess = _excess(a, x, y, p, radius)
    if excess > 0:
      mix = excess / (excess + max(slack, 0.0))
      a = (1 - mix) * a + mix * inside * (slack > 0)
    return Solution(w, b, value, value - max(0.0, _margin_dual(a, loss)))

  return min(_certified(cp.sum(phi), [reached, cp.norm(score.w, q) <= t], certify), key=_GAP)


def margin_objective(
  w: np.ndarray, b: float, x: np.ndarray, y: np.ndarray, u: Ball, loss: str = "logistic"
) -> float:
  """mean_i phi(y_i (w'x_i + b) - r |w|_q) in float64, the objective of `margin`."""
  _, q, radius = _geometry(u, "margin_objective")
  m = y * (x @ w + b) - radius * np.linalg.norm(w, q)
  if loss == "logistic":
    return float(np.mean(np.logaddexp(0.0, -m)))
  return float(np.mean(np.maximum(0.0, 1 - m) if loss == "hinge" else np.exp(-m)))


def svm(x: np.ndarray, y: np.ndarray, u: Ball) -> Solution:
  """min over w, b of sum_i hinge(y_i (w'x_i + b)) + c |w|_q, the norm-regularized SVM.

  For classes that no hyperplane separates it is the robust SVM, the minimum of total_hinge_loss.
  Its dual: max of sum_i a_i over 0 <= a <= 1, sum_i a_i y_i = 0, |sum_i a_i y_i x_i|_p <= c. The
  radius of u is the budget c > 0 that all examples share. y holds -1 and 1.
  """
  x, y = _labeled(x, y)
  p, q, budget = _geometry(u, "svm")
  cp, score = _cvxpy(), _Score(x)
  s = cp.Variable(len(y), nonneg=True)
  reached = s >= 1 - cp.multiply(y, score.values)

  def certify() -> Solution:
    w, b = score.point()
    hinges = np.maximum(0.0, 1 - y * (x @ w + b))
    value = float(hinges.sum() + budget * np.linalg.norm(w, q))
    a = _balanced(np.clip(reached.dual_value, 0, 1), y)
    a = a * _shrink(np.linalg.norm((a * y) @ x, p), budget)
    return Solution(w, b, value, value - float(a.sum()))

  objective = cp.sum(s) + budget / score.scale * cp.norm(score.w, q)
  return min(_certified(objective, [reached], certify), key=_GAP)


def least_squares(
  x: np.ndarray, y: np.ndarray, noise: counterparts.Noise, radius: float | np.ndarray
) -> Solution:
  """min over w, b of |Xw + b - y|_2 + sum_g r_g |w_g|_2.

  Its dual: max of -u'y over |u|_2 <= 1, sum_i u_i = 0, |X_g'u|_2 <= r_g for every group. The noise
  is 'frobenius', 'columns' (the square-root lasso), or the group of every column; the radius [] or
  [G], > 0.
  """
  x, y = _arrays(x, y)
  _positive(radius)
  groups, _ = counterparts.column_groups(noise, radius, x.shape[1])
  members = [groups == g for g in range(groups.max() + 1)]
  radii = np.broadcast_to(np.asarray(radius, float), len(members))
  cp, score = _cvxpy(), _Score(x)
  z = cp.Variable(len(y))
  residual = z == score.values - y
  norms = (cp.norm(score.w[np.flatnonzero(g)], 2) for g in members)
  penalty = sum(r / score.scale * norm for r, norm in zip(radii, norms))

  def solution(w: np.ndarray, b: float, u: np.ndarray) -> Solution:
    norms = sum(r * np.linalg.norm(w[g]) for r, g in zip(radii, members))
    value = float(np.linalg.norm(x @ w + b - y) + norms)
    u = u - u.mean()
    u = u * _shrink(np.linalg.norm(u), 1.0)
    u = u * min(_shrink(np.linalg.norm(u @ x[:, g]), r) for r, g in zip(radii, members))
    return Solution(w, b, value, value - float(-u @ y))

  def certify() -> Solution:
    return solution(*score.point(), -residual.dual_value)

  solved = min(_certified(cp.norm(z, 2) + penalty, [residual], certify), key=_GAP)
  w, b = _newton(solved, x, y, members, radii)
  u = x @ w + b - y
  return min(solved, solution(w, b, u / (np.linalg.norm(u) or 1.0)), key=_GAP)


def _newton(
  start: Solution, x: np.ndarray, y: np.ndarray, members: list[np.ndarray], radii: np.ndarray
) -> tuple[np.ndarray, float]:
  """Newton steps of robust least squares in the groups that are not 0, where it is smooth.

  The solver stops at the square root of its gap; these steps reach the precision of float64.
  """
  lengths = [np.linalg.norm(start.w[g]) for g in members]
  least = _DEAD * max(lengths)
  nonzero = [(r, g) for r, g, length in zip(radii, members, lengths) if length > least]
  used = np.flatnonzero(sum((g for _, g in nonzero), np.zeros(x.shape[1], bool)))
  a = np.concatenate([x[:, used], np.ones((len(y), 1))], axis=1)
  v = np.append(start.w[used], start.b)
  for _ in range(_NEWTON_STEPS):
    error = a @ v - y
    length = np.linalg.norm(error)
    if length <= _DEAD * np.linalg.norm(y):  # no residual: not smooth either
      return start.w, start.b
    slope = a.T @ error / length
    gradient, hessian = slope.copy(), (a.T @ a - np.outer(slope, slope)) / length
    for r, g in nonzero:
      index = np.flatnonzero(g[used])
      norm = np.linalg.norm(v[index])
      unit = v[index] / norm
      gradient[index] += r * unit
      hessian[np.ix_(index, index)] += r / norm * (np.eye(len(index)) - np.outer(unit, unit))
    v = v - np.linalg.lstsq(hessian, gradient, rcond=None)[0]
  weights = np.zeros_like(start.w)
  weights[used] = v[:-1]
  return weights, float(v[-1])


def lasso(x: np.ndarray, y: np.ndarray, strength: float) -> Solution:
  """min over w, b of |Xw + b - y|_2^2 / 2 + lambda |w|_1.

  Its dual: max of -u'y - |u|_2^2 / 2 over sum_i u_i = 0, |X'u|_inf <= lambda. Robust least squares
  with column-wise noise of radius r has the solution of lambda = r |Xw + b - y|_2 at its own w, b.
  The strength is lambda > 0; scikit-learn's alpha is lambda / N.
  """
  x, y = _arrays(x, y)
  _positive(strength)
  cp, score = _cvxpy(), _Score(x)
  z = cp.Variable(len(y))
  residuals = z == score.values - y

  def certify() -> Solution:
    w, b = score.point()
    residual = x @ w + b - y
    value = float(residual @ residual / 2 + strength * np.abs(w).sum())
    u = residual - residual.mean()
    u = u * _shrink(np.abs(u @ x).max(), strength)
    return Solution(w, b, value, value - float(-u @ y - u @ u / 2))

  objective = cp.sum_squares(z) / 2 + strength / score.scale * cp.norm(score.w, 1)
  return min(_certified(objective, [residuals], certify), key=_GAP)


def _strictly_inside(
  x: np.ndarray, y: np.ndarray, p: float, radius: float
) -> tuple[np.ndarray, float]:
  """The a in [0, 1]^N, sum a y = 0, of largest slack r sum a - |sum a y x|_p, and that slack.

  The slack is > 0 iff no hyperplane separates the classes at this radius.
  """
  cp, scale = _cvxpy(), _scale(x)
  a = cp.Variable(len(y))
  slack = radius / scale * cp.sum(a) - cp.norm((x / scale).T @ cp.multiply(y, a), p)

  def certify() -> tuple[np.ndarray, float]:
    inside = _balanced(np.clip(a.value, 0, 1), y)
    return inside, -_excess(inside, x, y, p, radius)

  return max(_certified(-slack, [a >= 0, a <= 1, y @ a == 0], certify), key=operator.itemgetter(1))


def _excess(a: np.ndarray, x: np.ndarray, y: np.ndarray, p: float, radius: float) -> float:
  return float(np.linalg.norm((a * y) @ x, p) - radius * a.sum())


def _balanced(a: np.ndarray, y: np.ndarray) -> np.ndarray:
  """a >= 0 with one class scaled down, so that sum a y = 0."""
  of_class = np.where(y > 0, a[y > 0].sum(), a[y < 0].sum())
  return a * np.divide(of_class.min(), of_class, out=np.zeros_like(a), where=of_class > 0)


def _margin_dual(a: np.ndarray, loss: str) -> float:
  if loss == "hinge":
    return float(a.mean())

  def times_log(a: np.ndarray) -> np.ndarray:
    return a * np.log(np.where(a > 0, a, 1.0))  # 0 at 0

  rest = times_log(1 - a) if loss == "logistic" else -a
  return float(np.mean(-times_log(a) - rest))


def _shrink(length: Any, limit: float) -> float:
  """The factor <= 1 that reduces a length to the limit."""
  return min(1.0, limit / float(length)) if length > 0 else 1.0


def _certified(
  objective: Any, constraints: list[Any], certify: Callable[[], _Certified]
) -> list[_Certified]:
  """Minimizes with several tolerances; what `certify` makes of each result.

  An interior point method that iterates past its attainable precision may diverge again, and a
  result that the solver calls inaccurate may still be the best, so its status does not decide.
  """
  cp = _cvxpy()
  problem = cp.Problem(cp.Minimize(objective), constraints)
  results = []
  for tolerance in _TOLERANCES:
    options = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), tolerance)
    with warnings.catch_warnings(), contextlib.suppress(cp.SolverError):
      warnings.simplefilter("ignore")
      problem.solve(solver=cp.CLARABEL, **options)
      if problem.status in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
        results.append(certify())
      if problem.status == cp.OPTIMAL:
        break
  if not results:
    raise ArithmeticError(f"The solver found no minimum: {problem.status}.")
  return results


class _Score:
  """w'x + b of every x as an expression of cvxpy, in scale * w and x / scale, for precision."""

  def __init__(self, x: np.ndarray) -> None:
    cp, self.scale = _cvxpy(), _scale(x)
    self.w, self.b = cp.Variable(x.shape[1]), cp.Variable()
    self.values = (x / self.scale) @ self.w + self.b

  def point(self) -> tuple[np.ndarray, float]:
    """w and b of the solver's result."""
    return np.asarray(self.w.value, float) / self.scale, float(self.b.value)


def _scale(x: np.ndarray) -> float:
  return float(np.abs(x).max()) or 1.0


def _cvxpy() -> Any:
  extras.require("theory", "cvxpy")
  import cvxpy  # an extra that takes two seconds to import

  return cvxpy


def _arrays(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  x, y = np.asarray(x, float), np.asarray(y, float)
  if x.ndim != 2 or y.shape != x.shape[:1]:
    raise InputError(f"x must be [N, n] and y [N], but they have the shapes {x.shape}, {y.shape}.")
  return x, y


def _labeled(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  x, y = _arrays(x, y)
  if set(y.tolist()) != {-1.0, 1.0}:
    raise InputError(f"y must hold both -1 and 1, but holds {sorted(set(y.tolist()))[:5]}.")
  return x, y


def _geometry(u: Ball, who: str) -> tuple[float, float, float]:
  """The orders p and q of the norm of u and of its dual, and the radius."""
  counterparts.check_unboxed(u, who)
  _positive(u.radius)
  if np.shape(u.radius):
    raise InputError(f"{who} takes one radius, but has the shape {np.shape(u.radius)}.")
  return u.order, _DUAL_ORDERS[u.order], float(u.radius)


def _positive(radius: float | np.ndarray) -> None:
  if not np.all(np.asarray(radius) > 0):
    raise InputError(f"A radius, budget or strength must be > 0, but was {radius}.")
