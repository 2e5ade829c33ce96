"""Two Gaussian classes under an adversary: a model of robust learning in closed form.

  fit = robust_fit(covariance, budget=0.5)     # maximum likelihood under attack
  alignment(fit.covariance, mean)              # of the classifier's gradient with the mean

The classes are y mu + N(0, Sigma*), y = -1 or 1. The learner fits mean and covariance by maximum
likelihood while an adversary moves every x by delta(x), with the mean of |delta|^2 bounded:

    min over Sigma of log det(Sigma) / 2
        + max over delta of E [(x + delta)' Sigma^-1 (x + delta)] / 2

(x about its mean, which is learned unchanged). With the multiplier lambda of the bound,

    delta(x) = (lambda Sigma - I)^-1 x
    Sigma_r  = Sigma* / 2 + I / lambda + sqrt(Sigma* / lambda + Sigma*^2 / 4)

so directions of small variance become useless, and the gradient of the classifier, Sigma_r^-1 mu,
rotates toward mu as the budget grows. Source: Ilyas et al. 2019 (arXiv 1905.02175), section 4,
theorem 2. Their adversary is bounded at every x; here it is bounded on average, for which the
formula is exact at every budget. NumPy, in float64.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize

from robust_opt.errors import InputError


class RobustFit(NamedTuple):
  """The maximum likelihood fit under attack."""

  covariance: np.ndarray  # [n, n], Sigma_r
  multiplier: float  # lambda; inf without an adversary
  perturbation: np.ndarray  # [n, n], the matrix D of delta(x) = D x, with x about its mean


def robust_fit(covariance: np.ndarray, budget: float) -> RobustFit:
  """The maximum likelihood fit when the mean of |delta|^2 is at most budget^2.

  Sigma* [n, n] is symmetric and positive definite, the budget >= 0 in the units of x.
  """
  variances, axes = _eigen(covariance)
  if not 0 <= budget < np.inf:
    raise InputError(f"budget must be a finite number >= 0, but was {budget}.")
  if budget == 0:
    return RobustFit(np.array(covariance, np.float64), np.inf, np.zeros_like(axes))

  def excess(log_multiplier: float) -> float:
    multiplier = np.exp(log_multiplier)
    moved = variances * _factor(variances, multiplier) ** 2
    return 0.5 * float(np.log(np.sum(moved))) - float(np.log(budget))

  # The used budget falls from inf to 0 as lambda grows.
  scale = float(np.log(1.0 / np.max(variances)))
  low, high = scale, scale
  while excess(low) < 0:
    low -= 2.0
  while excess(high) > 0:
    high += 2.0
  multiplier = float(np.exp(optimize.brentq(excess, low, high, xtol=1e-13, rtol=1e-13)))
  inverse, factor = 1.0 / multiplier, _factor(variances, multiplier)
  robust = variances / 2 + inverse + np.sqrt(variances * inverse + variances**2 / 4)
  return RobustFit((axes * robust) @ axes.T, multiplier, (axes * factor) @ axes.T)


def alignment(covariance: np.ndarray, mean: np.ndarray) -> float:
  """Cosine of the angle between the mean mu and Sigma^-1 mu, the gradient of the classifier, []."""
  mu = np.asarray(mean, np.float64)
  w = np.linalg.solve(np.asarray(covariance, np.float64), mu)
  return float(w @ mu / (np.linalg.norm(w) * np.linalg.norm(mu)))


def _eigen(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Variances [n] > 0 and axes [n, n], in columns."""
  matrix = np.asarray(covariance, np.float64)
  if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.allclose(matrix, matrix.T):
    raise InputError(f"covariance must be symmetric, [n, n], but has the shape {matrix.shape}.")
  variances, axes = np.linalg.eigh(matrix)
  if not variances[0] > 0:
    raise InputError(
      f"covariance must be positive definite, but its smallest eigenvalue is {variances[0]:.3g}."
    )
  return variances, axes


def _factor(variances: np.ndarray, multiplier: float) -> np.ndarray:
  """The factor of delta(x) = factor x along each axis: 1 / (lambda sigma_r - 1)."""
  # Avoids the cancellation in lambda sigma_r - 1 where lambda is small.
  scaled = variances * multiplier
  return 1.0 / (scaled / 2 + np.sqrt(scaled + scaled**2 / 4))
