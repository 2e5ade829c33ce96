"""What counts as training that does not begin, and what does not."""

import math

import numpy as np
import pytest

from robust_opt.training import progress
from robust_opt.training.progress import Measured

TEN = progress.chance_of(np.arange(1000) % 10, np.arange(400) % 10)


def test_chance_of_equally_frequent_classes():
  assert pytest.approx((math.log(10), 0.1, 400)) == tuple(TEN)


def test_chance_of_other_labels():
  """The entropy of the labels that are known, and the most frequent class held out."""
  labels = np.array([0, 0, 0, 2, -1, -1])
  chance = progress.chance_of(labels, np.array([0, 2, 2, 2]))
  assert chance.loss == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
  assert chance.accuracy == 0.75
  assert progress.chance_of(labels, labels[:4], cross_entropy=False).loss is None


@pytest.mark.parametrize(
  ("measured", "kind"),
  [
    (Measured(2.303, 0.1, 0), "chance"),
    (Measured(2.26, 0.12, 0), "chance"),
    (Measured(2.9, 0.05, 0), None),  # of an untrained network, which may be worse
    (Measured(2.303, 0.2, 0), None),  # the loss is that of the adversary: it has begun
    (Measured(2.2, 0.1, 0), None),
    (Measured(2.303, 0.1, 400), "zero_gradients"),
    (Measured(1.8, 0.4, 201), "zero_gradients"),
    (Measured(1.8, 0.4, 200), None),
    (Measured(0.01, 0.99, 400), None),  # large margins, not dead units
  ],
)
def test_what_is_detected(measured, kind):
  found = progress.detect(3, measured, TEN)
  assert (found and found.kind) == kind
  if found:
    assert found.epoch == 3
    assert found.train_loss == measured.train_loss


@pytest.mark.parametrize(("before", "detected"), [(2.91, True), (2.8, True), (3.0, False)])
def test_a_loss_above_chance_must_fall(before, detected):
  assert (progress.detect(2, Measured(2.9, 0.05, 0), TEN, before) is not None) == detected


@pytest.mark.parametrize(("clean", "detected"), [(0.12, True), (0.5, False)])
def test_of_other_losses_the_accuracy_alone_counts(clean, detected):
  chance = TEN._replace(loss=None)
  assert (progress.detect(1, Measured(0.5, clean, 0), chance) is not None) == detected


def test_words_say_what_was_measured_and_what_to_do():
  words = progress.in_words(progress.detect(2, Measured(2.31, 0.1, 0), TEN))
  assert "after epoch 2 the training loss is 2.31 (chance: 2.303)" in words
  assert "--config.attack.warmup=0.3" in words
  words = progress.in_words(progress.detect(2, Measured(2.31, 0.1, 300), TEN), warmup=False)
  assert "300 of 400 held-out input gradients are zero" in words
  assert "warmup" not in words
