"""Errors on common corruptions, and the mean corruption error."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from robust_opt.data import corruptions as generators
from robust_opt.errors import InputError
from robust_opt.experiments import config
from robust_opt.experiments import run as experiment
from robust_opt.studies import corruptions
from robust_opt.studies.corruptions import BENCHMARK, Options

LABELS = np.arange(20, dtype=np.int32) % 4


def blind(x):
  """Class 1, whatever the image is."""
  return jnp.zeros((len(x), 4)).at[:, 1].set(1.0)


def bright(x):
  """Class 1 of images whose mean is at least 1/2, and else class 0."""
  level = x.reshape(len(x), -1).mean(axis=1) - 0.5
  return jnp.stack([-level, level, level - 1, level - 1], axis=1)


def levels(values):
  """Gray images [N, 6, 6, 1] of these levels."""
  return np.broadcast_to(np.float32(values)[:, None, None, None], (len(values), 6, 6, 1)).copy()


def test_a_net_that_ignores_the_image_has_the_same_error_everywhere():
  fixed = generators.Corrupted(("fog", "snow"), LABELS, lambda name, s: np.zeros((20, 6, 6, 1)))
  errors = corruptions.measure(blind, fixed, batch_size=8)
  assert errors == {"fog": [0.75] * 5, "snow": [0.75] * 5}
  assert corruptions.mean_error(errors) == 0.75


def test_each_severity_is_asked_of_its_images():
  x = levels([0.1, 0.37, 0.42, 0.46, 0.9])  # brightness adds 0.05, 0.1, 0.15, 0.2, 0.3
  images = {s: x + add for s, add in zip(range(1, 6), (0.05, 0.1, 0.15, 0.2, 0.3))}
  every = generators.Corrupted(("b",), np.zeros(5, np.int32), lambda name, s: images[s])
  errors = corruptions.measure(bright, every, batch_size=2)
  np.testing.assert_allclose(errors["b"], np.array([2, 3, 4, 4, 4]) / 5)
  moved = corruptions.measure(
    lambda x: bright(x) if x.shape[1:] == (1, 6, 6) else None, every, 2, channel_axis=0
  )
  assert moved == errors


def test_corruption_errors():
  errors = {"fog": [0.1, 0.2, 0.3, 0.4, 0.5], "spatter": [0.0, 0.0, 0.0, 0.0, 0.1]}
  assert corruptions.corruption_errors(errors, errors) == {"fog": 1.0, "spatter": 1.0}
  double = {name: [2 * e for e in values] for name, values in errors.items()}
  assert corruptions.corruption_errors(errors, double) == {"fog": 0.5, "spatter": 0.5}
  assert corruptions.averaged(errors) == ["fog"]  # spatter is not of the benchmark's 15
  assert corruptions.mean_error(errors) == pytest.approx(0.3)
  assert corruptions.averaged({"own": [0.0] * 5}) == ["own"]
  assert len(BENCHMARK) == len(set(BENCHMARK)) == 15
  with pytest.raises(InputError, match="makes no error under fog"):
    corruptions.corruption_errors(errors, {**errors, "fog": [0.0] * 5})


@pytest.fixture
def own(tmp_path, monkeypatch):
  """Options of a function, its data, and corrupted files of them."""
  (tmp_path / "net_of_corruptions_test.py").write_text(
    "import jax.numpy as jnp\n"
    "def logits_fn(x):\n"
    "  level = x.reshape(len(x), -1).mean(axis=1) - 0.5\n"
    "  return jnp.stack([-level, level, level - 1, level - 1], axis=1)\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, "net_of_corruptions_test", raising=False)
  monkeypatch.chdir(tmp_path)
  x = levels(np.linspace(0.1, 0.9, 20))
  np.savez("data.npz", x=x, y=LABELS % 2)
  folder = tmp_path / "own-c"
  folder.mkdir()
  images = np.rint(255 * np.concatenate([np.clip(x + 0.02 * s, 0, 1) for s in range(5)]))
  np.save(folder / "labels.npy", np.tile(LABELS % 2, 5))
  np.save(folder / "fog.npy", images.astype(np.uint8))
  source = {"model": "net_of_corruptions_test:logits_fn", "data": "data.npz"}
  return Options(source, "own-c", batch_size=8, output=tmp_path / "found")


def test_a_baseline_against_itself_is_100_percent(own, capsys):
  first = corruptions.run(own)
  assert first["mean_over"] == ["fog"]
  assert first["images"]["examples"] == 20
  assert "mce" not in first
  out = " ".join(capsys.readouterr().out.split())
  assert "not normalized by a baseline" in out
  assert "1 of the benchmark's 15 corruptions" in out
  path = own.output / "own-c.json"
  assert json.loads(path.read_text()) == first
  again = corruptions.run(own._replace(baseline=path))
  assert again["mce"] == 1.0
  assert again["errors"] == first["errors"]
  assert "mean corruption error relative to" in " ".join(capsys.readouterr().out.split())


def test_a_baseline_of_other_images_or_corruptions(own, tmp_path):
  corruptions.run(own)
  path = own.output / "own-c.json"
  other = own._replace(baseline=path)
  with pytest.raises(InputError, match=r"other images .* differ in examples, labels_sha256"):
    corruptions.run(other._replace(examples=10))
  with pytest.raises(InputError, match="has no errors of 'gaussian_noise'"):
    corruptions.run(other._replace(images="generate"))
  for text in ("[]", '{"errors": {"fog": [0.1, 0.2]}}'):
    path.write_text(text)
    with pytest.raises(InputError, match=r"must be a JSON file of --corruptions"):
      corruptions.run(other)
  path.write_text(json.dumps({"errors": {"fog": [0.5] * 5}}))  # as a paper states them
  assert corruptions.run(other)["mce"] > 0


def test_images_that_the_network_does_not_take(own):
  np.savez("data.npz", x=levels(np.linspace(0, 1, 20))[:, :5], y=LABELS)
  with pytest.raises(InputError, match=r"has images \[6, 6, 1\], but .* takes \[5, 6, 1\]"):
    corruptions.run(own)
  with pytest.raises(InputError, match=r"must be generate, or a folder .* but was 'all'"):
    corruptions.run(own._replace(images="all"))
  with pytest.raises(InputError, match="need --output"):
    corruptions.run(own._replace(output=None))


@pytest.mark.slow
def test_the_command_on_a_run(tmp_path):
  c = config.digits()
  c.model.name = "SoftmaxRegression"
  c.data.train_examples, c.data.test_examples, c.training.epochs = 300, 60, 3
  c.evaluation.sweep = (0.0, 1.0)
  experiment.run(c, tmp_path / "run")

  def evaluate(*more):
    words = [sys.executable, "-m", "robust_opt.evaluate", f"--workdir={tmp_path / 'run'}"]
    return subprocess.run([*words, "--corruptions=generate", *more], capture_output=True, text=True)

  done = evaluate()
  assert done.returncode == 0, done.stderr
  path = tmp_path / "run" / "corruptions" / "generate.json"
  assert f"The result is in {path}" in done.stdout
  found = json.loads(path.read_text())
  own = json.loads((tmp_path / "run" / "summary.json").read_text())["results"][0]
  assert found["clean_error"] == pytest.approx(1 - own["correct"] / own["total"])
  assert len(found["errors"]) == 10
  # From the lowest noise to the most: the error grows, or stays, where it is not by chance.
  assert found["errors"]["contrast"][-1] >= found["clean_error"]
  done = evaluate("--norm=l2")
  assert done.returncode == InputError.exit_code
  assert "--norm has no effect with --corruptions" in done.stderr
