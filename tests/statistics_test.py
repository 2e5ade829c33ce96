"""Intervals and paired tests against SciPy and closed forms, and the degenerate ones by hand."""

import numpy as np
import pytest
from scipy import stats

from robust_opt.errors import InputError
from robust_opt.statistics import PairedTest, mean_interval, paired_t, verdict, verdict_of_all

A = np.array([0.991, 0.9935, 0.992, 0.9905, 0.9921])
B = np.array([0.990, 0.9910, 0.991, 0.9902, 0.9899])


def test_interval_is_students():
  interval = mean_interval(A)
  low, high = stats.t.interval(0.95, 4, loc=A.mean(), scale=stats.sem(A))
  np.testing.assert_allclose(
    [interval.mean - interval.half_width, interval.mean + interval.half_width], [low, high]
  )
  assert interval.n == 5


def test_interval_of_two_values_in_closed_form():
  """With one degree of freedom t is Cauchy: its 0.975 quantile is tan(0.475 pi)."""
  interval = mean_interval([1.0, 3.0])
  np.testing.assert_allclose(interval.mean, 2.0)
  np.testing.assert_allclose(interval.half_width, np.tan(0.475 * np.pi))


def test_interval_is_taken_entry_by_entry():
  values = np.stack([A, B, A + B], axis=1)
  whole = mean_interval(values)
  for column in range(3):
    alone = mean_interval(values[:, column])
    np.testing.assert_allclose(whole.mean[column], alone.mean)
    np.testing.assert_allclose(whole.half_width[column], alone.half_width)


def test_interval_covers_the_mean_as_often_as_it_says():
  values = np.random.default_rng(0).normal(size=(5, 20_000))
  interval = mean_interval(values)
  assert abs(np.mean(np.abs(interval.mean) <= interval.half_width) - 0.95) < 0.01


def test_paired_t_is_scipys():
  test, expected = paired_t(A, B), stats.ttest_rel(A, B)
  np.testing.assert_allclose([test.t, test.p], [expected.statistic, expected.pvalue])
  interval = expected.confidence_interval(0.95)
  np.testing.assert_allclose(test.difference - test.half_width, interval.low)
  np.testing.assert_allclose(test.difference + test.half_width, interval.high)


def test_pairing_matters():
  spread = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
  noise = np.array([0.001, -0.001, 0.0005, 0.0, -0.0005])
  assert verdict(paired_t(spread + 0.01 + noise, spread)) == "yes"
  assert stats.ttest_ind(spread + 0.01 + noise, spread).pvalue > 0.9


def test_one_seed_has_no_interval_and_is_never_significant():
  assert np.isnan(mean_interval([0.5]).half_width)
  test = paired_t([0.9], [0.1])
  assert np.isnan([test.half_width, test.t, test.p]).all()
  assert verdict(test) == verdict_of_all([test, test]) == "one seed"


@pytest.mark.parametrize(
  ("shift", "answer", "t", "p"),
  [
    (0.1, "yes", np.inf, 2**-9),
    (-0.1, "no", -np.inf, 2**-9),
    (0.0, "within noise", 0.0, 1.0),
  ],
)
def test_differences_without_spread(shift, answer, t, p):
  """The sign test: n heads of n tosses, or n tails."""
  ten = np.concatenate([A, B])
  assert stats.binomtest(10, 10).pvalue == 2**-9
  test = paired_t(ten + shift, ten)
  assert (test.t, test.p, test.half_width) == (t, p, 0.0)
  assert verdict(test) == answer


def test_five_seeds_that_agree_by_one_example_prove_nothing():
  assert verdict(paired_t(A + 1e-4, A)) == "within noise"


def test_rounding_is_no_difference():
  test = paired_t([0.1 + 0.2] * 6, [0.3] * 6)
  assert test.difference != 0
  assert (test.t, test.p) == (0.0, 1.0)
  assert verdict(test) == "within noise"


def test_a_claim_about_nothing_is_refused():
  with pytest.raises(InputError, match="at least one"):
    verdict_of_all([])


@pytest.mark.parametrize("values", [[], [0.5, np.nan], 0.5])
def test_missing_values_are_refused(values):
  with pytest.raises(InputError, match="seed"):
    mean_interval(values)


def test_only_one_value_a_seed_can_be_paired():
  with pytest.raises(InputError, match="one value a seed"):
    paired_t(np.ones((3, 2)), np.zeros((3, 2)))


def result(difference, p):
  return PairedTest(difference, 0.0, 0.0, p, 5)


@pytest.mark.parametrize(
  ("tests", "answer"),
  [
    ([(0.1, 0.01), (0.2, 0.04)], "yes"),
    ([(0.1, 0.01), (0.2, 0.06)], "within noise"),
    ([(0.1, 0.01), (-0.2, 0.04)], "within noise"),  # 0.04 > 0.05 / 2
    ([(0.1, 0.01), (-0.2, 0.02)], "no"),
    ([(0.1, 0.01), (0.0, 1.0)], "within noise"),
  ],
)
def test_a_claim_about_all_is_as_good_as_its_worst(tests, answer):
  assert verdict_of_all([result(*test) for test in tests]) == answer
