"""The study of Goodfellow et al. in small: closed forms, its results, and that it resumes."""

import copy
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rounding import assert_close

from robust_opt import losses
from robust_opt.experiments import config
from robust_opt.papers.goodfellow2015 import measure, report, study
from robust_opt.papers.goodfellow2015 import nets as nets_lib
from robust_opt.studies.options import values

pytestmark = pytest.mark.usefixtures("no_pictures")

PRESET = study.Preset(seeds=2, epochs=1, large_epochs=0, members=2, tested=40, minimal=4)


def options(workdir, dataset="digits", **changed):
  preset = dataclasses.replace(PRESET, **changed)
  return study.Options(dataset=dataset, workdir=workdir, preset=preset)


def linear(w, top="softmax"):
  """A net of logits x w, w [4, 2], on images [2, 2, 1]."""

  def logits(w, x):
    return x.reshape(len(x), -1) @ w

  return nets_lib.AttackedNet(jax.tree_util.Partial(logits, w), nets_lib.loss_of(top), top)


# A product over 4 pixels, forward and back, and a softmax.
close = functools.partial(assert_close, terms=2 * (4 + 2) + 16, dtype=np.float32)
X = jax.random.uniform(jax.random.key(0), (200, 2, 2, 1)) - 0.5
W = jax.random.normal(jax.random.key(1), (4, 2))
Y = (X.reshape(200, 4) @ (W[:, 1] - W[:, 0]) > 0).astype(jnp.int32)


def test_fgsm_of_a_linear_net_is_its_exact_worst_case():
  radius = 0.1
  found = measure.error_rates({"net": linear(W)}, X, Y, radius)["net"]
  assert found["clean"]["error"] == 0.0
  assert found["clean"]["mistakes"] is None
  difference = W[:, 1] - W[:, 0]
  margins = jnp.abs(X.reshape(200, 4) @ difference)
  lost = margins < radius * jnp.sum(jnp.abs(difference))
  assert found["adversarial"]["error"] == pytest.approx(float(jnp.mean(lost)), abs=1e-6)
  assert 0.1 < found["adversarial"]["error"] < 0.9


def test_gradients_of_parts_are_those_of_the_whole():
  net = linear(W)
  whole = nets_lib.gradient(net, X, Y)
  parted = nets_lib.gradient(net, X, Y, batch_size=7)
  close(parted, whole)
  assert len(X) % 7


def test_fgsm_is_not_clipped_to_the_box():
  x_adv = nets_lib.fgsm(linear(W), X, Y, 2.0)
  close(jnp.abs(x_adv - X), 2.0)


def test_an_ensemble_of_equals_is_its_member():
  net = linear(W)
  whole = nets_lib.ensemble([net, net, net])
  close(
    losses.probabilities(nets_lib.logits(whole, X), "softmax"),
    losses.probabilities(nets_lib.logits(net, X), "softmax"),
  )
  found = measure.ensemble_errors([net, net], X, Y, 0.1)
  assert found["ensemble"] == found["member"] == found["member alone"] > found["clean"] == 0.0


def test_an_ensemble_averages_probabilities():
  one, other = linear(jnp.zeros((4, 2))), linear(W)
  p = losses.probabilities(nets_lib.logits(nets_lib.ensemble([one, other]), X), "softmax")
  expected = (0.5 + losses.probabilities(nets_lib.logits(other, X), "softmax")) / 2
  close(p, expected)


def test_a_net_transfers_to_itself_and_its_opposite_gains():
  nets = {"softmax": linear(W), "mlp": linear(W[:, ::-1])}
  found = measure.transfer_accuracy(nets, X, Y, 0.1)
  accuracy = np.asarray(found["accuracy"])
  own = measure.error_rates(nets, X, Y, 0.1)
  assert found["names"] == ["softmax", "mlp"]
  assert 1 - accuracy[0, 0] == pytest.approx(own["softmax"]["adversarial"]["error"], abs=1e-6)
  np.testing.assert_allclose(accuracy[0, 0] + accuracy[0, 1], 1.0)  # two classes, opposite answers


@pytest.mark.slow
def test_the_sweep_of_a_linear_net_is_a_line():
  found = measure.epsilon_sweep(linear(W), X, Y, 0.25)
  assert found["line"] == pytest.approx(1.0, abs=1e-4)
  assert found["runs"] == pytest.approx(1.0)
  assert found["wrong_everywhere_beyond"] > 0.5


def test_slices_of_a_linear_net_are_halves():
  classes, regions = measure.plane_slices(linear(W), X[:6], Y[:6], 4.0, jax.random.key(2))
  assert classes.shape == (6, 41, 41)
  assert regions == 1.0


def test_no_wrong_region_is_no_number():
  constant = linear(jnp.zeros((4, 2)))
  _, regions = measure.plane_slices(constant, X[:3], jnp.zeros(3, int), 0.1, jax.random.key(0))
  assert regions is None


def test_rubbish_of_a_confident_net_and_of_one_that_knows_nothing():
  nets = {"sure": linear(100.0 * W), "unsure": linear(jnp.zeros((4, 2)), "sigmoid")}
  found = measure.rubbish(nets, X, jax.random.key(0))
  assert set(found["sure"]) == {"normal", "uniform", "shuffled"}
  assert all(rate > 0.9 for rate in found["sure"].values())
  assert all(rate == 0.0 for rate in found["unsure"].values())


@pytest.mark.slow
def test_minimal_examples_are_fooled_ones():
  nets = {"maxout": linear(W), "mlp": linear(W), "softmax": linear(W[:, ::-1])}
  found = measure.minimal(nets, X[:6], Y[:6], num_steps=10)["maxout"]
  assert found["found"] >= 5
  assert found["error"]["mlp"] == 1.0
  assert found["error"]["softmax"] == 0.0
  assert 0 < found["norm"] < 1


def test_no_minimal_example_is_no_share():
  """Of images that are misclassified as they are."""
  constant = linear(jnp.zeros((4, 2)))
  found = measure.minimal({"maxout": constant, "mlp": constant}, X[:3], jnp.ones(3, int), 2)
  assert found["maxout"] == {"found": 0, "norm": None, "error": {"maxout": None, "mlp": None}}


def test_every_kind_is_a_config_of_its_own(tmp_path):
  given = options(tmp_path, "mnist", epochs=3, large_epochs=3)

  def made(kind):
    return study.config_of(given, kind, 1)

  plain = config.as_dict(made("maxout"))
  for kind in nets_lib.KINDS | nets_lib.LARGE:
    assert bool(config.differences(plain, config.as_dict(made(kind)))) == (kind != "maxout")
  adversarial = made("maxout_adversarial")
  assert (adversarial.objective.name, adversarial.objective.alpha) == ("mixture", 0.5)
  assert adversarial.evaluation.checkpoint == "best"
  halves = [made(f"maxout_{part}_half") for part in ("first", "second")]
  assert [half.data.train_start for half in halves] == [0, 30_000]
  assert [half.training.epochs for half in halves] == [6, 6]
  assert made("mlp_hidden").set.radius == 0.0


def measured_of(seeds=3):
  """What a study could have measured."""
  rng = np.random.default_rng(0)

  def near(value):
    return float(value + 1e-4 * rng.normal())

  def rows(clean, adversarial, sure=0.9):
    return {
      "clean": {"error": near(clean), "mistakes": 0.5, "correct": 0.9},
      "adversarial": {"error": near(adversarial), "mistakes": near(sure), "correct": 0.5},
    }

  judged = dict.fromkeys(nets_lib.KINDS, (0.02, 0.9))
  judged |= {"maxout_adversarial": (0.01, 0.2), "mlp_adversarial": (0.02, 0.3)}
  names = list(measure.TRANSFER)
  runs = [
    {
      "examples": 40,
      "judged": {
        name: rows(*errors, 0.1 if name == "rbf" else 0.9) for name, errors in judged.items()
      },
      "transfer": {"names": names, "accuracy": np.full((len(names),) * 2, near(0.2)).tolist()},
      "agreement": {
        pair: {"mistakes": near(value), "both": near(value), "num_mistakes": 36, "num_both": 30}
        for pair, value in (("maxout softmax", 0.6), ("maxout rbf", 0.2), ("softmax rbf", 0.3))
      },
      "similarity": {"maxout": near(0.5), "mlp": 0.4, "maxout_adversarial": 0.6},
      "rubbish": {
        name: {"normal": near(0.9), "uniform": 0.8, "shuffled": 0.7} for name in nets_lib.KINDS
      },
      "turned": {name: [0.0] * 24 + [near(0.7)] for name in ("softmax", "maxout")},
      "swept": {"maxout": {"knee": near(0.95), "wrong_beyond_radius": near(0.5)}},
      "regions": 1.2,
      "minimal": {"maxout": {"error": {"mlp": near(0.1)}}},
    }
    for _ in range(seeds)
  ]
  strengths = list(measure.STRENGTHS)
  fine = [0.01] * len(strengths)
  decay = [0.01 if s < 0.05 else 0.5 for s in strengths]
  logistic = {
    "test": 20,
    "strengths": strengths,
    "adversary": {
      "clean": fine, "train_clean": fine, "adversarial": [0.99] * 12, "norm": fine,
      "pull": [0.1 * s for s in strengths],
    },
    "decay": {
      "clean": decay, "train_clean": decay, "adversarial": [0.99] * 12, "norm": fine,
      "pull": strengths,
    },
  }  # fmt: skip
  n = np.asarray(measure.DIMENSIONS, float)
  growth = {"worst": (0.25 * n).tolist(), "noise": (0.3 * n**0.5).tolist()}
  ensemble = {"clean": 0.01, "ensemble": 0.9, "member": 0.8, "member alone": 0.95}
  return {"seeds": runs, "once": {"logistic": logistic, "growth": growth}, "ensemble": ensemble}


def test_claims_follow_from_the_numbers():
  shown = report.tables_of(measured_of(), "mnist", values(PRESET))
  verdicts = {row["claim"].split(":")[0]: row["holds here"] for row in shown["claims"].rows}
  assert verdicts["Adversarial training lowers the clean error"] == "yes"
  assert verdicts["The wrong class is stable"] == "no"
  assert verdicts["More than perturbing hidden layers does (perceptron)"] == "yes"
  assert [v for v in verdicts.values() if v == "no"] == ["no"]
  assert sum(v.startswith("not tried") for v in verdicts.values()) == 1


def test_claims_that_fail_are_said_to_fail():
  found, rng = copy.deepcopy(measured_of()), np.random.default_rng(1)
  for seed in found["seeds"]:
    seed["judged"]["maxout_signs"]["adversarial"]["error"] = 0.01 * rng.random()
  found["once"]["growth"]["noise"] = found["once"]["growth"]["worst"]
  found["ensemble"]["ensemble"] = 0.1
  rows = report.tables_of(found, "mnist", values(PRESET))["claims"].rows
  failed = {row["claim"].split(":")[0].split(",")[0] for row in rows if row["holds here"] == "no"}
  assert failed >= {
    "More than random signs do",
    "The change of an activation grows as n^1",
    "An ensemble resists little",
  }


def test_a_control_that_has_not_learnt_is_no_evidence():
  found = measured_of()
  for seed in found["seeds"]:
    seed["judged"]["mlp_hidden"]["clean"]["error"] = 0.89
  rows = report.tables_of(found, "mnist", values(PRESET))["claims"].rows
  row = next(row for row in rows if "hidden layers" in row["claim"])
  assert not row["ours"]
  assert row["holds here"] == "not judged: the control has not learnt (89 % clean error)"


def test_no_minimal_example_is_no_evidence():
  found = measured_of()
  found["seeds"][0]["minimal"]["maxout"]["error"]["mlp"] = None
  rows = report.tables_of(found, "mnist", values(PRESET))["claims"].rows
  (row,) = (row for row in rows if "L-BFGS" in row["claim"])
  assert row["holds here"] == "not measured: no example was found"


def test_one_seed_is_said_to_be_one():
  tables = report.tables_of(measured_of(seeds=1), "mnist", values(PRESET))
  rows = {row["claim"].split(":")[0]: row["holds here"] for row in tables["claims"].rows}
  assert rows["Adversarial training lowers the clean error"] == "one seed"
  assert (
    "One seed [95 % interval for the draw of the test examples alone]."
    in (tables["numbers"].notes[0])
  )


def test_numbers_stand_beside_the_published_ones():
  table = report.tables_of(measured_of(), "mnist", values(PRESET))["numbers"]
  row = next(row for row in table.rows if row["what"].startswith("softmax regression: adv"))
  assert row["published"] == "99.9"
  assert row["ours"].mean == pytest.approx(0.9, abs=1e-3)
  assert row["ours"].examples == 40
  sure = next(r for r in table.rows if r["what"] == "... its confidence there")
  assert sure["ours"].examples == 36  # the images that fool the net
  assert row["difference"] == "-9.9"
  assert not any("1600" in row["what"] for row in table.rows)  # not trained


def test_a_seed_that_failed_is_in_no_mean():
  found = measured_of()
  found["seeds"][1]["judged"]["maxout"]["clean"]["error"] = 0.8865
  found["seeds"][1]["judged"]["maxout"]["adversarial"]["error"] = 1.0
  rows = report.tables_of(found, "mnist", values(PRESET))["numbers"].rows
  clean, adversarial = rows[4]["ours"], rows[5]["ours"]
  assert rows[4]["what"] == "maxout: clean error"
  assert clean.failed == adversarial.failed == (False, True, False)
  assert clean.mean == pytest.approx(0.02, abs=1e-3)
  assert adversarial.mean == pytest.approx(0.9, abs=1e-3)


@pytest.mark.slow
def test_a_small_study(tmp_path, monkeypatch, capsys):
  kinds = (*measure.TRANSFER, "mlp_adversarial")
  monkeypatch.setattr(nets_lib, "KINDS", {kind: nets_lib.KINDS[kind] for kind in kinds})
  given = options(tmp_path / "study", seeds=1)
  table = study.run(given)
  assert len(table.rows) > 20
  results = tmp_path / "study" / "results"
  pictures = (
    "growth", "rotation", "transfer", "decay", "epsilon_sweep", "slices", "logistic",
  )  # fmt: skip
  for name in pictures:
    picture = np.asarray(Image.open(results / f"{name}.png").convert("L"))
    assert picture.std() > 5
  manifest = json.loads((results / "manifest.json").read_text())
  assert set(manifest["params_sha256"]) == set(nets_lib.KINDS)
  text = (results / "numbers.md").read_text() + (results / "manifest.json").read_text()
  assert str(tmp_path) not in text
  capsys.readouterr()

  def never(*args, **kwargs):
    raise AssertionError("it must not run again")

  monkeypatch.setattr(study, "_measure", never)
  monkeypatch.setattr(measure, "ensemble_errors", never)
  before = (results / "found.json").read_bytes()
  study.run(given)
  assert (results / "found.json").read_bytes() == before


@pytest.mark.slow
def test_the_number_of_cifar10(tmp_path, monkeypatch):
  """The row alone, on what has CIFAR-10's shape."""

  def images(name, split, **places):
    from robust_opt.data import datasets

    rng = np.random.default_rng(len(split))
    labels = np.arange(400) % 10
    pixels = rng.integers(0, 256, (400, 32, 32, 3), dtype=np.uint8)
    return datasets.from_arrays(pixels, labels, name=name, split=split)

  monkeypatch.setattr("robust_opt.data.datasets.load", images)
  table = study.run(options(tmp_path / "study", "cifar10", seeds=1, members=0))
  assert [row["published"] for row in table.rows] == ["87.15", "96.6", ""]
