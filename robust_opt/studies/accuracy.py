"""Accuracies of finished runs, clean and attacked, as studies compare them.

evaluated = target.load({"workdir": str(workdir)}, examples=500)
robust_accuracy(evaluated, LInf(0.1, box=(0.0, 1.0)), PGD)          # in [0, 1]
clean_accuracy(summary)
"""

from typing import Any

from robust_opt import losses
from robust_opt.evaluation.autoattack import autoattack
from robust_opt.evaluation.phases import Phase, pgd_phase
from robust_opt.experiments import target
from robust_opt.sets import Ball

NUM_CLASSES = 10  # of every data set that a study has a preset for
PGD_STEPS, PGD_RELATIVE_STEP = 50, 0.1
PGD = (pgd_phase(f"pgd-{PGD_STEPS}", losses.cross_entropy, PGD_STEPS, PGD_RELATIVE_STEP),)


def robust_accuracy(
  evaluated: target.EvalTarget, u: Ball, version: str | tuple[Phase, ...]
) -> float:
  """The share of examples that remain correctly classified under a version of AutoAttack, or PGD.

  Args:
    evaluated: the network and its test examples.
    u: the set of the attack, with the pixel box.
    version: of AutoAttack, or PGD.
  """
  return autoattack(
    evaluated.logits_fn,
    evaluated.x,
    evaluated.y,
    u,
    version=version,
  ).robust_accuracy


def clean_accuracy(summary: dict[str, Any]) -> float:
  """The share of the whole test set that a run classifies correctly, from its summary."""
  result = summary["results"][0]
  return result["correct"] / result["total"]


def test_examples(summary: dict[str, Any]) -> int:
  """The size of the test set that `clean_accuracy` is a share of."""
  return summary["results"][0]["total"]
