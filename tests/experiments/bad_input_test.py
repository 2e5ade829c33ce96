"""Every way of getting the input wrong ends with one sentence, code 2, and nothing half-written."""

import importlib.util
import json
import tempfile

import jax
import pytest
from main_test import SMALL, run_main

from robust_opt.experiments import build
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import workdir as workdirs

CONFIGS = {
  "good": "from robust_opt.experiments.config import get_config\n",
  "syntax": "def get_config(:\n",
  "without": "x = 1\n",
  "raises": "def get_config():\n  raise RuntimeError('no luck')\n",
  "none": "def get_config():\n  pass\n",
  "import": "import no_such_module\n",
  "model": """
from robust_opt.experiments.config import digits
def get_config():
  config = digits()
  config.model.depth = 3
  return config
""",
}

# Of every kind one; config_test has the values that a config refuses.
# (arguments, what the sentence must hold); {name} is the path of that config, {tmp} a folder
TABLE = [
  # Flags
  (["stray"], ["--flag=value", "'stray'"]),
  (["--wrkdir=x"], ["'wrkdir'", "Did you mean: workdir"]),
  (["--training.epochs=3"], ["training.epochs"]),
  (["--num_processes=two"], ["num_processes", "two"]),
  (["--coordinator=localhost:1"], ["--coordinator", "--workdir"], "no workdir"),
  (["--coordinator=localhost:1"], ["--coordinator", "--num_processes and --process_id"]),
  (["--coordinator=localhost:1", "--num_processes=2"], ["--process_id", "None"]),
  (["--coordinator=localhost", "--num_processes=2", "--process_id=0"], ["host:port", "localhost"]),
  (["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"], ["--process_id", "2"]),
  (["--num_processes=2", "--process_id=0"], ["--coordinator"]),
  # The file
  (["--config={tmp}/absent.py"], ["--config", "absent.py", "file that defines get_config()"]),
  (["--config"], ["--config"]),
  (["--config={syntax}"], ["--config=", "syntax.py", "invalid syntax", "line 1"]),
  (["--config={without}"], ["without.py", "get_config"]),
  (["--config={raises}"], ["raises.py", "no luck"]),
  (["--config={none}"], ["none.py", "ConfigDict", "NoneType"]),
  (["--config={import}"], ["import.py", "no_such_module"]),
  (["--config={good}:argument"], ["good.py:argument", "get_config"]),
  (["--config={model}"], ["--config.model", "DigitsCNN", "depth"]),
  # Keys
  (["--config.trainng.epochs=3"], ["--config.trainng.epochs", "did you mean training.epochs"]),
  (["--config.zzz=3"], ["--config.zzz", "training", "seed"]),
  (["--config.seed.zzz=3"], ["--config.seed.zzz", "did you mean seed"]),
  (["--config.set=3"], ["--config.set", "name", "radius", "box"]),
  (["--config.model.depth=3"], ["--config.model.depth", "name=DigitsCNN takes"]),
  (["--config.attack.num_steps=7"], ["attack.num_steps", "attack.name=steepest takes every"]),
  (["--config.seed"], ["--config.seed needs a value"]),
  (["--config.evaluation.radii.linf=0.2"], ["radii.linf has no effect", "--config.set.radius"]),
  # Types
  (["--config.training.epochs=many"], ["--config.training.epochs", "int", "'many'"]),
  (["--config.set.radius=big"], ["--config.set.radius", "such as 8/255", "'big'"]),
  (["--config.set.box=maybe"], ["--config.set", "box must be (low, high)"]),
  # Values
  (["--config.set.radius=nan"], ["--config.set", "radius", "nan"]),
  (["--config.set.radius=8"], ["--config.set.radius=8 allows every image", "< 1", "8/255"]),
  (["--config.evaluation.radii.l2=8"], ["radii.l2=8 allows every", "8 x 8 x 1"]),
  (["--config.objective.name=trades"], ["--config.objective.name=trades", "random_start"]),
  (["--config.model.name=AlexNet"], ["--config.model.name", "MnistCNN", "'AlexNet'"]),
  (["--config.data.mean=(0.1, 0.2)"], ["--config.data.mean", "1 channels", "(0.1, 0.2)"]),
  (["--config.optimizer.name=sgdd"], ["--config.optimizer.name", "optax", "'sgdd'"]),
  (["--config.optimizer.name=lbfgs"], ["--config.optimizer.name=lbfgs needs the loss", "adam"]),
  (["--config.optimizer.kwargs=3"], ["optimizer.kwargs", "takes learning_rate, momentum"]),
  (["--config.optimizer.name=softmax"], ["--config.optimizer", "softmax"]),
  (["--config.training.batch_size=4000"], ["--config.training.batch_size", "1293", "4000"]),
  pytest.param(
    (["--config.training.batch_size=30"], ["--config.training.batch_size", "8 devices", "30"]),
    marks=pytest.mark.devices(8),
  ),
  # Data
  (["--config.data.name=mnst"], ["data.name", "'mnst'", "did you mean mnist"]),
  (
    ["--config.data.name=svhn_cropped", "--config.data.data_dir={tmp}"],
    ["data.name='svhn_cropped'", "data_dir", "TensorFlow"],
  ),
  (["--config.data.name=mnist", "--config.data.data_dir={tmp}/x"], ["data.data_dir", "/x"]),
  (["--config.data.holdout=0.00001"], ["1e-05", "at least one"]),
  # A network that cannot take the images
  (["--config.model.name=MnistCNN"], ["--config.model.name=MnistCNN", "digits, 8 x 8 x 1"]),
]


@pytest.fixture
def places(tmp_path, monkeypatch):
  """Configs by name, and a folder for temporary work directories."""
  (tmp_path / "configs").mkdir()
  (tmp_path / "temporary").mkdir()
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
  paths = {name: tmp_path / "configs" / f"{name}.py" for name in CONFIGS}
  for name, path in paths.items():
    path.write_text(CONFIGS[name])
  return {**paths, "tmp": tmp_path}


def the_sentence(captured):
  """What the program said, if it was one sentence."""
  assert captured.out == ""
  (line,) = captured.err.splitlines()
  assert line.startswith("robust_opt: ")
  assert len(line) < 500
  return line


def tree(root):
  return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def name_of(row):
  return " ".join(row[0])


@pytest.mark.parametrize("row", TABLE, ids=name_of)
def test_one_sentence(row, places, monkeypatch, capfd):
  arguments, fragments, *without = row
  if "TensorFlow" in fragments and importlib.util.find_spec("tensorflow"):
    pytest.skip("with TensorFlow the set would be prepared")
  arguments = [a.format_map(places) if "{" in a else a for a in arguments]
  workdir = [] if without else [f"--workdir={places['tmp'] / 'run'}"]
  before = tree(places["tmp"])
  assert run_main(monkeypatch, *workdir, *arguments) == 2
  said = the_sentence(capfd.readouterr())
  for fragment in fragments:
    assert fragment in said
  after = {path for path in tree(places["tmp"]) if "__pycache__" not in str(path)}
  assert after == set(before)
  assert not (places["tmp"] / "run").exists()
  assert not list((places["tmp"] / "temporary").iterdir())


@pytest.mark.devices(8)
def test_devices_are_those_the_table_speaks_of():
  assert jax.device_count() == 8


def another_run(workdir):
  workdir.mkdir()
  config = config_lib.as_dict(config_lib.get_config()) | {"seed": 7}
  (workdir / "config.json").write_text(json.dumps(config))


def a_file(workdir):
  workdir.write_text("a file")


def foreign_files(workdir):
  workdir.mkdir()
  (workdir / "thesis.tex").write_text("all my work")


def folder_config(workdir):
  (workdir / "config.json").mkdir(parents=True)


def unreadable_config(content):
  def make(workdir):
    workdir.mkdir()
    (workdir / "config.json").write_bytes(content)

  return make


@pytest.mark.parametrize(
  ("make", "fragments"),
  [
    (another_run, ["another experiment", "seed: 7 -> 0"]),
    (foreign_files, ["new or empty directory", "thesis.tex"]),
    (a_file, ["new or empty directory", "unexpected file run"]),
    (unreadable_config(b'{"seed": '), ["config.json cannot be read", "choose a new directory"]),
    (unreadable_config(b"\xff\xfe\x00"), ["config.json cannot be read"]),
    (unreadable_config(b"[1, 2]"), ["config.json cannot be read"]),
    (folder_config, ["config.json cannot be read"]),
  ],
)
def test_work_directories_that_are_refused_stay_as_they_are(
  make, fragments, tmp_path, monkeypatch, capfd
):
  workdir = tmp_path / "run"
  make(workdir)
  before = tree(tmp_path)
  assert run_main(monkeypatch, f"--workdir={workdir}") == 2
  said = the_sentence(capfd.readouterr())
  for fragment in [f"--workdir={workdir}", *fragments]:
    assert fragment in said
  assert tree(tmp_path) == before


def test_what_a_killed_start_left_is_no_foreign_file(tmp_path):
  workdir = tmp_path / "run"
  workdir.mkdir()
  (workdir / ".config.json.abc.part").write_text("{")
  config = config_lib.get_config()
  workdirs.check(workdir, config)
  workdirs.claim(workdir, config, build.splits(config_lib.digits()))
  assert {path.name for path in workdir.iterdir()} == {"config.json", "inputs.json"}


def test_a_work_directory_that_cannot_be_made_is_named(tmp_path, monkeypatch, capfd):
  (tmp_path / "file").write_text("in the way")
  assert run_main(monkeypatch, *SMALL, f"--workdir={tmp_path / 'file' / 'run'}") == 1
  assert str(tmp_path / "file" / "run") in the_sentence(capfd.readouterr())
