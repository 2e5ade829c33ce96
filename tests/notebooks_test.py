"""The notebooks: .py and .ipynb agree, outputs are saved, and the outputs support the text.

CHECKS is applied to the saved outputs and (slow) to those of a new run with another seed.
"""

import base64
import io
import re

import nbformat
import numpy as np
import pytest
from PIL import Image
from processes import environment

from colab import execute

NAMES = execute.NAMES
FIGURES = dict(zip(NAMES, (4, 3, 7)))  # the least number of figures
DEVICES = dict(zip(NAMES, (1, 1, 2)))  # two devices are slower, but test the mesh
TAGGED = "parameters"


def saved(name):
  return nbformat.read(execute.FOLDER / f"{name}.ipynb", as_version=4)


def outputs(notebook):
  return [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]


def text_of(notebook):
  """The text of all outputs, in order."""
  texts = []
  for out in outputs(notebook):
    data = out.get("data", {})
    texts.append(out.get("text", "") or data.get("text/markdown", "") or data.get("text/plain", ""))
  return "\n".join(texts)


def figures(notebook):
  """Arrays [H, W] in gray."""
  pngs = [out.data["image/png"] for out in outputs(notebook) if "image/png" in out.get("data", {})]
  return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("L")) for png in pngs]


def numbers(pattern, text):
  """The groups of the first match, as floats."""
  match = re.search(pattern, text)
  assert match, pattern
  return [float(group) for group in match.groups()]


def rows_of(title, text):
  """A table in the outputs: first column -> column -> cell."""
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
  (change,) = numbers(r"changed the parameters by up to ([\d.]+)\.\n", text)
  differences = re.findall(r"Plain JAX and (\S+): parameters differ by at most (\S+)\.\n", text)
  assert [name for name, _ in differences] == ["ro.robustify", "ro.make_train_step"]
  assert change > 0.01 > 1e-3 > max(float(difference) for _, difference in differences)
  for attack in ("one step", "twenty steps"):
    accuracies = rf", {attack}: clean ([\d.]+)%, at radius \S+ ([\d.]+)%"
    standard, robust = (numbers(f"\n{net}{accuracies}", text) for net in ("standard", "robust"))
    assert min(standard[0], robust[0]) > 95
    assert robust[1] > standard[1] + 20
  nets = rows_of("Accuracy over each ball", text)
  assert list(nets) == ["standard", "robust linf", "robust l2", "robust l1"]

  def both(net, norm):
    (column,) = (name for name in nets[net] if name.startswith(f"{norm},"))
    return np.array([number(cell) for cell in nets[net][column].split(" / ")])

  for norm in ("linf", "l2", "l1"):
    gain = both(f"robust {norm}", norm) - both("standard", norm)
    assert gain[0] > 3
  for net in ("robust linf", "robust l2"):
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
  clean, robust = counts[0], counts[5]
  total = sum(counts[:6])
  shares = numbers(r"clean accuracy ([\d.]+)%, robust accuracy ([\d.]+)%", text)
  np.testing.assert_allclose(shares, [100 - 100 * clean / total, 100 * robust / total], atol=0.06)
  fooled, broken = numbers(r"Misclassified: (\d+) of (\d+)\.", text)
  assert fooled == broken == total - clean - robust > 0

  def accuracies(name):
    return numbers(rf"\n{name}: FGSM ([\d.]+)%, PGD-40 ([\d.]+)%, AutoAttack ([\d.]+)%", text)

  def failed(name):
    count, names = re.search(rf"\n{name}: (\d+) checks fail: (.*)\n", text).groups()
    names = [] if names == "none" else names.split(", ")
    assert len(names) == int(count)
    return set(names)

  assert max(accuracies("standard net")[1:]) < 10
  fgsm, pgd, ensemble = accuracies("logits x 1000")
  assert pgd >= fgsm > 85
  assert ensemble < 10
  fgsm, pgd, ensemble = accuracies("rounded pixels")
  assert min(fgsm, pgd) > 80
  assert ensemble < min(fgsm, pgd) - 30
  assert max(accuracies("rounded, adapted")[1:]) < 20
  assert "gradients" not in failed("standard net")
  assert "gradients" in failed("logits x 1000")
  assert {"gradients", "black box"} <= failed("rounded pixels")
  for name, attack in (("logits x 1000", "apgd-t"), ("rounded pixels", "square")):
    counts = re.search(rf"\n{name}, broken by: (.*)\n", text)[1].split(", ")
    counts = {name: int(count) for name, count in map(str.split, counts)}
    assert max(counts, key=counts.get) == attack
  assert "15 of 15 checks passed" in text
  assert "The loss is flat" in text


def check_3(text):
  worst, random = numbers(r"Exponents: ([\d.]+) for .*, ([\d.]+) for", text)
  assert worst == pytest.approx(1.0, abs=0.05)
  assert random == pytest.approx(0.5, abs=0.05)
  fits = re.findall(r"one line ([\d.]+), of two with a kink ([\d.]+)", text)
  assert len(fits) == 4
  for line, knee in fits:
    assert float(knee) > 0.85
    assert float(knee) > float(line)
  (along_gradient,) = numbers(r"along the sign of the gradient: ([\d.]+)%", text)
  (along_noise,) = numbers(r"along random signs: ([\d.]+)%", text)
  assert along_gradient > along_noise + 30
  regions, area = numbers(r"points: ([\d.]+) regions that cover ([\d.]+)% of the slice", text)
  assert area > 10
  assert regions < 4
  single = [float(s) for s in re.findall(r"\n  (?:perceptron|convnet) \d: ([\d.]+)%", text)[-4:]]
  assert min(single) > 80
  own, other, noise = numbers(
    r"own examples ([\d.]+)%, on those of the other architecture ([\d.]+)%, on noise of the same "
    r"size ([\d.]+)%",
    text,
  )
  assert own > other > noise + 10
  (same,) = numbers(r"On ([\d.]+)% of these both predict the same wrong class", text)
  assert same > 30
  (cosine,) = numbers(r"linear classifiers: ([\d.]+)", text)
  assert cosine > 0.2
  learned = rows_of("Accuracy of new networks", text)
  assert list(learned) == ["original", "control", "D_rand", "D_det"]
  for architecture in ("perceptron", "convnet"):
    accuracy = {name: number(row[architecture]) for name, row in learned.items()}
    assert accuracy["original"] > 95
    assert accuracy["control"] < 30
    assert accuracy["D_rand"] > accuracy["control"] + 30
    assert accuracy["D_det"] < accuracy["D_rand"]
  questions = rows_of("Two explanations", text)
  assert len(questions) == 6
  assert all("nan" not in row["observed"] for row in questions.values())
  assert [row["as predicted"] for row in questions.values()][:5] == ["yes"] * 5


CHECKS = dict(zip(NAMES, (check_1, check_2, check_3)))


@pytest.mark.parametrize("name", NAMES)
def test_script_and_notebook_have_the_same_cells(name):
  script, notebook = (
    [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in half.cells]
    for half in (execute.read(name), saved(name))
  )
  assert script == notebook, f"run python colab/execute.py {name}"
  for suffix in ("py", "ipynb"):
    assert sorted(p.stem for p in execute.FOLDER.glob(f"[0-9]*.{suffix}")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_starts_with_title_badge_installation_and_parameters(name):
  notebook = saved(name)
  title = notebook.cells[0]
  assert (title.cell_type, title.source[:2]) == ("markdown", "# ")
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
def test_is_saved_with_outputs_that_support_the_text(name):
  path = execute.FOLDER / f"{name}.ipynb"
  assert path.stat().st_size < 800_000
  notebook = saved(name)
  nbformat.validate(notebook)
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
  assert all(out.output_type != "error" for out in outputs(notebook))
  assert all(out.get("name") != "stderr" for out in outputs(notebook))
  assert len(figures(notebook)) >= FIGURES[name]
  for figure in figures(notebook):
    assert min(figure.shape) > 100
    assert figure.std() > 5
  for folder in ("/tmp", "/work", "/root", "/home", "/opt", "/usr", str(execute.FOLDER.parent)):
    assert folder not in text_of(notebook)
  CHECKS[name](text_of(notebook))
  cells = notebook.cells
  for index, cell in enumerate(cells):
    if any("image/png" in out.get("data", {}) for out in cell.get("outputs", [])):
      # Two figures may share a text.
      assert "markdown" in [c.cell_type for c in cells[index + 1 : index + 3]], cell.source


def test_parameters_are_set_in_the_parameter_cell():
  notebook = execute.with_parameters(execute.read(NAMES[0]), {"SIZE": "full", "SEED": 3})
  (cell,) = (c for c in notebook.cells if TAGGED in c.metadata.get("tags", []))
  assert cell.source.startswith("SIZE = 'full'\nSEED = 3\nDATA_DIR = ")
  with pytest.raises(ValueError, match="must assign SIZES in exactly one line, but 0"):
    execute.with_parameters(execute.read(NAMES[0]), {"SIZES": "full"})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs_with_outputs_that_support_the_text(name, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", environment(DEVICES[name])["XLA_FLAGS"])
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  notebook = execute.with_parameters(execute.read(name), {"SIZE": "small", "SEED": 1})
  execute.run(notebook)
  text = text_of(notebook)
  assert text.startswith(f"Found {DEVICES[name]} CPU device(s)")
  CHECKS[name](text)
  assert len(figures(notebook)) >= FIGURES[name]
  assert all(out.output_type != "error" for out in outputs(notebook))
