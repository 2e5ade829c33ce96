"""The commands that evaluate and verify: what a user types, what is left, what is refused."""

import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from images import write_class_folders
from processes import environment
from scipy import stats

import robust_opt as ro
from robust_opt import evaluate, losses, verify
from robust_opt.attacks.hop_skip_jump import hop_skip_jump
from robust_opt.certificates import bounds
from robust_opt.errors import InputError, RunError
from robust_opt.evaluation import autoattack, batches, phases, trust, verdict
from robust_opt.experiments import config, run, target
from robust_opt.files import write_sealed
from robust_opt.report.data import read_runs
from robust_opt.report.words import headline
from robust_opt.studies import ensemble, evaluation, evaluation_options
from robust_opt.tables import Rate

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = Path(__file__).parents[1]
SMALL = (phases.apgd_ce(10), phases.apgd_t(10, 3), phases.square_phase(20))


def small_config():
  c = config.digits()
  c.model.name = "SoftmaxRegression"
  c.data.train_examples, c.data.test_examples = 300, 120
  c.training.epochs = 3
  c.evaluation.sweep = (0.0, 1.0)
  return c


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """The work directory of a finished run."""
  workdir = tmp_path_factory.mktemp("run") / "digits"
  run.run(small_config(), workdir)
  return workdir


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
  monkeypatch.setitem(phases.VERSIONS, "quick", SMALL)
  monkeypatch.setitem(phases.VERSIONS, "rand", (phases.apgd_ce(5, fresh_noise=True),))


@pytest.fixture
def one_attack(monkeypatch):
  """Where any attack will do."""
  monkeypatch.setitem(phases.VERSIONS, "quick", SMALL[:1])


def words_of(text):
  """The words of a table or a wrapped paragraph."""
  return " ".join(text.split())


def next_commands(printed):
  """The modules and arguments of the commands that the output ends with."""
  lines = [shlex.split(line) for line in printed.splitlines() if line.startswith("  python -m ")]
  return [line[2:] for line in lines]


def options(workdir, **changed):
  given = {"version": "quick", "batch_size": 64, "trust": False, "norm": "linf", "radius": 0.1}
  return evaluation.Options({"workdir": str(workdir)}, **given | changed)


def test_a_run_is_evaluated_and_the_verdict_is_true(trained, tmp_path, capsys):
  output = tmp_path / "found"
  assert evaluation.run(options(trained, output=output))
  printed = capsys.readouterr().out
  summary = json.loads((output / "summary.json").read_text())
  assert summary["total"] == 120
  assert 0 < summary["robust_accuracy"] < summary["clean_accuracy"]
  assert [row["after"] for row in summary["attacks"]] == ["clean", "apgd-ce", "apgd-t", "square"]
  assert summary["attacks"][-1]["accuracy"] == summary["robust_accuracy"]
  broken = summary["attacks"][-1]["standing"]
  low, high = (100 * end for end in stats.binomtest(broken, 120).proportion_ci(method="wilson"))
  share = f"{100 * summary['robust_accuracy']:.2f} %"
  assert f"after square {share} {low:.1f} to {high:.1f} {broken} of 120" in words_of(printed)
  assert (
    f"and {share} ({low:.1f} to {high:.1f}) remain correctly classified under AutoAttack, quick "
    "version, over l_inf 0.1 within [0, 1]. There is no trust report"
  ) in words_of(printed)
  assert next_commands(printed) == [
    ["robust_opt.verify", str(output / "verdict.npz")],
    ["robust_opt.report", str(output)],
  ]
  verify.run(output / "verdict.npz", {})
  printed = capsys.readouterr().out
  assert f"is true: {share} of 120 examples (95 % interval {low:.1f} to {high:.1f})" in printed
  assert "classified under AutoAttack, quick version, over l_inf 0.1 within [0, 1]" in printed
  assert list(summary["costs"]) == ["apgd-ce", "apgd-t", "square"]
  assert summary["costs"]["apgd-ce"]["lanes"] == 120 - summary["attacks"][0]["broke"]
  assert summary["claim"]["precision"] == summary["claim"]["search_precision"] == "float32"
  assert "| attack | seconds | of which compiling |" in (output / "summary.md").read_text()

  # Its own summary of the training says the same of the clean images.
  own = json.loads((trained / "summary.json").read_text())["results"][0]
  assert summary["clean_accuracy"] == own["correct"] / own["total"]


def test_the_adaptive_version_states_what_it_skipped(trained, tmp_path, monkeypatch, capsys):
  ce, targeted, square = SMALL
  version = (ce, square, square, targeted, targeted, square)
  monkeypatch.setitem(phases.VERSIONS, "adaptive", version)
  given = {"version": "adaptive", "output": tmp_path, "radius": 0.05}
  assert evaluation.run(options(trained, share=0.1, **given))
  skipped = json.loads((tmp_path / "summary.json").read_text())["skipped"]
  assert 0 < skipped["bound"] <= min(12, skipped["images"])
  stated = f"At most {100 * skipped['bound'] / 120:.2f} % of the images could still fall to the"
  assert stated in words_of(capsys.readouterr().out)
  verify.run(tmp_path / "verdict.npz", {})
  assert stated in words_of(capsys.readouterr().out)
  with pytest.raises((InputError, RunError), match="share"):
    evaluation.run(options(trained, share=0.2, **given))
  with pytest.raises(InputError, match='share is for version="adaptive"'):
    evaluation.run(options(trained, share=0.2, output=tmp_path / "other"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_attack")
def test_toward_a_class_the_headline_is_the_success_rate(trained, tmp_path, capsys):
  assert evaluation.run(options(trained, output=tmp_path / "found", target="3", examples=40))
  printed, summary = (
    capsys.readouterr().out,
    json.loads((tmp_path / "found/summary.json").read_text()),
  )
  success = Rate(**summary["targeted"])
  assert 0 < success.correct < success.total < 40
  assert (
    f"Of the {success.total} of them whose label is not the target (class 3), {success.percent} ("
  ) in words_of(printed)
  verify.run(tmp_path / "found", {})
  assert f"{success.percent} of {success.total} attacked examples" in capsys.readouterr().out
  evaluated = headline(read_runs([tmp_path / "found"])[0]).sentence
  assert "classified as the target under AutoAttack, quick version, over" in evaluated
  for changed, sentence in (
    ({"target": "10"}, "target must be a class from 0 to 9"),
    ({"target": "3", "submission": "cifar10/Linf/A"}, "no place in a submission"),
  ):
    with pytest.raises(InputError, match=sentence):
      evaluation.run(options(trained, output=tmp_path / "none", **changed))
  assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_it_is_the_run_s_own_norm_and_radius_unless_told(trained, capsys):
  assert evaluation.run(options(trained, norm="", radius=None, examples=16))
  (folder,) = (trained / "evaluations").iterdir()
  assert folder.name == "linf_0.1_quick_16"
  assert next_commands(capsys.readouterr().out) == [
    ["robust_opt.verify", str(folder / "verdict.npz")],
    ["robust_opt.report", str(trained)],
  ]
  assert json.loads((folder / "summary.json").read_text())["claim"]["set"]["name"] == "LInf"


@pytest.mark.slow
def test_a_run_that_was_moved_finds_its_evaluation_again(trained, tmp_path, monkeypatch):
  """But not one of other weights."""
  shutil.copytree(trained, tmp_path / "run")
  evaluation.run(options(tmp_path / "run", examples=16))
  (tmp_path / "run").rename(tmp_path / "moved")
  monkeypatch.setattr(autoattack, "autoattack", None)  # it would fail if it were called
  evaluation.run(options(tmp_path / "moved", examples=16))
  c = small_config()
  c.seed = 5
  run.run(c, tmp_path / "other")
  shutil.copytree(tmp_path / "moved" / "evaluations", tmp_path / "other" / "evaluations")
  with pytest.raises(InputError, match=r"net\.arrays"):
    evaluation.run(options(tmp_path / "other", examples=16))


@pytest.mark.slow
def test_a_damaged_part_is_made_again(trained, tmp_path):
  evaluation.run(options(trained, output=tmp_path / "whole"))
  evaluation.run(options(trained, output=tmp_path / "damaged"))
  (tmp_path / "damaged" / "verdict.npz").unlink()
  first = min((tmp_path / "damaged" / "parts").iterdir())
  first.write_bytes(first.read_bytes()[:40])
  evaluation.run(options(trained, output=tmp_path / "damaged"))
  ours, theirs = (verdict.load(tmp_path / name / "verdict.npz") for name in ("damaged", "whole"))
  np.testing.assert_array_equal(ours.verdict.images, theirs.verdict.images)


@pytest.mark.slow
def test_a_failed_check_is_a_failure(trained, tmp_path, monkeypatch, capsys):
  checks = [trust.Check("monotone", False, "it rose", "the gradient is masked")]

  def report(*_, progress, **__):
    progress("the net")
    return checks

  monkeypatch.setattr(trust, "report", report)
  assert not evaluation.run(options(trained, output=tmp_path / "found", trust=True, examples=16))
  printed = capsys.readouterr().out
  assert "monotone NO it rose This means: the gradient is masked" in words_of(printed)
  assert "1 check of the trust report failed (monotone): do not trust" in words_of(printed)
  assert words_of(printed).count("the gradient is masked") == 2
  assert "trust report: the net" in printed
  written = (tmp_path / "found" / "summary.md").read_text()
  assert "| monotone | NO | it rose | the gradient is masked |" in written


@pytest.mark.slow
def test_checks_are_made_once_against_the_verdict(trained, tmp_path, monkeypatch, capsys):
  seen = []

  def report(logits_fn, x, y, u, *, progress, **given):
    seen.append((x, y, given))
    unclear = trust.Check("accuracy", None, "one class", "it is blind")
    return [trust.Check("monotone", True, "it fell", "it rose"), unclear]

  monkeypatch.setattr(trust, "report", report)
  given = options(trained, output=tmp_path / "found", trust=True)
  assert evaluation.run(given)  # for what cannot be measured does not fail
  assert evaluation.run(given)
  assert evaluation.run(given._replace(trust=False))  # which throws nothing away
  ((x, y, arguments),) = seen
  found = target.load({"workdir": str(trained)})
  np.testing.assert_array_equal(x, found.x)
  np.testing.assert_array_equal(y, found.y)
  assert arguments["examples"] == evaluation.TRUST_EXAMPLES
  stored = verdict.load(tmp_path / "found" / "verdict.npz")
  np.testing.assert_array_equal(arguments["verdict"].broken_by, stored.verdict.broken_by)
  summary = json.loads((tmp_path / "found" / "summary.json").read_text())
  assert [check["passed"] for check in summary["trust"]] == [True, None]
  printed = capsys.readouterr().out
  assert (
    "accuracy not measurable one class A failure means: it is blind monotone yes it fell"
  ) in words_of(printed)  # what needs attention comes first


NET = """
import jax
import numpy as np
rng = np.random.default_rng(0)
weights = rng.normal(size=(6, 3)).astype(np.float32)
def logits_fn(x):
  return x @ weights
def noisy(x, key):
  return x @ weights + jax.random.normal(key, (len(x), 3))
def labels(x):
  return jax.nn.one_hot(logits_fn(x).argmax(-1), 3)
number = 3
"""


def own(folder, **changed):
  """A function and data of the user's own."""
  (folder / "my_net.py").write_text(NET)
  rng = np.random.default_rng(1)
  x = rng.random((30, 6)).astype(np.float32)
  weights = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
  arrays = {"x": x, "y": (x @ weights).argmax(axis=1)} | changed
  np.savez(folder / "data.npz", **arrays)
  return {"model": "my_net:logits_fn", "data": str(folder / "data.npz")}


@pytest.mark.usefixtures("one_attack")
def test_any_function_on_any_data(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  source = own(tmp_path)
  found = options("")._replace(source=source, output=tmp_path / "found", radius=0.05)
  assert evaluation.run(found)
  verify.run(tmp_path / "found" / "verdict.npz", {})
  with pytest.raises(InputError, match="Without --workdir give --output"):
    evaluation.run(found._replace(output=None))


def test_data_of_other_makers(tmp_path, monkeypatch, caplog):
  monkeypatch.chdir(tmp_path)
  source = own(tmp_path)
  expected = target.load(source)
  integers = np.random.default_rng(2).integers(0, 256, (30, 6))
  y, named = expected.y, {**source, "data": "other.npz"}
  for labels in (np.eye(3)[y], y[:, None], y.astype(np.float64)):
    np.savez("other.npz", test_images=expected.x, test_labels=labels, train_images=y)
    found = target.load(named)
    np.testing.assert_array_equal(found.x, expected.x)
    np.testing.assert_array_equal(found.y, y)
  assert not caplog.records
  for dtype in (np.uint8, np.int64):
    np.savez("other.npz", pictures=integers.astype(dtype), kinds=y)
    found = target.load({**source, "data": "other.npz:pictures,kinds"})
    np.testing.assert_array_equal(found.x, integers.astype(np.float32) / np.float32(255))
    assert found.x.dtype == np.float32
  np.save("x.npy", integers)
  np.save("y.npy", y)
  np.testing.assert_array_equal(target.load({**source, "data": "x.npy,y.npy"}).x, found.x)
  assert [r.getMessage().split(" are ")[1] for r in caplog.records] == [
    "taken as pixels from 0 to 255."
  ] * 3


def test_a_folder_of_class_folders_as_data(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  root = write_class_folders(tmp_path / "insects", ("ant", "bee"), 5, (4, 6))
  source = own(tmp_path) | {"data": str(root)}
  found = target.load(source)
  assert (found.x.shape, found.x.dtype) == ((10, 4, 6, 3), np.float32)
  assert 0 <= found.x.min() < found.x.max() <= 1
  np.testing.assert_array_equal(found.y, np.repeat([0, 1], 5))
  assert target.load({**source, "image_size": 8}).x.shape == (10, 8, 8, 3)
  write_class_folders(root, ("cat",), 6, (5, 5))
  with pytest.raises(InputError, match=r"--data=.*: set --image_size, the height"):
    target.load(source)


def test_data_that_cannot_be_read(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  source = own(tmp_path)
  np.savez("negative.npz", x=np.full((3, 6), -1), y=np.zeros(3, int))
  np.savez("fractions.npz", x=np.zeros((3, 6)), y=np.full(3, 0.5))
  whole = (tmp_path / "data.npz").read_bytes()
  (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
  cases = [
    ("negative.npz", "pixels from -1 to -1"),
    ("fractions.npz", "not made of integers"),
    ("cut.npz", "cannot be read as an .npz file"),
    ("data.npz:x,z", "must name images and labels among its arrays"),
    ("x.npy,y.npy", "cannot be read as an .npy file"),
  ]
  for data, words in cases:
    with pytest.raises(InputError, match=f"^--data={data} must be an .npz file .*{words}"):
      target.load({**source, "data": data})
  with pytest.raises(InputError, match="--image_size=8 has no effect"):
    target.load({**source, "image_size": 8})


@pytest.mark.usefixtures("one_attack")
@pytest.mark.parametrize("layout", ["[N, H, W, C]", "[N, C, H, W]", "[N, H, W]"])
def test_a_run_on_other_data(layout, trained, tmp_path, caplog):
  x, y = ro.load_run(trained).examples("train", 40)
  stored = {"[N, H, W, C]": x, "[N, C, H, W]": np.moveaxis(x, -1, 1), "[N, H, W]": x[..., 0]}
  np.savez(tmp_path / "later.npz", images=stored[layout], labels=y)
  given = options(trained)
  given = given._replace(source={**given.source, "data": str(tmp_path / "later.npz")})
  found = target.load(given.source)
  np.testing.assert_array_equal(found.x, x)
  np.testing.assert_array_equal(found.y, y)
  said = [record for record in caplog.records if "axis 0 of its images" in record.getMessage()]
  assert len(said) == (layout == "[N, C, H, W]")
  if layout != "[N, H, W]":
    return
  assert evaluation.run(given)
  folder = trained / "evaluations" / "linf_0.1_quick_later"
  stored = verdict.load(folder / "verdict.npz")
  assert stored.claim.data_sha256 == verdict.data_sha256(x, y)
  assert f"SHA-256 {stored.claim.data_sha256}" in (folder / "summary.md").read_text()
  verify.run(folder, {})
  shutil.copytree(trained, tmp_path / "moved")
  verify.run(folder / "verdict.npz", {"workdir": str(tmp_path / "moved")})
  np.savez(tmp_path / "later.npz", images=x[::-1], labels=y)
  with pytest.raises(RunError, match="other images or labels"):
    verify.run(folder / "verdict.npz", {})


def test_a_run_on_a_folder(trained, tmp_path):
  root = write_class_folders(tmp_path / "pages", ("7", "3"), 4, (9, 9), mode="L")
  given = {"workdir": str(trained), "data": str(root)}
  found = target.load(given)
  assert found.x.shape == (8, 8, 8, 1)  # resized to the run's
  np.testing.assert_array_equal(found.y, np.repeat([3, 7], 4))  # by name
  write_class_folders(root, ("x",), 4, (9, 9), mode="L")
  np.testing.assert_array_equal(target.load(given).y, np.repeat([0, 1, 2], 4))


def test_other_data_that_does_not_fit_a_run(trained, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  x, y = ro.load_run(trained).examples("test", 20)
  root = write_class_folders(tmp_path / "colors", ("0", "1"), 2, (8, 8))
  cases = [
    ({"x": x[:, 1:], "y": y}, "images of 7 x 8 x 1, but those of .* are 8 x 8 x 1"),
    ({"x": x, "y": y + 3}, r"does not fit .* labels go from 3 to 12: allowed is \[0, 10\)"),
    ({"x": 2 * x, "y": y}, "pixels from 0.0 to 2.0"),
    ({"x": x, "y": y[1:]}, "one for each image"),
  ]
  for arrays, words in cases:
    np.savez("other.npz", **arrays)
    with pytest.raises(InputError, match=words):
      target.load({"workdir": str(trained), "data": "other.npz"})
  with pytest.raises(InputError, match="images of 8 x 8 x 3"):
    target.load({"workdir": str(trained), "data": str(root)})
  with pytest.raises(InputError, match="no effect without --data"):
    target.load({"workdir": str(trained), "image_size": 8})
  named = ro.load_run(trained)
  named = named._replace(train=named.train._replace(classes=("cat",)), classes=("cat",))
  with pytest.raises(InputError, match=r"has the class '0', which is none of .*: cat"):
    target._numbers_in_run(named, "colors", ("0", "1"))


STRUCTURED = '{"name": "GroupL21", "radius": 0.3, "groups": {"name": "patches", "side": 2}}'


def test_the_set_is_that_of_the_training_unless_told():
  groups = json.loads(STRUCTURED)
  ball = target.EvalTarget(None, None, None, "", "", set={"name": "LInf", "radius": 0.1})
  standard, structured = ball._replace(set=None), ball._replace(set=groups)

  def choice(net, **given):
    return evaluation_options.set_config(evaluation.Options({}, **given), net.set)

  assert choice(ball) == verdict.ball_config("linf", 0.1)
  assert choice(ball, radius=0.2) == verdict.ball_config("linf", 0.2)
  assert choice(structured, norm="l2", radius=0.2) == verdict.ball_config("l2", 0.2)
  assert choice(structured) == choice(standard, set=groups) == groups
  for net, given in ((ball, {"norm": "l2"}), (standard, {}), (structured, {"radius": 0.1})):
    with pytest.raises(InputError, match="Give --norm and --radius"):
      choice(net, **given)
  with pytest.raises(InputError, match="either --set or --threats, or a ball"):
    choice(ball, set=groups, radius=0.1)


@pytest.mark.slow
def test_a_structured_set_is_named_on_the_command_line(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  version = (phases.pgd_phase("pgd", losses.margin, 5, relative_step=0.3),)
  monkeypatch.setitem(phases.VERSIONS, "pgd", version)
  given = {"norm": "", "radius": None, "set": evaluate.set_config(STRUCTURED), "version": "pgd"}
  chosen = options("")._replace(source=own(tmp_path), output=tmp_path / "found", **given)
  with pytest.raises(InputError, match='version="pgd" attacks every set'):
    evaluation.run(chosen._replace(version="standard"))
  assert evaluation.run(chosen._replace(trust=True))
  title = "my_net:logits_fn: PGD with restarts over GroupL21 0.3, pixels may leave [0, 1]"
  assert title in words_of(capsys.readouterr().out)
  written = (tmp_path / "found" / "summary.md").read_text()
  assert written.splitlines()[0] == f"# {title}, 30 examples"
  verify.run(tmp_path / "found" / "verdict.npz", {})
  for text, words in (("{", "--set must be JSON"), ("[]", "--set must be JSON such as")):
    with pytest.raises(InputError, match=words):
      evaluate.set_config(text)


@pytest.mark.slow
def test_a_function_that_takes_a_key_is_evaluated_by_draws(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  source = own(tmp_path) | {"model": "my_net:noisy", "draws": 3}
  found = options("")._replace(source=source, output=tmp_path / "found", radius=0.05, trust=False)
  with pytest.raises(InputError, match='version="rand" is for'):
    evaluation.run(found)
  assert evaluation.run(found._replace(version="rand"))
  written = (tmp_path / "found" / "summary.md").read_text()
  assert "AutoAttack for random networks over l_inf 0.05 within [0, 1]" in written
  assert "Every prediction is the mean of 3 draws." in written
  verify.run(tmp_path / "found" / "verdict.npz", {})


@pytest.mark.slow
def test_a_net_of_labels_is_evaluated_without_gradients(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  short = functools.partial(hop_skip_jump, num_steps=5, num_evaluations=20, num_starts=20)
  monkeypatch.setitem(phases.VERSIONS, "labels", (phases.decision_phase("hop_skip_jump", short),))
  source = own(tmp_path) | {"model": "my_net:labels"}
  given = options("")._replace(source=source, output=tmp_path / "found", norm="l2", radius=0.1)
  assert evaluation.run(given._replace(version="labels", trust=True))
  summary = json.loads((tmp_path / "found" / "summary.json").read_text())
  assert 0 < summary["robust_accuracy"] < summary["clean_accuracy"]
  assert summary["trust"] == []
  verify.run(tmp_path / "found", {})
  with pytest.raises(InputError, match="its outputs are >= 0 and sum to 1"):
    evaluation.run(given._replace(output=tmp_path / "none"))


@pytest.mark.usefixtures("one_attack")
def test_the_layout_is_said_and_belongs_to_the_evaluation(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  x = np.random.default_rng(1).random((30, 3, 5, 7)).astype(np.float32)
  net = NET.replace("(6, 3)", "(105, 3)").replace("x @", "x.reshape(len(x), -1) @")
  weights = np.random.default_rng(0).normal(size=(105, 3)).astype(np.float32)
  source = own(tmp_path, x=x, y=(x.reshape(30, -1) @ weights).argmax(axis=1))
  (tmp_path / "my_net.py").write_text(net)
  monkeypatch.delitem(sys.modules, "my_net", raising=False)
  given = options("")._replace(source=source, output=tmp_path / "found", radius=0.02, trust=False)
  evaluation.run(given)
  summary = (tmp_path / "found" / "summary.md").read_text()
  assert "channels guessed to be axis 0 of examples of shape (3, 5, 7)" in summary
  evaluation.run(given._replace(channel_axis=0))  # the same
  assert "guessed" not in (tmp_path / "found" / "summary.md").read_text()
  with pytest.raises(InputError):
    evaluation.run(given._replace(channel_axis=-1))
  for words, axis in (("auto", "auto"), ("none", None), ("-3", -3)):
    assert evaluate.channel_axis(words) == axis
  with pytest.raises(InputError, match="--channel_axis must be auto, none or an integer"):
    evaluate.channel_axis("first")


@pytest.mark.usefixtures("one_attack")
def test_proofs_stand_beside_the_attacks(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  given = options("")._replace(
    source=own(tmp_path), output=tmp_path / "found", radius=0.05, trust=False, certify="crown"
  )
  assert evaluation.run(given)
  summary = json.loads((tmp_path / "found" / "summary.json").read_text())
  certified, robust = summary["certified"]["images"], summary["attacks"][-1]["standing"]
  assert 0 < certified == robust < summary["total"]  # of a linear net both are exact
  assert "are proved to be robust, by crown." in words_of(capsys.readouterr().out)
  # A proof of an image that an attack has broken is a failed check.
  certify = bounds.certify
  everything = lambda *args: certify(*args)._replace(certified=np.ones(len(args[1]), bool))  # noqa: E731
  monkeypatch.setattr(bounds, "certify", everything)
  assert not evaluation.run(given._replace(certify="ibp"))
  assert "of the certified were broken" in words_of(capsys.readouterr().out)
  other = {"name": "L0", "k": 2, "magnitude": 0.1}
  given = given._replace(set=other, norm="", radius=None, version="pgd")
  with pytest.raises(InputError, match=r"--certify=crown takes ro.LInf, ro.L2 or"):
    evaluation.run(given)


@pytest.mark.usefixtures("one_attack")
def test_accuracy_after_rounding_is_told_apart(tmp_path, monkeypatch):
  """A radius below half a step of 8 bits: rounding undoes every perturbation of an 8-bit image."""
  monkeypatch.chdir(tmp_path)
  x = np.rint(np.random.default_rng(1).random((500, 6)) * 255).astype(np.float32) / np.float32(255)
  weights = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
  source = own(tmp_path, x=x, y=(x @ weights).argmax(axis=1))
  found = options("")._replace(source=source, output=tmp_path / "found", radius=0.45 / 255)
  evaluation.run(found)
  summary = json.loads((tmp_path / "found" / "summary.json").read_text())
  assert summary["robust_accuracy"] < summary["clean_accuracy"]
  assert summary["accuracy_after_rounding"] == pytest.approx(summary["clean_accuracy"])
  line = f"rounded to 8 bits, leave {100 * summary['clean_accuracy']:.2f} %"
  assert line in (tmp_path / "found" / "summary.md").read_text()


def test_verify_says_what_is_untrue(trained, tmp_path):
  evaluation.run(options(trained, output=tmp_path / "found", examples=32))
  path = tmp_path / "found" / "verdict.npz"
  stored = verdict.load(path)
  # A part of the test set is called one, wherever its accuracy is stated.
  assert (tmp_path / "found" / "summary.md").read_text().splitlines()[0].endswith(", 32 examples")
  assert json.loads((tmp_path / "found" / "summary.json").read_text())["total"] == 32
  assert stored.claim.source["examples"] == len(stored.verdict.broken_by) == 32
  with np.load(path) as file:
    arrays = {name: file[name] for name in file.files if name != "sha256"}
  arrays["broken_by"] = np.where(arrays["broken_by"] > 0, -1, arrays["broken_by"])
  write_sealed(path, arrays)
  with pytest.raises(RunError, match=f"is not true.*holds {len(stored.broken_ids)} images") as end:
    verify.run(path, {})
  assert end.value.exit_code == 1


def command(name, *arguments, folder=ROOT, **options):
  path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  return subprocess.Popen(
    [sys.executable, "-m", f"robust_opt.{name}", *map(str, arguments)],
    cwd=folder,
    env=environment() | {"PYTHONPATH": path},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_bytes(trained, tmp_path):
  """SIGKILL early and late in a real run."""

  def arguments(output):
    flags = [f"--workdir={trained}", "--norm=linf", "--radius=0.1", "--notrust", "--batch_size=16"]
    return "evaluate", *flags, f"--output={output}"

  whole = command(*arguments(tmp_path / "whole"))
  assert whole.wait() == 0, whole.stderr.read()
  for dies_after in (1, 15):
    process = command(*arguments(tmp_path / "killed"))
    parts = tmp_path / "killed" / "parts"
    while process.poll() is None and (
      not parts.exists() or len(list(parts.glob("*.npz"))) < dies_after
    ):
      time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # before it was done
    process.stdout.close()
    process.stderr.close()
  last = command(*arguments(tmp_path / "killed"))
  assert last.wait() == 0, last.stderr.read()
  for process in (whole, last):
    process.stdout.close()
    process.stderr.close()
  killed, never = (verdict.load(tmp_path / name / "verdict.npz") for name in ("killed", "whole"))
  jax.tree.map(np.testing.assert_array_equal, killed.verdict[1:], never.verdict[1:])


def refused(*arguments, folder=ROOT):
  """The one sentence on stderr of a command that exits with 2."""
  process = command(*arguments, folder=folder)
  out, error = process.communicate()
  assert process.returncode == 2, out + error
  lines = [line for line in error.splitlines() if line.startswith("robust_opt: ")]
  assert len(lines) == 1, error
  assert "Traceback" not in error
  return lines[0]


@pytest.mark.slow
def test_bad_flags_are_one_sentence(tmp_path):
  """Two real processes; the other sentences are asked for in this one."""
  assert "either --workdir" in refused("evaluate", "--norm=linf", "--radius=0.1")
  (tmp_path / "broken.npz").write_bytes(b"no")
  assert "not a readable verdict" in refused("verify", tmp_path / "broken.npz")


def test_sources_that_cannot_be_used(trained, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  source, damaged = own(tmp_path), tmp_path / "damaged"
  damaged.mkdir()
  (damaged / "config.json").write_text("{")
  untrained = tmp_path / "untrained"
  untrained.mkdir()
  shutil.copy(trained / "config.json", untrained)
  cases = [
    ({"workdir": str(tmp_path / "none")}, "must be the directory of a run: it has no config.json"),
    ({"workdir": str(damaged)}, "no readable config of a run"),
    ({"workdir": str(untrained)}, "holds no checkpoints"),
    ({"workdir": str(trained), "model": "a:b"}, "either --workdir of a run, or both"),
    ({"model": "a:b"}, "either --workdir of a run, or both"),
    ({**source, "model": "my_net"}, "must be module:function"),
    ({**source, "model": "no_such_net:f"}, "cannot be imported"),
    ({**source, "model": "my_net:other"}, "cannot be imported"),
    ({**source, "model": "my_net:number"}, "must be a function of images"),
    ({**source, "data": str(tmp_path / "none.npz")}, "must be an .npz file with x and y"),
    ({**source, "data": str(tmp_path / "my_net.py")}, "must be an .npz file with x and y"),
    ({"workdir": str(trained), "checkpoint": "first"}, "must be last or best"),
  ]
  for given, words in cases:
    with pytest.raises(InputError, match=words):
      target.load(given)
  with pytest.raises(InputError, match="--examples must be an integer >= 0"):
    target.load(source, examples=-1)


def test_data_that_cannot_be_used_leaves_nothing(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for arrays, changed, words in (
    ({"y": np.full(30, 9)}, {}, "Labels must lie"),
    ({"x": np.full((30, 6), 7.0)}, {}, r"in \[0, 1\]"),
    ({}, {"radius": 0.0}, "radius must be"),
    ({}, {"radius": 8.0}, "^--radius=8 allows every image .* must be < 1 for images of 6"),
    ({}, {"norm": "", "radius": None, "set": {"name": "L1", "radius": "12/2"}}, "must be < 6"),
  ):
    given = options("")._replace(source=own(tmp_path, **arrays), output=tmp_path / "found")
    with pytest.raises(InputError, match=words):
      evaluation.run(given._replace(**changed))
  assert not (tmp_path / "found").exists()


def test_the_usual_batch_fits_any_number_of_devices():
  for devices in (1, 2, 3, 4, 8, 32):
    size = batches.default_batch_size(lambda x: x, np.zeros((3, 4), np.float32), devices)
    ensemble.check_batch_size(size, devices)
  ensemble.check_batch_size(33, 1)
  with pytest.raises(InputError, match="multiple of 8 x 2 devices, but was 24"):
    ensemble.check_batch_size(24, 2)
