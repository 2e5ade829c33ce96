"""What the README and the pages say of our runs is what the committed results say."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from robust_opt import tables
from robust_opt.experiments import methods
from robust_opt.papers import family, ilyas2019
from robust_opt.papers.goodfellow2015 import report as goodfellow2015_report
from robust_opt.papers.shaham2015 import report as shaham2015_report
from robust_opt.papers.shaham2015 import study as shaham2015_study

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STUDIES = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")


def interval(cell):
  """An accuracy as the tables print it; of one seed, which has no interval, the mean."""
  if "low" not in cell:
    return f"{100 * cell['mean']:.2f}"
  return "{:.2f} [{:.2f}, {:.2f}]".format(*(100 * cell[key] for key in ("mean", "low", "high")))


def read(*path):
  return json.loads(ROOT.joinpath("results", *path).read_text(encoding="utf-8"))


def page(name):
  return (ROOT / "docs" / "results" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["shaham2015_mnist", "shaham2015_cifar10", "ilyas2019_cifar10"])
def test_the_overrides_of_a_page_fit(name):
  paper, dataset = name.split("_")
  overrides = tuple(re.findall(r"--override=([^\s\"]+)", page(name)))
  assert overrides
  module = {"shaham2015": shaham2015_study, "ilyas2019": ilyas2019}[paper]
  preset = dataclasses.replace(module.PRESETS["paper", dataset], epochs=6)
  options = module.Options(dataset=dataset, workdir=ROOT, preset=preset, override=overrides)
  if paper == "ilyas2019":
    ilyas2019.config_of(options, 1, "curriculum")
  else:
    for net in shaham2015_study.NETS:
      shaham2015_study.net_config(options, net)


def test_ten_epochs_of_mnist():
  text = page("mnist_10_epochs")
  results = ROOT / "results" / "mnist_10_epochs"
  nets = [json.loads((results / net / "summary.json").read_text()) for net in ("standard", "linf")]
  sweeps = [next(s for s in net["sweeps"] if s["norm"] == "linf") for net in nets]
  assert sweeps[0]["radii"] == sweeps[1]["radii"]
  for radius, *correct in zip(sweeps[0]["radii"], *(s["correct"] for s in sweeps)):
    name = "clean" if radius == 0 else f"FGSM, radius {radius:.3f}"
    standard, robust = (f"{100 * c / sweeps[0]['total']:.2f}" for c in correct)
    assert f"| {name} | {standard} | {robust} |" in text
    assert correct[1] > correct[0]


@pytest.mark.parametrize("study", ["mnist", "cifar10"])
def test_tables_1_and_2(study):
  text = page(f"shaham2015_{study}")
  table = json.loads((ROOT / "results" / "shaham2015" / study / "accuracy.json").read_text())
  for row in table["rows"]:
    cells = [row["clean"], row["A"], row["A, l1"], row["A, l2"], row["A, linf"]]
    numbers = [interval(cell) if cell["mean"] else "0" for cell in cells]
    published = [row["published clean"], row["published A"]]
    expected = [row["net"], numbers[0], published[0], numbers[1], published[1], *numbers[2:]]
    assert f"| {' | '.join(expected)} |" in text
    assert row["net"] == "baseline" or 1 < 100 * row["A"]["mean"] < 100  # percentages
  of_a = [100 * row["A"]["mean"] for row in table["rows"] if row["net"] != "baseline"]
  for summary in (STUDIES, README) if study == "mnist" else (STUDIES,):
    assert f" classify {min(of_a):.0f} to {max(of_a):.0f} % of " in " ".join(summary.split())


def test_autoattack_on_the_papers_nets():
  text = page("shaham2015_mnist")
  path = ROOT / "results" / "shaham2015" / "mnist" / "autoattack.json"
  found = {(row["net"], row["norm"]): row for row in json.loads(path.read_text())["rows"]}
  for net in {net for net, _ in found}:
    clean = found[net, "linf"]["after clean"]
    accuracies = [found[net, norm]["after square"] for norm in ("linf", "l2", "l1")]
    assert f"| {net} | {clean} | {' | '.join(accuracies)} |" in text
    assert all(50 < float(accuracy) <= float(clean) for accuracy in accuracies)
  assert len(found) == 12


def test_autoattack_on_the_net_of_madry_et_al():
  text = page("madry_mnist")
  path = ROOT / "results" / "madry_mnist" / "autoattack_first_500.json"
  found = json.loads(path.read_text())
  names = {"clean": "clean", "apgd-ce": "APGD-CE", "apgd-t": "APGD-T", "fab-t": "FAB-T"}
  for row in found["attacks"]:
    name = names.get(row["after"], "Square")
    assert f"| {name} | {100 * row['accuracy']:.2f} %" in text
  assert found["total"] == 500
  assert f"| {100 * found['robust_accuracy']:.1f} % of 500 images (95 % interval" in STUDIES
  words = f"keeps {100 * found['robust_accuracy']:.1f} % of 500 images under AutoAttack"
  assert words in " ".join(README.split())


@pytest.mark.parametrize(
  ("name", "folder"), [("ilyas2019_mnist", "mnist"), ("ilyas2019_cifar10", "cifar10_reduced")]
)
def test_constructed_sets(name, folder):
  text = page(name)
  path = ROOT / "results" / "ilyas2019" / folder / "sets.json"
  rows = json.loads(path.read_text())["rows"]
  assert len(rows) == 5
  for row in rows:
    clean, robust = (re.escape(interval(row[c])) for c in ("clean", "robust"))
    published = row["published clean / robust"]
    pattern = rf"^\| {row['learnt from']}[^|]*\| {clean} \| {robust} \| {published} \|$"
    assert re.search(pattern, text, re.MULTILINE), pattern
  taught = {row["learnt from"]: 100 * row["clean"]["mean"] for row in rows}
  if folder != "mnist":
    assert f"{taught['D_rand']:.1f} % and {taught['D_det']:.1f} %, no better than chance" in STUDIES
    return
  assert f"reaches {taught['D_rand']:.1f} % on the true test set (D_rand)" in STUDIES
  assert f"but {taught['D_det']:.1f} %" in STUDIES


def test_goodfellow_et_al():
  text = page("goodfellow2015_mnist")
  path = ROOT / "results" / "goodfellow2015" / "mnist" / "numbers.json"
  found = [
    f"| {row['published']} | {interval(row['ours'])} |"
    for row in json.loads(path.read_text())["rows"]
  ]
  table = text.split("| what | published | ours |")[1].split("\n\n")[0]
  rows = table.strip().splitlines()[1:]
  assert len(rows) == 6
  for row in rows:
    assert any(row.endswith(cells) for cells in found), row
  claims = json.loads((path.parent / "claims.json").read_text())["rows"]
  held = [row["holds here"] for row in claims if not row["holds here"].startswith("not tried")]
  assert f"{held.count('yes')} of {len(held)} claims hold" in STUDIES


def test_the_number_of_goodfellow_et_al_on_cifar10():
  path = ROOT / "results" / "goodfellow2015" / "cifar10" / "numbers.json"
  text = page("goodfellow2015_mnist")
  for row in json.loads(path.read_text())["rows"]:
    assert f" {100 * row['ours']['mean']:.2f} %" in text, row


def test_the_family_of_methods():
  rows = json.loads((ROOT / "results" / "family" / "mnist" / "family.json").read_text())["rows"]
  found = {row["method"]: row["AutoAttack"] for row in rows}
  failed = {name: sum(cell["failed"]) for name, cell in found.items()}
  accuracies = {name: 100 * found[name]["mean"] for name, count in failed.items() if count < 3}
  assert set(found) == set(methods.ALL) - {"ibp", "mtl_ibp", "sabr"}  # added afterwards
  assert all(len(cell["seeds"]) == 3 for cell in found.values())
  free, curriculum, robust = (accuracies[name] for name in ("free", "curriculum", "robust"))
  words = f"reach {free:.1f} and {curriculum:.1f} % under AutoAttack, Algorithm 1 {robust:.1f} %"
  assert words in STUDIES
  assert [failed[name] for name in ("awp", "mart", "pgd", "average", "n_fgsm")] == [3, 3, 1, 1, 1]
  assert sum(failed.values()) == 9
  assert "AWP and MART fail to learn, and one of three seeds fails for PGD, averaged" in STUDIES
  assert f"(PGD: {accuracies['pgd']:.1f} % on the other two)" in STUDIES


def cells(value):
  """All accuracies in a table's JSON."""
  if isinstance(value, dict) and "seeds" in value:
    yield value
  elif isinstance(value, (dict, list)):
    for part in value.values() if isinstance(value, dict) else value:
      yield from cells(part)


def test_no_interval_leaves_0_to_100_and_none_is_a_point():
  found = [
    cell
    for path in sorted((ROOT / "results").glob("*/*/*.json"))
    for cell in cells(json.loads(path.read_text()))
    if isinstance(cell["seeds"], list) and "examples" in cell
  ]
  assert len(found) > 400
  learned = [cell for cell in found if not all(cell["failed"])]
  assert len(found) - len(learned) == 6  # AWP and MART: clean, AutoAttack, PGD
  assert all(0 <= c["low"] <= c["mean"] <= c["high"] <= 1 for c in learned)
  assert all(c["low"] < c["high"] for c in learned)


def test_tables_follow_from_what_was_measured(tmp_path):
  """Of every study, by today's statistics."""

  def made(table, *path):
    tables.write(table, tmp_path / "table")
    assert json.loads((tmp_path / "table.json").read_text())["rows"] == read(*path)["rows"]

  for dataset in ("mnist", "cifar10"):
    measured = read("goodfellow2015", dataset, "found.json")
    numbers = read("goodfellow2015", dataset, "manifest.json")["numbers"]
    for name, table in goodfellow2015_report.tables_of(measured, dataset, numbers).items():
      made(table, "goodfellow2015", dataset, f"{name}.json")
  for folder in ("mnist", "cifar10_reduced"):
    runs = read("ilyas2019", folder, "manifest.json")["learnt"]
    made(ilyas2019.claims_table(runs), "ilyas2019", folder, "claims.json")
  counts = shaham2015_report.Accuracies(read("shaham2015", "mnist", "measured.json"))
  made(shaham2015_report.accuracy_table(counts), "shaham2015", "mnist", "accuracy.json")
  path = "shaham2015", "mnist", "accuracy_against_radius.json"
  made(shaham2015_report.sweep_table(counts), *path)
  table = read("family", "mnist", "family.json")
  times = {row["method"]: float(row["time of an update"]) for row in table["rows"]}
  runs = {name: [] for name in times}
  for run in read("family", "mnist", "measured.json").values():
    runs[run["method"]].append(run)
  preset = family.Preset(**read("family", "mnist", "manifest.json")["numbers"])
  made(family.table_of("mnist", preset, runs, times), "family", "mnist", "family.json")


def test_cheaper_ascents():
  folder = ROOT / "results" / "family" / "mnist"
  for file in ("measured.json", "updates_measured.json"):
    for net in json.loads((folder / file).read_text()).values():
      if net["epochs"] == 8 and net["method"] in ("robust", "recall", "alternate"):
        (row,) = re.findall(rf"^\| {net['method']}\b.*\|$", page("family_mnist"), re.MULTILINE)
        cells = row.split(" | ")
        for cell, what in ((cells[2], "pgd"), (cells[3], "autoattack")):
          assert cell.split(",")[net["seed"] - 1].strip(" |") == f"{100 * net[what]:.1f}"
