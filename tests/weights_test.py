"""Weights from and to files: nets of others, round trips, and what does not fit, in a sentence."""

import sys
import types
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import torch_files
from safetensors import safe_open
from safetensors.numpy import save_file

import robust_opt as ro
from robust_opt import models, weights
from robust_opt.arrays import digest
from robust_opt.data import datasets
from robust_opt.errors import InputError, MissingExtraError
from robust_opt.evaluation import verdict, verification
from robust_opt.evaluation.collection import pixels
from robust_opt.experiments import target
from robust_opt.models import state_dict as state_dicts
from robust_opt.sets.build import build_set

DATA = Path(__file__).parents[2] / "shared" / "data"
CIFAR = {"mean": (0.4914, 0.4822, 0.4465)}
TINY = {"features": (4, 8), "kernel_size": 5, "padding": 2, "hidden": (128,)}
# File, architecture, its attributes, data, images, accuracy as published or as others measured it.
REAL = [
  ("resnet2b.pth", "ResNet2B", {**CIFAR, "std": (0.2471, 0.2435, 0.2616)}, "cifar10", 10_000, 6925),
  ("cifar_cnn_a_adv.model", "ConvNet", {**CIFAR, "std": (0.2023, 0.1994, 0.2010)}, "cifar10", 2_000,
   1422),
  ("mnist_cnn_a_adv.model", "ConvNet", {}, "mnist", 2_000, 1932),
  ("MadryCNN_no_maxpool_tiny.pt", "ConvNet", TINY, "mnist", 2_000, 1962),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "nets").is_dir(), reason="the nets of others are not here")
@pytest.mark.parametrize(("file", "name", "attributes", "data", "count", "correct"), REAL)
def test_nets_of_others_have_their_published_accuracy(
  file, name, attributes, data, count, correct, tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "torch", stand_in())
  test = datasets.load(data, "test", data_dir=str(DATA), cache_dir=str(tmp_path))
  shape = test.images.shape[1:]
  net = ro.load_torch(DATA / "nets" / file, name, image_shape=shape, **attributes)
  assert (net.predict(test.images[:count]) == test.labels[:count]).sum() == correct


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "nets").is_dir(), reason="the nets of others are not here")
def test_a_net_of_others_has_the_bounds_of_auto_lirpa(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", stand_in())
  test = datasets.load("cifar10", "test", data_dir=str(DATA), cache_dir=str(tmp_path))
  file, name, attributes = REAL[0][:3]
  net = ro.load_torch(DATA / "nets" / file, name, image_shape=(32, 32, 3), **attributes)
  x, y = pixels(test.images[:2]), test.labels[:2]
  found = ro.certify(net.logits_fn, x, y, ro.LInf(2 / 255, box=(0.0, 1.0)))
  theirs = [-3.02879, -2.49431]  # CROWN of auto_LiRPA 0.3, without an allowance for rounding
  assert np.all(found.margins < theirs)
  np.testing.assert_allclose(found.margins, theirs, atol=0.05)


class Tensor:
  """The little of torch.Tensor that is used."""

  def __init__(self, array):
    self.array = np.asarray(array)

  def detach(self):
    return self

  def is_floating_point(self):
    return self.array.dtype.kind == "f"

  def element_size(self):
    return self.array.itemsize

  def float(self):
    return Tensor(self.array.astype(np.float32))

  def numpy(self):
    return self.array


def stand_in(content=None):
  """A module torch that loads `content`, or else the file."""

  def tensors(value):
    if isinstance(value, dict):
      return {key: tensors(entry) for key, entry in value.items()}
    if isinstance(value, list):
      return [tensors(entry) for entry in value]
    return Tensor(value) if isinstance(value, np.ndarray) else value

  def load(path, map_location, weights_only):
    assert (map_location, weights_only) == ("cpu", True)
    return tensors(torch_files.read(path) if content is None else content)

  module = types.ModuleType("torch")
  module.load = load
  module.__spec__ = types.SimpleNamespace()
  return module


class Run:
  """What is saved: a net and its weights."""

  def __init__(self, name, image_shape, **attributes):
    self.image_shape = image_shape
    self.net = models.ARCHITECTURES[name](**attributes)
    shapes = state_dicts.shapes_of(self.net, image_shape)
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.uniform(0.1, 1.0, leaf.shape).astype(np.float32)  # noqa: E731
    self.params, self.model_state = jax.tree.map(draw, shapes)


SMALL = {"stage_sizes": (1, 1), "width": 1 / 16}
RUNS = [
  ("PreActResNet", (8, 8, 3), {**SMALL, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}),
  ("ConvNet", (8, 8, 2), {"features": (2, 3), "hidden": (5,), "mean": 0.3, "std": 0.5}),
  ("DigitsCNN", (8, 8, 1), {"mean": (0.3,), "std": (0.2,)}),  # no PyTorch counterpart
]


@pytest.mark.parametrize(("name", "shape", "attributes"), RUNS)
def test_a_round_trip_is_exact(name, shape, attributes, tmp_path):
  run, path = Run(name, shape, **attributes), tmp_path / "net.safetensors"
  ro.save_weights(run, path)
  others = {k: v for k, v in attributes.items() if k not in ("mean", "std")}
  net = ro.load_torch(path, name, image_shape=shape, **others)
  assert net.sha256 == digest((run.params, run.model_state))
  chex.assert_trees_all_equal((net.params, net.model_state), (run.params, run.model_state))
  assert [np.ravel(v).tolist() for v in (net.net.mean, net.net.std)] == [
    np.ravel(attributes[key]).tolist() for key in ("mean", "std")
  ]
  ro.save_weights(net, tmp_path / "again.safetensors")
  assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_pytorch_reads_what_is_written(tmp_path):
  torch = pytest.importorskip("torch", exc_type=ImportError)
  run, path = Run("PreActResNet", (8, 8, 3), **SMALL), tmp_path / "net.pth"
  ro.save_weights(run, path)
  state = torch.load(path, weights_only=True)
  kernel = run.params["layer1_0_conv1"]["kernel"]
  np.testing.assert_array_equal(state["layer1.0.conv1.weight"].permute(2, 3, 1, 0), kernel)
  assert state["bn.num_batches_tracked"].dtype == torch.int64
  net = ro.load_torch(path, "PreActResNet", image_shape=(8, 8, 3), **SMALL)
  assert net.sha256 == digest((run.params, run.model_state))


def test_dense_layers_after_images_are_reordered():
  """PyTorch flattens [C, H, W]: entry (c, h, w) of its input is entry (h, w, c) of ours."""
  run = Run("ConvNet", (8, 8, 1), features=(3,), hidden=())
  weight = state_dicts.to_state_dict(run.net, run.params, run.model_state)["3.weight"]
  images = np.random.default_rng(0).random((5, 4, 4, 3), np.float32)
  ours = images.reshape(5, -1) @ run.params["dense0"]["kernel"]
  np.testing.assert_allclose(
    images.transpose(0, 3, 1, 2).reshape(5, -1) @ weight.T, ours, rtol=1e-5
  )


@pytest.mark.parametrize(
  "wrap",
  [
    lambda state: state,
    lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
    lambda state: {"model_state_dict": [{f"module.model.{k}": v for k, v in state.items()}]},
    lambda state: {k: v.astype(np.float16) for k, v in state.items()},
  ],
)
def test_what_training_scripts_save_is_found(wrap, monkeypatch, tmp_path):
  run, path = Run("ConvNet", (8, 8, 3), features=(2,), hidden=()), tmp_path / "net.pt"
  run.params = jax.tree.map(lambda a: a.astype(np.float16).astype(np.float32), run.params)
  path.write_bytes(b"")
  state = state_dicts.to_state_dict(run.net, run.params, run.model_state)
  moments = {"mu": np.full((1, 3, 1, 1), 0.5), "sigma": np.full((1, 3, 1, 1), 0.25)}
  monkeypatch.setitem(sys.modules, "torch", stand_in(wrap(state | moments)))
  net = ro.load_torch(path, "ConvNet", image_shape=(8, 8, 3), features=(2,), hidden=())
  chex.assert_trees_all_equal(net.params, run.params)
  assert (net.net.mean, net.net.std) == ((0.5,) * 3, (0.25,) * 3)
  x = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
  bare = run.net.apply({"params": run.params}, (x - 0.5) / 0.25)
  np.testing.assert_allclose(net.logits_fn(x), bare, rtol=1e-4)
  chosen = weights.load_torch(
    path, "ConvNet", image_shape=(8, 8, 3), features=(2,), hidden=(), mean=0.0, std=1.0
  )
  assert (chosen.net.mean, chosen.net.std) == (0.0, 1.0)


def test_what_does_not_fit_is_said_of_both_sides(tmp_path, monkeypatch):
  path, shape = tmp_path / "net.safetensors", {"image_shape": (8, 8, 3)}
  run = Run("ConvNet", (8, 8, 3), features=(2,), hidden=())
  state = state_dicts.to_state_dict(run.net, run.params, run.model_state)

  def refused(words, state, name="ConvNet", file=path, **attributes):
    if state is not None:
      save_file(state, path)
    given = {"features": (2,), "hidden": ()} if name == "ConvNet" else {}
    with pytest.raises(InputError, match=words):
      ro.load_torch(file, name, **shape, **given | attributes)

  extra = {**state, **{f"new{i}": state["0.bias"] for i in range(7)}}
  del extra["3.bias"]
  refused(r"in the file: new0, .*new4 and 2 more; only in ConvNet: 3\.bias\.$", extra)
  refused(r"shape: 3\.bias \[10\] in the file, \[4\] in ConvNet, 3\.w", state, num_classes=4)
  refused("must be one of .*ResNet18.*, but was 'Resnet18'", None, "Resnet18")
  refused(r"do not fit ConvNet: .*unexpected keyword argument 'depth'", None, depth=3)
  refused("other.safetensors: there is no such file", None, file=tmp_path / "other.safetensors")
  refused(
    "net.onnx: a file of weights must end in .safetensors, .pth", None, file=tmp_path / "net.onnx"
  )
  path.write_bytes(b"")
  refused("is no whole .safetensors file", None)
  with pytest.raises(InputError, match="num_classes is for an architecture by its name"):
    ro.load_torch(path, run.net, num_classes=3)
  file = tmp_path / "net.pth"
  file.write_bytes(b"")
  monkeypatch.setitem(sys.modules, "torch", stand_in({"weights": 3}))
  refused("must hold a state dict, also under the key state_dict.*holds a dict", None, file=file)
  monkeypatch.setitem(sys.modules, "torch", stand_in())
  refused("is no PyTorch file of arrays alone", None, file=file)
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(MissingExtraError, match=r'pip install ".\[torch\]"'):
    ro.load_torch(file, "ResNet18")


def test_a_net_without_a_counterpart_is_no_pytorch_file(tmp_path):
  with pytest.raises(InputError, match=r"DigitsCNN has no PyTorch counterpart: .*safetensors"):
    ro.save_weights(Run("DigitsCNN", (8, 8, 1)), tmp_path / "net.pth")
  assert not list(tmp_path.iterdir())


def test_files_are_of_pytorchs_layout(tmp_path):
  ro.save_weights(Run("PreActResNet", (8, 8, 3), **SMALL), tmp_path / "net.safetensors")
  with safe_open(tmp_path / "net.safetensors", framework="numpy") as file:
    assert file.metadata() == {"robust_opt": '{"mean": [0.0], "std": [1.0]}'}
    assert file.get_slice("layer2.0.conv1.weight").get_shape() == [8, 4, 3, 3]
    assert file.get_tensor("bn.num_batches_tracked").dtype == np.int64


def test_a_net_of_a_file_is_evaluated_on_data_by_name_or_file(tmp_path):
  run, path = Run("DigitsCNN", (8, 8, 1)), str(tmp_path / "net.safetensors")
  ro.save_weights(run, path)
  source = {"architecture": "DigitsCNN", "weights": path, "data": "digits"}
  found, test = target.load(source, 20), datasets.load("digits", "test")
  assert (found.name, found.net_sha256) == (
    "DigitsCNN of net.safetensors",
    digest((run.params, run.model_state)),
  )
  np.testing.assert_array_equal(found.y, test.labels[:20])
  standardized = target.load({**source, "mean": "0.5", "std": "2"}, 20)
  np.testing.assert_allclose(
    standardized.logits_fn(found.x), found.logits_fn((found.x - 0.5) / 2), rtol=1e-4
  )
  np.savez(tmp_path / "own.npz", x=found.x, y=np.arange(20) % 10)
  own = target.load({**source, "data": str(tmp_path / "own.npz")})
  np.testing.assert_array_equal(own.x, found.x)
  as_json = '{"name": "DigitsCNN", "num_classes": 10, "mean": [0.5], "std": [2.0]}'
  again = target.load({**source, "architecture": as_json})
  assert again.definition == standardized.definition != found.definition


@pytest.mark.parametrize(
  ("changed", "words"),
  [
    ({"mean": "0.5"}, "Give both --mean and --std"),
    ({"mean": "0.5", "std": "0"}, "--std must be a number for each of the 1 channels"),
    ({"mean": "a,b", "std": "1"}, "--mean must be a number for each"),
    ({"architecture": "{"}, "--architecture must be a name, or JSON"),
    (
      {"architecture": "ResNet18"},
      r"safetensors, for images of .*: The weights are not those of this ResNet; only",
    ),
    ({"model": "a:b"}, "Give either --workdir .* but given was --model, --architecture"),
    ({"data": ""}, "given was --architecture, --weights;"),
  ],
)
def test_sources_with_weights_that_are_refused(changed, words, tmp_path):
  path = tmp_path / "net.safetensors"
  ro.save_weights(Run("DigitsCNN", (8, 8, 1)), path)
  source = {"architecture": "DigitsCNN", "weights": str(path), "data": "digits", **changed}
  with pytest.raises(InputError, match=words):
    target.load(source)


# The network that comes with the package


@pytest.mark.slow
def test_the_network_of_the_package_is_as_its_card_says():
  net, test = ro.load("digits_linf"), datasets.load("digits", "test")
  (measured,), y = net.card["evaluations"], test.labels
  assert measured["examples"] == len(y)
  assert (net.predict(test.images) == y).sum() == measured["clean"]
  u = build_set(measured["set"])
  found = ro.autoattack(net.logits_fn, pixels(test.images), y, u, version="quick")
  # Of the standard version APGD alone finds what there is; its starts are random.
  assert abs(round(found.robust_accuracy * len(y)) - measured["robust"]) <= 2


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not here")
@pytest.mark.parametrize("name", ["mnist_linf", "mnist_l2", "cifar10_linf"])
def test_the_verdict_on_a_network_of_the_package_is_true(name):
  net = ro.load(name)
  test = datasets.load(net.card["dataset"], "test", data_dir=str(DATA))
  (measured,), stored = net.card["evaluations"], verdict.load(weights.NETS / name / "verdict.npz")
  x, y = pixels(test.images[: measured["examples"]]), test.labels[: measured["examples"]]
  assert verification.verify(stored, net.logits_fn, x, y.astype(np.int32), net.sha256) == []
  assert stored.claim.set == measured["set"]
  broken_by = stored.verdict.broken_by
  assert [np.sum(broken_by != 0), np.sum(broken_by < 0)] == [measured["clean"], measured["robust"]]


def test_networks_that_are_not_in_the_package_or_are_damaged(tmp_path):
  net = ro.load("digits_linf")
  assert (net.sha256, net.title) == (net.card["sha256"], "digits_linf of robust_opt")
  for folder in weights.NETS.iterdir():
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1e6
  files = list((weights.NETS / "digits_linf").iterdir())
  with pytest.raises(
    InputError, match="package are cifar10_linf, digits_linf, mnist_l2, mnist_linf, not 'mnist'"
  ):
    ro.load("mnist")
  (tmp_path / "other").mkdir()
  for file in files:
    (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
  assert ro.load(tmp_path / "other").sha256 == net.sha256
  ro.save_weights(Run("DigitsCNN", (8, 8, 1)), tmp_path / "other" / "model.safetensors")
  with pytest.raises(InputError, match=r"other is damaged: SHA-256 \w{64} -> \w{64}"):
    ro.load(tmp_path / "other")
