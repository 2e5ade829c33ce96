"""What the command line does: help, defaults, the work directory it leaves, what it prints."""

import logging
import shlex
import subprocess
import sys

import numpy as np
import pytest
from absl import app, flags
from PIL import Image
from processes import environment

from robust_opt import main as main_lib
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import overrides, run, summary

# Softmax regression compiles in a second; the path through the program is that of every network.
SMALL = [
  "--config.model.name=SoftmaxRegression",
  "--config.data.train_examples=200",
  "--config.data.test_examples=64",
  "--config.training.epochs=2",
  "--config.evaluation.sweep=(0.0, 1.0)",
]


def run_main(monkeypatch, *argv):
  """main's exit code, in this process."""
  monkeypatch.setattr(sys, "argv", ["main", *map(str, argv)])
  flags.FLAGS.unparse_flags()
  handler = main_lib.logging.get_absl_handler()
  filters = list(handler.filters)
  try:
    main_lib.command(main_lib.parse(sys.argv))
  except SystemExit as end:
    return end.code
  finally:
    handler.filters[:] = filters
    for name in ("config", "workdir", "coordinator", "num_processes", "process_id"):
      flags.FLAGS[name].unparse()
  return 0


def test_help_says_what_it_does_with_an_example(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "__main__", main_lib)  # whose docstring absl prints
  app.define_help_flags()
  assert run_main(monkeypatch, "--helpshort") == 0
  out = capsys.readouterr().out
  assert out.startswith("Trains a robust network")
  assert "python -m robust_opt.main --config=configs/mnist_linf.py --workdir=" in out
  assert "--config.training.epochs=5" in out
  assert max(map(len, out.splitlines())) <= 100


def test_without_a_config_the_digits_are_run():
  default = flags.FLAGS["config"].default
  assert config_lib.as_dict(overrides.load(default)) == config_lib.as_dict(config_lib.digits())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    workdir = tmp_path_factory.mktemp("main") / "a run"
    patch.setenv("COLUMNS", "80")
    patch.setattr(summary.runs, "example_grid", lambda **kwargs: DRAWN.update(kwargs))
    patch.setattr(summary.runs, "training_curves", lambda *_: None)
    patch.setattr(summary.studies, "accuracy_against_radius", lambda *_: None)
    assert run_main(patch, *SMALL, f"--workdir={workdir}") == 0
  return workdir


DRAWN = {}


def test_the_examples_of_a_run_are_fooled(finished):
  labels = DRAWN["labels"]
  np.testing.assert_array_equal(DRAWN["clean_predictions"], labels)
  assert np.all(DRAWN["robust_predictions"] != labels)
  assert len(labels) == len(np.unique(labels)) > 1
  assert "test examples are fooled by a single step over l_inf 0.1" in DRAWN["title"]


@pytest.mark.slow
def test_the_commands_of_the_last_lines_work(finished, monkeypatch, capsys):
  assert run_main(monkeypatch, *SMALL, f"--workdir={finished}") == 0
  commands = [line for line in capsys.readouterr().out.splitlines() if "python -m" in line]
  assert [line.split()[2] for line in commands] == ["robust_opt.evaluate", "robust_opt.report"]
  for line in commands:
    words = [sys.executable, *shlex.split(line)[1:]]
    subprocess.run(words, check=True, capture_output=True, timeout=400, env=environment())
  assert list(finished.glob("evaluations/*/verdict.npz"))
  assert (finished / "report.html").exists()


def test_a_finished_run_ends_at_once_with_the_same_numbers(finished, monkeypatch, capsys):
  before = (finished / "summary.json").read_bytes()
  lines = (finished / "metrics.jsonl").read_text()
  monkeypatch.setenv("COLUMNS", "80")
  monkeypatch.setattr(run, "assemble", None)  # it would fail if it were called
  assert run_main(monkeypatch, *SMALL, f"--workdir={finished}") == 0
  assert (finished / "summary.json").read_bytes() == before
  assert (finished / "metrics.jsonl").read_text() == lines
  out = capsys.readouterr().out
  assert "SoftmaxRegression on digits, robust training over l_inf 0.1, 2 epochs" in out
  assert "l_inf 0.1, 1 step (training)" in out
  assert "radii in pixels of [0, 1]; attacks: pixels may leave [0, 1]" in out
  assert "No ensemble of attacks has been run" in " ".join(out.split())
  *lines, where, pictures, _, evaluate, report = out.splitlines()
  assert max(map(len, lines)) <= 80
  assert where == f"Everything about this run is in {finished}"
  assert pictures == "Pictures: curves.png, accuracy.png, examples.png"
  run_ = shlex.quote(f"--workdir={finished}")
  assert evaluate == f"  python -m robust_opt.evaluate {run_} --norm=linf --radius=0.1"
  assert report == f"  python -m robust_opt.report {shlex.quote(str(finished))}"


@pytest.mark.parametrize(
  ("path", "level", "message", "read"),
  [
    (main_lib.__file__, logging.INFO, "epoch 1/2", True),
    ("/site-packages/orbax/checkpoint.py", logging.INFO, "saved", False),
    ("/site-packages/jax/xla_bridge.py", logging.INFO, "no TPU", False),
    ("/site-packages/jax/xla_bridge.py", logging.WARNING, "a GPU may be present", True),
    ("/site-packages/tensorflow_datasets/i.py", logging.WARNING, "OpenCV is not installed.", False),
    ("/site-packages/tensorflow_datasets/i.py", logging.WARNING, "something else", True),
  ],
)
def test_noise_of_others_is_left_out(path, level, message, read):
  record = logging.LogRecord("absl", level, path, 1, message, (), None)
  assert main_lib.is_shown(record) == read


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(25, 1, 1), (1, 25)])
def test_images_one_pixel_wide_or_high(shape, monkeypatch, tmp_path):
  """Such as 25 samples of a sensor."""
  rng = np.random.default_rng(0)
  labels = np.arange(200) % 2
  signals = (rng.random((200, *shape)) + labels.reshape(-1, *[1] * len(shape))) / 2
  np.savez(tmp_path / "signals.npz", x=signals.astype(np.float32), y=labels)
  data, workdir = f"--config.data.name={tmp_path / 'signals.npz'}", tmp_path / "run"
  assert run_main(monkeypatch, *SMALL, data, f"--workdir={workdir}") == 0
  with Image.open(workdir / "examples.png") as picture:
    assert len(np.unique(np.asarray(picture.convert("L")))) > 10  # something is drawn
  assert (workdir / "summary.json").exists()
