"""Two Gaussian classes under an adversary: the closed form against the problem that it solves."""

import numpy as np
import pytest
from scipy import optimize

from robust_opt.errors import InputError
from robust_opt.theory import gaussian


def covariance_of(n=4, seed=0):
  rng = np.random.default_rng(seed)
  axes, _ = np.linalg.qr(rng.normal(size=(n, n)))
  return (axes * np.geomspace(0.05, 4.0, n)) @ axes.T


def risk(sigma, true, d):
  """Of a learned covariance, the adversary being delta(x) = D x: in closed form."""
  a = np.eye(len(true)) + d
  return 0.5 * np.trace(np.linalg.solve(sigma, a @ true @ a.T)) + 0.5 * np.linalg.slogdet(sigma)[1]


@pytest.mark.parametrize("budget", [0.05, 0.5, 3.0])
def test_the_adversary_spends_its_budget_and_could_not_do_better(budget):
  true = covariance_of()
  fit = gaussian.robust_fit(true, budget)
  spent = np.trace(fit.perturbation @ true @ fit.perturbation.T)
  np.testing.assert_allclose(spent, budget**2, rtol=1e-9)
  best = risk(fit.covariance, true, fit.perturbation)
  rng = np.random.default_rng(1)
  for size in (0.01, 0.1, 1.0):
    for _ in range(200):
      d = fit.perturbation + size * rng.normal(size=true.shape)
      d *= budget / np.sqrt(np.trace(d @ true @ d.T))
      assert risk(fit.covariance, true, d) <= best + 1e-10


@pytest.mark.parametrize("budget", [0.0, 0.05, 0.5, 3.0])
def test_the_learner_could_not_do_better(budget):
  """Against an adversary that answers every covariance: no covariance nearby has a lower risk."""
  true = covariance_of()
  fit = gaussian.robust_fit(true, budget)

  def worst(sigma):
    """The most that a linear adversary of this budget makes of a covariance, by its own dual."""
    variances, axes = np.linalg.eigh(np.linalg.inv(sigma))  # of Sigma^-1
    spread = np.diag(axes.T @ true @ axes)
    if budget == 0:
      return 0.5 * np.sum(variances * spread) + 0.5 * np.linalg.slogdet(sigma)[1]

    def dual(log_gap):  # min over lambda > the largest eigenvalue
      multiplier = variances[-1] + np.exp(log_gap)
      inner = variances / (1 - variances / multiplier)
      return 0.5 * np.sum(inner * spread) + 0.5 * multiplier * budget**2

    found = optimize.minimize_scalar(
      dual, bounds=(-25, 15), method="bounded", options={"xatol": 1e-9}
    )
    return found.fun + 0.5 * np.linalg.slogdet(sigma)[1]

  best = worst(fit.covariance)
  np.testing.assert_allclose(best, risk(fit.covariance, true, fit.perturbation), rtol=1e-6)
  rng = np.random.default_rng(2)
  for size in (0.01, 0.1):
    for _ in range(50):
      change = rng.normal(size=true.shape)
      moved = np.eye(4) + size * (change + change.T) / 2
      root = np.linalg.cholesky(fit.covariance)
      sigma = root @ moved @ moved.T @ root.T
      assert worst(sigma) >= best - 1e-7


def test_without_an_adversary_the_truth_is_learned():
  true = covariance_of()
  np.testing.assert_allclose(gaussian.robust_fit(true, 0.0).covariance, true)
  np.testing.assert_allclose(gaussian.robust_fit(true, 1e-6).covariance, true, rtol=1e-4)


def test_of_one_variance_in_closed_form():
  """sigma_r - 1 / lambda = sqrt(s sigma_r): the condition of a stationary point."""
  for s, budget in ((1.0, 2.0), (0.1, 0.03), (5.0, 10.0)):
    fit = gaussian.robust_fit(np.array([[s]]), budget)
    sigma = fit.covariance[0, 0]
    np.testing.assert_allclose(sigma - 1 / fit.multiplier, np.sqrt(s * sigma), rtol=1e-12)


def test_gradients_turn_towards_the_mean_as_the_budget_grows():
  true, mean = covariance_of(6), np.random.default_rng(3).normal(size=6)
  budgets = [0.0, 0.01, 0.1, 0.5, 1.0, 3.0, 10.0, 1000.0]
  cosines = [gaussian.alignment(gaussian.robust_fit(true, b).covariance, mean) for b in budgets]
  assert np.all(np.diff(cosines) > 0)
  assert cosines[0] < 0.8
  assert cosines[-1] > 1 - 1e-6


def test_of_equal_variances_the_gradient_is_the_mean_already():
  mean = np.array([1.0, -2.0, 0.5])
  fit = gaussian.robust_fit(2 * np.eye(3), 1.0)
  np.testing.assert_allclose(gaussian.alignment(fit.covariance, mean), 1.0, rtol=1e-12)


@pytest.mark.parametrize(
  ("given", "words"),
  [
    ((np.ones((2, 3)), 1.0), "symmetric"),
    ((np.array([[1.0, 2.0], [0.0, 1.0]]), 1.0), "symmetric"),
    ((np.diag([1.0, 0.0]), 1.0), "smallest eigenvalue is 0"),
    ((np.eye(2), -1.0), "budget must be a finite number >= 0, but was -1.0"),
    ((np.eye(2), np.nan), "budget .* was nan"),
  ],
)
def test_what_is_no_problem_is_refused(given, words):
  with pytest.raises(InputError, match=words):
    gaussian.robust_fit(*given)
