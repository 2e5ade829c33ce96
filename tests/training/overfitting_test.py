"""Catastrophic and robust overfitting, told from healthy training and from noise."""

import pytest

from robust_opt.training.overfitting import Epoch, Overfitting, detect, in_words, newly_detected

HEALTHY = [Epoch(2.0, 0.4, 0.3, 500), Epoch(1.5, 0.6, 0.5, 500), Epoch(1.2, 0.7, 0.58, 500)]
COLLAPSED = [*HEALTHY, Epoch(0.4, 0.95, 0.02, 500)]
DECLINED = [*HEALTHY, Epoch(0.9, 0.69, 0.5, 500)]
# One class for every input: attacks on other classes fail, so its accuracies are above zero.
CONSTANT = Epoch(2.3, 0.114, 0.114, 500)


@pytest.mark.parametrize(
  "history",
  [
    [],
    *(HEALTHY[:epochs] for epochs in (1, 2, 3)),
    [*HEALTHY, Epoch(2.3, 0.1, 0.1, 500)],  # both accuracies fall: it diverged
    [CONSTANT, Epoch(1.0, 0.4, 0.05, 500)],  # it starts to learn
    [Epoch(2.3, 0.02, 0.02, 500), Epoch(2.2, 0.03, 0.008, 500)],
    [*COLLAPSED, Epoch(0.9, 0.7, 0.6, 500)],  # it recovered
    [epoch._replace(num_examples=50) for epoch in DECLINED],  # within noise
  ],
)
def test_no_overfitting(history):
  assert detect(history) is None


@pytest.mark.parametrize("start", [[], [CONSTANT]])
def test_a_collapse_under_pgd_alone_is_catastrophic(start):
  detected = detect([*start, *COLLAPSED])
  epochs = len(start) + 3, len(start) + 4
  assert detected == Overfitting("catastrophic", epochs[0], 0.58, epochs[1], 0.02, 0.95)


def test_a_slow_decline_is_robust_overfitting():
  assert detect(DECLINED) == Overfitting("robust", 3, 0.58, 4, 0.5, 0.69)


def test_the_warning_names_the_numbers_and_a_remedy():
  assert in_words(detect(COLLAPSED)) == (
    "Catastrophic overfitting: held-out accuracy under PGD fell from 58.0 % after epoch 3 to 2.0 % "
    "after epoch 4, while accuracy under one step is 95.0 %; train with a random start and more "
    "steps, or a smaller radius."
  )
  assert "robust_opt.evaluate --checkpoint=best" in in_words(detect(DECLINED))


def test_each_kind_is_new_once():
  assert newly_detected(COLLAPSED) == detect(COLLAPSED)
  still = [*COLLAPSED, Epoch(0.3, 0.96, 0.01, 500)]
  assert detect(still).kind == "catastrophic"
  assert newly_detected(still) is None
  assert newly_detected([*DECLINED, COLLAPSED[-1]]).kind == "catastrophic"
