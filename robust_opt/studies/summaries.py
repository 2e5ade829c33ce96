"""An evaluation in words and tables: its headline, its tables for the terminal, summary.md.

print(headline(summary, claim, checks).sentence)       # summary: the content of summary.json
metrics.print_table(accuracy_table(summary, claim))
"""

from typing import Any

from rich import box
from rich.table import Table

from robust_opt import tables
from robust_opt.evaluation import headline as headlines
from robust_opt.evaluation import outcome, trust, verdict
from robust_opt.tables import Rate


def headline(
  summary: dict[str, Any], claim: verdict.Claim, checks: list[trust.Check]
) -> headlines.Headline:
  """The most important numbers, the threat model, and why not to trust them."""
  clean, *_, robust = (Rate(row["standing"], summary["total"]) for row in summary["attacks"])
  attack, first = headlines.ensemble_over(claim.version, claim.set), claim.source.get("examples")
  data = claim.source.get("data", "")
  bound = summary["skipped"] and summary["skipped"]["bound"]
  if claim.target:
    success = Rate(**summary["targeted"])
    of_what = (attack, claim.target, checks, bool(first), data)
    return headlines.of_targeted(clean, success, *of_what)
  bound = summary["skipped"] and summary["skipped"]["bound"]
  return headlines.of_ensemble(clean, robust, attack, checks, bool(first), data, bound)


def remarks(summary: dict[str, Any], claim: verdict.Claim, guess: str) -> str:
  """What else to know of the number; `guess`: that of the channel axis, or empty."""
  rounded_accuracy = 100 * summary["accuracy_after_rounding"]
  parts = [f"The adversarial images, rounded to 8 bits, leave {rounded_accuracy:.2f} %."]
  if summary["ssim"] is not None:
    parts.append(
      f"Their mean structural similarity (SSIM) to the clean ones is {summary['ssim']:.3f}."
    )
  if summary["certified"]:
    proved = Rate(summary["certified"]["images"], summary["total"])
    method = summary["certified"]["method"]
    parts.append(f"{proved.percent} ({proved.range}) are proved to be robust, by {method}.")
  if summary["draws"]:
    parts.append(f"Every prediction is the mean of {summary['draws']} draws.")
  if summary["classes"] < 10 and claim.version == "standard" and not claim.target:
    count = summary["classes"] - 1
    parts.append(f"There are {count} wrong classes, all of them targets; AutoAttack has nine.")
  if guess:
    parts.append(f"Layout: {guess}; `--channel_axis` states it.")
  return " ".join(parts)


def accuracy_table(summary: dict[str, Any], claim: verdict.Claim) -> Table:
  """Clean, then after each attack: the accuracies with their intervals, for the terminal."""
  left: dict[str, Any] = {"title_justify": "left", "caption_justify": "left", "pad_edge": False}
  title = f"{summary['net']}: {headlines.ensemble_over(claim.version, claim.set)}"
  caption = "each attack on the images that remain; radii in pixels of [0, 1]"
  table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, **left)
  table.add_column("test examples", no_wrap=True)
  for name in _columns(claim):
    table.add_column(name, justify="right", no_wrap=True)
  for row in summary["attacks"]:
    rate = Rate(row["standing"], summary["total"])
    name = "clean" if row["after"] == outcome.CLEAN else f"after {row['after']}"
    correct = f"{rate.correct:,} of {rate.total:,}"
    table.add_row(name, rate.percent, rate.range, correct, f"{row['broke']:,}")
  return table


def _columns(claim: verdict.Claim) -> tuple[str, str, str, str]:
  """What the table counts: toward a target the images that are right, and from which none led."""
  if claim.target:
    return ("resist", "95 % interval", "images", "broken by it")
  return ("accuracy", "95 % interval", "correct", "broken by it")


def trust_table(checks: list[trust.Check]) -> Table:
  """The trust report for the terminal, failed checks first."""
  table = Table(title="Trust report", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
  for name in ("check", "passed", "measured, and what a failure means"):
    table.add_column(name)
  for check in headlines.by_importance(checks):
    meaning = (
      "" if check.passed else f"\n{'This' if check.failed else 'A failure'} means: {check.meaning}"
    )
    table.add_row(check.name, trust.OUTCOMES[check.passed], f"{check.measured}{meaning}")
  return table


def markdown(
  summary: dict[str, Any],
  claim: verdict.Claim,
  checks: list[trust.Check],
  guess: str,
  costs: dict[str, outcome.Cost],
) -> str:
  """The content of summary.md; `guess`: as of `remarks`."""
  words, total = headline(summary, claim, checks), summary["total"]
  rates = [Rate(row["standing"], total) for row in summary["attacks"]]
  rows = [
    f"| {row['after']} | {row['broke']} | {row['standing']} | {rate.percent} | {rate.range} |"
    for row, rate in zip(summary["attacks"], rates, strict=True)
  ]
  head = f"| after | broken by it | remaining | {_columns(claim)[0]} | 95 % interval |"
  parts = [
    f"# {summary['net']}: {words.attack}, {tables.counted(total, 'example')}",
    f"{words.sentence} {words.warning}".strip(),
    "\n".join([head, "|---|---|---|---|---|", *rows]),
    remarks(summary, claim, guess),
  ]
  if checks:
    parts.append(trust.to_markdown(headlines.by_importance(checks)).strip())
  if costs:
    parts.append("\n".join(_cost_table(costs)))
  if claim.source.get("data"):
    parts.append(f"Data: {claim.source['data']}, SHA-256 {claim.data_sha256}.")
  return "\n\n".join(parts) + "\n"


def _cost_table(costs: dict[str, outcome.Cost]) -> list[str]:
  """A lane is an example, or one of its targets; images include those that only fill a batch."""
  rows = [
    f"| {name} | {cost.seconds:.1f} | {cost.compiling:.1f} | {cost.batches} | {cost.lanes} "
    f"| {100 * cost.padding / max(1, cost.lanes + cost.padding):.1f} % | {cost.forward} "
    f"| {cost.gradient} |"
    for name, cost in costs.items()
  ]
  head = "attack | seconds | of which compiling | batches | lanes | padding | images, forward"
  return [f"| {head} | images, gradient |", "|---" * 8 + "|", *rows]
