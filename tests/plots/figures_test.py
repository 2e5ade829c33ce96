"""The pictures are PNGs of a sensible size, also at the edges of what a run can yield."""

import numpy as np
import pytest
from PIL import Image

from robust_opt.plots import figures


def opened(path):
  """The picture's width and height, if it is whole and not blank."""
  with Image.open(path) as image:
    image.load()
    assert image.format == "PNG"
    assert len(image.convert("RGB").getcolors(1 << 20)) > 10
    width, height = image.size
  assert 200 <= width <= 2000
  assert 200 <= height <= 2000
  return width, height


def records(epochs):
  for epoch in range(1, epochs + 1):
    yield {"step": 2 * epoch - 1, "epoch": epoch - 0.5, "train/loss": 1 / epoch}
    accuracies = {"heldout/clean_accuracy": 0.9, "heldout/robust_accuracy": 1 - 1 / (epoch + 1)}
    yield {"step": 2 * epoch, "epoch": epoch, "train/loss": 1 / epoch, **accuracies}


@pytest.mark.parametrize("epochs", [0, 1, 2, 120])
def test_training_curves(tmp_path, epochs):
  figures.training_curves(list(records(epochs)), tmp_path / "curves.png")
  opened(tmp_path / "curves.png")


def test_training_curves_leave_out_what_is_not_finite(tmp_path):
  figures.training_curves(
    [{"step": 1, "epoch": 0.5, "train/loss": None}, *records(2)], tmp_path / "curves.png"
  )
  opened(tmp_path / "curves.png")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 8])
def test_example_grid(tmp_path, channels, count):
  rng = np.random.default_rng(0)
  clean = rng.random((count, 8, 8, channels))
  delta = 0.1 * rng.normal(size=clean.shape)
  delta[0] = 0  # an example whose gradient was zero
  labels = np.arange(count)
  path = tmp_path / "examples.png"
  figures.example_grid(clean, delta, labels, labels, labels[::-1], path, title="l_2 0.5")
  opened(path)


@pytest.mark.parametrize("norms", [["linf"], ["linf", "l2", "l1"]])
@pytest.mark.parametrize("nets", [1, 6])
def test_accuracy_against_radius(tmp_path, norms, nets):
  sweeps = [
    {
      "norm": norm,
      "radii": [0.0, 0.1, 0.2],
      "accuracy": np.array([1.0, 0.5, 0.1 * net]),
      "radius": None if net else 0.1,
      "label": f"net {net}",
    }
    for norm in norms
    for net in range(nets)
  ]
  figures.accuracy_against_radius(sweeps, tmp_path / "accuracy.png")
  opened(tmp_path / "accuracy.png")


def test_a_picture_that_fails_is_not_left_half_written(tmp_path, monkeypatch):
  def fail(*_, **__):
    raise ValueError("no such font")

  monkeypatch.setattr(figures.Figure, "savefig", fail)
  with pytest.raises(ValueError, match="no such font"):
    figures.training_curves(list(records(2)), tmp_path / "curves.png")
  assert not list(tmp_path.iterdir())
