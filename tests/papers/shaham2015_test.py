"""The study of Shaham et al. 2015 in small: its invariants, that it resumes, and its claims."""

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from robust_opt import tables
from robust_opt.data import datasets
from robust_opt.errors import InputError
from robust_opt.evaluation import collection, phases
from robust_opt.experiments import config, overrides, seeds
from robust_opt.papers.shaham2015 import measure, report
from robust_opt.papers.shaham2015 import study as shaham2015
from robust_opt.papers.shaham2015.report import updates_to_reach
from robust_opt.papers.shaham2015.study import NETS, PRESETS, Options, Preset
from robust_opt.sets import LInf
from robust_opt.statistics import accuracy_interval
from robust_opt.studies.study import Study

pytestmark = pytest.mark.usefixtures("no_pictures")

PRESET = Preset(seeds=2, epochs=4, pgd_examples=20, points=2, epochs_per_call=2)
SMALL = ("model.name=MLP", "data.train_examples=640", "evaluation.sweep=(0.0, 1.0, 2.0)")
mnist_variant = overrides.module_of(str(Path(__file__).parents[2] / "configs" / "mnist_variant.py"))
PAPER = PRESETS["paper", "mnist"]
NORMS = ("linf", "l2", "l1")


def small(workdir, **changes):
  given = {"dataset": "digits", "workdir": workdir, "preset": PRESET, "override": SMALL}
  return Options(**given | changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  """The work directory of a study that ran without a stop."""
  workdir = tmp_path_factory.mktemp("study") / "small"
  shaham2015.run(small(workdir))
  return workdir


def read(path):
  return json.loads(path.read_text())


def rows_of(table):
  return {row["net"]: row for row in read(table)["rows"]}


# What the study leaves


@pytest.mark.slow
def test_tables_hold_every_row_in_every_form(study):
  results = study / "results"
  for name, count in (("accuracy", 4), ("claims", 29), ("accuracy_against_radius", 18)):
    rows = read(results / f"{name}.json")["rows"]
    assert len(rows) == count
    with (results / f"{name}.csv").open() as file:
      assert len(list(csv.DictReader(file))) == count
    lines = (results / f"{name}.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == count + 1
  assert list(rows_of(results / "accuracy.json")) == list(report.NAMES.values())
  claims = read(results / "claims.json")["rows"]
  answers = {row["answer"].split(":")[0] for row in claims}
  assert answers <= {"yes", "no", "within noise", "not measured"}  # two seeds
  assert all(row["statistic"] for row in claims)


@pytest.mark.slow
def test_the_baseline_scores_exactly_zero_on_its_collections(study):
  row = rows_of(study / "results" / "accuracy.json")["baseline"]
  for column in ("A", "A, l1", "A, l2", "A, linf"):
    assert row[column]["seeds"] == [0.0, 0.0]
    assert row[column]["low"] == row[column]["mean"] == 0.0 < row[column]["high"]
  others = [r for n, r in rows_of(study / "results" / "accuracy.json").items() if n != "baseline"]
  assert all(min(other["A"]["seeds"]) > 0 for other in others)


@pytest.mark.slow
def test_perturbations_of_every_seed_are_within_their_radius(study):
  test = datasets.load("digits", "test")
  for seed in (0, 1):
    examples = collection.load(study / "collections" / f"seed{seed}.npz")
    assert len(examples.labels) > 50
    for norm in NORMS:
      relative = collection.relative_norms(examples, test.images)[examples.norms == norm]
      assert relative.max() <= 1 + 1e-6
  first, second = (collection.load(study / "collections" / f"seed{s}.npz").net for s in (0, 1))
  assert first != second


@pytest.mark.slow
def test_accuracy_is_the_same_wherever_it_is_counted(study):
  """At radius 0, on the clean test set, and at the end of the curve."""
  clean = rows_of(study / "results" / "accuracy.json")
  for net in NETS:
    expected = clean[report.NAMES[net]]["clean"]["seeds"]
    curve = seeds.curve(study / net, (0, 1))
    assert curve["steps"] == [10 * i for i in range(1, 9)]
    np.testing.assert_allclose(np.array(curve["correct"])[:, -1] / 360, expected)
    for norm in NORMS:
      sweep = read(study / net / f"sweep_{norm}_single.json")["value"]
      np.testing.assert_allclose(np.array(sweep["correct"])[:, 0] / 360, expected)


@pytest.mark.slow
def test_the_sweep_at_the_radius_is_what_the_collection_says(study):
  """The baseline is right where it was right and is not in the collection."""
  for norm in NORMS:
    sweep = read(study / "baseline" / f"sweep_{norm}_single.json")["value"]
    for index, seed in enumerate((0, 1)):
      score = read(study / "collections" / f"seed{seed}.json")["value"]
      left = score["nets"]["baseline"]["clean"] - score["totals"][norm]
      assert abs(left - sweep["correct"][index][1]) <= 1  # errors below collection.MARGIN


def test_accuracy_is_counted_after_rounding_to_8_bits_too():
  """A net that is wrong off the grid of 8-bit images alone, where rounding undoes everything."""

  def logits_of(images):
    off_grid = np.abs(images - collection.rounded(images)).reshape(len(images), -1).max(1) > 1e-4
    return np.stack([1 - off_grid, off_grid], axis=1).astype(np.float32)

  images, labels = np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, np.int32)
  ascend = lambda u, x, y: np.full_like(x, u.radius)  # noqa: E731
  examples = collection.collect(logits_of, ascend, images, labels, [LInf(0.001)], "net")
  assert len(examples.labels) == 4
  net = SimpleNamespace(functions=SimpleNamespace(logits_of=logits_of))
  test = datasets.Dataset(images, labels, 2, "black", "test")
  counted = measure.collection_counts(examples, {"baseline": net}, {"baseline": ()}, test)["nets"]
  assert counted["baseline"]["collection"]["linf"] == 0
  assert counted["baseline"]["rounded"]["linf"] == 4
  measured = made_up(9950, lambda s: [800, 100])
  for score in measured["scores"]:
    score["nets"]["baseline"]["rounded"] = dict.fromkeys(NORMS, 25)
  row = report.accuracy_table(report.Accuracies(measured)).rows[0]
  assert (row["A"].mean, row["A, 8 bits"].mean) == (0, 0.25)


@pytest.mark.slow
def test_figures_are_there(study):
  for name in ("figure1_examples", "figure2_accuracy_against_radius", "figure3_collection"):
    assert (study / "results" / f"{name}.png").stat().st_size > 3_000
  assert (study / "results" / "convergence.pdf").stat().st_size > 3_000


@pytest.mark.slow
def test_autoattack_is_asked_for_when_all_else_is_done(study, tmp_path, monkeypatch):
  few = (phases.apgd_ce(5),)
  monkeypatch.setitem(phases.VERSIONS, "standard", few)
  workdir = tmp_path / "study"
  shutil.copytree(study, workdir)
  shaham2015.run(small(workdir, autoattack_examples=24))
  rows = read(workdir / "results" / "autoattack.json")["rows"]
  assert [(row["net"], row["norm"]) for row in rows] == [
    (name, norm) for name in report.NAMES.values() for norm in ("l1", "l2", "linf")
  ]
  linf = rows[-1]
  for row in rows:
    left = [float(row[f"after {attack}"]) for attack in ("clean", "apgd-ce")]
    assert left == sorted(left, reverse=True)
  assert 0 < float(linf["after apgd-ce"]) < float(linf["after clean"]) <= 100
  assert not (study / "results" / "autoattack.json").exists()


@pytest.mark.slow
def test_manifest_says_what_was_run(study):
  manifest = read(study / "results" / "manifest.json")
  assert manifest["seeds"] == [0, 1]
  assert manifest["configs"]["baseline"]["attack"]["name"] == "none"
  assert manifest["configs"]["linf"]["set"] == {"name": "LInf", "radius": 0.1, "box": None}
  assert manifest["versions"]["jax"] == jax.__version__
  assert manifest["device"]["platform"] == jax.default_backend()
  for name in NETS:
    assert manifest["wall_seconds"][f"train {name}"] > 0
    assert re.fullmatch("[0-9a-f]{64}", manifest["sha256"]["checkpoints"][name])
    assert len(set(manifest["sha256"]["nets"][name])) == 2
  assert set(manifest["sha256"]["collections"]) == {"seed0.npz", "seed1.npz"}
  whole = datasets.load("digits", "train")
  part = whole._replace(images=whole.images[:640], labels=whole.labels[:640])
  assert manifest["sha256"]["data"]["train"] == datasets.fingerprint(part)


# Resume


@pytest.mark.slow
def test_stopped_and_damaged_a_study_goes_on_to_the_same_numbers(study, tmp_path, monkeypatch):
  workdir, progress = tmp_path / "again", Study.progress
  shutil.copytree(study, workdir)
  shutil.rmtree(workdir / "results")
  shutil.rmtree(workdir / "l2")
  (workdir / "collections" / "seed0.npz").unlink()
  kept = workdir / "linf" / "sweep_l1_pgd.json"
  written = kept.stat().st_mtime_ns

  def stop_within_l2(self, work, words, skipped=False):
    progress(self, work, words, skipped)
    if words.startswith("l2: epoch 2/4"):
      raise KeyboardInterrupt

  monkeypatch.setattr(Study, "progress", stop_within_l2)
  with pytest.raises(KeyboardInterrupt):
    shaham2015.run(small(workdir))
  assert not (workdir / "results").exists()
  with (workdir / "l2" / "metrics.jsonl").open("a") as file:
    file.write('{"step": 60, "seed0/te')  # what a kill leaves
  monkeypatch.setattr(Study, "progress", progress)
  shaham2015.run(small(workdir, preset=dataclasses.replace(PRESET, epochs_per_call=1)))

  names = sorted(path.name for path in (study / "results").iterdir())
  assert names == sorted(path.name for path in (workdir / "results").iterdir())
  for name in set(names) - {"manifest.json"}:
    assert (study / "results" / name).read_bytes() == (workdir / "results" / name).read_bytes()
  first, second = (read(w / "results" / "manifest.json")["sha256"] for w in (study, workdir))
  assert first == second
  assert kept.stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_tampered_collection_is_refused(study, tmp_path):
  workdir = tmp_path / "tampered"
  shutil.copytree(study, workdir)
  path = workdir / "collections" / "seed1.npz"
  examples = collection.load(path)
  test = datasets.load("digits", "test")
  images = examples.images.copy()
  images[0] = collection.pixels(test.images)[examples.source_ids[0]]
  collection.save(examples._replace(images=images), path)
  with pytest.raises(InputError, match=r"seed1\.npz.*of its own collection correctly"):
    shaham2015.run(small(workdir))


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"preset": dataclasses.replace(PRESET, seeds=3)}, "seeds"),
    ({"robust_override": ("training.shuffle=False",)}, "nets.l1.training.shuffle: True -> False"),
  ],
)
@pytest.mark.slow
def test_another_study_is_refused(study, changes, words):
  with pytest.raises(InputError, match=words):
    shaham2015.run(small(study, **changes))


def test_a_directory_of_something_else_is_refused(tmp_path):
  (tmp_path / "thesis.tex").touch()
  with pytest.raises(InputError, match="something else"):
    shaham2015.run(small(tmp_path))


# Configs


def test_recipes_are_the_papers(tmp_path):
  options = small(tmp_path, dataset="mnist", override=(), preset=PAPER)
  for net, radius in {"linf": 0.2, "l2": 2.0, "l1": 2.0}.items():
    recipe = shaham2015.net_config(options, net)
    assert (recipe.set.name.lower(), recipe.attack.name) == (net, "steepest")
    np.testing.assert_allclose(recipe.set.radius, radius * 0.2752)
    assert (recipe.training.epochs, recipe.training.shuffle, recipe.seed) == (120, False, 1)
  assert shaham2015.net_config(options, "baseline").attack.name == "none"


def test_overrides_reach_the_nets_that_they_are_for(tmp_path):
  options = small(
    tmp_path,
    override=("training.shuffle=False", "evaluation.radii.l2=0.25"),
    robust_override=("attack.name=pgd", "attack.num_steps=7"),
  )
  baseline, robust = (shaham2015.net_config(options, net) for net in ("baseline", "l2"))
  assert (baseline.attack.name, robust.attack.num_steps) == ("none", 7)
  assert not baseline.training.shuffle
  assert robust.set.radius == 0.25


@pytest.mark.parametrize(
  ("flag", "item", "net"),
  [("robust_override", "set.radius=0.3", "linf"), ("override", "attack.warmup=0.5", "baseline")],
)
def test_an_override_of_what_makes_the_net_is_refused(tmp_path, flag, item, net):
  with pytest.raises(InputError, match=f"--{flag}={item} would have no effect"):
    shaham2015.net_config(small(tmp_path, **{flag: (item,)}), net)


@pytest.mark.parametrize("name", [*mnist_variant.OVERRIDES, "radius=2"])
def test_a_variant_is_the_net_of_a_study_with_overrides(name, tmp_path):
  items = mnist_variant.OVERRIDES.get(name, ["evaluation.radii.linf=0.11008"])
  variant = mnist_variant.get_config(name)
  config.validate(variant)
  options = small(tmp_path, dataset="mnist", override=tuple(items), preset=PAPER)
  study_config = shaham2015.net_config(options, "linf")
  variant.evaluation.radii.linf = study_config.evaluation.radii.linf
  assert config.differences(config.as_dict(variant), config.as_dict(study_config)) == []


# Claims, on numbers that are made up


def made_up(robust_clean, robust_sweep):
  """`measured` of 5 seeds: baseline 0.99 clean; the robust nets as given."""
  noise = np.array([0.0, 1.0, -1.0, 2.0, -2.0])

  def counts(mean, spread=5):
    return (mean + spread * noise).astype(int).tolist()

  clean = {"baseline": counts(9900)} | {net: counts(robust_clean, 6) for net in NETS[1:]}
  right = {"baseline": [0] * 5} | {
    net: [mean + s * s // 4 for s in range(5)]
    for net, mean in {"l1": 30, "l2": 70, "linf": 80}.items()
  }
  right["linf"][0] += 1
  score = [
    {
      "test_total": 10_000,
      "totals": dict.fromkeys(NORMS, 100),
      "nets": {
        net: {"clean": clean[net][seed]}
        | {kind: dict.fromkeys(NORMS, right[net][seed]) for kind in ("collection", "rounded")}
        for net in NETS
      },
    }
    for seed in range(5)
  ]
  swept = {net: [[990, *robust_sweep(s)] for s in range(5)] for net in NETS}
  swept["baseline"] = [[990, 500 + s, 10 + s] for s in range(5)]
  sweep = {
    net: {
      "radii": [0.0, 0.1, 0.2],
      "correct": swept[net],
      "zero_gradients": [[0, 0, 0]] * 5,
      "total": 1000,
    }
    for net in NETS
  }
  curve = {"steps": [1, 2, 3], "correct": [[9000, 9800, 9900]] * 5}
  return {
    "dataset": "mnist",
    "seeds": [1, 2, 3, 4, 5],
    "train_total": 60_000,
    "test_total": 10_000,
    "epochs": 3,
    "radii": {"linf": 0.1, "l2": 0.1, "l1": 0.1},
    "curves": dict.fromkeys(NETS, curve),
    "scores": score,
    "sweeps": {
      net: {attack: dict.fromkeys(NORMS, sweep[net]) for attack in ("single", "pgd")}
      for net in NETS
    },
  }


def answers(measured, claim):
  table = report.claims_table(report.Accuracies(measured))
  return {row["answer"] for row in table.rows if row["claim"].startswith(claim)}


@pytest.mark.parametrize(("clean", "answer"), [(9950, "yes"), (9850, "no"), (9900, "within noise")])
def test_clean_accuracy_claim(clean, answer):
  measured = made_up(clean, lambda s: [800 + s * s, 100 + s * s])
  assert answers(measured, "clean test accuracy improves") == {answer}


@pytest.mark.parametrize(
  ("sweep", "answer"),
  [
    (lambda s: [800 + s * s, 100 + s * s], "yes"),
    (lambda s: [800 + s * s, 10 + s], "within noise"),  # equal at the larger radius
    (lambda s: [800 + s * s, 2], "no"),
  ],
)
def test_every_radius_claim(sweep, answer):
  assert answers(made_up(9900, sweep), "harder to attack") == {answer}


def test_other_claims():
  measured = made_up(9900, lambda s: [800, 100])
  assert answers(measured, "accuracy on the collection") == {"yes"}
  assert answers(measured, "best on the collection") == {"yes"}
  assert answers(measured, "no more updates") == {"within noise"}  # equal in five seeds: p = 1/16
  assert answers(measured, "one pixel") == {"yes"}


@pytest.mark.parametrize(
  ("reached_at", "answer"),
  [
    ([2, 2, 1, 2, 1], "yes"),
    ([4, 4, 3, 4, 5], "within noise"),
    ([9, 8, 9, 9, 8], "no"),
    ([2, 2, None, 2, 1], "not measured: 1 seed never reached it"),
  ],
)
def test_no_more_updates_is_tested_against_a_margin(reached_at, answer):
  """The baseline takes 3 to 5 updates, 4 on average: a margin of 0.4."""
  measured = made_up(9900, lambda s: [800, 100])

  def curve(reached):
    correct = [[9900 if r and step >= r else 9000 for step in range(1, 11)] for r in reached]
    return {"steps": list(range(1, 11)), "correct": correct}

  measured["curves"] = dict.fromkeys(NETS, curve(reached_at)) | {"baseline": curve([4, 4, 3, 4, 5])}
  assert answers(measured, "no more updates") == {answer}


def test_a_seed_that_failed_to_learn_is_in_no_mean():
  measured = made_up(9900, lambda s: [800, 100])
  measured["scores"][2]["nets"]["l2"]["clean"] = 1135
  row = report.accuracy_table(report.Accuracies(measured)).rows[2]
  assert row["clean"].failed == row["A"].failed == (False, False, True, False, False)
  assert 0.98 < row["clean"].low < row["clean"].mean < 1
  assert "11.35 (failed)" in row["clean by seed"]
  assert str(row["clean"]).endswith("1 of 5 failed")


def test_published_figures_stand_beside_ours_with_their_marks():
  measured = made_up(9900, lambda s: [800, 100])
  table = report.accuracy_table(report.Accuracies(measured))
  text = tables.markdown(table)
  assert "99.12 [code], 99.16 [mem]" in text
  shares = np.array([81, 80, 81, 82, 84]) / 100  # of the smallest collection
  mean, low, high = 100 * np.array(accuracy_interval(shares, 300))
  assert f"| {mean:.2f} [{low:.2f}, {high:.2f}] |" in text
  assert table.rows[3]["A by seed"] == "81.00, 80.00, 81.00, 82.00, 84.00"


def test_updates_to_reach():
  steps = np.array([10, 20, 30])
  curve = np.array([[0.1, 0.9, 0.8], [0.95, 0.1, 0.9], [0.1, 0.2, 0.3]])
  np.testing.assert_array_equal(updates_to_reach(steps, curve, np.full(3, 0.9)), [20, 10, 30])
