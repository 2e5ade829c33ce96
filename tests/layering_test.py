"""Imports run downwards only, and each outside library has its few places."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parents[1] / "robust_opt"

# From the ground up: a package may import those before it, never those after it.
ORDER = [
  *(
    "types",
    "errors",
    "checks",
    "extras",
    "files",
    "keys",
    "precision",
    "layout",
    "arrays",
    "jaxprs",
  ),
  *("statistics", "tables", "plots", "losses", "sets", "objectives", "maximizers", "models"),
  *(
    "training",
    "attacks",
    "evaluation",
    "weight_files",
    "hub",
    "weights",
    "export",
    "certificates",
  ),
  *("theory", "data", "experiments", "studies", "commands", "report"),
  *("main", "evaluate", "verify", "construct", "__main__"),
]
# Programs of their own, one a paper: they may import all of ORDER, and nothing of it imports them.
PAPERS = "papers"
# The method itself.
METHOD = ("losses", "sets", "objectives", "maximizers")
COMMANDS = {"main", "evaluate", "verify", "construct", "report", "commands"}
# Who may import what, as packages or modules; everyone may import what is not named here.
ALLOWED = {
  "absl.flags": {*COMMANDS, "experiments.overrides"},
  "absl.app": COMMANDS,
  "ml_collections": {"experiments", "studies.options"},
  "matplotlib": {"plots"},
  "orbax": {"experiments.checkpoint", "experiments.processes"},
  "tensorboardX": {"experiments.loggers"},
  "wandb": {"experiments.loggers"},
  "mlflow": {"experiments.loggers"},
  "tensorflow_datasets": {"data.tfds"},
  "tensorflow": set(),
  "datasets": {"data.huggingface"},
  "pooch": {"data.downloads"},
  "sklearn": {"data.datasets"},
  "cvxpy": {"theory.linear.solve"},
  "jinja2": {"report.page"},
  "safetensors": {"weight_files"},
  "torch": {"weight_files"},
  "onnx": {"export"},
  "onnxruntime": set(),
}


def package(module):
  return module.split(".")[0]


def within(module, places):
  """Whether the module is one of the places, or lies in one."""
  return any(f"{module}.".startswith(f"{place}.") for place in places)


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


@functools.cache
def imports(source):
  """Every dotted name that the source imports, wherever in the file."""
  names = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "imports name the whole path"
      names += [f"{node.module}.{alias.name}" for alias in node.names]
  return names


@functools.cache
def ours(source):
  """The modules of the package that the source imports; '' is the package itself."""
  found = []
  for name in imports(source):
    package, *parts = name.split(".")
    while parts and ".".join(parts) not in MODULES:
      parts.pop()
    found += [".".join(parts)] if package == "robust_opt" else []
  return found


def offences(source, allowed):
  """The names of `allowed` that the source imports."""
  return {
    known for name in imports(source) for known in allowed if f"{name}.".startswith(f"{known}.")
  }


@functools.cache
def closure(name):
  """The module and all that it imports, of ours."""
  seen, left = set(), [name]
  while left:
    module = left.pop()
    if module not in seen:
      seen.add(module)
      left.extend(ours(MODULES[module].read_text()))
  return seen


def test_every_package_has_its_place():
  assert sorted(ORDER) == sorted({package(name) for name in MODULES}), "place it in ORDER"


def test_imports_run_downwards_and_within_a_package_in_one_direction():
  for name, path in MODULES.items():
    above = ["", *ORDER[ORDER.index(package(name)) + 1 :]]
    for other in set(ours(path.read_text())) - {name}:
      assert package(other) not in above, f"{name} imports {other}"
      if package(other) == package(name):
        assert name not in closure(other), f"{name} and {other} import each other"


def test_no_module_imports_a_paper():
  for name, path in MODULES.items():
    assert not offences(path.read_text(), {f"robust_opt.{PAPERS}"}), name


def test_papers_import_neither_one_another_nor_flags():
  folder = ROOT / PAPERS
  for path in folder.rglob("*.py"):
    own = path.relative_to(folder).with_suffix("").parts[0]
    others = {entry.stem for entry in folder.iterdir()} - {own, "__init__", "__pycache__"}
    papers = {f"robust_opt.{PAPERS}.{other}" for other in others}
    assert not offences(path.read_text(), papers | {"absl"}), path


def test_outside_libraries_have_their_places():
  for name, path in MODULES.items():
    found = offences(path.read_text(), ALLOWED)
    assert not [library for library in found if not within(name, ALLOWED[library])], name


def test_no_jax():
  for name in MODULES:
    if within(name, ("plots", "tables", "statistics", "files")):
      for module in closure(name):
        libraries = {imported.split(".")[0] for imported in imports(MODULES[module].read_text())}
        assert not libraries & {"jax", "flax", "optax", "chex", "orbax"}, (name, module)


def test_the_method_knows_neither_models_nor_data():
  allowed = ORDER[: ORDER.index("maximizers") + 1]
  for name in MODULES:
    if package(name) in METHOD:
      assert {package(module) for module in closure(name)} <= set(allowed), name
      assert not offences(MODULES[name].read_text(), {"flax", "orbax", "absl"}), name


def test_the_checks_would_see():
  """What the checks above rest on, on sources that break the rules."""
  assert list(ours("from robust_opt import main, l2")) == ["main", ""]
  assert list(ours("def f():\n  import robust_opt.models.mlp")) == ["models.mlp"]
  assert list(ours("from robust_opt.training.scan import take")) == ["training.scan"]
  assert offences("from absl import app, logging, flags", ALLOWED) == {"absl.app", "absl.flags"}
  assert offences("from ml_collections import ConfigDict", ALLOWED) == {"ml_collections"}
  assert not offences("import absl.logging, matplotlib_inline", ALLOWED)
  assert "training.scan" in closure("experiments.assembly")
