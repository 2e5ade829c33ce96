"""Two ways in which robust training goes wrong late, told from held-out accuracies.

  history = [Epoch(train_loss=0.9, single_step=0.71, pgd=0.55, num_examples=500), ...]
  found(history)     # sentences, none while all is well

Catastrophic overfitting (Wong, Rice and Kolter 2020, arXiv 2001.03994): a net that trains against
one step learns to answer that step alone; its accuracy under PGD collapses within an epoch while
that under one step stays or rises. Robust overfitting (Rice, Wong and Kolter 2020, arXiv
2002.11569): the accuracy under PGD on data that the net has not seen sinks slowly while the loss on
the training set still falls.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

# What a collapse leaves of the best accuracy under PGD, at most; and how much it takes at least.
# A net that has not begun to learn gives one answer, and so stands PGD as often as chance has it.
COLLAPSE, COLLAPSED_POINTS = 0.5, 0.1
# Who has gained more than this under one step was only beginning to learn.
LEARNT_POINTS = 0.1
# Robust overfitting is said beyond so many standard errors of a difference, and so many points.
STANDARD_ERRORS, POINTS = 2.0, 0.02


class Epoch(NamedTuple):
  """What is known after an epoch.

  Attributes:
    train_loss: the mean loss at the perturbed training batches.
    single_step: accuracy on held-out examples under one step.
    pgd: under PGD, of the same radius.
    num_examples: that these accuracies are means over.
  """

  train_loss: float
  single_step: float
  pgd: float
  num_examples: int


def catastrophic(history: Sequence[Epoch]) -> bool:
  """Whether the last epoch has lost half of the best PGD accuracy, but nothing under one step."""
  last, best = history[-1], max(history, key=lambda epoch: epoch.pgd)
  collapsed = last.pgd < min(COLLAPSE * best.pgd, best.pgd - COLLAPSED_POINTS)
  return collapsed and last.single_step >= best.single_step - POINTS


def robust(history: Sequence[Epoch]) -> bool:
  """Whether PGD accuracy has sunk from its best, beyond noise, while the training loss fell."""
  last, best = history[-1], max(history, key=lambda epoch: epoch.pgd)
  noise = math.sqrt((_variance(last.pgd) + _variance(best.pgd)) / last.num_examples)
  sunk = best.pgd - last.pgd > max(POINTS, STANDARD_ERRORS * noise)
  begins = last.single_step > best.single_step + LEARNT_POINTS
  return sunk and not begins and last.train_loss < best.train_loss


def found(history: Sequence[Epoch]) -> list[str]:
  """What is wrong, a sentence each.

  Args:
    history: of all epochs so far, in order.
  """
  if not history:
    return []
  last, best = history[-1], max(history, key=lambda epoch: epoch.pgd)
  drop = (
    f"held-out accuracy under PGD fell from {100 * best.pgd:.1f} % after epoch "
    f"{history.index(best) + 1} to {100 * last.pgd:.1f} % after epoch {len(history)}"
  )
  if catastrophic(history):
    return [
      f"Catastrophic overfitting: {drop}, while {100 * last.single_step:.1f} % stand one step; "
      f"train with a random start and more steps, or a smaller radius."
    ]
  if robust(history):
    return [
      f"Robust overfitting: {drop}, while the training loss went on falling; "
      f"use the best checkpoint (--config.evaluation.checkpoint=best) or fewer epochs."
    ]
  return []


def _variance(accuracy: float) -> float:
  return accuracy * (1 - accuracy)


def new(history: Sequence[Epoch]) -> list[str]:
  """What is wrong since the last epoch and was not before, a sentence each."""
  before = {_kind(sentence) for sentence in found(history[:-1])}
  return [sentence for sentence in found(history) if _kind(sentence) not in before]


def _kind(sentence: str) -> str:
  return sentence.split(":")[0]
