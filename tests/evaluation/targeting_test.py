"""Evaluations toward a class: what is reached is what the closed form says, and can be verified."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from evaluation import autoattack_test as known
from scipy.optimize import linprog

import robust_opt as ro
from robust_opt.evaluation import headline, phases, targeting, verification
from robust_opt.evaluation import verdict as files
from robust_opt.evaluation.outcome import LEFT_OUT, ROBUST
from robust_opt.files import write_sealed
from robust_opt.sets.build import config_sha256
from robust_opt.tables import Rate

RADIUS = 0.2
CHECKER = Path(__file__).parents[2] / "tools" / "check_verdict.py"


def lead_of_target(weights, bias, x, target):
  """The largest lead of the target over every other class in the ball and box, by linear programs.

  Maximize s, where s <= (w_t - w_j) (x + delta) + b_t - b_j for all j.
  """
  low, high = np.maximum(0, x - RADIUS), np.minimum(1, x + RADIUS)
  others = np.delete(np.arange(len(bias)), target)
  slopes = (weights[:, others] - weights[:, [target]]).T
  rows = np.column_stack([slopes, np.ones(len(others))])
  bounds = [*zip(low, high, strict=True), (None, None)]
  cost = np.append(np.zeros(len(x)), -1.0)
  return -linprog(cost, rows, bias[target] - bias[others], bounds=bounds).fun


@pytest.fixture(scope="module")
def attacked():
  """A linear problem and its verdict toward the least likely class."""
  weights, x, y = known.problem()
  version = (phases.apgd_ce(20),)
  u = known.ball("linf", RADIUS)
  options = {"version": version, "seed": 1}
  found = known.attack(weights, x, y, u, target="least_likely", **options)
  return weights, x, y, found, known.attack(weights, x, y, u, target=2, **options)


def test_it_reaches_what_a_linear_program_says(attacked):
  weights, x, y, *verdicts = attacked
  logits = np.asarray(known.linear_net(*weights, x))
  right = logits.argmax(axis=1) == y
  for found in verdicts:
    best = [lead_of_target(*weights, *of) for of in zip(x.reshape(len(x), -1), found.targets)]
    reached, best = found.broken_by > 0, np.array(best)
    assert not np.any(reached & (best < -1e-5))
    gap = 0.1 * (best - logits[np.arange(len(y)), found.targets] + logits.max(axis=1))
    assert not np.any((found.broken_by == ROBUST) & (best > gap))
    assert 0 < found.success_rate < 1
    assert found.success_rate == np.sum(reached) / np.sum(right & (found.targets != y))
    prediction = known.linear_net(*weights, found.images[reached]).argmax(axis=1)
    np.testing.assert_array_equal(prediction, found.targets[reached])
    np.testing.assert_array_equal(found.broken_by == 0, ~right)
    np.testing.assert_array_equal(found.broken_by == LEFT_OUT, right & (found.targets == y))
    assert found.robust_accuracy == np.mean(right & ~reached)
  least, second = verdicts
  np.testing.assert_array_equal(least.targets[right], logits.argmin(axis=1)[right])
  assert np.all(second.targets == 2)


def test_random_targets_are_wrong_classes_and_belong_to_the_example():
  weights, x, y = known.problem()
  net, ids = known.net_of(weights), np.arange(len(x))
  options = {"seed": 2, "batch_size": 16}
  whole = targeting.targets_of("random", net, x, y, ids, **options)
  part = targeting.targets_of("random", net, x[5:9], y[5:9], ids[5:9], **options)
  np.testing.assert_array_equal(whole[5:9], part)
  assert np.all(whole != y)
  assert set(whole) == set(range(5))


def checker():
  spec = importlib.util.spec_from_file_location("check_verdict", CHECKER)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def other_target(file, y):
  file["targets"][file["broken_ids"][0]] = (file["targets"][file["broken_ids"][0]] + 1) % 5


def swapped(file, y):
  file["images"][[0, 1]] = file["images"][[1, 0]]
  file["norms"][[0, 1]] = file["norms"][[1, 0]]


def left_out(file, y):
  file["broken_by"][np.flatnonzero(file["broken_by"] == ROBUST)[0]] = LEFT_OUT


def no_targets(file, y):
  del file["targets"]


LIES = {
  other_target: "1 of its targets are not those of least_likely",
  swapped: "of its adversarial images|A perturbation has norm",
  left_out: "misstates for 1 images whether their label is the target",
  no_targets: "states the target 'least_likely', which its arrays contradict",
}


def test_both_verifiers_recompute_it(attacked, tmp_path):
  weights, x, y, found, _ = attacked
  config = files.ball_config("linf", RADIUS)
  sha256 = files.data_sha256(x, y), "1 x cpu", config_sha256(config)
  claim = files.Claim(config, "standard", 1, 16, {}, "net", *sha256, target="least_likely")
  path = tmp_path / "verdict.npz"
  files.save(path, found, claim, x, y)
  with np.load(path) as stored:
    whole = dict(stored)

  def logits(images):
    return np.asarray(known.linear_net(*weights, images))

  def problems(file):
    write_sealed(path, {name: value for name, value in file.items() if name != "sha256"})
    with np.load(path) as stored:
      second = checker().problems(dict(stored), logits, logits(x), x, y, "net")
    return verification.verify(files.load(path), known.net_of(weights), x, y, "net"), second

  assert problems(whole) == ([], [])
  for lie, words in LIES.items():
    file = {name: value.copy() for name, value in whole.items()}
    lie(file, y)
    for sentences in problems(file):
      assert any(word in sentence for word in words.split("|") for sentence in sentences), lie


def test_the_headline_is_the_success_rate():
  words = headline.of_targeted(Rate(90, 100), Rate(20, 80), "AutoAttack", "3", [])
  assert words.robust == Rate(70, 100)
  assert "Of the 80 of them whose label is not the target (class 3), 25.00 % (" in words.sentence
  assert "75.00 % resist" in words.sentence


def test_a_target_that_is_no_class_is_one_sentence():
  weights, x, y = known.problem()
  with pytest.raises(ro.InputError, match="target must be a class from 0 to 4, or one of"):
    known.attack(weights, x, y, known.ball("linf"), target=5)
