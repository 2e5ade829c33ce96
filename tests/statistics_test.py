"""Intervals and paired tests against SciPy and closed forms, and the degenerate ones by hand."""

import numpy as np
import pytest
from scipy import stats

from robust_opt.errors import InputError
from robust_opt.statistics import PairedTest, accuracy_interval, all_of, has_learned, holm, paired_t
from robust_opt.studies.claims import Claim, decide, in_words

A = np.array([0.991, 0.9935, 0.992, 0.9905, 0.9921])
B = np.array([0.990, 0.9910, 0.991, 0.9902, 0.9899])


def test_one_seed_has_wilsons_interval():
  for right, total in ((460, 500), (0, 20), (20, 20), (1, 3)):
    expected = stats.binomtest(right, total).proportion_ci(method="wilson")
    found = accuracy_interval([right / total], total)
    np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], atol=1e-12)


def test_the_ends_solve_the_equation_of_the_docstring():
  values, images = np.array([0.3, 0.4, 0.35]), 200
  t, z = stats.t.ppf(0.975, 2), stats.norm.ppf(0.975)
  mean, low, high = accuracy_interval(values, images)
  for end in (low, high):
    expected = t**2 * values.var(ddof=1) / 3 + z**2 * end * (1 - end) / images
    np.testing.assert_allclose((mean - end) ** 2, expected)


@pytest.mark.parametrize(
  "values",
  [
    [0.945, 0.1135, 0.9651],  # t intervals left [0, 1]
    [0.1135, 0.1135, 0.1135],  # and had no width
    [1.0, 1.0],
    [0.0, 1.0],
    np.random.default_rng(0).random((4, 50)),
  ],
)
@pytest.mark.parametrize("images", [1, 10**9])
def test_the_interval_stays_within_0_and_1_and_has_a_width(values, images):
  mean, low, high = accuracy_interval(values, images)
  assert np.all((low >= 0) & (low <= mean) & (mean <= high) & (high <= 1))
  assert np.all(high - low > 1e-10)


def test_the_interval_is_taken_entry_by_entry():
  values = np.stack([A, B, A - B], axis=1)
  images = np.array([100, 1000, 10_000])
  whole = accuracy_interval(values, images)
  for column in range(3):
    alone = accuracy_interval(values[:, column], images[column])
    np.testing.assert_allclose([part[column] for part in whole], alone)


@pytest.mark.parametrize(
  ("seeds", "mean", "spread"), [(2, 0.9, 0.05), (5, 0.9, 0.0), (3, 0.5, 0.02), (2, 0.99, 0.005)]
)
def test_the_interval_covers_the_draws_of_seeds_and_shared_images(seeds, mean, spread):
  """Images are ordered by difficulty: seed s is right on those below its skill, on all seeds alike.

  No other dependence between the seeds makes the shared images matter more.
  """
  rng, draws, images = np.random.default_rng(seeds), 4000, 300
  skill = np.full((seeds, draws), mean)
  if spread:
    k = mean * (1 - mean) / spread**2 - 1
    skill = rng.beta(mean * k, (1 - mean) * k, (seeds, draws))
  difficulty = rng.random((draws, images))
  right = np.stack([(difficulty < row[:, None]).mean(axis=1) for row in skill])
  _, low, high = accuracy_interval(right, images)
  # Three standard errors of 4,000 draws are 0.01; counts are discrete.
  assert np.mean((low <= mean) & (mean <= high)) > 0.94


def test_what_has_learned():
  np.testing.assert_array_equal(has_learned([0.1135, 0.185, 0.195, 0.9], 10), [0, 0, 1, 1])
  np.testing.assert_array_equal(has_learned([0.5, 0.6], 2), [False, True])


def verdict(test):
  """Of a study with one claim."""
  return in_words(decide([Claim("", test)])[0])


def test_paired_t_is_scipys():
  test, expected = paired_t(A, B), stats.ttest_rel(A, B)
  np.testing.assert_allclose([test.t, test.p], [expected.statistic, expected.pvalue])
  interval = expected.confidence_interval(0.95)
  np.testing.assert_allclose(test.difference - test.half_width, interval.low)
  np.testing.assert_allclose(test.difference + test.half_width, interval.high)


def test_one_seed_is_never_significant():
  test = paired_t([0.9], [0.1])
  assert np.isnan([test.half_width, test.t, test.p]).all()
  assert verdict(test) == verdict(all_of([test, test])) == "one seed"


@pytest.mark.parametrize(
  ("shift", "answer", "t", "p"),
  [(0.1, "yes", np.inf, 2**-9), (-0.1, "no", -np.inf, 2**-9), (0.0, "within noise", 0.0, 1.0)],
)
def test_differences_without_spread(shift, answer, t, p):
  """The sign test: n heads of n tosses, or n tails."""
  ten = np.concatenate([A, B])
  assert stats.binomtest(10, 10).pvalue == 2**-9
  test = paired_t(ten + shift, ten)
  assert (test.t, test.p, test.half_width) == (t, p, 0.0)
  assert verdict(test) == answer


def test_rounding_is_no_difference_and_one_example_on_five_seeds_no_proof():
  assert verdict(paired_t(A + 1e-4, A)) == "within noise"
  test = paired_t([0.1 + 0.2] * 6, [0.3] * 6)
  assert test.difference != 0
  assert (test.t, test.p) == (0.0, 1.0)
  assert verdict(test) == "within noise"


@pytest.mark.parametrize(
  ("compute", "words"),
  [
    (lambda: all_of([]), "at least one"),
    (lambda: accuracy_interval([], 100), "seed"),
    (lambda: accuracy_interval([0.5, np.nan], 100), "seed"),
    (lambda: accuracy_interval([0.5, 99.0], 100), r"in \[0, 1\], but were from 0.5 to 99"),
    (lambda: accuracy_interval([0.5], 0), "examples must be at least 1, but were 0"),
    (lambda: paired_t(np.ones((3, 2)), np.zeros((3, 2))), "one value per seed"),
  ],
)
def test_what_is_refused(compute, words):
  with pytest.raises(InputError, match=words):
    compute()


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
  assert verdict(all_of([result(*test) for test in tests])) == answer


def test_holms_correction_by_hand():
  """0.01 x 4, then 0.015 x 3, then 0.03 x 2 and 0.04 x 1, which may not fall below it."""
  corrected = holm([0.03, np.nan, 0.01, 0.04, 0.015, np.nan])
  np.testing.assert_allclose(corrected, [0.06, np.nan, 0.04, 0.06, 0.045, np.nan])
  assert len(holm([])) == 0


@pytest.mark.slow
def test_many_claims_about_noise_are_rarely_affirmed():
  """Of 20 claims without effect, any is significant in at most one of 20 studies."""
  rng = np.random.default_rng(0)
  studies = [[paired_t(rng.normal(size=5), np.zeros(5)).p for _ in range(20)] for _ in range(200)]
  assert np.mean([holm(p).min() < 0.05 for p in studies]) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
  assert np.mean([min(p) < 0.05 for p in studies]) > 0.5


def test_no_worse_is_tested_against_a_margin():
  a, b = np.array([100.0, 101, 99, 100, 102]), np.array([101.0, 100, 100, 101, 101])
  plain = paired_t(a, b)
  assert verdict(plain) == "within noise"  # which does not say that a is no worse
  for margin in (0.5, 1.0, 2.0):
    shown = verdict(paired_t(a + margin, b)) == "yes"
    assert shown == (plain.difference - plain.half_width > -margin)
  assert verdict(paired_t(a + 2.0, b)) == "yes"
  assert verdict(paired_t(a - 5.0 + 2.0, b)) == "no"
