"""What the README shows runs, and what it names exists."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from robust_opt import ensemble, methods

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_ten_lines_train_a_net():
  names = {}
  exec(BLOCKS[0], names)
  rng = np.random.default_rng(0)
  y = rng.integers(0, 10, 64)
  x = np.clip(np.eye(10)[y] + 0.1 * rng.normal(size=(64, 10)), 0, 1).astype(np.float32)
  params = names["model"].init(jax.random.key(0), x)
  opt_state = names["optimizer"].init(params)
  values = []
  for _ in range(100):
    params, opt_state, value = names["step"](params, opt_state, x, y)
    values.append(float(value))
  assert values[-1] < 0.9 * values[0]
  assert names["robust_loss"](params, x, y) > names["loss"](params, x, y)


def test_other_adversaries_are_adversaries():
  names = {"radius": 0.5}
  exec("import optax\nimport robust_opt as ro", names)
  x = jax.random.uniform(jax.random.key(1), (3, 4))
  for line in BLOCKS[1].strip().splitlines():
    attack = eval(line.split("#")[0], names)
    delta, _ = attack(lambda x: (x**2).sum(-1), jax.random.key(0), x)
    assert delta.shape == x.shape
    assert np.abs(delta).max() > 0


def test_autoattack_is_two_lines(monkeypatch):
  few = (ensemble._apgd_ce(5), ensemble._square(5))
  monkeypatch.setitem(ensemble.VERSIONS, "standard", few)
  rng = np.random.default_rng(0)
  weights, x = rng.normal(size=(6, 3)).astype(np.float32), rng.random((20, 6)).astype(np.float32)
  names = {"x": x, "y": (x @ weights).argmax(axis=1), "logits_fn": lambda x: x @ weights}
  exec("import robust_opt as ro\n" + BLOCKS[2], names)
  assert 0 < names["verdict"].robust_accuracy < names["verdict"].clean_accuracy == 1
  assert names["verdict"].images.shape == x.shape


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(link):
  assert (ROOT / link).exists()


def test_links_to_lines_lead_to_what_they_name():
  found = re.findall(r'\]\(([^)#\s]+)#L(\d+) "(\w+)"\)', README)
  for path, number, name in found:
    line = (ROOT / path).read_text(encoding="utf-8").splitlines()[int(number) - 1]
    assert re.match(rf"(def|class) {name}\b", line), f"{path}#L{number} is {line!r}, not {name}"
  linked = {name for path, _, name in found if path == "robust_opt/methods.py"}
  assert linked == methods.ALL.keys() - {"standard"}


def test_configs_that_it_names_exist():
  for config in re.findall(r"--config=(\S+\.py)", README):
    assert (ROOT / config).is_file()
  for stem, kinds in re.findall(r"`(\w+_)\{([\w,]+)\}\.py`", README):
    assert all((ROOT / "configs" / f"{stem}{kind}.py").is_file() for kind in kinds.split(","))


def test_its_table_is_that_of_the_committed_runs():
  results = ROOT / "results" / "mnist_10_epochs"
  nets = [json.loads((results / net / "summary.json").read_text()) for net in ("standard", "linf")]
  sweeps = [next(s for s in net["sweeps"] if s["norm"] == "linf") for net in nets]
  assert sweeps[0]["radii"] == sweeps[1]["radii"]
  for radius, *correct in zip(sweeps[0]["radii"], *(s["correct"] for s in sweeps)):
    name = "clean" if radius == 0 else f"FGSM, radius {radius:.3f}"
    standard, robust = (f"{100 * c / sweeps[0]['total']:.2f}" for c in correct)
    assert f"| {name} | {standard} | {robust} |" in README
    assert correct[1] > correct[0]


@pytest.mark.parametrize("study", ["mnist", "cifar10_reduced"])
def test_its_tables_are_those_of_the_committed_studies(study):
  table = json.loads((ROOT / "results" / "shaham2015" / study / "accuracy.json").read_text())
  for row in table["rows"]:
    cells = [row["clean"], row["A"], row["A, l1"], row["A, l2"], row["A, linf"]]
    numbers = [
      f"{100 * c['mean']:.2f} ± {100 * c['half_width']:.2f}" if c["mean"] else "0" for c in cells
    ]
    published = [row["published clean"], row["published A"]]
    expected = [row["net"], numbers[0], published[0], numbers[1], published[1], *numbers[2:]]
    assert f"| {' | '.join(expected)} |" in README
    assert row["net"] == "baseline" or 1 < 100 * row["A"]["mean"] < 100  # percentages


def test_its_table_of_autoattack_on_the_papers_nets_is_that_of_the_committed_study():
  path = ROOT / "results" / "shaham2015" / "mnist" / "autoattack.json"
  found = {(row["net"], row["norm"]): row for row in json.loads(path.read_text())["rows"]}
  for net in {net for net, _ in found}:
    clean = found[net, "linf"]["after clean"]
    standing = [found[net, norm]["after square"] for norm in ("linf", "l2", "l1")]
    assert f"| {net} | {clean} | {' | '.join(standing)} |" in README
    assert all(50 < float(accuracy) <= float(clean) for accuracy in standing)
  assert len(found) == 12


def test_its_table_of_the_net_of_madry_et_al_is_that_of_the_committed_evaluation():
  path = ROOT / "results" / "madry_mnist" / "autoattack_first_500.json"
  found = json.loads(path.read_text())
  names = {"clean": "clean", "apgd-ce": "APGD-CE", "apgd-t": "APGD-T", "fab-t": "FAB-T"}
  for row in found["attacks"]:
    name = names.get(row["after"], "Square")
    assert f"| {name} | {100 * row['accuracy']:.2f} %" in README
  assert found["total"] == 500


def test_its_table_of_constructed_sets_is_that_of_the_committed_study():
  path = ROOT / "results" / "ilyas2019" / "mnist" / "sets.json"
  rows = json.loads(path.read_text())["rows"]
  assert len(rows) == 5
  for row in rows:
    clean, robust = (
      f"{100 * row[c]['mean']:.2f} ± {100 * row[c]['half_width']:.2f}" for c in ("clean", "robust")
    )
    published = row["published clean / robust"]
    pattern = rf"^\| {row['learnt from']}[^|]*\| {clean} \| {robust} \| {published} \|$"
    assert re.search(pattern, README, re.MULTILINE), pattern


def test_its_table_of_goodfellow_et_al_is_that_of_the_committed_study():
  path = ROOT / "results" / "goodfellow2015" / "mnist" / "numbers.json"
  found = [
    f"| {row['published']} | {100 * ours['mean']:.2f} ± {100 * ours['half_width']:.2f} |"
    for row in json.loads(path.read_text())["rows"]
    if (ours := row["ours"])["half_width"] is not None
  ]
  table = README.split("| what | published | ours |")[1].split("\n\n")[0]
  rows = table.strip().splitlines()[1:]
  assert len(rows) == 6
  for row in rows:
    assert any(row.endswith(cells) for cells in found), row
