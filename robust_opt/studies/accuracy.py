"""Accuracies of finished runs, clean and attacked, as studies compare them.

evaluated = target.load({"workdir": str(workdir)}, examples=500)
robust_accuracy(evaluated, "linf", 0.1, PGD)          # in [0, 1]
clean_accuracy(summary)
"""

from typing import Any

from robust_opt import losses, maximizers, sets
from robust_opt.attacks import white_box
from robust_opt.attacks.types import LogitsAttack
from robust_opt.evaluation import autoattack
from robust_opt.experiments import target
from robust_opt.types import Array

NUM_CLASSES = 10  # of every data set that a study has a preset for
PGD_STEPS, PGD_RELATIVE_STEP = 50, 0.1


def _pgd(norm: str, radius: Array, rank: Array, channel_axis: int | None) -> LogitsAttack:
  del rank, channel_axis
  ball = sets.BALLS[norm](radius, autoattack.BOX)
  step = sets.LInf if norm == "linf" else sets.L2
  maximizer = maximizers.pgd(ball, step(PGD_RELATIVE_STEP * radius))
  ascend = maximizers.ascend(maximizer, PGD_STEPS, keep_best=True)
  return white_box.ascent(ascend, losses.cross_entropy)


PGD = (autoattack.Phase(f"pgd-{PGD_STEPS}", _pgd),)


def robust_accuracy(
  evaluated: target.Subject, norm: str, radius: float, version: str | tuple[autoattack.Phase, ...]
) -> float:
  """The share of examples that remain correctly classified under a version of AutoAttack, or PGD.

  Args:
    evaluated: the network and its test examples.
    norm: of the ball.
    radius: in pixels of [0, 1].
    version: of AutoAttack, or PGD.
  """
  return autoattack.autoattack(
    evaluated.logits_fn,
    evaluated.x,
    evaluated.y,
    norm=norm,
    radius=radius,
    version=version,
    batch_size=min(100, len(evaluated.y)),
  ).robust_accuracy


def clean_accuracy(summary: dict[str, Any]) -> float:
  """The share of the whole test set that a run classifies correctly, from its summary."""
  result = summary["results"][0]
  return result["correct"] / result["total"]


def test_examples(summary: dict[str, Any]) -> int:
  """The size of the test set that `clean_accuracy` is a share of."""
  return summary["results"][0]["total"]
