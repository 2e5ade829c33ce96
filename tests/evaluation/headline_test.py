"""The headline of a measurement: counts, intervals, the threat model, the trust report."""

from scipy import stats

from robust_opt.evaluation import headline
from robust_opt.evaluation.trust_checks import Check
from robust_opt.tables import Rate

BALL = {"name": "LInf", "radius": 8 / 255, "box": [0.0, 1.0]}
OVER = "AutoAttack over l_inf 0.03137 within [0, 1]"


def checks(*passed):
  return [
    Check(f"check {k}", outcome, "measured", f"Cause {k}.") for k, outcome in enumerate(passed)
  ]


def interval(correct, total):
  low, high = stats.binomtest(correct, total).proportion_ci(method="wilson")
  return f"{100 * low:.1f} to {100 * high:.1f}"


def of(clean, robust, *passed, first=False):
  attack = headline.ensemble_over("standard", BALL)
  return headline.of_ensemble(Rate(*clean), Rate(*robust), attack, checks(*passed), first)


def test_an_evaluation_of_all_images():
  found = of((9, 10), (4, 10), True, True)
  assert found.sentence == (
    f"90.00 % of 10 clean test images are classified correctly (95 % interval {interval(9, 10)}), "
    f"and 40.00 % ({interval(4, 10)}) remain correctly classified under {OVER}. All 2 checks of "
    f"the trust report pass."
  )
  assert found.warning == ""
  assert of((9, 10), (4, 10), True, first=True).sentence.startswith(
    "90.00 % of the first 10 clean test images"
  )


def test_an_evaluation_of_the_first_images():
  assert f"; of the first 1,000, 40.00 % ({interval(400, 1000)}) remain" in (
    of((9000, 10000), (400, 1000), True).sentence
  )


def test_a_check_that_is_not_measurable_is_not_a_failure():
  assert of((9, 10), (4, 10), True, None, True).sentence.endswith(
    f"{OVER}. 2 of 3 checks of the trust report pass; not measurable on these images: check 1."
  )
  assert of((9, 10), (4, 10), True, None, True).warning == ""


def test_a_failed_check_is_a_warning_that_says_what_it_means():
  found = of((9, 10), (4, 10), True, None, False)
  assert found.sentence.endswith(f"under {OVER}.")
  assert found.warning == (
    "1 check of the trust report failed (check 2): do not trust the number before you understand "
    "why. Cause 2."
  )
  assert "has not been checked" in of((9, 10), (4, 10)).warning


def test_failed_checks_come_first_then_those_that_decide_nothing():
  ordered = headline.by_importance(checks(True, None, False, True, False))
  assert [check.passed for check in ordered] == [False, False, None, True, True]
  assert [check.name for check in ordered if check.passed] == ["check 0", "check 3"]


def test_a_single_attack_is_an_upper_bound():
  attack = headline.attack_over(1, BALL | {"box": None})
  found = headline.of_attack(Rate(9, 10), Rate(8, 10), attack, trained_on=True)
  assert found.sentence.endswith(
    f"80.00 % ({interval(8, 10)}) under 1 step over l_inf 0.03137, pixels may leave [0, 1], the "
    f"attack of training."
  )
  assert "upper bound" in found.warning
