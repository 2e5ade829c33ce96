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
  """One claim and what decides it."""

  claim: str
  # A paired test that it holds; whether it holds, where there is no noise to test against; or why
  # it cannot be decided.
  evidence: PairedTest | bool | str
  cells: dict[str, Any] = {}  # noqa: RUF012  # of its row, by column: the numbers that it rests on


class Outcome(NamedTuple):
  """What became of a claim."""

  holds: bool | None  # beyond noise if it was tested; None: undecided
  p: float  # after Holm's correction; NaN without a test
  reason: str = ""  # why it is undecided


def decide(claims: Sequence[Claim]) -> list[Outcome]:
  """Whether each claim of ONE study holds, corrected for the number of those tested (Holm 1979).

  The chance that any tested claim is decided wrongly is at most `statistics.ALPHA`, however the
  tests depend on one another.
  """
  p = [c.evidence.p if isinstance(c.evidence, PairedTest) else math.nan for c in claims]
  return [_outcome(claim.evidence, float(p)) for claim, p in zip(claims, holm(p))]


def _outcome(evidence: PairedTest | bool | str, p: float) -> Outcome:
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
  title: str, claims: Sequence[Claim], columns: Sequence[str], note: str = "", answer: str = ANSWER
) -> tables.Table:
  """A row for each claim of one study.

  The columns are "claim", `answer`, `P` and those of the claims' cells, in any order.
  """
  rows = []
  for claim, outcome in zip(claims, decide(claims)):
    p = "" if math.isnan(outcome.p) else f"{outcome.p:.2g}"  # empty: a test was meant but not made
    shown = None if isinstance(claim.evidence, bool) else p
    rows.append({"claim": claim.claim, answer: in_words(outcome), P: shown} | claim.cells)
  return tables.Table(title, columns, rows, [note] if note else [])


def note(seeds: int) -> str:
  """How the answers were found, as the beginning of a note."""
  if seeds == 1:
    return "One seed, so no test."
  return (
    f"Paired t tests over {tables.counted(seeds, 'seed')} on the given test examples, two-sided, "
    "at 5 % for all claims of the table together (Holm's correction)."
  )
