"""Imports run downwards only, and each outside library has its few places."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "robust_opt"

# From the ground up: a module may import those before it, never those after it.
ORDER = [
  "types",
  "errors",
  "files",
  "keys",
  "precision",
  "layout",
  "losses",
  "projections",
  "uncertainty",
  "structured.per_example",
  "structured.groups",
  "structured.shapes",
  "structured.intersections",
  "structured.products",
  "structured.masks",
  "structured",
  "tangents",
  "maximizers.core",
  "maximizers.first_order",
  "maximizers.lbfgs",
  "maximizers.apgd",
  "maximizers",
  "spatial",
  "objectives",
  "attacks.types",
  "attacks.precision",
  "attacks.hyperplanes",
  "attacks.white_box",
  "attacks.minimal",
  "attacks.szegedy",
  "attacks.fab",
  "attacks.square",
  "attacks.transfer",
  "attacks",
  "explanations.geometry",
  "explanations.mistakes",
  "explanations",
  "augmentation",
  "models.layers",
  "models.linear",
  "models.madry_cnn",
  "models.mlp",
  "models.mnist_cnn",
  "models.digits_cnn",
  "models.vgg",
  "models.maxout",
  "models.rbf",
  "models",
  "nets",
  "certify.exact",
  "certify.layers",
  "certify.bounds",
  "certify.smoothing",
  "certify",
  "penalties",
  "optimizers",
  "training",
  "one_pass",
  "hidden",
  "evaluation",
  "ensemble",
  "verdict",
  "trust_trials",
  "trust",
  "collection",
  "sharding",
  "prepare",
  "data",
  "constructed",
  "checkpoint",
  "metrics",
  "statistics",
  "tables",
  "seeds",
  "figures",
  "study_figures",
  "explanation_figures",
  "gaussian",
  "linear.counterparts",
  "linear.solve",
  "linear.comparisons",
  "linear.decay",
  "linear.figures",
  "linear",
  "config",
  "methods",
  "study",
  "build",
  "updates",
  "assembly",
  "costs",
  "workdirs",
  "overfitting",
  "experiment",
  "overrides",
  "main",
  "identity",
  "subject",
  "commands",
  "evaluate",
  "verify",
  "construct",
  "report_data",
  "report_examples",
  "report_plots",
  "report_words",
  "report",
]
# Programs of their own, one a paper: they may import all of ORDER, and nothing of it imports them.
PAPERS = "papers"
# The method itself: losses, sets, maximisers and objectives.
METHOD = ORDER[ORDER.index("types") : ORDER.index("objectives") + 1]
# Who may import what; everyone may import what is not named here.
ALLOWED = {
  "absl.flags": {"main", "overrides", "commands", "evaluate", "verify", "construct", "report"},
  "absl.app": {"main", "evaluate", "verify", "construct", "report"},
  "ml_collections": {
    "config",
    "methods",
    "build",
    "updates",
    "costs",
    "assembly",
    "workdirs",
    "experiment",
    "overrides",
    "main",
    "subject",
  },
  "matplotlib": {"figures", "study_figures", "explanation_figures"},
  "orbax": {"checkpoint"},
  "tensorboardX": {"metrics"},
  "tensorflow_datasets": {"prepare"},
  "tensorflow": set(),
  "sklearn": {"data"},
  "cvxpy": {"linear.solve"},
  "plotly": {"report_plots"},
  "jinja2": {"report"},
}


def modules():
  """Name within the package -> path; the package's own __init__ is what users see of all."""
  found = {}
  for path in ROOT.rglob("*.py"):
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if name and parts[0] != PAPERS:
      found[name] = path
  return found


MODULES = modules()


def imports(source):
  """Every dotted name that the source imports, wherever in the file."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "imports name the whole path"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(source):
  """The modules of the package that the source imports; '' is the package itself."""
  for name in imports(source):
    if name.split(".")[0] == "robust_opt":
      parts = name.split(".")[1:]
      while parts and ".".join(parts) not in MODULES:
        parts.pop()
      yield ".".join(parts)


def offences(source, allowed):
  """The names of `allowed` that the source imports."""
  return {
    known for name in imports(source) for known in allowed if f"{name}.".startswith(f"{known}.")
  }


def closure(name):
  """The module and all that it imports, of ours."""
  seen, left = set(), [name]
  while left:
    module = left.pop()
    if module not in seen:
      seen.add(module)
      left.extend(ours(MODULES[module].read_text()))
  return seen


def test_every_module_has_its_place():
  assert sorted(ORDER) == sorted(MODULES), "give a new module its place in ORDER"


@pytest.mark.parametrize("name", ORDER)
def test_imports_run_downwards(name):
  below = ORDER[: ORDER.index(name)]
  upwards = [other for other in ours(MODULES[name].read_text()) if other not in below]
  assert not upwards, f"{name} imports {upwards}"


def test_no_module_imports_a_paper():
  for name, path in MODULES.items():
    assert not offences(path.read_text(), {f"robust_opt.{PAPERS}"}), name


@pytest.mark.parametrize("name", ORDER)
def test_outside_libraries_have_their_places(name):
  found = offences(MODULES[name].read_text(), ALLOWED)
  assert not [library for library in found if name not in ALLOWED[library]]


@pytest.mark.parametrize(
  "name",
  [
    *("figures", "study_figures", "explanation_figures", "linear.figures"),
    *("tables", "statistics", "data", "prepare", "files", "errors", "layout"),
  ],
)
def test_no_jax(name):
  for module in closure(name):
    libraries = {imported.split(".")[0] for imported in imports(MODULES[module].read_text())}
    assert not libraries & {"jax", "flax", "optax", "chex", "orbax"}, module


def test_the_method_knows_neither_models_nor_data():
  for name in METHOD:
    assert closure(name) <= set(METHOD), name
    assert not offences(MODULES[name].read_text(), {"flax", "orbax", "absl"}), name


def test_the_checks_would_see():
  """What the checks above rest on, on sources that break the rules."""
  assert list(ours("from robust_opt import main, l2")) == ["main", ""]
  assert list(ours("def f():\n  import robust_opt.models.mlp")) == ["models.mlp"]
  assert list(ours("from robust_opt.training import take")) == ["training"]
  assert offences("from absl import app, logging, flags", ALLOWED) == {"absl.app", "absl.flags"}
  assert offences("from ml_collections import ConfigDict", ALLOWED) == {"ml_collections"}
  assert not offences("import absl.logging, matplotlib_inline", ALLOWED)
  assert "training" in closure("assembly")
