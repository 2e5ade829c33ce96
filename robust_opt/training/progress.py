"""Detects training that does not begin, from the measurements after an epoch.

  chance = chance_of(train_labels, heldout_labels)
  found = detect(3, Measured(2.31, clean=0.11, zero_gradients=0), chance)   # or None
  in_words(found)                                                           # the warning to print

Two symptoms: the network is no better than one that ignores its input, or its input gradients are
zero although it has not learned its training examples (its units are dead).
"""

import math
from typing import Literal, NamedTuple

import numpy as np

# Losses that differ by less than this share are the same: at chance, or unchanged by an epoch.
SAME = 0.02
# The accuracy is at chance up to this many standard errors above that of the most frequent class.
STANDARD_ERRORS = 2.0
# Zero gradients of a network whose loss is below this share of the chance loss are of another kind:
# the margins are so large that the loss rounds to 0.
LEARNED_FRACTION = 0.5


class Chance(NamedTuple):
  """What a network reaches that ignores its input."""

  loss: float | None  # mean cross-entropy, log C for C equally frequent classes; None: unknown
  accuracy: float  # of the most frequent class of the held-out examples
  num_examples: int  # held out


class Measured(NamedTuple):
  """Measurements after one epoch."""

  train_loss: float  # mean over the perturbed training batches
  clean: float  # held-out accuracy, in [0, 1]
  zero_gradients: int  # held-out examples whose input gradient is exactly 0


class NotLearning(NamedTuple):
  """Training that has not begun, as of an epoch, counted from 1."""

  kind: Literal["chance", "zero_gradients"]
  epoch: int
  train_loss: float
  chance_loss: float | None
  clean: float
  chance_accuracy: float
  zero_gradients: int
  num_examples: int


def chance_of(train: np.ndarray, heldout: np.ndarray, *, cross_entropy: bool = True) -> Chance:
  """Of the labels, [N] and [M] integers; those below 0 are unknown.

  `cross_entropy`: whether the training loss is one, so that the entropy of the labels is chance.
  """
  counts = np.bincount(train[train >= 0])
  shares = counts[counts > 0] / counts.sum()
  entropy = -float(np.sum(shares * np.log(shares)))
  most = np.bincount(heldout).max() / len(heldout)
  return Chance(entropy if cross_entropy else None, float(most), len(heldout))


def detect(
  epoch: int, measured: Measured, chance: Chance, loss_before: float = math.inf
) -> NotLearning | None:
  """Training that has not begun by this epoch, or None.

  At chance the accuracy is within the noise of the most frequent class, and the training loss is
  the chance loss (where that is known), or above it and not below `loss_before`, that of the epoch
  before: an untrained network, or an adversary that is too strong, is worse than chance.
  """
  noise = math.sqrt(chance.accuracy * (1 - chance.accuracy) / chance.num_examples)
  guesses = measured.clean <= chance.accuracy + STANDARD_ERRORS * noise
  high = chance.loss is None or _stays_high(measured.train_loss, chance.loss, loss_before)
  unlearned = chance.loss is not None and measured.train_loss > LEARNED_FRACTION * chance.loss
  kind: Literal["chance", "zero_gradients"]
  if unlearned and measured.zero_gradients > chance.num_examples / 2:
    kind = "zero_gradients"
  elif guesses and high:
    kind = "chance"
  else:
    return None
  return NotLearning(
    kind,
    epoch,
    measured.train_loss,
    chance.loss,
    measured.clean,
    chance.accuracy,
    measured.zero_gradients,
    chance.num_examples,
  )


def _stays_high(loss: float, chance: float, before: float) -> bool:
  at_chance = abs(loss - chance) <= SAME * chance
  return at_chance or (loss > chance and loss >= (1 - SAME) * before)


def in_words(found: NotLearning, *, warmup: bool = True) -> str:
  """A sentence on what was measured and what to do about it; warmup: if the attack can have one."""
  if found.kind == "zero_gradients":
    what = (
      f"{found.zero_gradients:,} of {found.num_examples:,} held-out input gradients are zero at a "
      f"training loss of {found.train_loss:.4g}, as where the units of a layer are dead"
    )
  else:
    loss = "" if found.chance_loss is None else f" (chance: {found.chance_loss:.4g})"
    what = (
      f"the training loss is {found.train_loss:.4g}{loss} and held-out clean accuracy "
      f"{100 * found.clean:.1f} % (the most frequent class: {100 * found.chance_accuracy:.1f} %)"
    )
  grow = "let the radius grow (--config.attack.warmup=0.3), or " if warmup else ""
  return (
    f"The network is not learning: after epoch {found.epoch} {what}; {grow}change "
    f"--config.optimizer.learning_rate, most often to a lower one."
  )
