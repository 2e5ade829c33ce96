"""What the README shows runs, and what it names exists."""

import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import environment

import robust_opt as ro
from robust_opt.evaluation import phases

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


def test_a_loaded_run_is_attacked(monkeypatch):
  """The lines of "Load it", on a linear net in place of a run and a few steps of AutoAttack."""
  few = (phases.apgd_ce(5), phases.square_phase(5))
  monkeypatch.setitem(phases.VERSIONS, "standard", few)
  rng = np.random.default_rng(0)
  weights, x = rng.normal(size=(6, 3)).astype(np.float32), rng.random((20, 6)).astype(np.float32)
  run = types.SimpleNamespace(
    logits_fn=lambda x: x @ weights,
    examples=lambda: (x, (x @ weights).argmax(axis=1)),
    predict=lambda x: (x @ weights).argmax(axis=1),
  )
  monkeypatch.setattr(ro, "load_run", lambda workdir: {"runs/digits": run}[workdir])
  names = {}
  exec(BLOCKS[2], names)
  assert names["accuracy"] == 1
  assert 0 < names["verdict"].robust_accuracy < names["verdict"].clean_accuracy == 1


def test_it_is_short():
  prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
  assert len(prose.split()) <= 1000


LINKS = re.findall(r"\]\(([^)#:\s]+)(?:#([\w-]+))?\)", README)


@pytest.mark.parametrize(
  "link", sorted({*LINKS, *((s, "") for s in re.findall('src="(.+?)"', README))})
)
def test_links_lead_somewhere(link):
  path, anchor = link
  assert (ROOT / path).exists()
  if anchor:
    titles = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def accuracies(table):
  """Row -> percentage, of a table as a run prints it."""
  return {name: float(value) for name, value in re.findall(r"^ (.+?)  +([\d.]+)%", table, re.M)}


@pytest.mark.slow
def test_the_run_command_runs(tmp_path):
  """But for the installation."""
  (block,) = re.findall(r"<!-- run command -->\n```sh\n(.*?)```", README, re.DOTALL)
  install, run = map(str.strip, block.split("&&"))
  assert install == 'python -m pip install ".[run]"'
  command = run.replace("python", sys.executable, 1).replace("runs/digits", str(tmp_path / "run"))
  given = {"cwd": ROOT, "env": environment(), "capture_output": True, "text": True, "timeout": 900}
  done = subprocess.run(shlex.split(command), check=False, **given)
  assert done.returncode == 0, done.stderr
  assert "Everything about this run is in" in done.stdout
  (shown,) = re.findall(r"<!-- expected output -->\n```text\n(.*?)```", README, re.DOTALL)
  expected, measured = accuracies(shown), accuracies(done.stdout)
  assert expected.keys() == measured.keys() != set()
  assert all(abs(measured[name] - expected[name]) < 5 for name in expected)  # points
  assert (tmp_path / "run" / "summary.json").exists()


def test_configs_that_it_names_exist():
  for config in re.findall(r"--config=(\S+\.py)", README):
    assert (ROOT / config).is_file()
