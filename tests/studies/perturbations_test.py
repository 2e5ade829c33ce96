"""Flip rates along perturbation sequences."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from robust_opt.data import perturbations as sequences
from robust_opt.errors import InputError
from robust_opt.studies import perturbations
from robust_opt.studies.corruptions import Options

NET = """
def logits_fn(x):
  import jax.numpy as jnp
  level = x.reshape(len(x), -1).mean(axis=1) - 0.5
  return jnp.stack([-level, level], axis=1)
"""


def bright(x):
  """Class 1 of images whose mean is above 1/2, and else class 0."""
  level = x.reshape(len(x), -1).mean(axis=1) - 0.5
  return jnp.stack([-level, level], axis=1)


# Three sequences of four frames, as classes.
CLASSES = np.array([[0, 1, 1, 0], [1, 1, 1, 1], [0, 1, 0, 1]])


def test_frames_are_compared_with_the_one_before_or_of_noise_with_the_first():
  assert perturbations.flip_rate(CLASSES, noise=False) == (2 + 0 + 3) / 9
  assert perturbations.flip_rate(CLASSES, noise=True) == (2 + 0 + 2) / 9
  assert perturbations.flip_rate(np.ones((5, 9)), noise=False) == 0


@pytest.fixture
def folder(tmp_path):
  frames = np.where(CLASSES, 200, 50).astype(np.uint8)[..., None, None, None]
  (tmp_path / "p").mkdir()
  for name in ("tilt", "shot_noise"):
    np.save(tmp_path / "p" / f"{name}.npy", np.broadcast_to(frames, (3, 4, 5, 6, 1)))
  return tmp_path / "p"


@pytest.mark.parametrize("at_once", [2, 200])
def test_a_net_is_asked_of_every_frame(at_once, folder, monkeypatch):
  monkeypatch.setattr(perturbations, "_READ", at_once)
  every = sequences.stored(folder)
  assert every.size == 3
  rates = perturbations.measure(bright, every, batch_size=5)
  assert rates == {"shot_noise": 4 / 9, "tilt": 5 / 9}
  assert perturbations.measure(bright, sequences.stored(folder, 1), 5)["tilt"] == 2 / 3
  with pytest.raises(InputError, match="never flips under tilt"):
    perturbations.relative_rates(rates, rates | {"tilt": 0.0})


def test_a_baseline_against_itself_is_100_percent(folder, tmp_path, monkeypatch, capsys):
  (tmp_path / "flip_net.py").write_text(NET)
  monkeypatch.syspath_prepend(tmp_path)
  np.savez(tmp_path / "data.npz", x=np.zeros((3, 5, 6, 1), np.float32), y=np.zeros(3, int))
  source = {"model": "flip_net:logits_fn", "data": str(tmp_path / "data.npz")}
  options = Options(source, str(folder), batch_size=5, output=tmp_path / "found")
  first = perturbations.run(options)
  assert first["mean_flip_rate"] == pytest.approx(0.5)
  assert "not normalized" in " ".join(capsys.readouterr().out.split())
  path = tmp_path / "found" / "p.json"
  assert json.loads(path.read_text()) == first
  again = perturbations.run(options._replace(baseline=path))
  assert again["mfr"] == 1.0
  assert "(mFR): 100.0 %" in " ".join(capsys.readouterr().out.split())
  with pytest.raises(InputError, match="they differ in examples"):
    perturbations.run(options._replace(baseline=path, examples=2))


def test_sequences_are_told_from_corrupted_images(folder):
  assert sequences.is_stored(folder)
  np.save(folder / "labels.npy", np.zeros(15))
  assert not sequences.is_stored(folder)
  assert not sequences.is_stored(folder / "none")
  with pytest.raises(InputError, match=r"labels\.npy must be uint8 \[15, T, H, W, C\]"):
    sequences.stored(folder)
