"""Catastrophic and robust overfitting, told from healthy training and from noise."""

import pytest

from robust_opt.training import overfitting
from robust_opt.training.overfitting import Epoch

HEALTHY = [Epoch(2.0, 0.4, 0.3, 500), Epoch(1.5, 0.6, 0.5, 500), Epoch(1.2, 0.7, 0.58, 500)]
COLLAPSED = [*HEALTHY, Epoch(0.4, 0.95, 0.02, 500)]
SINKING = [*HEALTHY, Epoch(0.9, 0.69, 0.5, 500)]


def test_healthy_training_is_left_in_peace():
  for epochs in range(4):
    assert overfitting.found(HEALTHY[:epochs]) == []


def test_a_collapse_under_pgd_alone_is_catastrophic():
  (sentence,) = overfitting.found(COLLAPSED)
  assert sentence.startswith("Catastrophic overfitting: ")
  assert "from 58.0 % after epoch 3 to 2.0 % after epoch 4" in sentence
  assert "95.0 % stand one step" in sentence


def test_a_net_that_loses_everything_has_not_overfitted():
  """It forgot or diverged: both accuracies fall, or the training loss rises."""
  assert not overfitting.catastrophic([*HEALTHY, Epoch(2.3, 0.1, 0.1, 500)])
  assert overfitting.found([*HEALTHY, Epoch(2.3, 0.1, 0.1, 500)]) == []


def test_a_net_that_begins_to_learn_has_not_overfitted():
  """At first it gives one answer, which stands every attack on a class; so it does by chance."""
  constant = Epoch(2.3, 0.114, 0.114, 500)
  assert overfitting.found([constant, Epoch(1.0, 0.4, 0.05, 500)]) == []
  assert overfitting.found([Epoch(2.3, 0.02, 0.02, 500), Epoch(2.2, 0.03, 0.008, 500)]) == []
  assert len(overfitting.found([constant, *COLLAPSED])) == 1


def test_slow_sinking_is_robust_overfitting():
  (sentence,) = overfitting.found(SINKING)
  assert sentence.startswith("Robust overfitting: ")
  assert "from 58.0 % after epoch 3 to 50.0 % after epoch 4" in sentence
  assert "checkpoint=best" in sentence


@pytest.mark.parametrize(("num_examples", "said"), [(50, False), (500, True)])
def test_a_difference_within_noise_is_none(num_examples, said):
  few = [epoch._replace(num_examples=num_examples) for epoch in SINKING]
  assert overfitting.robust(few) == said


def test_it_is_over_when_the_accuracy_recovers():
  assert overfitting.found([*COLLAPSED, Epoch(0.9, 0.7, 0.6, 500)]) == []


def test_it_is_said_once():
  assert overfitting.new(COLLAPSED) == overfitting.found(COLLAPSED)
  still = [*COLLAPSED, Epoch(0.3, 0.96, 0.01, 500)]
  assert overfitting.new(still) == []
  assert len(overfitting.found(still)) == 1
  assert len(overfitting.new([*SINKING, COLLAPSED[-1]])) == 1  # another kind
