"""The documentation: it builds without a warning, what it shows runs, and what it names exists."""

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
import typing
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import yaml
from PIL import Image
from selenium.webdriver.support.ui import WebDriverWait

import robust_opt as ro
from robust_opt import sets
from robust_opt.evaluation import trust_checks
from robust_opt.experiments import config, overrides, run, sections
from robust_opt.studies import options

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text("utf-8") for path in DOCS.rglob("*.md")}
WRITTEN = {name: text for name, text in PAGES.items() if "/" not in name}
WITH_README = WRITTEN | {"README.md": (ROOT / "README.md").read_text("utf-8")}


def blocks(text, language):
  return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run_blocks(page):
  """Every Python block of a page, one after the other; the names that they define."""
  names = {}
  for number, block in enumerate(blocks(PAGES[page], "python")):
    exec(compile(block, f"docs/{page}, block {number + 1}", "exec"), names)
  return names


# What the pages show runs.


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name, text in WRITTEN.items() if "```python" in text])
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  run_blocks(page)
  # A page of facts asserts them, so that running its code is a test.
  facts = ("concepts.md", "units.md", "evaluation.md", "scale.md", "troubleshooting.md")
  assert page not in facts or any("assert " in block for block in blocks(PAGES[page], "python"))


def rows(file):
  """Name -> the value that the diffs of concepts.md add to a table of that file."""
  diffs = re.findall(rf"`{re.escape(file)}`:\n\n```diff\n(.*?)```", PAGES["concepts.md"], re.DOTALL)
  added = [line[1:].strip() for diff in diffs for line in diff.split("\n") if line[:1] == "+"]
  return dict(re.fullmatch(r'"(\w+)": (.*),', line).groups() for line in added if line[0] == '"')


@pytest.mark.slow
def test_the_set_of_the_concepts_keeps_what_every_set_promises(monkeypatch):
  table = importlib.import_module("sets.contracts_test")
  monkeypatch.setattr(sets, "Ink", run_blocks("concepts.md")["Ink"], raising=False)
  ((name, row),) = rows("tests/sets/contracts_test.py").items()
  monkeypatch.setitem(table.SETS, name, eval(row, vars(table)))
  monkeypatch.setattr(table, "EXACT", [*table.EXACT, name])
  monkeypatch.setattr(table, "WITH_BOX", [*table.WITH_BOX, name])
  for test in (
    table.test_points_lie_in_the_set,
    table.test_steepest_ascent_beats_random_points,
    table.test_nearest_point_by_the_variational_inequality,
    table.test_the_scale_of_the_gradient_does_not_matter,
    table.test_zero_and_nan,
    table.test_projection_leaves_inner_points_alone,
    table.test_gauge_is_homogeneous,
    table.test_every_example_has_its_own_radius_and_key,
  ):
    test(name)


@pytest.mark.slow
def test_the_maximizer_of_the_concepts_keeps_the_contracts(monkeypatch):
  table = importlib.import_module("maximizers.contracts_test")
  made = run_blocks("concepts.md")["smoothed_frank_wolfe"]
  monkeypatch.setattr(ro, "smoothed_frank_wolfe", made, raising=False)
  ((name, row),) = rows("tests/maximizers/contracts_test.py").items()
  monkeypatch.setitem(table.MAXIMIZERS, name, eval(row, vars(table)))
  for ball, box in (("linf", "ball"), ("l1", "ball_with_box")):
    table.test_feasible_reported_and_repeatable(ball, box, name)
    table.test_examples_do_not_mix(ball, box, name)
    table.test_radius_0_is_the_clean_example(ball, box, name)
    table.test_a_linear_function_is_maximized(ball, box, name)
    table.test_the_scale_of_the_gradient_does_not_matter(ball, box, name)
    table.test_no_steps_give_the_start(ball, box, name)
  table.test_no_gradient_flows_through_delta(name)
  table.test_jit_changes_nothing_and_leaks_no_tracer(name)


@pytest.mark.slow
def test_the_objective_of_the_concepts_has_a_loss_for_every_example(monkeypatch):
  table = importlib.import_module("objectives_test")
  made = run_blocks("concepts.md")["logit_pairing"]
  monkeypatch.setattr(ro, "logit_pairing", made, raising=False)
  ((name, row),) = rows("tests/objectives_test.py").items()
  monkeypatch.setitem(table.ALL, name, eval(row, vars(table)))
  table.test_every_example_has_a_loss_of_its_own(name)


def test_the_diffs_name_tables_that_exist():
  for file, table in re.findall(r"`([\w/]+\.py)`:\n\n```diff\n@@ (\w+) @@", PAGES["concepts.md"]):
    source = (ROOT / file).read_text("utf-8")
    assert table == "functions" or re.search(rf"^{table}\b.*= {{$", source, re.MULTILINE), file


def attacks(name):
  """The lines of a list of attacks in your_own.md."""
  (listed,) = re.findall(rf"^{name} = \[\n(.*?)^\]", PAGES["your_own.md"], re.DOTALL | re.MULTILINE)
  return [line.split("  #")[0].strip().rstrip(",") for line in listed.splitlines()]


def squares(x):
  return (x**2).sum(-1)


def worst(line, loss, key):
  """The robust loss of an attack in your_own.md, and the clean one."""
  robust_loss = ro.robustify(loss, eval(line, {"ro": ro, "optax": optax, "radius": 0.5}), argnum=0)
  x = jax.random.uniform(jax.random.key(1), (3, 4))
  return robust_loss(x, attack_key=key), loss(x)


@pytest.mark.parametrize("line", attacks("attacks"))
def test_other_attacks_take_the_mean(line):
  robust, clean = worst(line, lambda x: squares(x).mean(), jax.random.key(0))
  assert robust > clean
  if "pgd" in line:
    with pytest.raises(ro.InputError, match="key"):
      worst(line, lambda x: squares(x).mean(), None)


@pytest.mark.parametrize("line", attacks("comparing"))
def test_attacks_that_compare_need_the_loss_of_every_example(line):
  robust, clean = worst(line, squares, jax.random.key(0))
  assert (robust > clean).all()
  with pytest.raises(ro.InputError, match="example"):
    worst(line, lambda x: squares(x).mean(), jax.random.key(0))


def runs_of(text):
  """(config, overrides) of every command in a text that trains."""
  joined = re.sub(r"\s*\\\n\s*", " ", text)
  for command in re.findall(r"^python -m robust_opt\.main (.*)$", joined, re.MULTILINE):
    given = dict(arg.split("=", 1) for arg in command.split())
    config_file = given.pop("--config", config.__file__)
    yield config_file, [f"{k}={v}" for k, v in given.items() if k.startswith("--config.")]


BRIEFLY = [
  "--config.training.epochs=1",
  "--config.training.watch_examples=0",
  "--config.training.batch_size=8",
  "--config.data.train_examples=40",
  "--config.data.test_examples=8",
  "--config.evaluation.sweep=(0.0, 1.0)",
]
OWN = {
  "README.md": {"my_nets:Net", "photos/"},
  "your_own.md": {"my_nets:Net", "photos/", "data.npz"},
}


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("page", OWN)
def test_a_net_and_images_of_your_own_are_trained(page, tmp_path, monkeypatch):
  """As the page says, but briefly."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, "my_nets", raising=False)
  text = WITH_README[page]
  (net,) = [code for code in blocks(text, "python") if "class Net(nn.Module)" in code]
  (tmp_path / "my_nets.py").write_text(net)
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  rng = np.random.default_rng(0)
  for name in ("cat", "dog"):
    (tmp_path / "photos" / name).mkdir(parents=True)
    for number in range(30):
      pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
      Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
  for code in blocks(text, "python"):
    if "data.npz" in code:
      exec(code, {})
  trained = set()
  for number, (file, items) in enumerate(runs_of(text)):
    if own := {name for name in OWN[page] if name in " ".join(items)}:
      c = overrides.config_of(file, [*items, *BRIEFLY])
      assert run.run(c, tmp_path / str(number))["sweeps"][0]["total"] > 0
      trained |= own
  assert trained == OWN[page]


# What the pages name exists.


def test_every_extra_is_explained():
  extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
  rows = re.findall(r"^\| `(\w+)` \|", PAGES["install.md"], re.MULTILINE)
  assert sorted(rows) == sorted(extras["optional-dependencies"])


def test_every_check_of_the_trust_report_is_explained():
  names = list(trust_checks.MEANINGS)
  titles = re.findall(r"^### (.+)$", PAGES["evaluation.md"], re.MULTILINE)
  assert len(names) == 15
  assert [title for title in titles if title in names] == names


def test_every_study_is_described():
  for name in {path.stem for path in (ROOT / "robust_opt" / "papers").glob("[!_]*")}:
    assert f"python -m robust_opt.papers.{name} " in PAGES["studies.md"], name


def flat(tree, prefix=""):
  """The dotted keys of a config, those of sections among them."""
  for key, value in tree.items():
    yield prefix + key
    if isinstance(value, dict):
      yield from flat(value, f"{prefix}{key}.")


KEYS = {key for make in (config.base, config.cifar) for key in flat(make().to_dict())}
KEYS |= {
  f"{section}.{key}"
  for section, described in sections.SECTIONS.items()
  for name in described.choices
  for key in sections.keys_of(section, name)
}


def flags_of(module):
  """The flags of a command; main's are a config's. Of a study every field of its options is one."""
  if module.startswith("robust_opt.papers."):
    study = importlib.import_module(module)
    study = importlib.import_module(f"{module}.study") if hasattr(study, "__path__") else study
    preset = next(iter(getattr(study, "PRESETS", {"": options.Options}).values()))
    own = getattr(study, "Options", preset)
    fields = [*dataclasses.fields(preset), *dataclasses.fields(typing.get_origin(own) or own)]
    names = {field.name for field in fields} | {"preset", "output", "archive"}
    return names | ({"budget_s"} if "epochs" in names else set())
  path = ROOT / f"{module.replace('.', '/')}.py"
  package = path.with_suffix("")
  files = [path] if path.exists() else sorted(package.glob("*.py"))
  source = "\n".join(file.read_text("utf-8") for file in files)
  shared = ast.parse((ROOT / "robust_opt" / "commands.py").read_text("utf-8")).body
  called = set(re.findall(r"commands\.(define_\w+)\(", source))
  parts = [ast.unparse(node) for node in shared if getattr(node, "name", "") in called]
  text = "\n".join([source, *parts])
  defined = r"(?:DEFINE_\w+|define_number)\(\s*['\"](\w+)['\"]"
  own = re.findall(rf"{defined}|add_argument\(\s*['\"]--(\w+)['\"]", text)
  return {name for pair in own for name in pair if name} | {"config"}


@pytest.mark.parametrize("page", WITH_README)
def test_commands_flags_keys_and_configs_exist(page):
  text = re.sub(r"\s*\\\n\s*", " ", WITH_README[page])
  for path in re.findall(r"(?<![\w/.-])((?:configs|tests|robust_opt|benchmarks)/\w+\.py)", text):
    assert (ROOT / path).is_file() or "logit_pairing" in path, path
  for stem, kinds in re.findall(r"`(\w+_)\{([\w,]+)\}\.py`", text):
    assert all((ROOT / "configs" / f"{stem}{kind}.py").is_file() for kind in kinds.split(","))
  keys = set(re.findall(r"--config\.([a-z]\w*(?:\.[a-z]\w*)*)", text))
  assert {".".join(key.split(".")[:2]) if key.startswith("set.") else key for key in keys} <= KEYS
  for module, given in re.findall(r"python -m ((?:robust_opt|benchmarks)[\w.]*)([^\n`]*)", text):
    for flag in re.findall(r" --(\w+)", given):
      assert {flag, flag.removeprefix("no")} & flags_of(module), f"{module} --{flag}"


# It builds, and stands alone.


class Page(HTMLParser):
  """What a page would fetch, where it links to, what can be linked to, and what it says."""

  def __init__(self, text):
    super().__init__()
    self.fetched, self.links, self.anchors = [], [], set()
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    given = dict(attrs)
    self.anchors.add(given.get("id"))
    if tag in ("script", "img", "iframe", "source"):
      self.fetched.append(given.get("src") or "")
    if tag == "link":
      self.fetched.append(given.get("href") or "")
    if tag == "a":
      self.links.append(given.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """The folder of a site that was built without a warning."""
  folder = tmp_path_factory.mktemp("docs")
  command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E"]
  command += ["-d", str(folder / "trees"), str(DOCS), str(folder / "site")]
  built = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
  assert built.returncode == 0, built.stderr
  assert built.stderr == ""
  return folder / "site"


@pytest.fixture(scope="module")
def pages(site):
  return {path: Page(path.read_text("utf-8")) for path in site.rglob("*.html")}


@pytest.mark.slow
def test_no_page_fetches_anything_from_the_network(site, pages):
  assert len(pages) > 20
  for path, page in pages.items():
    assert not [source for source in page.fetched if re.match(r"(https?:)?//", source)], path
  for path in site.rglob("*.css"):
    assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", path.read_text("utf-8")), path


@pytest.mark.slow
def test_every_link_within_the_site_leads_somewhere(site, pages):
  for path, page in pages.items():
    for link in page.links:
      target, _, anchor = link.partition("#")
      if re.match(r"\w+:", link) or not link:
        continue
      aim = (path.parent / target).resolve() if target else path
      assert aim.is_file(), f"{path.name}: {link}"
      if anchor and aim.suffix == ".html":
        assert anchor in pages[aim].anchors, f"{path.name}: {link}"


@pytest.mark.slow
def test_the_reference_holds_every_public_name(site, pages):
  anchors = set().union(*(page.anchors for page in pages.values()))
  for target in re.findall(r"\{py:\w+\}`(?:[^`<]*<)?([\w.]+)>?`", "".join(PAGES.values())):
    assert anchors & {target, f"module-{target}"}, target
  index = (site / "api" / "index.html").read_text("utf-8")
  assert set(re.findall(r"ro\.(\w+)</span></code>(?:</span>)?</a>", index)) == set(ro.__all__)
  for name in ro.__all__:
    value = getattr(ro, name)
    if inspect.isclass(value) or inspect.isfunction(value):
      assert f"{value.__module__}.{name}" in anchors, name
    elif inspect.ismodule(value):
      assert f"module-{value.__name__}" in anchors, name


@pytest.mark.slow
def test_formulas_and_tables_are_rendered(site):
  index = (site / "index.html").read_text("utf-8")
  assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"' in index
  assert "$$" not in index
  sets = (site / "api" / "sets.html").read_text("utf-8")
  assert re.search(r"<p>NaN in grad</p></td>\s*<td><p>NaN</p>", sets)
  assert "[B, *S]" in sets
  assert "\\*" not in sets
  assert "--output gets shards" in (site / "api" / "experiments.html").read_text("utf-8")


# It is searched.

ANSWERS = {
  "custom dataset": "your_own.html",
  "image folder": "your_own.html",
  "pretrained": "your_own.html",
  "install gpu": "install.html",
  "load checkpoint": "runs.html",
  "continue training": "runs.html",
}


@pytest.mark.slow
@pytest.mark.parametrize("query", ANSWERS)
def test_the_first_result_of_a_search_answers(site, browser, query):
  browser.get(f"{(site / 'search.html').as_uri()}?q={query.replace(' ', '+')}")
  wait = WebDriverWait(browser, 30)
  link = wait.until(lambda b: b.find_elements("css selector", "#search-results li a"))[0]
  assert link.get_attribute("href").split("#")[0].split("?")[0].endswith(f"/{ANSWERS[query]}")


# What lies beside it.


def read_yaml(name):
  return yaml.safe_load((ROOT / name).read_text("utf-8"))


def test_the_citation_is_whole():
  citation = read_yaml("CITATION.cff")
  assert {"message", "title", "type", "abstract", "keywords", "authors"} <= citation.keys()
  assert (citation["version"], citation["license"]) == (ro.__version__, "Apache-2.0")
  for reference in citation["references"]:
    assert {"type", "title", "authors", "year", "identifiers"} <= reference.keys()
    assert all({"family-names", "given-names"} == author.keys() for author in reference["authors"])


def test_the_hooks_before_a_commit_need_no_network():
  (local,) = read_yaml(".pre-commit-config.yaml")["repos"]
  assert local["repo"] == "local"
  assert {hook["id"] for hook in local["hooks"]} == {"ruff", "ruff-format", "mypy"}
  assert all(hook["language"] == "system" for hook in local["hooks"])


def test_what_contributing_names_exists():
  text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
  for path in re.findall(r"`((?:robust_opt|tests|docs|configs)/[\w/]+\.(?:py|md))`", text):
    assert (ROOT / path).is_file(), path
  for link in re.findall(r"\]\(([^)#:]+)\)", text):
    assert (ROOT / link).exists(), link
