"""What the README shows runs, and what it names exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from robust_opt.errors import InputError
from robust_opt.evaluation import phases
from robust_opt.experiments import methods

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_ten_lines_train_a_net():
  names = {}
  exec(BLOCKS[0], names)
  rng = np.random.default_rng(0)
  y = rng.integers(0, 10, 64)
  x = np.clip(np.eye(10)[y] + 0.1 * rng.normal(size=(64, 10)), 0, 1).astype(np.float32)
  x = x.reshape(64, 5, 2, 1)  # images
  params = names["model"].init(jax.random.key(0), x)
  opt_state = names["optimizer"].init(params)
  values = []
  for _ in range(100):
    params, opt_state, value = names["step"](params, opt_state, x, y)
    values.append(float(value))
  assert values[-1] < 0.9 * values[0]
  assert names["robust_loss"](params, x, y) > names["loss"](params, x, y)


def worst(line, loss, key):
  """The robust loss of a line of the README, and the clean one."""
  names = {"radius": 0.5}
  exec("import optax\nimport robust_opt as ro", names)
  x = jax.random.uniform(jax.random.key(1), (3, 4))
  robust_loss = names["ro"].robustify(loss, eval(line.split("#")[0], names), argnum=0)
  return robust_loss(x, attack_key=key), loss(x)


def squares(x):
  return (x**2).sum(-1)


@pytest.mark.parametrize("line", BLOCKS[1].strip().splitlines())
def test_other_adversaries_do_with_the_mean(line):
  robust, clean = worst(line, lambda x: squares(x).mean(), jax.random.key(0))
  assert robust > clean
  if "pgd" in line:
    with pytest.raises(InputError, match="key"):
      worst(line, lambda x: squares(x).mean(), None)


@pytest.mark.parametrize("line", BLOCKS[2].strip().splitlines())
def test_adversaries_that_compare_want_the_loss_of_every_example(line):
  robust, clean = worst(line, squares, jax.random.key(0))
  assert (robust > clean).all()
  with pytest.raises(InputError, match="example"):
    worst(line, lambda x: squares(x).mean(), jax.random.key(0))


def test_autoattack_is_two_lines(monkeypatch):
  few = (phases.apgd_ce(5), phases.square_phase(5))
  monkeypatch.setitem(phases.VERSIONS, "standard", few)
  rng = np.random.default_rng(0)
  weights, x = rng.normal(size=(6, 3)).astype(np.float32), rng.random((20, 6)).astype(np.float32)
  names = {"x": x, "y": (x @ weights).argmax(axis=1), "logits_fn": lambda x: x @ weights}
  exec("import robust_opt as ro\n" + BLOCKS[3], names)
  assert 0 < names["verdict"].robust_accuracy < names["verdict"].clean_accuracy == 1
  assert names["verdict"].images.shape == x.shape


@pytest.mark.parametrize("link", sorted(set(re.findall(r'\]\(([^)#:\s]+)(?: "\w+")?\)', README))))
def test_links_lead_somewhere(link):
  assert (ROOT / link).exists()


def test_links_with_a_name_lead_to_its_definition():
  found = re.findall(r'\]\(([^)#\s]+\.py) "(\w+)"\)', README)
  for path, name in found:
    source = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), f"{path} has no {name}"
  linked = {name for path, name in found if path == "robust_opt/experiments/methods.py"}
  assert linked == methods.ALL.keys() - {"standard"}


def test_passes_of_the_methods_are_those_of_the_library():
  rows = [line for line in README.splitlines() if "robust_opt/experiments/methods.py " in line]
  assert len(rows) > 20
  for row in rows:
    cells = row.split(" | ")
    names = re.findall(r'methods\.py "(\w+)"', row)
    expected = [methods.ALL[name].passes / methods.ALL[name].updates for name in names]
    assert list(map(float, re.findall(r"[\d.]+", cells[3]))) == expected, row


@pytest.mark.slow
def test_the_run_command_runs(tmp_path):
  """But for the installation."""
  (block,) = re.findall(r"<!-- run command -->\n```sh\n(.*?)```", README, re.DOTALL)
  install, run = map(str.strip, block.split("&&"))
  assert install == 'python -m pip install ".[run]"'
  command = run.replace("python", sys.executable, 1).replace("runs/digits", str(tmp_path / "run"))
  done = subprocess.run(
    shlex.split(command), cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
  )
  assert done.returncode == 0, done.stderr
  assert "Everything about this run is in" in done.stdout
  assert (tmp_path / "run" / "summary.json").exists()


def test_configs_that_it_names_exist():
  for config in re.findall(r"--config=(\S+\.py)", README):
    assert (ROOT / config).is_file()
  for stem, kinds in re.findall(r"`(\w+_)\{([\w,]+)\}\.py`", README):
    assert all((ROOT / "configs" / f"{stem}{kind}.py").is_file() for kind in kinds.split(","))
