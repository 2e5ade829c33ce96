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
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from report.conftest import NASTY_NAME, NASTY_TITLE

from robust_opt import statistics
from robust_opt.errors import InputError
from robust_opt.evaluation import autoattack, verdict
from robust_opt.experiments import config, overrides, target
from robust_opt.report import charts, data, examples, page, words


@pytest.fixture(scope="module")
def run(trained):
  return data.read_runs([trained])[0]


@pytest.fixture(scope="module")
def runs(trained, second):
  return data.read_runs([trained, second])


@pytest.fixture(scope="module")
def both(runs):
  """The page of two runs."""
  return page.page(runs, {})


@pytest.fixture
def copy(trained, tmp_path):
  """A run to damage."""
  return Path(shutil.copytree(trained, tmp_path / "copy"))


class Page(html.parser.HTMLParser):
  """Tags with their attributes, and the text outside of scripts and styles."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.words, self._inside = [], "", None
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    self._inside = tag

  def handle_endtag(self, tag):
    self._inside = None

  def handle_data(self, data):
    if self._inside not in ("script", "style"):
      self.words += data

  def all(self, tag):
    return [attributes for name, attributes in self.tags if name == tag]


# What is read


def test_a_run(trained, run):
  summary = json.loads((trained / "summary.json").read_text())
  assert run.name == "first"
  assert run.title == summary["title"]
  assert [row.rate.correct for row in run.results] == [r["correct"] for r in summary["results"]]
  assert [row.trained_on for row in run.results] == [False, True, False, False]
  assert run.results[0].norm is None
  assert run.results[1][1:4] == ("linf", 0.1, 1)
  assert run.results[1].set == summary["config"]["set"]
  assert [row.set["box"] for row in run.results[1:]] == [None, None, None]
  assert [sweep.norm for sweep in run.sweeps] == ["linf", "l2", "l1"]
  assert run.sweeps[0].rates[0] == run.results[0].rate
  assert run.picture.startswith(b"\x89PNG")
  assert len([r for r in run.records if "heldout/clean_accuracy" in r]) == 2


def test_an_evaluation(trained, run):
  (evaluation,) = run.evaluations
  stored = verdict.load(trained / "evaluations" / "linf_0.1_quick_60" / "verdict.npz")
  assert evaluation.robust == data.Rate(int(np.sum(stored.verdict.broken_by == -1)), 60)
  assert evaluation.clean.correct == int(np.sum(stored.verdict.broken_by != 0))
  assert 0 < evaluation.robust.correct < evaluation.clean.correct
  assert [check.passed for check in evaluation.checks] == [True, False, True, None]


def test_an_evaluation_alone(trained, alone, run, tmp_path):
  """A folder or its file; the same network on the same images has the same verdict."""
  (found,), (again,) = (data.read_runs([path]) for path in (alone, alone / "verdict.npz"))
  assert found.name == again.name == "mine"
  assert found.workdir == again.workdir == alone
  assert found.title == "own_net:logits_fn"
  (of_run,), (own,) = run.evaluations, found.evaluations
  assert (own.robust, own.clean, own.attacks) == (of_run.robust, of_run.clean, of_run.attacks)
  assert [check.passed for check in own.checks] == [True, True]
  shutil.copy(alone / "verdict.npz", tmp_path / "sent.npz")
  (sent,) = data.read_runs([tmp_path / "sent.npz"])
  assert (sent.name, sent.title) == ("sent.npz", "own_net:logits_fn")
  assert sent.evaluations[0][3:6] == own[3:6]  # clean, robust, attacks
  assert (sent.evaluations[0].checks, sent.evaluations[0].after_rounding) == ((), None)


def test_an_evaluation_of_a_run_is_not_repeated(trained, alone):
  inside = trained / "evaluations" / "linf_0.1_quick_60"
  assert [run.name for run in data.read_runs([inside, trained, alone])] == ["first", "mine"]
  (only,) = data.read_runs([inside / "verdict.npz"])
  assert not only.results
  assert examples.load_examples(only, only.evaluations[0], 5, {}).problem == ""


def test_names_are_as_short_as_possible():
  assert data.short_names([Path("/a/b/c"), Path("/a/d")]) == ["c", "d"]
  assert data.short_names([Path("/a/x/c"), Path("/a/y/c"), Path("/d")]) == ["x/c", "y/c", "/d"]


def test_a_run_that_is_named_twice_is_read_once(trained):
  assert len(data.read_runs([trained, trained / ".." / "first"])) == 1


# Words


def test_the_headline_is_that_of_the_strongest_evaluation(run):
  """Of the images that it attacked, which may be other ones than the test set."""
  (evaluation,) = run.evaluations
  clean, robust = run.results[0].rate, evaluation.robust
  over = "AutoAttack, quick version, over \u2113\u221e 0.1 within [0, 1]"
  found = words.headline(run)
  assert (found.clean, found.robust, found.attack) == (clean, robust, over)
  assert f"; of the first 60, {robust.percent} ({robust.range}) remain" in found.sentence
  claim = evaluation.stored.claim
  source = {**claim.source, "data": "later.npz", "examples": 0}
  stored = evaluation.stored._replace(claim=claim._replace(source=source))
  later = evaluation._replace(stored=stored, robust=data.Rate(59, 60))
  assert words.headline(run._replace(evaluations=(later, evaluation))) == found
  found = words.headline(run._replace(evaluations=(later,)))
  assert (found.clean, found.robust) == (evaluation.clean, later.robust)
  assert found.sentence.startswith(f"{evaluation.clean.percent} of 60 clean images of later.npz")
  found = words.headline(run._replace(evaluations=()))
  assert found.robust == run.results[1].rate
  assert found.attack == "1 step over \u2113\u221e 0.1, pixels may leave [0, 1]"


def test_what_was_measured_is_said(run):
  network = run.title
  assert words.measured(run) == {
    "network": network,
    "data": "the first 60 of 100 test images of digits",
    "threat model": "\u2113\u221e 0.1 within [0, 1]",
    "attack": "AutoAttack, quick version: apgd-ce, apgd-t",
  }
  assert words.measured(run._replace(evaluations=())) == {
    "network": network,
    "data": "100 test images of digits",
    "threat model": "\u2113\u221e 0.1, pixels may leave [0, 1]",
    "attack": "1 step, as in training",
  }
  assert words.boxes_of_training([run, run]) == "pixels may leave [0, 1]"
  own = run.results[1]._replace(set={"name": "LInf", "radius": 0.1, "box": [0, 1]})
  boxed = run._replace(name="boxed", results=(run.results[0], own))
  assert words.boxes_of_training([run, boxed]) == (
    "first: pixels may leave [0, 1]; boxed: within [0, 1]"
  )


def test_the_training_command_gives_the_run_s_config(run):
  arguments = shlex.split(words.training_command(run).replace("\\\n", " "))
  assert arguments[:3] == ["python", "-m", "robust_opt.main"]
  assert arguments[-1] == "--workdir=NEW_RUN"
  again = overrides.config_of(config.__file__, arguments[3:-1])  # as robust_opt.main reads them
  assert config.as_dict(again) == run.summary["config"]
  assert words.training_command(run._replace(config={**run.config, "unknown.key": 1})) is None


def test_differences_and_the_mean_over_seeds(runs):
  assert [row.key for row in words.fact_rows([run.config for run in runs]) if row.differs] == [
    "seed"
  ]
  table = {row.title: row for row in words.result_table(runs)}
  clean = [run.results[0].rate.accuracy for run in runs]
  mean, low, high = (100 * end for end in statistics.accuracy_interval(clean, 100))
  assert table["clean"].mean == f"{mean:.2f} [{low:.2f}, {high:.2f}]"
  last = list(table)[-1]
  assert last.endswith("60 images")
  assert table[last].cells[1] is None
  assert not words.are_seeds(runs[:1])


# Adversarial examples


def test_where_nothing_is_broken_the_network_is_as_on_clean_images(run):
  (evaluation,) = run.evaluations
  found = evaluation.stored.verdict
  none = found._replace(
    broken_by=np.where(found.broken_by > 0, -1, found.broken_by), images=found.images[:0]
  )
  ids = evaluation.stored.broken_ids[:0]
  stored = evaluation.stored._replace(verdict=none, broken_ids=ids, norms=ids.astype(float))
  loaded = examples.load_examples(run, evaluation._replace(stored=stored), 5, {})
  assert (loaded.problem, loaded.total, loaded.examples) == ("", 0, ())
  assert np.trace(loaded.confusion) == np.sum(none.prediction == stored.labels)


def test_images_and_predictions(trained, run):
  (evaluation,) = run.evaluations
  loaded = examples.load_examples(run, evaluation, 1000, {})
  stored, expected = evaluation.stored, target.load({"workdir": str(trained)}, 60)
  assert loaded.problem == ""
  assert loaded.total == len(loaded.examples) == len(stored.broken_ids) > 3
  assert loaded.confusion.sum() == 60
  assert np.trace(loaded.confusion) == evaluation.robust.correct
  labels = np.bincount(expected.y, minlength=10)
  np.testing.assert_array_equal(loaded.confusion.sum(axis=1), labels)
  for example in loaded.examples:
    label = expected.y[example.test_index]
    assert example.label == label == example.prediction != example.perturbed_prediction
    assert 0.1 <= example.perturbed_confidence <= 1
    assert example.max_change <= 0.1 + 1e-6
    assert example.size == pytest.approx(example.max_change, abs=1e-6)
    image = expected.x[example.test_index, :, :, 0]
    np.testing.assert_allclose(decoded(example.clean), image, atol=2e-3)
    assert np.abs(decoded(example.perturbed) - decoded(example.clean)).max() < 0.1 + 4e-3


def test_confidence_is_that_of_the_loss_of_training(trained, run, monkeypatch):
  (evaluation,) = run.evaluations
  loaded = target.load({"workdir": str(trained)}, 60)
  usual = examples.load_examples(run, evaluation, 5, {})
  monkeypatch.setattr(examples, "_target", lambda **_: loaded._replace(loss="one_vs_all"))
  other = examples.load_examples(run, evaluation, 5, {})
  for a, b in zip(usual.examples, other.examples, strict=True):
    z = np.asarray(loaded.logits_fn(loaded.x[[a.test_index]]))[0]
    softmax = np.exp(z - np.logaddexp.reduce(z))
    assert a.confidence == pytest.approx(softmax[a.prediction], rel=1e-3)
    assert b.confidence == pytest.approx(1 / (1 + np.exp(-z[b.prediction])), rel=1e-3)
    assert a.perturbed_prediction == b.perturbed_prediction


def decoded(address):
  raw = base64.b64decode(address.removeprefix("data:image/png;base64,"))
  return np.asarray(Image.open(io.BytesIO(raw))) / 255


def test_few_examples_are_from_every_attack_and_class():
  broken_by = np.array([1, 1, 1, 1, 2, -1, 1, 0], np.int32)
  labels = np.array([0, 0, 0, 0, 0, 0, 1, 0])
  ids = np.flatnonzero(broken_by > 0)
  answer = autoattack.Verdict(("clean", "a", "b"), labels, broken_by, np.zeros((6, 2, 2, 1)))
  claim = verdict.Claim(verdict.ball_config("linf", 0.1), "quick", 0, 8, {}, "", "", "")
  stored = verdict.StoredVerdict(claim, answer, labels, ids, np.zeros(6), 0.1)
  assert [int(ids[k]) for k in examples.balanced_subset(stored, 3)] == [0, 4, 6]
  assert [int(ids[k]) for k in examples.balanced_subset(stored, 4)] == [0, 1, 4, 6]
  assert len(examples.balanced_subset(stored, 60)) == 6


def test_color_images_and_scaled_perturbations():
  image = np.random.default_rng(0).random((4, 5, 3))
  np.testing.assert_allclose(decoded(examples.png(image)), image, atol=2e-3)
  delta = np.array([[-0.1, 0.0, 0.05]])
  np.testing.assert_allclose(examples.scaled(delta), [[0.0, 0.5, 0.75]])
  np.testing.assert_array_equal(examples.scaled(np.zeros((2, 2))), np.full((2, 2), 0.5))


def test_another_network_is_not_loaded(run):
  (evaluation,) = run.evaluations
  claim = evaluation.stored.claim._replace(net_sha256="0" * 64)
  other = evaluation._replace(stored=evaluation.stored._replace(claim=claim))
  loaded = examples.load_examples(run, other, 5, {})
  assert "another network" in loaded.problem
  assert loaded.confusion is None
  assert len(loaded.examples) == 5
  assert loaded.examples[0].clean is None


def test_without_checkpoints_the_page_says_so(copy):
  shutil.rmtree(copy / "checkpoints")
  examples._target.cache_clear()
  text = Page(page.page(data.read_runs([copy]), {})).words
  assert "Network and data could not be loaded" in text
  assert "holds no checkpoints" in text
  assert "Nothing here has an evaluation whose network could be loaded" in text


# Charts


def marks(svg, index):
  """The groups of a run in an SVG."""
  return [g for g in ElementTree.fromstring(svg).iter() if g.get("class") == f"run-{index}"]


def test_charts_are_svg_with_words_and_a_group_for_each_run(runs):
  radius, training = charts.radius_charts(runs), charts.training_charts(runs)
  assert [chart.title for chart in radius] == [
    "Over \u2113\u221e",
    "Over \u2113\u2082",
    "Over \u2113\u2081",
  ]
  assert [chart.title.partition(",")[2].strip() for chart in training] == [
    "",
    "clean",
    "own attack",
    "PGD",
  ]
  confusion = charts.confusion_chart("c", "title", np.eye(3, dtype=int))
  for chart in (*radius, *training, confusion):
    svg = ElementTree.fromstring(chart.svg)
    title, description = svg[0], svg[1]
    assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert title.text == chart.title
    assert len(description.text) > 40
    assert "#f0" not in chart.svg, "a placeholder color was not replaced"
    assert "#f1" not in chart.svg
    assert len(chart.svg) < 40_000
    if chart is not confusion:
      assert marks(chart.svg, 0)
      assert marks(chart.svg, 1)
  # Line, caps and bars of the curve; the evaluation of the first run has them too.
  assert len(marks(radius[0].svg, 0)) == 2 * len(marks(radius[0].svg, 1))


def test_charts_show_the_numbers_of_the_run(run):
  description = ElementTree.fromstring(charts.radius_charts([run])[0].svg)[1].text
  clean, robust = (rate.accuracy for rate in run.sweeps[0].rates)
  assert (
    f"from {100 * clean:.1f} % at radius 0 to {100 * robust:.1f} % at radius 0.1" in description
  )
  assert f"{100 * run.evaluations[0].robust.accuracy:.1f} % at 0.1" in description
  last = [r["heldout/clean_accuracy"] for r in run.records if "heldout/clean_accuracy" in r][-1]
  description = ElementTree.fromstring(charts.training_charts([run])[1].svg)[1].text
  assert f"{100 * last:.4g} % after epoch 2" in description


def test_a_confusion_matrix_shows_its_counts():
  confusion = np.array([[5, 2, 0], [0, 4, 0], [0, 0, 0]])
  svg = ElementTree.fromstring(charts.confusion_chart("c", "run", confusion).svg)
  assert "9 of 11 agree; the most frequent error, 2 times, is class 1 for class 0" in svg[1].text
  texts = [text.text for text in svg.iter("text")]
  assert [text for text in texts if text in ("5", "4")] == ["5", "4"]
  many = charts.confusion_chart("c", "run", np.eye(50, dtype=int)).svg
  assert len(many) < 40_000


# The page


def test_the_page_needs_no_network(both):
  parsed = Page(both)
  for tag, attributes in parsed.tags:
    for name in ("src", "href", "data", "action", "poster", "srcset"):
      address = attributes.get(name)
      assert not address or re.match(r"(#|data:)", address), (tag, address)
  assert not re.search(r"@import|url\((?!#)", both)
  policy = next(m["content"] for m in parsed.all("meta") if "http-equiv" in m)
  assert policy.startswith("default-src 'none'")
  assert "connect-src" not in policy
  assert len(both) < 5e5
  ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
  assert len(ids) == len(set(ids))


def test_what_the_page_says(both, run):
  text = Page(both).words
  clean, robust = run.results[0].rate, run.evaluations[0].robust
  assert f"{words.percent(clean.accuracy)} of 100 clean test images are classified" in text
  assert f"{words.percent(robust.accuracy)} ({robust.range}) remain correctly" in text
  assert "Accuracy of 2 networks" in text
  assert "Lines are the attack of training (pixels may leave [0, 1])" in text
  assert "1 check of the trust report failed (check 1)" in text
  assert "1 of 4 checks fail" in text
  assert re.findall(r"check (\d)\s+(passes|fails|not measurable)\s", text) == [
    ("1", "fails"),
    ("3", "not measurable"),
    ("0", "passes"),
    ("2", "passes"),
  ]
  assert "measured <1>" in text
  assert "Robust overfitting: held-out accuracy under PGD fell from 58.0 %" in text
  assert "has no evaluation" in text
  assert run.summary["params_sha256"] in text
  assert run.evaluations[0].stored.claim.net_sha256 in text


def test_the_page_of_an_evaluation_alone(alone):
  (run,) = data.read_runs([alone])
  (evaluation,) = run.evaluations
  parsed = Page(page.page([run], {}))
  text, robust = re.sub(r"[ \n]+", " ", parsed.words), evaluation.robust
  over = "AutoAttack, quick version, over \u2113\u221e 0.1 within [0, 1]"
  assert f"and {words.percent(robust.accuracy)} ({robust.range}) remain correctly" in text
  assert f"under {over}. All 2 checks of the trust report pass." in text
  for fact in ("own_net:logits_fn", "60 test images of", "AutoAttack, quick version: apgd-ce"):
    assert fact in text
  for row in evaluation.attacks:
    accuracy = words.percent(row["accuracy"])
    assert f"{row['after']}{row['broke']}{row['standing']}{accuracy}" in text
  total = len(evaluation.stored.broken_ids)
  assert f"{total} of {total} (" in text
  assert "could not be loaded" not in text
  sections = [attributes["id"] for attributes in parsed.all("section") if "id" in attributes]
  assert sections == ["results", "radius", "examples", "confusion", "trust", "provenance"]
  links = [a["href"] for a in parsed.all("a") if a["href"] != "#results" or "class" not in a]
  assert links == [f"#{section}" for section in sections]
  assert len(parsed.all("svg")) == 2  # accuracy against the radius, confusion


def test_the_commands_of_an_evaluation(run, alone):
  (own,) = data.read_runs([alone])
  (of_run,), (of_own,) = run.evaluations, own.evaluations

  def arguments(command):
    assert command.startswith("python -m robust_opt.")
    return shlex.split(command.replace("\\\n", " "))[2:]

  shared = ["--norm=linf", "--radius=0.1", "--version=quick", "--seed=0", "--batch_size=64"]
  assert arguments(words.evaluation_command(run, of_run)) == [
    *("robust_opt.evaluate", f"--workdir={run.workdir}", "--examples=60", *shared)
  ]
  places = [f"--data={alone.parent / 'digits.npz'}", f"--output={alone}"]
  expected = {"robust_opt.evaluate", "--model=own_net:logits_fn", *places, *shared}
  assert set(arguments(words.evaluation_command(own, of_own))) == expected
  verdict_file = str(alone / "verdict.npz")
  assert arguments(words.verification_command(of_own)) == ["robust_opt.verify", verdict_file]
  claim = of_own.stored.claim._replace(search_precision="tf32")
  faster = of_own._replace(stored=of_own.stored._replace(claim=claim))
  assert "--search_precision=tf32" in arguments(words.evaluation_command(own, faster))


def test_a_run_and_an_evaluation_alone_are_compared(runs, alone):
  (own,) = data.read_runs([alone])
  text = Page(page.page([*runs, own], {})).words
  assert "Accuracy of 3 networks" in text
  table = {row.title: row for row in words.result_table([*runs, own])}
  assert table["clean"].cells[2] == (own.evaluations[0].clean, False)
  (last,) = [title for title in table if title.endswith("60 images of digits.npz")]
  assert table[last].cells == (None, None, (own.evaluations[0].robust, False))


def test_a_function_that_has_changed_is_another_network(alone, monkeypatch):
  (run,) = data.read_runs([alone])
  monkeypatch.chdir(alone.parent)
  examples._target.cache_clear()
  own_net = sys.modules["own_net"]
  logits_fn = own_net.logits_fn
  monkeypatch.setattr(own_net, "logits_fn", lambda x: -logits_fn(x))
  loaded = examples.load_examples(run, run.evaluations[0], 5, {})
  examples._target.cache_clear()
  assert "another network" in loaded.problem
  assert loaded.confusion is None
  assert loaded.examples[0].clean is None


def test_names_and_titles_are_escaped(both):
  parsed = Page(both)
  assert NASTY_NAME in parsed.words
  assert NASTY_TITLE in parsed.words
  assert NASTY_NAME not in both
  assert NASTY_TITLE not in both
  assert len(parsed.all("script")) == 2
  assert not [image for image in parsed.all("img") if "onerror" in image]


def test_the_same_runs_give_the_same_page(runs, both):
  assert page.page(runs, {}) == both


# What is refused


def test_one_sentence_for_each_run_that_cannot_be_read(copy, tmp_path):
  (tmp_path / "empty").mkdir()
  (copy / "summary.json").unlink()
  output = tmp_path / "page.html"
  output.write_text("an earlier report")
  with pytest.raises(InputError) as error:
    page.run([tmp_path / "absent", tmp_path / "empty", copy], output, {})
  first, second, third = str(error.value).splitlines()
  kinds = "must be the directory of a run, that of an evaluation, or a verdict.npz, but it"
  assert first == f"{tmp_path / 'absent'} {kinds} does not exist."
  assert second == f"{tmp_path / 'empty'} {kinds} holds neither config.json nor verdict.npz."
  assert "is not finished (no summary.json)" in third
  assert output.read_text() == "an earlier report"
  with pytest.raises(InputError, match="at least one run or evaluation"):
    page.run([], output, {})


@pytest.mark.parametrize(
  ("name", "content", "words"),
  [
    ("summary.json", b"{", "cannot be read as the summary of a run"),
    ("summary.json", b"[]", "cannot be read as the summary of a run"),
    ("summary.json", b'{"title": "x", "config": {"set": {}}}', "it lacks 'results'"),
    ("summary.json", b'{"results": [{"correct": 1}, {}], "title": "x"}', "lacks 'config'"),
    ("metrics.jsonl", b"\xff\x00", "holds no readable record of the training"),
    ("evaluations/linf_0.1_quick_60/summary.json", b"{}", "the summary of an evaluation"),
    ("evaluations/linf_0.1_quick_60/verdict.npz", b"PK\x03\x04", "is not a readable verdict"),
  ],
)
def test_a_damaged_file_is_named(copy, tmp_path, name, content, words):
  (copy / name).write_bytes(content)
  with pytest.raises(InputError, match=re.escape(words)) as error:
    page.run([copy], tmp_path / "page.html", {})
  assert str(copy / name) in str(error.value)
  assert not (tmp_path / "page.html").exists()


def test_an_evaluation_beside_another_verdict_is_refused(copy):
  path = copy / "evaluations" / "linf_0.1_quick_60" / "summary.json"
  path.write_text(path.read_text().replace('"total": 60', '"total": 61'))
  with pytest.raises(InputError, match="not those of the verdict"):
    data.read_runs([copy])


def test_an_unfinished_evaluation_is_told(copy):
  (copy / "evaluations" / "linf_0.1_quick_60" / "summary.json").unlink()
  (run,) = data.read_runs([copy])
  assert run.unfinished == ("linf_0.1_quick_60",)
  assert "linf_0.1_quick_60 is not finished" in Page(page.page([run], {})).words


def test_the_output_must_be_a_page(trained, tmp_path):
  with pytest.raises(InputError, match=r"must be the name of an .html file, but was .*page.pdf"):
    page.run([trained], tmp_path / "page.pdf", {})


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
  assert "Accuracy of 2 networks" in output.read_text()
  failed = call(f"--workdir={trained}", "--workdir=absent", f"--output={output}")
  assert failed.returncode == 2
  assert failed.stderr.strip() == (
    "robust_opt: absent must be the directory of a run, that of an evaluation, or a verdict.npz, "
    "but it does not exist."
  )
  assert "Accuracy of 2 networks" in output.read_text()
