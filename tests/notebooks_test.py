"""The notebooks: pairs in sync, outputs that are worth showing, and conclusions that hold.

What a notebook's text says of its figures is checked twice by the same functions: in the outputs
that are saved, and (slow) in those of a run at small size.
"""

import base64
import io
import re

import nbformat
import numpy as np
import pytest
from PIL import Image

from colab import execute

NAMES = execute.NAMES
FIGURES = dict(zip(NAMES, (4, 3, 7)))  # at least so many
DEVICES = dict(zip(NAMES, (1, 1, 2)))  # two, so that the mesh has something to split; slower
TAGGED = "parameters"


def saved(name):
  return nbformat.read(execute.FOLDER / f"{name}.ipynb", as_version=4)


def outputs(notebook):
  return [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]


def text_of(notebook):
  """What a reader reads in the outputs, in order."""
  parts = []
  for out in outputs(notebook):
    data = out.get("data", {})
    parts.append(out.get("text", "") or data.get("text/markdown", "") or data.get("text/plain", ""))
  return "\n".join(parts)


def pictures(notebook):
  """The figures, as arrays."""
  found = [out.data["image/png"] for out in outputs(notebook) if "image/png" in out.get("data", {})]
  return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("L")) for png in found]


def percent(pattern, text):
  """The shares that a pattern's groups find, in percent."""
  found = re.search(pattern, text)
  assert found, pattern
  return [float(group) for group in found.groups()]


def rows_of(title, text):
  """A table of the outputs: first column -> column -> cell."""
  lines = text[text.index(f"**{title}") :].splitlines()[2:]
  cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
  count = next((i for i, line in enumerate(lines) if line[:1] != "|"), len(lines))
  header, body = cells[0], cells[2:count]
  return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in body}


def number(cell):
  return float(cell.strip(" %"))


def check_1(text):
  for row in rows_of("The largest", text).values():
    assert row["steepest ascent"] == row["r times the dual norm"]
    assert number(row["best of 1,000 random points"]) < 0.3 * number(row["steepest ascent"])
  moved = float(re.search(r"moved by up to ([\d.]+)\.\n", text)[1])
  apart = re.findall(r"Ten lines against (\S+): parameters differ by at most (\S+)\.\n", text)
  assert [words for words, _ in apart] == ["ro.robustify", "ro.make_train_step"]
  assert moved > 0.01 > 1e-3 > max(float(difference) for _, difference in apart)
  for attack in ("one step", "twenty steps"):
    clean, standard = percent(
      rf"\nstandard, {attack}: clean ([\d.]+)%, at radius \S+ ([\d.]+)%", text
    )
    kept, robust = percent(rf"\nrobust, {attack}: clean ([\d.]+)%, at radius \S+ ([\d.]+)%", text)
    assert min(clean, kept) > 95
    assert robust > standard + 20
  nets = rows_of("Accuracy under each ball", text)
  assert list(nets) == ["standard", "robust over linf", "robust over l2", "robust over l1"]

  def both(net, norm):
    (column,) = (name for name in nets[net] if name.startswith(f"{norm},"))
    return np.array([number(cell) for cell in nets[net][column].split(" / ")])

  for norm in ("linf", "l2", "l1"):
    gain = both(f"robust over {norm}", norm) - both("standard", norm)
    assert gain[0] > 3
  for net in ("robust over linf", "robust over l2"):
    for norm in ("linf", "l2"):
      assert both(net, norm)[1] > both("standard", norm)[1] + 20


def check_2(text):
  nets = rows_of("AutoAttack over", text)
  assert list(nets) == ["Linen", "NNX", "Equinox", "Haiku", "Linen, robust"]
  for row in nets.values():
    low, high = map(number, row["95 % interval"].split(" to "))
    assert number(row["clean"]) > 90
    assert low <= number(row["robust"]) <= high
  highest = max(number(row["95 % interval"].split(" to ")[1]) for row in list(nets.values())[:4])
  assert number(nets["Linen, robust"]["95 % interval"].split(" to ")[0]) > highest

  counts = [int(n) for n in re.findall(r"\n  [\w\- ]+: (\d+)\b", text.split("robust accuracy")[1])]
  clean, standing = counts[0], counts[5]
  total = sum(counts[:6])
  shares = percent(r"clean accuracy ([\d.]+)%, robust accuracy ([\d.]+)%", text)
  np.testing.assert_allclose(shares, [100 - 100 * clean / total, 100 * standing / total], atol=0.06)
  right, broken = percent(r"Misclassified: (\d+) of (\d+)\.", text)
  assert right == broken == total - clean - standing > 0

  def answers(name):
    return percent(rf"\n{name}: FGSM ([\d.]+)%, PGD-40 ([\d.]+)%, AutoAttack ([\d.]+)%", text)

  def failed(name):
    count, names = re.search(rf"\n{name}: (\d+) checks fail: (.*)\n", text).groups()
    names = [] if names == "none" else names.split(", ")
    assert len(names) == int(count)
    return set(names)

  assert max(answers("standard net")[1:]) < 10
  fgsm, pgd, ensemble = answers("logits x 1000")
  assert min(fgsm, pgd) > 85
  assert ensemble < 10
  fgsm, pgd, ensemble = answers("rounded pixels")
  assert min(fgsm, pgd) > 80
  assert ensemble < min(fgsm, pgd) - 30
  assert max(answers("rounded, adapted")[1:]) < 20
  assert "gradients" not in failed("standard net")
  assert "gradients" in failed("logits x 1000")
  assert {"gradients", "black box"} <= failed("rounded pixels")
  for name, attack in (("logits x 1000", "apgd-t"), ("rounded pixels", "square")):
    counts = re.search(rf"\n{name}, broken by: (.*)\n", text)[1].split(", ")
    counts = {words.split()[0]: int(words.split()[1]) for words in counts}
    assert max(counts, key=counts.get) == attack
  assert "11 of 11 checks passed" in text
  assert "The loss is flat" in text


def check_3(text):
  by_signs, by_noise = percent(r"Exponents: ([\d.]+) by .*, ([\d.]+) by", text)
  assert by_signs == pytest.approx(1.0, abs=0.05)
  assert by_noise == pytest.approx(0.5, abs=0.05)
  fits = re.findall(r"one line ([\d.]+), of two that meet at the image ([\d.]+)", text)
  assert len(fits) == 4
  for line, knee in fits:
    assert float(knee) > 0.85
    assert float(knee) > float(line)
  signs, noise = percent(r"gradient ([\d.]+)%, along random signs ([\d.]+)%", text)
  assert signs > noise + 30
  area, regions = percent(r"on ([\d.]+)% of the area, in ([\d.]+) regions", text)
  assert area > 10
  assert regions < 4
  single = [float(s) for s in re.findall(r"\n  (?:perceptron|convnet) \d: ([\d.]+)%", text)[-4:]]
  assert min(single) > 80
  own, across, noise = percent(
    r"own examples ([\d.]+)%, on those of the other architecture\n([\d.]+)%, on noise of the same "
    r"size ([\d.]+)%",
    text,
  )
  assert own > across > noise + 10
  (same,) = percent(r"same wrong class in ([\d.]+)%", text)
  assert same > 30
  (cosine,) = percent(r"linear classifiers: ([\d.]+)", text)
  assert cosine > 0.2
  learnt = rows_of("Fresh networks", text)
  assert list(learnt) == ["original", "control", "D_rand", "D_det"]
  for learner in ("perceptron", "convnet"):
    accuracy = {name: number(row[learner]) for name, row in learnt.items()}
    assert accuracy["original"] > 95
    assert accuracy["control"] < 30
    assert accuracy["D_rand"] > accuracy["control"] + 30
    assert accuracy["D_det"] < accuracy["D_rand"]
  questions = rows_of("Two explanations", text)
  assert len(questions) == 6
  assert all("nan" not in row["we saw"] for row in questions.values())
  assert [row["as predicted"] for row in questions.values()][:5] == ["yes"] * 5


CHECKS = dict(zip(NAMES, (check_1, check_2, check_3)))


@pytest.mark.parametrize("name", NAMES)
def test_both_halves_of_a_pair_hold_the_same_cells(name):
  script, notebook = execute.read(name), saved(name)
  cells = [
    [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in half.cells]
    for half in (script, notebook)
  ]
  assert cells[0] == cells[1], "run python colab/execute.py " + name


def test_every_notebook_is_listed():
  for suffix in ("py", "ipynb"):
    assert sorted(p.stem for p in execute.FOLDER.glob(f"[0-9]*.{suffix}")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_begins_with_title_badge_installation_and_parameters(name):
  notebook = saved(name)
  title = notebook.cells[0]
  assert title.cell_type == "markdown"
  assert title.source.startswith("# ")
  assert execute.badge(name) in title.source
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert '"google.colab" in sys.modules' in code[0].source
  assert f"git+https://{execute.REPOSITORY}" in code[0].source
  assert TAGGED in code[1].metadata.tags
  assert 'SIZE = "small"' in code[1].source
  assert code[0].outputs == code[1].outputs == []
  everything = "\n".join(cell.source for cell in notebook.cells)
  addresses = set(re.findall(r"github\.com/[\w-]+/[\w-]+", everything))
  assert addresses == {execute.REPOSITORY}
  assert "sharding.data_mesh()" in everything
  assert re.match(r"Found \d+ (CPU|GPU|TPU) device", text_of(notebook))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_saved_with_its_outputs(name):
  path = execute.FOLDER / f"{name}.ipynb"
  assert path.stat().st_size < 800_000
  notebook = saved(name)
  nbformat.validate(notebook)
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
  assert all(out.output_type != "error" for out in outputs(notebook))
  assert all(out.get("name") != "stderr" for out in outputs(notebook))
  found = pictures(notebook)
  assert len(found) >= FIGURES[name]
  for picture in found:
    assert min(picture.shape) > 100
    assert picture.std() > 5
  for place in ("/tmp", "/work", "/root", "/home", "/opt", "/usr", str(execute.FOLDER.parent)):
    assert place not in text_of(notebook)


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_is_followed_by_words_about_it(name):
  cells = saved(name).cells
  for place, cell in enumerate(cells):
    shows = any("image/png" in out.get("data", {}) for out in cell.get("outputs", []))
    if shows:
      # Two pictures may share a text, at most two cells further on.
      assert "markdown" in [c.cell_type for c in cells[place + 1 : place + 3]], cell.source


@pytest.mark.parametrize("name", NAMES)
def test_what_it_says_holds_in_the_saved_outputs(name):
  CHECKS[name](text_of(saved(name)))


def test_parameters_are_set_where_they_stand():
  notebook = execute.with_parameters(execute.read(NAMES[0]), {"SIZE": "full", "SEED": 3})
  (cell,) = (c for c in notebook.cells if TAGGED in c.metadata.get("tags", []))
  assert cell.source.startswith("SIZE = 'full'\nSEED = 3\nDATA_DIR = ")
  with pytest.raises(ValueError, match="one line that assigns SIZES, but has 0"):
    execute.with_parameters(execute.read(NAMES[0]), {"SIZES": "full"})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_comes_to_the_same_conclusions(name, monkeypatch):
  # Not the eight devices of the tests, nor their optimisation level.
  devices = f"--xla_force_host_platform_device_count={DEVICES[name]}"
  monkeypatch.setenv("XLA_FLAGS", devices)
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  notebook = execute.with_parameters(execute.read(name), {"SIZE": "small", "SEED": 1})
  execute.run(notebook)
  text = text_of(notebook)
  assert text.startswith(f"Found {DEVICES[name]} CPU device(s)")
  CHECKS[name](text)
  assert len(pictures(notebook)) >= FIGURES[name]
  assert all(out.output_type != "error" for out in outputs(notebook))
