"""Claims decided together, and the words of the answers."""

import numpy as np

from robust_opt.statistics import PairedTest, paired_t
from robust_opt.studies import claims
from robust_opt.studies.claims import Claim


def result(difference, p):
  return PairedTest(difference, 0.0, 0.0, p, 5)


CLAIMS = [
  Claim("small", result(1, 0.03), {"ours": "1"}),
  Claim("unknown", "not measured: no example was found"),
  Claim("wrong", result(-1, 0.01)),
  Claim("exact", True),
  Claim("right", result(1, 0.015)),
  Claim("alone", paired_t([1.0], [0.0])),
]


def test_what_is_tested_is_corrected_together():
  outcomes = claims.decide(CLAIMS)
  assert [outcome.holds for outcome in outcomes] == [True, None, False, True, True, None]
  np.testing.assert_allclose([o.p for o in outcomes], [0.03, np.nan, 0.03, np.nan, 0.03, np.nan])
  assert claims.decide([]) == []


def test_a_claim_within_noise_is_undecided():
  (outcome,) = claims.decide([Claim("a", result(1, 0.2))])
  assert (outcome.holds, outcome.p) == (None, 0.2)
  assert claims.in_words(outcome) == "within noise"


def test_rows_say_the_answer_and_the_numbers():
  table = claims.table("Claims", CLAIMS, ["claim", "ours", claims.P, "answer"], answer="answer")
  assert [row["answer"] for row in table.rows] == [
    "yes", "not measured: no example was found", "no", "yes", "yes", "one seed",
  ]  # fmt: skip
  assert [row[claims.P] for row in table.rows] == ["0.03", "", "0.03", None, "0.03", ""]
  assert table.rows[0]["ours"] == "1"
  assert not table.notes
