"""Intervals of accuracies over seeds, and tests of claims that pair nets by seed; NumPy and SciPy.

  accuracy = accuracy_interval([0.991, 0.992, 0.990], examples=10_000)   # mean, low, high
  tests = [paired_t(robust, baseline), paired_t(noisy, baseline)]        # paired by seed
  holm([test.p for test in tests])                                       # corrected p values

An interval covers the draw of the seeds and of the test images, a test only that of the seeds. Edge
cases of the tests:

|  input                        |  result                                                  |
|  n = 1                        |  half width, t and p are NaN; never significant          |
|  no spread, difference not 0  |  t = +-inf; p = 2^(1-n) of the sign test, since t has no |
|                               |  estimate of the noise                                   |
|  no spread, difference 0      |  t = 0, p = 1                                            |
|  NaN among the values         |  InputError                                              |
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from robust_opt.errors import InputError

ALPHA = 0.05  # two-sided level of all tests of a study; intervals have the level 1 - ALPHA
# A net whose accuracy is below this fraction of the way from chance to 100 % has not learned.
LEARNED = 0.1


class Interval(NamedTuple):
  """mean within [low, high], each of shape [*R] for values [S, *R]."""

  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


class PairedTest(NamedTuple):
  """A paired t test of mean(a - b) = 0."""

  difference: float  # mean of a - b over the pairs
  half_width: float  # of its 95 % interval, Student's t over the pairs
  t: float  # the statistic, of n - 1 degrees of freedom
  p: float  # two-sided
  n: int  # number of pairs


def accuracy_interval(values: ArrayLike, examples: ArrayLike) -> Interval:
  """95 % interval of a mean accuracy, for the draw of the seeds and of the images they share.

  All p in [0, 1] with (m - p)^2 <= t^2 s^2 / S + z^2 p (1 - p) / M, where m and s are mean and
  standard deviation of S seeds' accuracies on M images, t and z the quantiles of Student's t
  (S - 1 degrees of freedom) and of the normal distribution. It is Wilson's score interval (1927)
  of the images, widened by the squared half width of the t interval of the seeds.

  Half widths that add in quadrature cover at least as often as stated if both errors are normal,
  since the distribution function of chi^2_1 is concave (Banerjee 1960, Sankhya 22). The images'
  term assumes that all seeds are correct on the same images, and p (1 - p) is the largest variance
  of values in [0, 1] with mean p: both make the interval wider, and the values may also be mean
  confidences. With one seed it is Wilson's interval.

  Args:
    values: [S, *R], each in [0, 1], one row per seed.
    examples: M, the number of images per value, or an array that broadcasts to [*R].

  Raises:
    InputError: no seed, a value outside of [0, 1] or NaN, or fewer than one example.
  """
  array, examples = _checked(values), np.asarray(examples)
  if array.min() < 0 or array.max() > 1:
    raise InputError(f"values must be in [0, 1], but were from {array.min():g} to {array.max():g}.")
  if np.any(examples < 1):
    raise InputError(f"examples must be at least 1, but were {examples.min()}.")
  seeds, mean = len(array), array.mean(axis=0)
  of_seeds = np.zeros_like(mean)  # squared half width
  if seeds > 1:
    quantile = stats.t.ppf(1 - ALPHA / 2, seeds - 1)
    of_seeds = quantile**2 * array.var(axis=0, ddof=1) / seeds
  c = stats.norm.ppf(1 - ALPHA / 2) ** 2 / examples
  center = (mean + c / 2) / (1 + c)
  half = np.sqrt(c**2 / 4 + c * mean * (1 - mean) + (1 + c) * of_seeds) / (1 + c)
  # The ends are roots of a quadratic: rounding must not move the mean out of the interval.
  low, high = np.clip(center - half, 0, mean), np.clip(center + half, mean, 1)
  return Interval(mean, low, high)


def has_learned(accuracy: ArrayLike, num_classes: int) -> np.ndarray:
  """Whether clean accuracies are beyond chance by `LEARNED` of the way to 100 %; elementwise.

  For ten classes the limit is 19 %; predicting only the most frequent class of MNIST has 11.35 %.
  """
  chance = 1 / num_classes
  return np.asarray(accuracy) > chance + LEARNED * (1 - chance)


def paired_t(a: ArrayLike, b: ArrayLike) -> PairedTest:
  """Student's paired t test of a [n] against b [n]; entry i of both has seed i.

  For non-inferiority (a is below b by at most a margin) test a + margin against b: a positive
  result means that the interval of a - b lies above -margin.
  """
  differences = _checked(a) - _checked(b)
  if differences.ndim != 1:
    raise InputError(f"a and b must be [n], one value per seed, but were {differences.shape}.")
  mean, n = float(differences.mean()), len(differences)
  if n == 1:
    return PairedTest(mean, np.nan, np.nan, np.nan, n)
  rounding = 1e-12 * max(1.0, abs(mean))  # counts as 0
  if np.ptp(differences) <= rounding:
    if abs(mean) <= rounding:
      return PairedTest(mean, 0.0, 0.0, 1.0, n)
    return PairedTest(mean, 0.0, float(np.copysign(np.inf, mean)), 2.0 ** (1 - n), n)
  result = stats.ttest_1samp(differences, 0.0)
  half_width = float(stats.t.ppf(1 - ALPHA / 2, n - 1) * stats.sem(differences))
  return PairedTest(mean, half_width, float(result.statistic), float(result.pvalue), n)


def all_of(tests: Sequence[PairedTest]) -> PairedTest:
  """One test of the claim that a > b in EVERY test: the weakest of them, or a counterexample.

  If all differences are positive, its p is the largest: the claim is an intersection, which needs
  no correction (Berger 1982). Otherwise it is the test with the strongest evidence against the
  claim, its p multiplied by the number of tests (Bonferroni).

  Raises:
    InputError: tests is empty.
  """
  if not tests:
    raise InputError("tests must hold at least one, but were none.")
  if tests[0].n == 1:
    return tests[0]
  if all(test.difference > 0 for test in tests):
    return max(tests, key=lambda test: test.p)
  against = min((t for t in tests if t.difference <= 0), key=lambda test: test.p)
  return against._replace(p=min(1.0, len(tests) * against.p))


def holm(p: ArrayLike) -> np.ndarray:
  """p values [n] with the correction of Holm (1979) for multiple tests; NaN is not counted."""
  corrected = np.array(p, np.float64)
  order = np.argsort(corrected, kind="stable")[: np.sum(~np.isnan(corrected))]  # NaN comes last
  # The k-th smallest times the number of remaining tests, and at least the previous one.
  remaining = len(order) - np.arange(len(order))
  corrected[order] = np.minimum(1.0, np.maximum.accumulate(remaining * corrected[order]))
  return corrected


def _checked(values: ArrayLike) -> np.ndarray:
  array = np.asarray(values, np.float64)
  if array.ndim == 0 or len(array) == 0:
    raise InputError("values must have at least one seed on their first axis, but were empty.")
  if np.isnan(array).any():
    raise InputError("values must not hold NaN: a seed is missing or has diverged.")
  return array
