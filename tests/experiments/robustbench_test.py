"""RobustBench's networks by ID beside its own classes, and the files of a submission.

robustbench_zoo.json is written by benchmarks/robustbench_zoo.py, from RobustBench itself.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.reference_logits import structure_sha256
from robust_opt import evaluate, models, verify, weight_files, weights
from robust_opt.errors import InputError
from robust_opt.evaluation import phases, verdict
from robust_opt.experiments import robustbench, target
from robust_opt.models import state_dict
from robust_opt.studies import evaluation, submission

ZOO = json.loads((Path(__file__).parent / "robustbench_zoo.json").read_text())
TINY = robustbench.Net("ConvNet", "CNN", (("features", (2,)), ("hidden", ())), (0.4,), (0.5,))


def architecture(net, dataset):
  num_classes = robustbench.CLASSES[dataset]
  attributes = dict(net.attributes) | {"mean": net.mean, "std": net.std}
  return weights.build(net.architecture, num_classes=num_classes, **attributes)


def test_the_table_has_every_network_of_an_architecture_of_ours():
  known = {name for kind in ZOO["kinds"] for name in kind["networks"]}
  assert robustbench.ENTRIES.keys() == known
  assert not known & set(ZOO["unsupported"])
  assert len(known) + len(ZOO["unsupported"]) == 135  # cifar10 Linf 76, L2 21; cifar100 Linf 38


def test_standardization_is_that_of_robustbench():
  """A black and a white image, as the first convolution sees them."""
  for kind in ZOO["kinds"]:
    for name in kind["networks"]:
      net = robustbench.find(name).net
      mean, std = (np.broadcast_to(values, 3) for values in (net.mean, net.std))
      np.testing.assert_allclose((0 - mean) / std, kind["black"], atol=2e-6, err_msg=name)
      np.testing.assert_allclose((1 - mean) / std, kind["white"], atol=2e-6, err_msg=name)


IS_SMALL = ["R18" in kind["networks"][0] for kind in ZOO["kinds"]]


@pytest.mark.parametrize("small", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_names_and_shapes_are_those_of_robustbench(small):
  kinds = [kind for kind, is_small in zip(ZOO["kinds"], IS_SMALL) if is_small is small]
  assert kinds
  for kind in kinds:
    entries = map(robustbench.find, kind["networks"])
    for net, dataset in {(entry.net, entry.dataset) for entry in entries}:
      ours = architecture(net, dataset)
      shapes = state_dict.counterpart_shapes(ours, state_dict.shapes_of(ours, robustbench.SHAPE))
      assert structure_sha256(shapes) == kind["structure_sha256"], kind["networks"]


def test_an_id_is_found_by_data_set_and_norm():
  assert robustbench.find("Wong2020Fast").path == "cifar10/Linf/Wong2020Fast"
  assert robustbench.find("Augustin2020Adversarial", "own.npz").threat_model == "L2"
  nets = {
    robustbench.find("Rice2020Overfitting", *given).net
    for given in (("cifar10", "linf"), ("cifar10", "l2"), ("cifar100:3.0.2", ""))
  }
  assert len(nets) == 3
  own = robustbench.find("cifar100/Linf/Me2026Net")
  assert (own.name, own.net, own.norm, own.radius) == ("Me2026Net", None, "linf", "8/255")


@pytest.mark.parametrize(
  ("text", "given", "words"),
  [
    ("Ding2020MMA", (), "Ding2020MMA is not supported: .*PreActResNets.*of cifar10/Linf Car.*of"),
    ("Wong2020Fast", ("cifar10", "l2"), "not supported: .* of cifar10/L2 Standard, Sehwag"),
    ("imagenet/Linf/Standard", (), "leaderboards are cifar10/Linf, cifar10/L2, cifar100/Linf"),
  ],
)
def test_what_is_not_in_the_table_is_one_sentence(text, given, words):
  with pytest.raises(InputError, match=words):
    robustbench.find(text, *given)
  with pytest.raises(InputError, match="cifar10/L2/Ding2020MMA is not supported"):
    robustbench.load(robustbench.find("cifar10/L2/Ding2020MMA"), Path("net.pt"))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
  """A small network in place of a leaderboard's, its file, and ten images with its predictions."""
  entry = robustbench.Entry("cifar10", "Linf", "Tiny2026Net", TINY)
  monkeypatch.setattr(robustbench, "ENTRIES", {entry.path: entry})
  monkeypatch.setitem(phases.VERSIONS, "quick", (phases.apgd_ce(3),))
  net, file = architecture(TINY, "cifar10"), tmp_path / "Tiny2026Net.safetensors"
  params, model_state = models.init(net, jax.random.key(0), robustbench.SHAPE)
  x = np.random.default_rng(0).random((10, *robustbench.SHAPE), np.float32)
  apply = jax.jit(models.apply_of(net), static_argnames="train")
  logits = np.array(apply(params, model_state, x, train=False, key=None)[0])
  params["dense0"]["bias"] = -logits.mean(axis=0)  # so that every class is predicted
  logits += params["dense0"]["bias"]
  y = np.argmax(logits, axis=1)
  y[0] = (y[0] + 1) % 10  # one mistake
  np.savez(tmp_path / "data.npz", x=x, y=y)
  arrays = state_dict.to_state_dict(net, params, model_state)
  arrays |= {f"model_preact_hl1.1.{key}": value for key, value in arrays.items()}
  save_file({f"module.{key}": value for key, value in arrays.items()}, file)
  return entry, {"weights": str(file), "data": str(tmp_path / "data.npz")}, x, logits


def test_an_evaluation_leaves_what_a_submission_asks_for(tiny, tmp_path, capsys):
  entry, given, x, logits = tiny
  flags = dict.fromkeys(("workdir", "model", "architecture"), "") | given
  source, path = evaluate.submitted({**flags, "robustbench": "Tiny2026Net"}, "linf")
  assert source["robustbench"] == path == entry.path
  net = target.load(source)
  np.testing.assert_allclose(net.logits_fn(x), logits, rtol=1e-4, atol=1e-5)
  output = tmp_path / "out"
  options = {"version": "quick", "trust": False, "output": output, "batch_size": 64}
  evaluation.run(evaluation.Options(source, submission=path, **options))
  assert 'torch.save(torch.from_numpy(numpy.load("' in capsys.readouterr().out
  stored = verdict.load(output / "verdict.npz")
  assert (stored.claim.norm, round(stored.claim.radius * 255, 6)) == ("linf", 8)

  info = json.loads((output / "robustbench/model_info" / f"{entry.path}.json").read_text())
  robust = round(100 * stored.robust_accuracy, 2)
  expected = {"dataset": "cifar10", "architecture": "CNN", "eps": "8/255"}
  expected |= {"clean_acc": "90.0", "autoattack_acc": str(robust), "number_forward_passes": 1}
  assert expected.items() <= info.items()
  to_fill_in = {"link", "name", "authors", "additional_data", "venue", "reported"}
  assert {key for key, value in info.items() if value is None} == to_fill_in
  assert info["footnote"].endswith("Not the standard version: quick. Only 10 images of 10,000.")

  images = np.load(output / "robustbench" / submission.X_ADV)
  assert (images.shape, images.dtype) == ((10, 3, 32, 32), np.float32)
  images = images.transpose(0, 2, 3, 1)
  broken = np.isin(np.arange(10), stored.broken_ids)
  np.testing.assert_array_equal(images[~broken], x[~broken])
  assert 0 < np.abs(images[broken] - x[broken]).max() <= 8 / 255 * (1 + 1e-6)
  right = np.argmax(net.logits_fn(images), axis=1) == stored.labels
  assert right.mean() == stored.robust_accuracy < 0.9
  verify.run(output, dict.fromkeys(flags, ""))
  with pytest.raises(InputError, match="images of 8 x 8 x 1, but Tiny2026Net takes 32 x 32 x 3"):
    target.load({**source, "data": "digits"})


def test_beside_another_network_the_flag_names_the_files_only(tiny):
  del tiny
  source = {"workdir": "runs/mine", "robustbench": "cifar10/Linf/Me2026Net", "data": ""}
  left, path = evaluate.submitted({**source, "model": "", "architecture": ""}, "")
  assert (left["robustbench"], path) == ("", "cifar10/Linf/Me2026Net")
  with pytest.raises(InputError, match="--robustbench and --weights, but given was --robustbench;"):
    target.load({"robustbench": "Tiny2026Net"})


def test_checkpoints_that_hold_a_last_state_or_only_an_average_are_read():
  state = {"conv.weight": np.zeros(3)}

  class Tensor:
    numpy = None

  state = {"module.conv.weight": Tensor()}
  for content in ({"last": state, "best": state}, {"ema": state, "epoch": 3}):
    assert weight_files._state_dict_within(content, Path("net.pt")) is state
