"""Accuracies of finished runs, clean and attacked, as studies compare them.

evaluated = target.load({"workdir": str(workdir)}, examples=500)
robust_accuracy(evaluated, LInf(0.1, box=(0.0, 1.0)), PGD)          # in [0, 1]
of_summary(summary)["clean"]
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

  `u` is the set of the attack, with the pixel box.
  """
  logits_fn, x, y = evaluated.logits_fn, evaluated.x, evaluated.y
  return autoattack(logits_fn, x, y, u, version=version).robust_accuracy


def of_summary(summary: dict[str, Any]) -> dict[str, Any]:
  """Of a finished run "clean", its accuracy on the whole test set, of "tested" examples."""
  result = summary["results"][0]
  return {"clean": result["correct"] / result["total"], "tested": result["total"]}
