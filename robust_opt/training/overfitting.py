"""Detects catastrophic and robust overfitting from held-out accuracies after each epoch.

  history = [Epoch(train_loss=0.9, single_step=0.71, pgd=0.55, num_examples=500), ...]
  detected = detect(history)     # an Overfitting, or None
  in_words(detected)             # the warning to print

Catastrophic overfitting (Wong, Rice and Kolter 2020, arXiv 2001.03994): within an epoch PGD
accuracy collapses while accuracy under one step stays or rises. Robust overfitting (Rice, Wong and
Kolter 2020, arXiv 2002.11569): PGD accuracy declines slowly while the training loss still falls.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

# What a collapse loses of the best PGD accuracy; a constant classifier also has some.
COLLAPSE_FRACTION, COLLAPSE_POINTS = 0.5, 0.1
# A network that gained more than this under one step since its best epoch is still learning.
LEARNING_POINTS = 0.1
# A decline counts from this many standard errors of a difference, and this much in absolute terms.
STANDARD_ERRORS, POINTS = 2.0, 0.02


class Epoch(NamedTuple):
  """Measurements after one epoch; accuracies are in [0, 1]."""

  train_loss: float  # mean over the perturbed training batches
  single_step: float  # held-out accuracy under one step
  pgd: float  # held-out accuracy under PGD of the same radius
  num_examples: int  # of both accuracies


class Overfitting(NamedTuple):
  """Overfitting, as of the last epoch of a history; epochs are counted from 1."""

  kind: Literal["catastrophic", "robust"]
  best_epoch: int  # of the best PGD accuracy
  best_pgd: float
  epoch: int  # the last
  pgd: float
  single_step: float


def detect(history: Sequence[Epoch]) -> Overfitting | None:
  """Overfitting at the end of the history of all epochs so far, or None."""
  if not history:
    return None
  last, best = history[-1], max(history, key=lambda epoch: epoch.pgd)
  numbers = history.index(best) + 1, best.pgd, len(history), last.pgd, last.single_step
  if _collapsed(last, best):
    return Overfitting("catastrophic", *numbers)
  return Overfitting("robust", *numbers) if _declined(last, best) else None


def newly_detected(history: Sequence[Epoch]) -> Overfitting | None:
  """`detect`, or None if the same kind was already detected an epoch earlier."""
  before, now = detect(history[:-1]), detect(history)
  return None if now and before and now.kind == before.kind else now


def in_words(overfitting: Overfitting) -> str:
  """A sentence on what happened and what to do about it."""
  drop = (
    f"held-out accuracy under PGD fell from {100 * overfitting.best_pgd:.1f} % after epoch "
    f"{overfitting.best_epoch} to {100 * overfitting.pgd:.1f} % after epoch {overfitting.epoch}"
  )
  if overfitting.kind == "catastrophic":
    return (
      f"Catastrophic overfitting: {drop}, while accuracy under one step is "
      f"{100 * overfitting.single_step:.1f} %; train with a random start and more steps, or a "
      f"smaller radius."
    )
  return (
    f"Robust overfitting: {drop}, while the training loss kept falling; evaluate the "
    f"best checkpoint (robust_opt.evaluate --checkpoint=best) or train fewer epochs."
  )


def _collapsed(last: Epoch, best: Epoch) -> bool:
  collapsed = last.pgd < min(COLLAPSE_FRACTION * best.pgd, best.pgd - COLLAPSE_POINTS)
  return collapsed and last.single_step >= best.single_step - POINTS


def _declined(last: Epoch, best: Epoch) -> bool:
  variances = [epoch.pgd * (1 - epoch.pgd) for epoch in (last, best)]
  noise = math.sqrt(sum(variances) / last.num_examples)
  declined = best.pgd - last.pgd > max(POINTS, STANDARD_ERRORS * noise)
  still_learning = last.single_step > best.single_step + LEARNING_POINTS
  return declined and not still_learning and last.train_loss < best.train_loss
