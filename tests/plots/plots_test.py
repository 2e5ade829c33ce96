"""Every figure is a whole PNG of a sensible size, also at the edges of its inputs."""

import numpy as np
import pytest
from PIL import Image

from robust_opt.plots import base, explanations, linear, runs, studies
from robust_opt.statistics import accuracy_interval

RNG = np.random.default_rng(0)


def records(epochs):
  for epoch in range(1, epochs + 1):
    yield {"step": 2 * epoch - 1, "epoch": epoch - 0.5, "train/loss": None if epoch == 2 else 1.0}
    accuracies = {"heldout/clean_accuracy": 0.9, "heldout/robust_accuracy": 1 - 1 / (epoch + 1)}
    yield {"step": 2 * epoch, "epoch": epoch, "train/loss": 1 / epoch, **accuracies}


def examples(count, channels):
  clean = RNG.random((count, 8, 8, channels))
  delta = 0.1 * RNG.normal(size=clean.shape)
  delta[0] = 0  # zero gradient
  labels = np.arange(count)
  return clean, delta, labels, labels, labels[::-1]


def panels(norms, nets):
  radii = np.array([0.0, 0.1, 0.2])
  curves = {
    f"net {k}": {"radii": radii, "interval": accuracy_interval([[1.0, 0.5, 0.02 * k]], 100)}
    for k in range(nets)
  }
  return [[{"title": "", "norm": n, "radius": None, "curves": curves} for n in norms]]


def logits(count, num_classes):
  epsilons = np.linspace(-10, 10, 41)
  z = RNG.normal(size=(count, num_classes)) * 3 + epsilons[:, None, None] * RNG.normal(
    size=(count, num_classes)
  )
  return epsilons, z, z[20].argmax(axis=-1)


def slices(count, num_classes):
  a, b = np.meshgrid(*(np.linspace(-1, 1, 31),) * 2, indexing="ij")
  w = RNG.normal(size=(3, count, num_classes))
  z = sum(w[:, None, None] * v[..., None] for w, v in zip(w, (a, b, 0.4 + 0 * a)))
  predictions = z.argmax(axis=-1)
  predictions[0, :2, :2] = -1
  return predictions, predictions[:, 15, 15], 1.0, num_classes


def weights(count, scale):
  w, clean = scale * RNG.normal(size=(28, 28)), RNG.random((count, 28, 28))
  delta = 0.25 * np.sign(w)
  return w, delta, clean, clean + delta


def rows(lengths):
  return [
    {
      "name": "linf",
      "images": RNG.random((n, 8, 8, 1)),
      "labels": range(n),
      "predictions": range(n),
    }
    for n in lengths
  ]


N = np.array([1, 10, 100])
STRENGTHS = np.array([0.0, 0.01, 0.1])
BOTH = ("adversary", "decay")
FIGURES = {
  **{f"training {n}": (runs.training_curves, list(records(n)), "1 step") for n in (0, 1, 2, 40)},
  "examples, gray": (runs.example_grid, *examples(1, 1)),
  "examples, long title": (
    lambda *a, path: runs.example_grid(*a, path, "word " * 30),
    *examples(1, 1),
  ),
  "examples, color": (runs.example_grid, *examples(8, 3)),
  "radius, one": (studies.accuracy_against_radius, panels(["linf"], 1)),
  "radius, many": (studies.accuracy_against_radius, panels(["linf", "l2", "l1"], 6)),
  "adversarial rows": (studies.adversarial_rows, rows([3, 12])),
  "growth": (explanations.growth_with_dimension, N, 0.25 * N, 0.3 * np.sqrt(N)),
  **{f"logits {c}": (explanations.logits_against_epsilon, *logits(*c)) for c in ((1, 2), (4, 100))},
  **{f"slices {c}": (explanations.class_slices, *slices(*c)) for c in ((1, 2), (5, 10), (2, 100))},
  "angles": (
    explanations.error_against_angle,
    np.radians(N),
    {f"net {k}": N / 100 for k in range(6)},
  ),
  "transfer": (explanations.transfer_heat_map, np.array([[0.1, np.nan], [1, 0]]), "ab", "cd"),
  "no weights": (explanations.weights_and_examples, *weights(1, 0.0)),
  "weights": (explanations.weights_and_examples, *weights(30, 1.0)),
  "labeled rows": (
    explanations.labeled_rows,
    {"a": (RNG.random((3, 8, 8, 1)), range(3)), "b": (RNG.random((1, 8, 8, 3)), range(1))},
  ),
  "Gaussian": (
    explanations.gaussian_model,
    *(np.ones(2), [np.eye(2), np.diag([1.0, 0.2])], ["none", "1"], STRENGTHS, 1 - STRENGTHS),
  ),
  "coefficients": (linear.coefficient_paths, N, np.ones((3, 2)), np.ones((3, 2))),
  "gap": (linear.optimality_gap, {"linf": 1.0 / N, "own": 2.0 / N}),
  "decay": (
    linear.adversary_and_decay,
    STRENGTHS,
    dict.fromkeys(BOTH, (STRENGTHS, 2 * STRENGTHS)),
    dict.fromkeys(BOTH, STRENGTHS),
  ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures(tmp_path, name):
  function, *arguments = FIGURES[name]
  path = tmp_path / "figure.png"
  function(*arguments, path=path)
  with Image.open(path) as image:
    image.load()
    assert image.format == "PNG"
    assert len(image.convert("RGB").getcolors(1 << 20)) > 10
    assert all(150 <= side <= 2000 for side in image.size)


def test_without_a_suffix_a_png_and_the_same_pdf_each_time(tmp_path):
  interval = accuracy_interval([[0.5, 0.9]], 100)
  for stem in ("a", "b"):
    curves = {"linf": {"steps": [1, 100], "interval": interval}}
    studies.convergence(curves, tmp_path / stem, lowest=0.4)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pdf", "a.png", "b.pdf", "b.png"]
  assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


def test_a_figure_that_fails_leaves_no_file(tmp_path, monkeypatch):
  def fail(*_, **__):
    raise ValueError("no such font")

  monkeypatch.setattr(base.Figure, "savefig", fail)
  with pytest.raises(ValueError, match="no such font"):
    runs.training_curves(list(records(2)), "single step", tmp_path / "curves.png")
  assert not list(tmp_path.iterdir())
