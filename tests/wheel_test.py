"""The wheel, without a checkout and beside the packages of one extra alone."""

import importlib.metadata
import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from processes import environment

ROOT = Path(__file__).parents[1]

CORE = """
import numpy as np
import robust_opt as ro
from robust_opt.certificates import bounds, smoothing
from robust_opt.evaluation import trust

rng = np.random.default_rng(0)
weights = rng.normal(size=(6, 3)).astype(np.float32)
x = rng.random((20, 6)).astype(np.float32)
y = (x @ weights).argmax(axis=1)
loss = lambda weights, x, y: ro.losses.cross_entropy(x @ weights, y).mean()
logits_fn = lambda x: x @ weights
assert ro.robustify(loss, ro.steepest(ro.L2(0.5)))(weights, x, y) > loss(weights, x, y)
verdict = ro.autoattack(logits_fn, x, y, ro.LInf(0.1, box=(0.0, 1.0)), version="quick")
assert verdict.robust_accuracy < verdict.clean_accuracy == 1
checks = trust.report(logits_fn, x, y, ro.LInf(0.1, box=(0.0, 1.0)), num_steps=2, num_queries=2)
assert len(checks) > 5
"""


def run(command, **options):
  done = subprocess.run(
    list(map(str, command)), capture_output=True, text=True, check=False, **options
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  folder = tmp_path_factory.mktemp("wheel")
  files = run(
    ["git", "-C", ROOT, "ls-files", "robust_opt", "pyproject.toml", "README.md", "LICENSE"]
  )
  # A copy, since building leaves folders behind.
  for name in files.split():
    (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
  run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, folder / "source"])
  (built,) = folder.glob("robust_opt-*.whl")
  return built


def closure(requirements, extras=()):
  """The distributions that `pip install` of these requirements brings, by name."""
  found, left = set(), [(text, extras) for text in requirements]
  while left:
    text, extras = left.pop()
    requirement = Requirement(text)
    if requirement.marker and not any(
      requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
    ):
      continue
    wanted = (canonicalize_name(requirement.name), tuple(sorted(requirement.extras)))
    if wanted not in found:
      found.add(wanted)
      left += [(text, wanted[1]) for text in importlib.metadata.requires(wanted[0]) or ()]
  return {name for name, _ in found} - {"robust-opt"}


class Environment:
  """A virtual environment with the wheel and the packages of some extras, linked from this one."""

  def __init__(self, folder, wheel, *names):
    venv.create(folder / "env", with_pip=False)
    self.python = folder / "env" / "bin" / "python"
    self.folder = folder
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
      archive.extractall(site)
    self.site = site
    (info,) = site.glob("robust_opt-*.dist-info")
    self.packages = closure(importlib.metadata.PathDistribution(info).requires, names)
    for name in self.packages:
      distribution = importlib.metadata.distribution(name)
      for top in {path.parts[0] for path in distribution.files} - {"..", "__pycache__"}:
        if not (site / top).exists():
          (site / top).symlink_to(distribution.locate_file(top))

  def run(self, *arguments, code=0):
    """What the process prints."""
    # One device: the mesh of eight would have to divide the batches.
    env = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(
      [str(self.python), *map(str, arguments)],
      cwd=self.folder, capture_output=True, text=True, check=False, env=env,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def core(wheel, tmp_path_factory):
  return Environment(tmp_path_factory.mktemp("core"), wheel)


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
  names = zipfile.ZipFile(wheel).namelist()
  files = ("py.typed", "report/templates/report.html", "nets/digits_linf/model.safetensors")
  assert {f"robust_opt/{name}" for name in files} <= set(names)
  assert all(name.split("/")[0].startswith("robust_opt") for name in names)


@pytest.mark.slow
def test_the_core_is_small_and_trains_attacks_and_certifies(core):
  assert len(core.packages) <= 34
  assert not core.packages & {"ml-collections", "matplotlib", "scikit-learn", "tensorboardx"}
  where = core.run("-c", "import robust_opt; print(robust_opt.__file__)")
  assert Path(where.strip()).is_relative_to(core.site)
  core.run("-W", "error", "-c", CORE)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("command", "extra"), [("main", "run"), ("papers.family", "run"), ("report", "report")]
)
def test_a_command_without_its_extra_says_how_to_install_it(core, command, extra):
  printed = core.run("-m", f"robust_opt.{command}", code=2)
  assert printed.count("\n") == 1
  assert f'python -m pip install ".[{extra}]"' in printed


@pytest.mark.slow
def test_the_extras_of_the_commands_train_evaluate_and_report(wheel, tmp_path):
  commands = Environment(tmp_path, wheel, "run")
  run = ("--workdir=run", "--config.training.epochs=1", "--config.data.test_examples=40")
  commands.run("-m", "robust_opt.main", *run)
  assert json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
  attack = ("--workdir=run", "--norm=linf", "--radius=0.1", "--version=quick", "--notrust")
  commands.run("-m", "robust_opt.evaluate", *attack, "--examples=20")
  commands.run("-m", "robust_opt.verify", *tmp_path.glob("run/evaluations/*/verdict.npz"))
  (tmp_path / "report").mkdir()
  reports = Environment(tmp_path / "report", wheel, "report")
  reports.run("-m", "robust_opt.report", f"--workdir={tmp_path / 'run'}")
  assert "AutoAttack" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
