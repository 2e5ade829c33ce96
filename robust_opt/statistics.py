"""Means over seeds with their intervals, and tests that pair nets by seed; NumPy and SciPy alone.

  accuracy = mean_interval([0.991, 0.992, 0.990])        # mean, half width of the 95 % interval
  test = paired_t(robust, baseline)                      # by seed: the same seed on both sides
  verdict(test)                                          # 'yes', 'no', 'within noise' or 'one seed'

Everything is Student's t over n seeds: n is small, so normal quantiles would be too narrow.

|  input                        |  result                                                  |
|  n = 1                        |  half width, t and p are NaN; never significant          |
|  no spread, difference not 0  |  t = +-inf; p = 2^(1-n) of the sign test, for t has no    |
|                               |  noise to go by (small counts agree by chance)           |
|  no spread, difference 0      |  t = 0, p = 1                                            |
|  NaN among the values         |  InputError                                              |
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from robust_opt.errors import InputError

ONE_SEED = "one seed"  # in place of a verdict
ALPHA = 0.05  # two-sided level of every verdict; the intervals are of 1 - ALPHA


class Interval(NamedTuple):
  """mean +- half_width over n seeds; for values [n, *R] the first two have shape [*R]."""

  mean: np.ndarray
  half_width: np.ndarray
  n: int


class PairedTest(NamedTuple):
  """A paired t test of mean(a - b) = 0.

  Attributes:
    difference: mean of a - b over the pairs.
    half_width: of its interval.
    t: the statistic, of n - 1 degrees of freedom.
    p: two-sided.
    n: number of pairs.
  """

  difference: float
  half_width: float
  t: float
  p: float
  n: int


def mean_interval(values: ArrayLike, confidence: float = 1 - ALPHA) -> Interval:
  """Mean over the first axis, and t_{n-1} quantile x s / sqrt(n) on either side of it.

  Args:
    values: [n, *R], one row a seed.
    confidence: of the two-sided interval.
  """
  array = _checked(values)
  n = len(array)
  mean = array.mean(axis=0)
  if n == 1:
    return Interval(mean, np.full_like(mean, np.nan), n)
  error = array.std(axis=0, ddof=1) / np.sqrt(n)
  return Interval(mean, stats.t.ppf((1 + confidence) / 2, n - 1) * error, n)


def paired_t(a: ArrayLike, b: ArrayLike) -> PairedTest:
  """Student's paired t test of a [n] against b [n]; entry i of both has seed i."""
  differences = _checked(a) - _checked(b)
  if differences.ndim != 1:
    raise InputError(f"a and b must be [n], one value a seed, but were {differences.shape}.")
  interval = mean_interval(differences)
  mean, n = float(interval.mean), interval.n
  if n == 1:
    return PairedTest(mean, np.nan, np.nan, np.nan, n)
  # Equal floats may differ by rounding: that is neither spread nor a difference.
  rounding = 1e-12 * max(1.0, abs(mean))
  if np.ptp(differences) <= rounding:
    equal = abs(mean) <= rounding
    t, p = (0.0, 1.0) if equal else (float(np.copysign(np.inf, mean)), 2.0 ** (1 - n))
    return PairedTest(mean, 0.0, t, p, n)
  result = stats.ttest_1samp(differences, 0.0)
  half_width = float(interval.half_width)
  return PairedTest(mean, half_width, float(result.statistic), float(result.pvalue), n)


def verdict(test: PairedTest, alpha: float = ALPHA) -> str:
  """'yes' if a > b beyond noise, 'no' if a < b beyond noise, else 'within noise'.

  Of one seed nothing can be said of noise: 'one seed'.
  """
  if test.n == 1:
    return ONE_SEED
  if not test.p < alpha:
    return "within noise"
  return "yes" if test.difference > 0 else "no"


def verdict_of_all(tests: list[PairedTest], alpha: float = ALPHA) -> str:
  """Whether a > b in EVERY test: 'yes' if all say so, 'no' if one speaks against it.

  The claim is an intersection, which needs no correction for the number of tests to be affirmed
  (Berger 1982); one counterexample among many would be found by luck, so that 'no' is Bonferroni's.

  Raises:
    InputError: there is no test.
  """
  if not tests:
    raise InputError("tests must hold at least one, but were none.")
  if all(test.n == 1 for test in tests):
    return ONE_SEED
  if all(verdict(test, alpha) == "yes" for test in tests):
    return "yes"
  if any(verdict(test, alpha / len(tests)) == "no" for test in tests):
    return "no"
  return "within noise"


def _checked(values: ArrayLike) -> np.ndarray:
  array = np.asarray(values, np.float64)
  if array.ndim == 0 or len(array) == 0:
    raise InputError("values must have at least one seed on their first axis, but were empty.")
  if np.isnan(array).any():
    raise InputError("values must not hold NaN: a seed is missing or has diverged.")
  return array
