"""One finished and evaluated run for all tests of the report, and a copy of it to compare with."""

import json
import shutil

import numpy as np
import pytest

import robust_opt as ro
from robust_opt.evaluation import phases, trust
from robust_opt.experiments import config, run, summary
from robust_opt.studies import evaluation
from robust_opt.training.overfitting import Overfitting

# Would break out of an attribute, a tag or a script if it were not escaped.
NASTY_NAME = "<b>\"'&run with a rather long name, as they are"
NASTY_TITLE = "</script><img src='x' onerror='alert(1)'>"
SMALL = (phases.apgd_ce(5), phases.apgd_t(5, 2))


def checks(*passed):
  return [
    trust.Check(f"check {index}", outcome, f"measured <{index}>", "a possible cause")
    for index, outcome in enumerate(passed)
  ]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
  """A run with an evaluation of 60 examples."""
  workdir = tmp_path_factory.mktemp("runs") / "first"
  c = config.digits()
  c.model.name = "SoftmaxRegression"
  c.data.train_examples, c.data.test_examples = 300, 100
  c.training.epochs = 2
  c.evaluation.sweep = (0.0, 1.0)
  source = {"workdir": str(workdir)}
  options = evaluation.Options(source, version="quick", examples=60, batch_size=64)
  with pytest.MonkeyPatch.context() as patch:
    # Of the pictures the report has the examples alone.
    patch.setattr(summary.runs, "training_curves", lambda *_: None)
    patch.setattr(summary.studies, "accuracy_against_radius", lambda *_: None)
    run.run(c, workdir)
    patch.setitem(phases.VERSIONS, "quick", SMALL)
    patch.setattr(trust, "report", lambda *_, **__: checks(True, False, True, None))
    assert not evaluation.run(options)
  return workdir


@pytest.fixture(scope="session")
def alone(trained, tmp_path_factory):
  """An evaluation of a function of the user's own, which is the same network on the same images."""
  folder = tmp_path_factory.mktemp("alone")
  x, y = ro.load_run(trained).examples("test", 60)
  np.savez(folder / "digits.npz", x=x, y=y)
  module = f"import robust_opt as ro\nlogits_fn = ro.load_run({str(trained)!r}).logits_fn\n"
  (folder / "own_net.py").write_text(module)
  source = {"model": "own_net:logits_fn", "data": str(folder / "digits.npz")}
  ball = {"norm": "linf", "radius": 0.1, "version": "quick", "batch_size": 64}
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    patch.setitem(phases.VERSIONS, "quick", SMALL)
    patch.setattr(trust, "report", lambda *_, **__: checks(True, True))
    assert evaluation.run(evaluation.Options(source, **ball, output=folder / "mine"))
  return folder / "mine"


@pytest.fixture(scope="session")
def second(trained, tmp_path_factory):
  """The same run as if of another seed, overfitted, never evaluated."""
  workdir = tmp_path_factory.mktemp("runs") / NASTY_NAME
  shutil.copytree(trained, workdir, ignore=shutil.ignore_patterns("evaluations"))
  said = json.loads((workdir / "summary.json").read_text())
  said["config"]["seed"], said["title"] = 7, NASTY_TITLE
  said["results"][0]["correct"] -= 4
  said["overfitting"] = Overfitting("robust", 3, 0.58, 4, 0.5, 0.6)._asdict()
  (workdir / "summary.json").write_text(json.dumps(said))
  return workdir
