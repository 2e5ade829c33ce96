"""Claims of a paper as values, decided together, and the words of the answers.

claims = [
  Claim("robust training improves clean accuracy", paired_t(robust, standard)),
  Claim("one pixel suffices", True),
  Claim("it converges as fast", "not measured: one seed never converged"),
]
outcomes = decide(claims)             # True, False or undecided, p values corrected by Holm
shown = table("Claims on MNIST", claims, ["claim", ANSWER, P], note)
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from robust_opt import tables
from robust_opt.statistics import ALPHA, PairedTest, holm

ANSWER, P = "holds here", "p (Holm)"
ONE_SEED, WITHIN_NOISE = "one seed", "within noise"


class Claim(NamedTuple):
  """One claim and what decides it.

  Attributes:
    claim: in words.
    evidence: a paired test that it holds; whether it holds, where there is no noise to test
      against; or why it cannot be decided.
    cells: further cells of its row by column: the numbers that it rests on.
  """

  claim: str
  evidence: PairedTest | bool | str
  cells: dict[str, Any] = {}  # noqa: RUF012


class Outcome(NamedTuple):
  """What became of a claim.

  Attributes:
    holds: True or False, beyond noise if it was tested; None: undecided.
    p: after Holm's correction; NaN without a test.
    reason: why it is undecided.
  """

  holds: bool | None
  p: float
  reason: str = ""


def decide(claims: Sequence[Claim]) -> list[Outcome]:
  """Whether each claim of ONE study holds, corrected for the number of those tested (Holm 1979).

  The chance that any tested claim is decided wrongly is at most `statistics.ALPHA`, however the
  tests depend on one another.
  """
  tests = [c.evidence if isinstance(c.evidence, PairedTest) else None for c in claims]
  corrected = holm([math.nan if test is None else test.p for test in tests])
  return [_outcome(claim, float(p)) for claim, p in zip(claims, corrected)]


def _outcome(claim: Claim, p: float) -> Outcome:
  evidence = claim.evidence
  if isinstance(evidence, str):
    return Outcome(None, math.nan, evidence)
  if isinstance(evidence, bool):
    return Outcome(evidence, math.nan)
  if evidence.n == 1:
    return Outcome(None, math.nan, ONE_SEED)
  if not p < ALPHA:
    return Outcome(None, p, WITHIN_NOISE)
  return Outcome(evidence.difference > 0, p)


def in_words(outcome: Outcome) -> str:
  """'yes', 'no', or why it is undecided."""
  return {True: "yes", False: "no", None: outcome.reason}[outcome.holds]


def table(
  title: str,
  claims: Sequence[Claim],
  columns: Sequence[str],
  note: str = "",
  answer: str = ANSWER,
) -> tables.Table:
  """A row for each claim.

  Args:
    title: of the table.
    claims: of one study.
    columns: "claim", `answer`, `P` and those of the claims' cells, in order.
    note: below the table; empty: none.
    answer: the name of the column of answers.
  """
  rows = [
    {"claim": claim.claim, answer: in_words(outcome), P: _p(claim, outcome)} | claim.cells
    for claim, outcome in zip(claims, decide(claims))
  ]
  return tables.Table(title, columns, rows, [note] if note else [])


def note(seeds: int) -> str:
  """How the answers were found, as the beginning of a note."""
  if seeds == 1:
    return "One seed, so no test."
  return (
    f"Paired t tests over {tables.counted(seeds, 'seed')} on the given test examples, two-sided, "
    "at 5 % for all claims of the table together (Holm's correction)."
  )


def _p(claim: Claim, outcome: Outcome) -> str | None:
  """'0.031'; empty where a test was meant but not made."""
  if isinstance(claim.evidence, bool):
    return None
  return "" if math.isnan(outcome.p) else f"{outcome.p:.2g}"
