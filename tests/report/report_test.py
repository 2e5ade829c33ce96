"""The report: what is read of runs, what the page says and needs, what is refused."""

import base64
import html.parser
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robust_opt import statistics
from robust_opt.errors import InputError
from robust_opt.evaluation import autoattack, phases, trust, verdict
from robust_opt.experiments import config, overrides, target
from robust_opt.experiments import run as experiment
from robust_opt.report import data as report_data
from robust_opt.report import examples
from robust_opt.report import page as report
from robust_opt.report import plots as report_plots
from robust_opt.report import words as report_words
from robust_opt.studies import evaluation
from robust_opt.training import overfitting

SMALL = (phases.apgd_ce(5), phases.apgd_t(5, 2))
# Each would break an attribute, a script or plotly's own markup if it were taken for a part of it.
NASTY_NAME = "<b>\"'&run,%{x}"
NASTY_TITLE = "</script><img src='x' onerror='alert(1)'>"
PLACES = {"data_dir": "", "cache_dir": ""}


def small_config(seed=0):
  c = config.digits()
  c.seed = seed
  c.model.name = "SoftmaxRegression"
  c.data.train_examples, c.data.test_examples = 300, 100
  c.training.epochs = 2
  c.evaluation.sweep = (0.0, 1.0)
  return c


def checks(*passed):
  return [
    trust.Check(f"check {place}", fine, f"measured <{place}>", "what a failure means")
    for place, fine in enumerate(passed)
  ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A run with an evaluation of 60 examples."""
  workdir = tmp_path_factory.mktemp("runs") / "first"
  experiment.run(small_config(), workdir)
  options = evaluation.Options(
    {"workdir": str(workdir)},
    norm="linf",
    radius=0.1,
    version="quick",
    examples=60,
    batch_size=64,
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(phases.VERSIONS, "quick", SMALL)
    patch.setattr(trust, "report", lambda *_, **__: checks(True, False, True, None))
    assert not evaluation.run(options)
  return workdir


@pytest.fixture(scope="module")
def second(trained, tmp_path_factory):
  """The same run as of another seed, never evaluated, under a name that is hard to bear."""
  workdir = tmp_path_factory.mktemp("runs") / NASTY_NAME
  shutil.copytree(trained, workdir, ignore=shutil.ignore_patterns("evaluations"))
  summary = json.loads((workdir / "summary.json").read_text())
  summary["config"]["seed"], summary["title"] = 7, NASTY_TITLE
  summary["results"][0]["correct"] -= 4
  summary["overfitting"] = overfitting.Overfitting("robust", 3, 0.58, 4, 0.5, 0.6)._asdict()
  (workdir / "summary.json").write_text(json.dumps(summary))
  return workdir


@pytest.fixture(scope="module")
def both(trained, second):
  """The page of the two."""
  return report.page(report_data.read_all([trained, second]), PLACES)


@pytest.fixture
def copy(trained, tmp_path):
  """A run that may be spoilt."""
  return Path(shutil.copytree(trained, tmp_path / "copy"))


class Page(html.parser.HTMLParser):
  """Tags with their attributes, and the text outside of scripts and styles."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.words, self.data, self._inside = [], "", "", None
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    self._inside = (tag, dict(attributes).get("id"))

  def handle_endtag(self, tag):
    self._inside = None

  def handle_data(self, data):
    if self._inside == ("script", "data"):
      self.data += data
    elif self._inside is None or self._inside[0] not in ("script", "style"):
      self.words += data

  def all(self, tag):
    return [attributes for name, attributes in self.tags if name == tag]


# --- What is read ---


def test_what_a_run_has_left(trained):
  (run,) = report_data.read_all([trained])
  summary = json.loads((trained / "summary.json").read_text())
  assert run.name == "first"
  assert run.title == summary["title"]
  assert [row.rate.correct for row in run.results] == [r["correct"] for r in summary["results"]]
  assert [row.trained_on for row in run.results] == [False, True, False, False]
  assert run.results[1][:3] == ("linf", 0.1, 1)
  assert [sweep.norm for sweep in run.sweeps] == ["linf", "l2", "l1"]
  assert run.sweeps[0].rates[0] == run.results[0].rate
  assert run.config["set.radius"] == 0.1
  assert run.picture.startswith(b"\x89PNG")
  assert len([r for r in run.records if "heldout/clean_accuracy" in r]) == 2

  (evaluation,) = run.evaluations
  stored = verdict.load(trained / "evaluations" / evaluation.name / "verdict.npz")
  assert evaluation.robust == report_data.Rate(int(np.sum(stored.verdict.broken_by == -1)), 60)
  assert evaluation.clean.correct == int(np.sum(stored.verdict.broken_by != 0))
  assert 0 < evaluation.robust.correct < evaluation.clean.correct
  assert [check["passed"] for check in evaluation.checks] == [True, False, True, None]


def test_the_interval_is_wilsons():
  """Wilson 1927: (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)."""
  p, n, z = 460 / 500, 500, 1.959963984540054
  centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
  expected = np.array([centre - half, centre + half]) / (1 + z**2 / n)
  np.testing.assert_allclose(report_data.Rate(460, 500).interval, expected, rtol=1e-12)
  assert report_data.Rate(0, 10).interval[0] == 0
  assert report_data.Rate(10, 10).interval[1] == 1


def test_what_is_not_measurable_is_no_doubt(trained):
  (run,) = report_data.read_all([trained])

  def said(*passed):
    rows = tuple(check._asdict() for check in checks(*passed))
    return report_words.verdict(
      run._replace(evaluations=(run.evaluations[0]._replace(checks=rows),))
    )

  assert said(True, None, True).sentence.endswith(
    "2 of 3 checks of the trust report pass; not measurable on these images: check 1."
  )
  assert said(True, None, True).doubt == ""
  assert said(True, True).sentence.endswith("All 2 checks of the trust report pass.")
  assert "fails 1 check (check 2)" in said(True, None, False).doubt


def test_names_are_as_short_as_tells_them_apart():
  assert report_data.names([Path("/a/b/c"), Path("/a/d")]) == ["c", "d"]
  assert report_data.names([Path("/a/x/c"), Path("/a/y/c"), Path("/d")]) == ["x/c", "y/c", "/d"]


def test_a_run_that_is_named_twice_is_one(trained):
  assert len(report_data.read_all([trained, trained / ".." / "first"])) == 1


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_the_training_command_gives_the_run_s_config(trained):
  (run,) = report_data.read_all([trained])
  words = shlex.split(report_data.training_command(run).replace("\\\n", " "))
  assert words[:3] == ["python", "-m", "robust_opt.main"]
  assert words[-1] == "--workdir=NEW_RUN"
  assert "--config.evaluation.sweep=(0.0, 1.0)" in words
  again = overrides.config_of(config.__file__, words[3:-1])  # as robust_opt.main reads them
  assert config.as_dict(again) == run.summary["config"]
  other = run._replace(config={**run.config, "unknown.key": 1})
  assert report_data.training_command(other) is None


# --- What the net is asked ---


def test_what_the_net_says_of_its_examples(trained):
  (run,) = report_data.read_all([trained])
  (evaluation,) = run.evaluations
  attacked = examples.ask(run, evaluation, 1000, PLACES)
  stored, found = evaluation.stored, target.load({"workdir": str(trained)}, 60)
  assert attacked.problem == ""
  assert attacked.broken == len(attacked.examples) == len(stored.broken_ids) > 3
  assert attacked.confusion.sum() == 60
  assert np.trace(attacked.confusion) == evaluation.robust.correct
  np.testing.assert_array_equal(attacked.confusion.sum(axis=1), np.bincount(found.y, minlength=10))
  for example in attacked.examples:
    assert example.label == found.y[example.place] == example.taken_for != example.fooled_into
    assert 0.1 <= example.fooled_confidence <= 1
    assert example.span <= 0.1 + 1e-6
    assert example.length == pytest.approx(example.span, abs=1e-6)
    np.testing.assert_allclose(decoded(example.clean), found.x[example.place, :, :, 0], atol=2e-3)
    assert np.abs(decoded(example.perturbed) - decoded(example.clean)).max() < 0.1 + 4e-3


def test_confidence_is_that_of_what_the_net_was_trained_by(trained):
  (run,) = report_data.read_all([trained])
  (evaluation,) = run.evaluations
  sigmoid = run._replace(config=run.config | {"objective.loss": "one_vs_all"})
  usual, other = (examples.ask(r, evaluation, 5, PLACES) for r in (run, sigmoid))
  found = target.load({"workdir": str(trained)}, 60)
  for a, b in zip(usual.examples, other.examples, strict=True):
    z = np.asarray(found.logits_fn(found.x[[a.place]]))[0]
    softmax = np.exp(z - np.logaddexp.reduce(z))
    assert a.confidence == pytest.approx(softmax[a.taken_for], rel=1e-3)
    assert b.confidence == pytest.approx(1 / (1 + np.exp(-z[b.taken_for])), rel=1e-3)
    assert a.fooled_into == b.fooled_into


def decoded(address):
  raw = base64.b64decode(address.removeprefix("data:image/png;base64,"))
  return np.asarray(Image.open(io.BytesIO(raw))) / 255


def test_few_examples_are_of_every_attack_and_class():
  broken_by = np.array([1, 1, 1, 1, 2, -1, 1, 0], np.int32)
  labels = np.array([0, 0, 0, 0, 0, 0, 1, 0])
  ids = np.flatnonzero(broken_by > 0)
  answer = autoattack.Verdict(("clean", "a", "b"), labels, broken_by, np.zeros((6, 2, 2, 1)))
  claim = verdict.Claim(verdict.ball_config("linf", 0.1), "quick", 0, 8, {}, "", "", "")
  stored = verdict.StoredVerdict(claim, answer, labels, ids, np.zeros(6), 0.1)
  assert [int(ids[k]) for k in examples.choose(stored, 3)] == [0, 4, 6]
  assert [int(ids[k]) for k in examples.choose(stored, 4)] == [0, 1, 4, 6]
  assert len(examples.choose(stored, 60)) == 6


def test_colour_images_and_perturbations_are_pictures():
  image = np.random.default_rng(0).random((4, 5, 3))
  np.testing.assert_allclose(decoded(examples.png(image)), image, atol=2e-3)
  delta = np.array([[-0.1, 0.0, 0.05]])
  np.testing.assert_allclose(examples.stretched(delta), [[0.0, 0.5, 0.75]])
  np.testing.assert_array_equal(examples.stretched(np.zeros((2, 2))), np.full((2, 2), 0.5))


def test_a_net_that_has_changed_is_not_asked(copy):
  (run,) = report_data.read_all([copy])
  (evaluation,) = run.evaluations
  claim = evaluation.stored.claim._replace(net_sha256="0" * 64)
  other = evaluation._replace(stored=evaluation.stored._replace(claim=claim))
  attacked = examples.ask(run, other, 5, PLACES)
  assert "another net" in attacked.problem
  assert attacked.confusion is None
  assert len(attacked.examples) == 5
  assert attacked.examples[0].clean is None


def test_without_checkpoints_the_page_says_so(copy):
  shutil.rmtree(copy / "checkpoints")
  examples._subject.cache_clear()
  words = Page(report.page(report_data.read_all([copy]), PLACES)).words
  assert "The net could not be asked again" in words
  assert "holds no checkpoints" in words
  assert "There is none, for no run here" in words


# --- The page ---


def test_the_page_needs_nothing_else(both):
  page = Page(both)
  for tag, attributes in page.tags:
    for name in ("src", "href", "data", "action", "poster", "srcset"):
      address = attributes.get(name)
      assert not address or re.match(r"(#|data:)", address), (tag, address)
  styles = re.findall(r"<style>(.*?)</style>", both, re.DOTALL)
  assert styles
  assert not re.search(r"url\(|@import", "".join(styles))
  policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
  assert policy.startswith("default-src 'none'")
  assert "connect-src" not in policy
  assert len(both) < 7e6


def test_what_the_page_says(both, trained):
  words = Page(both).words
  (run,) = report_data.read_all([trained])
  clean, robust = run.results[0].rate, run.evaluations[0].robust
  assert f"Right on {report_words.percent(clean.accuracy)} of 100 clean test images" in words
  assert f"{report_words.percent(robust.accuracy)} ({report_words.interval(robust)}) stand" in words
  assert "2 trained networks" in words
  assert "fails 1 check (check 1)" in words
  assert "1 of 4 checks fail" in words
  assert re.findall(r"check (\d)\s+(passes|fails|not measurable)\s", words) == [
    ("1", "fails"),
    ("3", "not measurable"),
    ("0", "passes"),
    ("2", "passes"),
  ]
  assert "measured <1>" in words
  assert "Robust overfitting: held-out accuracy under PGD fell from 58.0 %" in words
  assert "has no evaluation" in words
  assert run.summary["params_sha256"] in words
  assert run.evaluations[0].stored.claim.net_sha256 in words
  assert f"{len(run.evaluations[0].stored.broken_ids)} broken ones" in words


def test_nothing_of_a_run_is_taken_for_markup(both):
  page = Page(both)
  assert NASTY_NAME in page.words
  assert NASTY_TITLE in page.words
  assert NASTY_NAME not in both  # it stands escaped everywhere
  assert NASTY_TITLE not in both
  assert len(page.all("script")) == 3
  assert not [image for image in page.all("img") if "onerror" in image]
  traces = json.loads(page.data)["plots"]["plot0"]["data"]
  assert "&lt;b&gt;&quot;&#x27;&amp;run,%&#123;x}" in [trace["name"] for trace in traces]


def test_runs_lie_over_one_another(both):
  payload = json.loads(Page(both).data)
  radius = [trace for trace in payload["plots"]["plot0"]["data"] if trace["mode"] != "markers"]
  assert [trace["meta"]["run"] for trace in radius] == [0, 1]
  assert radius[0]["x"] == radius[1]["x"] == [0.0, 0.1]
  assert radius[0]["line"]["dash"] != radius[1]["line"]["dash"]
  assert radius[0]["marker"]["symbol"] != radius[1]["marker"]["symbol"]
  for theme in payload["themes"].values():
    assert len(set(theme["series"])) == 6


def test_the_curves_are_the_runs_numbers(trained):
  (run,) = report_data.read_all([trained])
  plots = report_plots.radius_plots([run])
  assert len(plots) == 3
  line, marker = plots[0].figure["data"]
  rates = run.sweeps[0].rates
  assert line["y"] == [100 * rate.accuracy for rate in rates]
  low, high = rates[1].interval
  assert line["error_y"]["array"][1] == pytest.approx(100 * (high - rates[1].accuracy))
  assert line["error_y"]["arrayminus"][1] == pytest.approx(100 * (rates[1].accuracy - low))
  assert marker["y"] == [100 * run.evaluations[0].robust.accuracy]
  assert marker["x"] == [0.1]

  training = {plot.title: plot for plot in report_plots.training_plots([run])}
  losses = training["Training loss"].figure["data"][0]
  assert losses["y"] == [record["train/loss"] for record in run.records]
  accuracies = training["Held-out accuracy, clean"].figure["data"][0]
  assert accuracies["x"] == [1.0, 2.0]
  assert f"{accuracies['y'][-1]:.4g} % after epoch 2" in training["Held-out accuracy, clean"].alt


def test_a_heat_map_says_its_counts():
  confusion = np.array([[5, 2, 0], [0, 4, 0], [0, 0, 0]])
  plot = report_plots.confusion_plot("run", confusion)
  (trace,) = plot.figure["data"]
  assert trace["text"] == [["5", "2", ""], ["", "4", ""], ["", "", ""]]
  assert trace["z"][0][0] == pytest.approx(5 / 7)
  assert trace["z"][2] == [0, 0, 0]
  assert "9 of 11 are right; most often, 2 times, class 0 is taken for 1" in plot.alt
  many = report_plots.confusion_plot("run", np.eye(50, dtype=int))
  assert "texttemplate" not in many.figure["data"][0]


def test_what_differs_is_told(trained, second):
  runs = report_data.read_all([trained, second])
  assert [row.key for row in report_words.config_rows(runs) if row.differs] == ["seed"]
  table = {row.what: row for row in report_words.result_table(runs)}
  clean = [run.results[0].rate.accuracy for run in runs]
  mean, low, high = (100 * end for end in statistics.accuracy_interval(clean, 100))
  assert table["clean"].mean == f"{mean:.2f} [{low:.2f}, {high:.2f}]"
  last = list(table)[-1]
  assert last.endswith("60 images")
  assert table[last].cells[1] == report_words.Cell()
  assert not report_words.are_seeds(runs[:1])


def test_the_same_runs_give_the_same_page(trained):
  runs = report_data.read_all([trained])
  assert report.page(runs, PLACES) == report.page(report_data.read_all([trained]), PLACES)


# --- What is refused ---


def test_a_sentence_for_each_run_that_is_none(copy, tmp_path):
  (tmp_path / "empty").mkdir()
  (copy / "summary.json").unlink()
  output = tmp_path / "page.html"
  output.write_text("an earlier report")
  with pytest.raises(InputError) as error:
    report.run([tmp_path / "absent", tmp_path / "empty", copy], output, PLACES)
  first, second, third = str(error.value).splitlines()
  assert "absent must be the directory of a run, but there is none" in first
  assert "holds no config.json" in second
  assert "is not finished (no summary.json)" in third
  assert output.read_text() == "an earlier report"
  with pytest.raises(InputError, match="at least one run"):
    report.run([], output, PLACES)


@pytest.mark.parametrize(
  ("name", "content", "words"),
  [
    ("summary.json", b"{", "is no summary of a run that can be read"),
    ("summary.json", b"[]", "is no summary of a run that can be read"),
    ("summary.json", b'{"title": "x"}', "it lacks 'results'"),
    ("metrics.jsonl", b"\xff\x00", "holds no record of the training"),
    ("evaluations/linf_0.1_quick_60/summary.json", b"{}", "summary of an evaluation"),
    ("evaluations/linf_0.1_quick_60/verdict.npz", b"PK\x03\x04", "is no verdict that can be read"),
  ],
)
def test_a_damaged_file_is_named(copy, tmp_path, name, content, words):
  (copy / name).write_bytes(content)
  with pytest.raises(InputError, match=re.escape(words)) as error:
    report.run([copy], tmp_path / "page.html", PLACES)
  assert str(copy / name) in str(error.value)
  assert not (tmp_path / "page.html").exists()


def test_an_evaluation_beside_another_verdict_is_refused(copy):
  path = copy / "evaluations" / "linf_0.1_quick_60" / "summary.json"
  path.write_text(path.read_text().replace('"total": 60', '"total": 61'))
  with pytest.raises(InputError, match="not those of the verdict"):
    report_data.read_all([copy])


def test_an_unfinished_evaluation_is_told(copy):
  (copy / "evaluations" / "linf_0.1_quick_60" / "summary.json").unlink()
  (run,) = report_data.read_all([copy])
  assert run.unfinished == ("linf_0.1_quick_60",)
  assert "linf_0.1_quick_60 is not finished" in Page(report.page([run], PLACES)).words


def test_the_output_must_be_a_page(trained, tmp_path):
  with pytest.raises(InputError, match=r"must be the name of an .html file, but was .*page.pdf"):
    report.run([trained], tmp_path / "page.pdf", PLACES)


@pytest.mark.slow
def test_the_command(trained, copy, tmp_path):
  """Runs behind the first, flags behind those, and a sentence for what is wrong."""

  def call(*arguments):
    command = [sys.executable, "-m", "robust_opt.report", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)

  output = tmp_path / "page.html"
  done = call(f"--workdir={trained}", str(copy), f"--output={output}")
  assert done.returncode == 0, done.stderr
  assert str(output) in done.stdout
  assert "2 trained networks" in output.read_text()
  failed = call(f"--workdir={trained}", "--workdir=absent", f"--output={output}")
  assert failed.returncode == 2
  assert failed.stderr.strip() == (
    "robust_opt: --workdir=absent must be the directory of a run, but there is none."
  )
  assert "2 trained networks" in output.read_text()
