"""What the pages and the README say of our runs is what the committed results say."""

import json
import re
from pathlib import Path

import pytest

from robust_opt import methods

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def page(name):
  return (ROOT / "docs" / "results" / f"{name}.md").read_text(encoding="utf-8")


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


@pytest.mark.parametrize("study", ["mnist", "cifar10_reduced"])
def test_tables_1_and_2(study):
  text = page(f"shaham2015_{study.split('_')[0]}")
  table = json.loads((ROOT / "results" / "shaham2015" / study / "accuracy.json").read_text())
  for row in table["rows"]:
    cells = [row["clean"], row["A"], row["A, l1"], row["A, l2"], row["A, linf"]]
    numbers = [
      f"{100 * c['mean']:.2f} ± {100 * c['half_width']:.2f}" if c["mean"] else "0" for c in cells
    ]
    published = [row["published clean"], row["published A"]]
    expected = [row["net"], numbers[0], published[0], numbers[1], published[1], *numbers[2:]]
    assert f"| {' | '.join(expected)} |" in text
    if study == "mnist":
      assert f"| {' | '.join(expected[:5])} |" in README
    assert row["net"] == "baseline" or 1 < 100 * row["A"]["mean"] < 100  # percentages


def test_autoattack_on_the_papers_nets():
  text = page("shaham2015_mnist")
  path = ROOT / "results" / "shaham2015" / "mnist" / "autoattack.json"
  found = {(row["net"], row["norm"]): row for row in json.loads(path.read_text())["rows"]}
  for net in {net for net, _ in found}:
    clean = found[net, "linf"]["after clean"]
    standing = [found[net, norm]["after square"] for norm in ("linf", "l2", "l1")]
    assert f"| {net} | {clean} | {' | '.join(standing)} |" in text
    assert all(50 < float(accuracy) <= float(clean) for accuracy in standing)
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
  assert f"| {100 * found['robust_accuracy']:.1f} % of 500 images (95 % interval" in README


@pytest.mark.parametrize(
  ("name", "folder"), [("ilyas2019_mnist", "mnist"), ("ilyas2019_cifar10", "cifar10_reduced")]
)
def test_constructed_sets(name, folder):
  text = page(name)
  path = ROOT / "results" / "ilyas2019" / folder / "sets.json"
  rows = json.loads(path.read_text())["rows"]
  assert len(rows) == 5
  for row in rows:
    clean, robust = (
      f"{100 * row[c]['mean']:.2f} ± {100 * row[c]['half_width']:.2f}" for c in ("clean", "robust")
    )
    published = row["published clean / robust"]
    pattern = rf"^\| {row['learnt from']}[^|]*\| {clean} \| {robust} \| {published} \|$"
    assert re.search(pattern, text, re.MULTILINE), pattern
  taught = {row["learnt from"]: 100 * row["clean"]["mean"] for row in rows}
  if folder != "mnist":
    assert f"{taught['D_rand']:.1f} % and {taught['D_det']:.1f} % on CIFAR-10" in README
    return
  assert f"teach {taught['D_rand']:.1f} % of the true test set (D_rand)" in README
  assert f"but {taught['D_det']:.1f} %" in README


def test_goodfellow_et_al():
  text = page("goodfellow2015_mnist")
  path = ROOT / "results" / "goodfellow2015" / "mnist" / "numbers.json"
  found = [
    f"| {row['published']} | {100 * ours['mean']:.2f} ± {100 * ours['half_width']:.2f} |"
    for row in json.loads(path.read_text())["rows"]
    if (ours := row["ours"])["half_width"] is not None
  ]
  table = text.split("| what | published | ours |")[1].split("\n\n")[0]
  rows = table.strip().splitlines()[1:]
  assert len(rows) == 6
  for row in rows:
    assert any(row.endswith(cells) for cells in found), row
  claims = json.loads((path.parent / "claims.json").read_text())["rows"]
  held = [row["holds here"] for row in claims if not row["holds here"].startswith("not tried")]
  assert f"{held.count('yes')} of {len(held)} claims hold" in README


def test_the_number_of_goodfellow_et_al_on_cifar10():
  path = ROOT / "results" / "goodfellow2015" / "cifar10" / "numbers.json"
  text = page("goodfellow2015_mnist")
  for row in json.loads(path.read_text())["rows"]:
    mean, half = (100 * row["ours"][key] for key in ("mean", "half_width"))
    assert f"{mean:.1f} ± {half:.1f}" in text, row


def test_the_family_of_methods():
  rows = json.loads((ROOT / "results" / "family" / "mnist" / "family.json").read_text())["rows"]
  stand = {row["method"]: 100 * row["AutoAttack"]["mean"] for row in rows}
  clean = {row["method"]: 100 * row["clean"]["mean"] for row in rows}
  assert set(stand) == set(methods.ALL)
  assert all(len(row["AutoAttack"]["seeds"]) == 3 for row in rows)
  assert (
    f"stand AutoAttack on {stand['free']:.1f} and {stand['curriculum']:.1f} %, Algorithm 1 on "
    f"{stand['robust']:.1f} %" in README
  )
  assert max(clean["awp"], clean["mart"]) < 15  # chance


def test_cheaper_ascents():
  folder = ROOT / "results" / "family" / "mnist"
  for file in ("measured.json", "updates_measured.json"):
    for net in json.loads((folder / file).read_text()).values():
      if net["epochs"] == 8 and net["method"] in ("robust", "recall", "alternate"):
        (row,) = re.findall(rf"^\| {net['method']}\b.*\|$", page("family_mnist"), re.MULTILINE)
        cells = row.split(" | ")
        for cell, what in ((cells[2], "pgd"), (cells[3], "autoattack")):
          assert cell.split(",")[net["seed"] - 1].strip(" |") == f"{100 * net[what]:.1f}"
