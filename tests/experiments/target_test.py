"""Trained networks as values, on data of their own or of others."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest

import robust_opt as ro
from robust_opt.arrays import digest
from robust_opt.data import datasets
from robust_opt.errors import InputError
from robust_opt.experiments import assembly, target
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import run as run_lib

pytestmark = pytest.mark.usefixtures("no_pictures")


def small_config():
  config = config_lib.digits()
  config_lib.choose(config, "model", "SoftmaxRegression")
  config.data.mean, config.data.std = (), ()
  config.data.train_examples, config.data.test_examples = 300, 120
  config.training.epochs = 1
  config.evaluation.sweep = (0.0, 1.0)
  return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """The work directory of a finished run."""
  workdir = tmp_path_factory.mktemp("run") / "digits"
  run_lib.run(small_config(), workdir)
  return workdir


def test_a_run_is_loaded_as_a_value(trained):
  run = ro.load_run(trained)
  summary = json.loads((trained / "summary.json").read_text())
  x, y = run.examples()
  assert (x.dtype, y.dtype, x.shape) == (np.float32, np.int32, (120, 8, 8, 1))
  assert (x.min(), x.max()) == (0, 1)
  correct = int((run.predict(x) == y).sum())
  assert correct == summary["results"][0]["correct"]
  np.testing.assert_array_equal(run.predict(run.test.images), run.predict(x))
  np.testing.assert_array_equal(np.argmax(run.logits_fn(x), axis=1), run.predict(x))
  assert digest(run.params) == summary["params_sha256"]
  assert run.config.training.epochs == 1
  assert run.classes == tuple("0123456789")
  assert len(run.examples("train", 7)[0]) == 7


def test_a_run_is_attacked_and_trained_further(trained):
  run = ro.load_run(str(trained))
  x, y = run.examples("train", 64)
  optimizer, u = optax.sgd(0.1), ro.LInf(0.1)
  step = jax.jit(ro.make_train_step(run.apply, optimizer, ro.robust(), ro.steepest(u)))
  state = ro.init_state(run.params, run.model_state, optimizer)
  losses = []
  for _ in range(5):
    state, metrics = step(state, ro.Batch(x, y, np.arange(64)), jax.random.key(0))
    losses.append(float(metrics.loss))
  assert losses[-1] < losses[0]
  further = run.with_weights(state.params, state.model_state)
  own_loss = ro.losses.cross_entropy(further.logits_fn(x), y).mean()
  assert own_loss < ro.losses.cross_entropy(run.logits_fn(x), y).mean()
  assert further.sha256 == digest((state.params, state.model_state)) != run.sha256


def test_likely_slips_with_a_run_are_one_sentence(trained, tmp_path):
  run = ro.load_run(trained)
  x, _ = run.examples("test", 2)
  with pytest.raises(InputError, match='are "test" or "train", not \'valid\''):
    run.examples("valid")
  with pytest.raises(InputError, match=r"shape \[N, 8, 8, 1\], .* but have \[8, 8, 1\]"):
    run.predict(x[0])
  with pytest.raises(InputError, match=r"takes the value of ro.load_run .* was given a dict"):
    ro.save_weights(run.params, tmp_path / "w.safetensors")


def test_images_of_the_training_are_counted(trained, tmp_path, caplog):
  run = ro.load_run(trained)
  (seen, y), (new, z) = run.examples("train", 5), run.examples("test", 3)
  data = tmp_path / "both.npz"
  np.savez(data, x=np.concatenate([seen, new]), y=np.concatenate([y, z]))
  target.load({"workdir": str(trained), "data": str(data)})
  assert "5 of the 8 images are training images of the run" in caplog.text


def test_the_names_of_the_classes_are_kept_with_a_run(trained):
  inputs = json.loads((trained / "inputs.json").read_text())
  assert (inputs["num_classes"], inputs["classes"]) == (10, list("0123456789"))
  # A run from before they were kept is still the same run.
  before = {key: inputs[key] for key in ("revision", "data")}
  (trained / "inputs.json").write_text(json.dumps(before))
  assert run_lib.run(small_config(), trained)["step"] > 0
  (trained / "inputs.json").write_text(json.dumps(inputs))
  named = datasets.load("digits", "test")._replace(classes=("zero", "one"))
  assert named.class_names == ("zero", "one")


def test_what_is_no_run(tmp_path):
  with pytest.raises(InputError, match="must be the directory of a run"):
    ro.load_run(tmp_path)
  with pytest.raises(AttributeError, match="no attribute 'load_runs'"):
    ro.load_runs  # noqa: B018


def started_from(workdir):
  config = small_config()
  config.init_from = str(workdir)
  config.optimizer.learning_rate = 1e-9
  return config


@pytest.mark.parametrize("from_file", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_run_starts_from_the_weights_of_another(trained, tmp_path, from_file):
  before, workdir = ro.load_run(trained), tmp_path / "further"
  source = trained
  if from_file:
    source = tmp_path / "net.safetensors"
    ro.save_weights(before, source)
  run_lib.run(started_from(source), workdir)
  after = ro.load_run(workdir)
  for new, old in zip(*map(jax.tree.leaves, (after.params, before.params)), strict=True):
    np.testing.assert_allclose(new, old, atol=1e-4)
  assert json.loads((workdir / "inputs.json").read_text())["init_from"] == before.sha256
  assert "init_from" not in json.loads((trained / "inputs.json").read_text())


@pytest.mark.slow
def test_a_stopped_run_reads_the_weights_again_only_without_a_checkpoint(
  trained, tmp_path, monkeypatch
):
  source, workdir = tmp_path / "source", tmp_path / "further"
  shutil.copytree(trained, source)
  config = started_from(source)

  class Stopped(Exception):  # noqa: N818
    pass

  def stop(*args):
    raise Stopped

  with monkeypatch.context() as patch:
    patch.setattr(run_lib.engine, "train", stop)
    with pytest.raises(Stopped):
      run_lib.run(config, workdir)
  # Without a checkpoint it starts over.
  with monkeypatch.context() as patch:
    patch.setattr(run_lib, "evaluate_and_describe", stop)
    with pytest.raises(Stopped):
      run_lib.run(config, workdir)
  shutil.rmtree(source)
  assert run_lib.run(config, workdir)["step"] > 0
  config.init_from = str(trained)
  with pytest.raises(InputError, match=r"another experiment.*init_from: "):
    run_lib.run(config, workdir)


def test_weights_that_a_run_cannot_start_from(trained, tmp_path):
  config = started_from(trained)
  config_lib.choose(config, "model", "MLP", widths=(5,))
  with pytest.raises(InputError, match=r"another architecture: \S+ is .* there and .* here"):
    run_lib.run(config, tmp_path / "other")
  (tmp_path / "net.safetensors").write_bytes(b"")
  for name, words in (("net.safetensors", "no whole .safetensors"), ("", "directory of a run of")):
    with pytest.raises(InputError, match=rf"init_from=.*{words}"):
      run_lib.run(started_from(tmp_path / name), tmp_path / "other")
  ro.save_weights(ro.load_run(trained), tmp_path / "net.safetensors")
  config.init_from = str(tmp_path / "net.safetensors")
  with pytest.raises(InputError, match=r"init_from=.* only in MLP: params\.Dense_1\.bi"):
    run_lib.run(config, tmp_path / "other")
  assert not (tmp_path / "other").exists()
  keys = jax.random.split(jax.random.key(0))
  with pytest.raises(InputError, match="trained together start at random"):
    assembly.assemble(started_from(trained), seed_keys=keys)
