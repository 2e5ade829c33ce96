"""ONNX files beside JAX, and an independent check of verdicts: honest ones pass, lies do not."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_files

import robust_opt as ro
from robust_opt import losses, models, weight_files, weights
from robust_opt.data import datasets
from robust_opt.errors import InputError, MissingExtraError
from robust_opt.evaluation import autoattack, phases, verdict
from robust_opt.evaluation.accuracy import logits_of
from robust_opt.evaluation.collection import pixels
from robust_opt.files import write_sealed
from robust_opt.models import state_dict
from robust_opt.sets.build import build_set, config_sha256

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TOOL = Path(__file__).parents[1] / "tools" / "check_verdict.py"
spec = importlib.util.spec_from_file_location("check_verdict", TOOL)
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)

SMALL = {"stage_sizes": (1, 1), "width": 1 / 16}
RUNS = [
  ("PreActResNet", (8, 8, 3), SMALL),
  ("ResNet", (32, 32, 3), {**SMALL, "stem": "imagenet"}),
  ("DMWideResNet", (8, 8, 3), {"depth": 10, "width": 1}),
  ("ViT", (16, 16, 3), {"patch": 8, "dim": 12, "depth": 1, "heads": 3}),
  ("MnistCNN", (28, 28, 1), {}),
]  # fmt: skip


def network(name, shape, attributes):
  net, rng = models.ARCHITECTURES[name](**attributes), np.random.default_rng(0)

  def draw(leaf):
    scale = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.0
    return (scale * rng.normal(size=leaf.shape) + (leaf.ndim == 1)).astype(np.float32)

  params, model_state = jax.tree.map(draw, state_dict.shapes_of(net, shape))
  return jax.jit(logits_of(models.apply_of(net), params, model_state))


@pytest.mark.parametrize(
  ("name", "shape", "attributes"),
  [RUNS[0], *(pytest.param(*run, marks=pytest.mark.slow) for run in RUNS[1:])],
)
def test_a_file_computes_what_the_network_computes(name, shape, attributes, tmp_path):
  logits_fn = network(name, shape, attributes)
  ro.export_onnx(logits_fn, tmp_path / "net.onnx", shape)
  logits, sha256 = check.network(str(tmp_path / "net.onnx"))
  assert sha256 == ""
  for count in (1, 3):
    x = np.random.default_rng(count).random((count, *shape), np.float32)
    expected = np.asarray(logits_fn(x))
    np.testing.assert_allclose(logits(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
  assert np.ptp(expected, axis=0).max() > 0


@pytest.mark.slow
def test_what_functions_may_use(tmp_path):
  weights = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)

  def logits_fn(x):
    pooled = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")
    y = jnp.concatenate([pooled[:, ::2, 1:], jnp.flip(pooled, 1)[:, :2, :1]], axis=2)
    y = jnp.where(y > 0.5, jnp.log1p(y), -jnp.sqrt(y)).reshape(x.shape[0], -1)
    y = y / (1e-3 + jnp.linalg.norm(y, axis=1, keepdims=True)) + y.mean(axis=1)[:, None] ** 2
    return jax.nn.log_softmax(jnp.einsum("bi,ij->bj", y, weights))

  ro.export_onnx(logits_fn, tmp_path / "net.onnx", (8, 8, 3))
  x = np.random.default_rng(1).random((4, 8, 8, 3), np.float32)
  logits, _ = check.network(str(tmp_path / "net.onnx"))
  np.testing.assert_allclose(logits(x), logits_fn(x), rtol=1e-5, atol=1e-6)


def test_what_has_no_file_is_one_sentence(tmp_path, monkeypatch):
  path = tmp_path / "net.onnx"
  for words, function in (
    (r"cannot be traced .*write x\.shape\[0\]", lambda x: x.reshape(len(x), -1)),
    ("no counterpart of JAX's sort", lambda x: jnp.sort(x.reshape(x.shape[0], -1))),
    (
      "no counterpart of JAX's scan",
      lambda x: jax.lax.scan(lambda c, _: (2 * c, None), x, length=3)[0],
    ),
    ("indices that are the same for all images", lambda x: x[jnp.arange(3)].reshape(3, -1)),
  ):
    with pytest.raises(InputError, match=words):
      ro.export_onnx(function, path, (4, 4, 1))
  with pytest.raises(InputError, match=r"must end in \.onnx"):
    ro.export_onnx(lambda x: x, tmp_path / "net.pt", (4,))
  monkeypatch.setitem(sys.modules, "onnx", None)
  with pytest.raises(MissingExtraError, match=r"\[onnx\]"):
    ro.export_onnx(lambda x: x, path, (4,))
  assert not list(tmp_path.iterdir())


class Honest:
  """A true verdict, its network and its data."""

  def __init__(self, net, x, y, u, folder, attack=ro.autoattack):
    x, y, source = pixels(x), np.asarray(y, np.int32), {"examples": len(y)}
    found = attack(net.logits_fn, x, y, u, version="quick")
    config = verdict.ball_config(u.name, float(u.radius))
    claim = verdict.Claim(
      config, "quick", 0, 100, source, net.sha256, verdict.data_sha256(x, y), "CPU",
      config_sha256(config),
    )  # fmt: skip
    self.x, self.y, self.paths = x, y, [folder / n for n in ("v.npz", "net.onnx", "data.npz")]
    verdict.save(self.paths[0], found, claim, x, y)
    ro.export_onnx(net, self.paths[1], x.shape[1:])
    np.savez(self.paths[2], x=x, y=y)
    self.logits, self.sha256 = check.network(str(self.paths[1]))
    self.clean = self.logits(x)
    with np.load(self.paths[0]) as file:
      self.file = dict(file)

  def problems(self, file):
    return check.problems(file, self.logits, self.clean, self.x, self.y, self.sha256)


def one_step(logits_fn, x, y, u, version):
  """A verdict of the fast gradient sign method, which compiles faster than an ensemble."""
  loss = jax.jit(jax.value_and_grad(lambda x: losses.cross_entropy(logits_fn(x), y).sum()))
  images = np.clip(x + np.float32(u.radius) * np.sign(loss(x)[1]), 0, 1)
  prediction, attacked = (
    np.argmax(logits_fn(each), axis=1).astype(np.int32) for each in (x, images)
  )
  broken_by = np.select([prediction != y, attacked != y], [0, 1], -1)
  return autoattack.Verdict(("clean", version), prediction, broken_by, images)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
  """Of the digits and the network that comes with the package."""
  test, u = datasets.load("digits", "test"), ro.LInf(0.2, box=(0.0, 1.0))
  folder = tmp_path_factory.mktemp("honest")
  return Honest(ro.load("digits_linf"), test.images, test.labels, u, folder, one_step)


# Lies change a copy of the arrays; those that could be hidden by restating others are.


def restate(file, x):
  """What follows from the other arrays, so that only the lie itself is false."""
  file["robust_accuracy"] = np.mean(file["broken_by"] == -1)
  config = json.loads(str(file["claim"]))["set"]
  file["norms"] = verdict.sizes(build_set(config), file["images"], x[file["broken_ids"]])


def insert(file, index, attack, image=None):
  """Makes an example broken by an attack, with its image; 0 and -1 have none."""
  kept = file["broken_ids"] != index
  ids, images = file["broken_ids"][kept], file["images"][kept]
  if image is not None:
    place = np.searchsorted(ids, index)
    ids, images = np.insert(ids, place, index), np.insert(images, place, image, axis=0)
  file["broken_ids"], file["images"] = ids.astype(np.int32), images
  file["broken_by"][index] = attack


def change_claim(file, **changed):
  file["claim"] = np.array(json.dumps(json.loads(str(file["claim"])) | changed, sort_keys=True))


def clean_image(file, x, y, rng):
  k = rng.integers(len(file["images"]))
  file["images"][k] = x[file["broken_ids"][k]]


def beyond_the_radius(file, x, y, rng):
  k = rng.integers(len(file["images"]))
  original = x[file["broken_ids"][k]]
  far = original + (file["images"][k] - original) * rng.uniform(1.001, 3)
  file["images"][k] = far


def beyond_the_box(file, x, y, rng):
  k, pixel = rng.integers(len(file["images"])), tuple(rng.integers(8, size=2))
  file["images"][k][pixel] = rng.choice([-1e-6, 1 + 1e-6, 1.05, -0.05])


def not_finite(file, x, y, rng):
  k, pixel = rng.integers(len(file["images"])), tuple(rng.integers(8, size=2))
  file["images"][k][pixel] = rng.choice([np.nan, np.inf, -np.inf])


def mistake_that_is_none(file, x, y, rng):
  index = rng.choice(np.flatnonzero(file["broken_by"] == -1))
  file["prediction"][index] = (y[index] + rng.integers(1, 10)) % 10
  insert(file, index, 0)


def mistake_that_is_hidden(file, x, y, rng):
  index = rng.choice(np.flatnonzero(file["broken_by"] == 0))
  file["prediction"][index] = y[index]
  file["broken_by"][index] = -1


def break_that_is_none(file, x, y, rng):
  index = rng.choice(np.flatnonzero(file["broken_by"] == -1))
  noise = rng.uniform(-0.02, 0.02, x[index].shape)
  insert(file, index, 1, np.clip(x[index] + noise, 0, 1).astype(np.float32))


def swapped_images(file, x, y, rng):
  a, b = rng.choice(len(file["images"]), 2, replace=False)
  file["images"][[a, b]] = file["images"][[b, a]]


def smaller_radius(file, x, y, rng):
  config = json.loads(str(file["claim"]))["set"]
  config["radius"] *= rng.uniform(0.2, 0.99)
  change_claim(file, set=config, set_sha256=config_sha256(config))


def other_labels(file, x, y, rng):
  index = rng.choice(np.flatnonzero(file["broken_by"] == 0))
  file["labels"][index] = file["prediction"][index]
  file["broken_by"][index] = -1


def unknown_attack(file, x, y, rng):
  index = rng.choice(file["broken_ids"])
  file["broken_by"][index] = len(file["names"]) + rng.integers(3)


def other_hash(file, x, y, rng):
  name = rng.choice(["data_sha256", "net_sha256", "set_sha256"])
  change_claim(file, **{str(name): rng.bytes(32).hex()})


def rounded_up(file, x, y, rng):
  file["robust_accuracy"] += rng.integers(1, 20) / len(y)


LIES = [
  clean_image, beyond_the_radius, beyond_the_box, not_finite, mistake_that_is_none,
  mistake_that_is_hidden, break_that_is_none, swapped_images, smaller_radius, other_labels,
  unknown_attack, other_hash, rounded_up,
]  # fmt: skip


def told(honest, lie, seed):
  """The file with a lie in it and a seal that fits."""
  file = {key: value.copy() for key, value in honest.file.items() if key != "sha256"}
  lie(file, honest.x, honest.y, np.random.default_rng(seed))
  if lie is not rounded_up:
    restate(file, honest.x)
  return {**file, "sha256": np.array(check.seal(file))}


def test_the_seal_is_that_of_the_package(honest, tmp_path):
  file = {key: value for key, value in honest.file.items() if key != "sha256"}
  assert check.seal(file) == str(honest.file["sha256"])
  assert check.data_sha256(honest.x, honest.y) == verdict.data_sha256(honest.x, honest.y)
  write_sealed(tmp_path / "again.npz", file)
  assert (tmp_path / "again.npz").read_bytes() == honest.paths[0].read_bytes()


def missed(honest, seeds):
  """The lies that the check does not see."""
  kinds = {seed: LIES[seed % len(LIES)] for seed in seeds}
  return [
    (kind.__name__, seed)
    for seed, kind in kinds.items()
    if not honest.problems(told(honest, kind, seed))
  ]


def test_an_honest_verdict_passes_and_a_lie_of_every_kind_does_not(honest):
  assert len(honest.file["images"]) > 50
  assert honest.problems(honest.file) == []
  assert missed(honest, range(len(LIES))) == []


@pytest.mark.slow
def test_a_thousand_lies_are_found(honest):
  assert missed(honest, range(1000)) == []


def test_a_damaged_file_is_not_believed(honest):
  file = {**honest.file, "robust_accuracy": np.array(1.0)}
  assert honest.problems(file) == ["The file is damaged: its arrays do not match their SHA-256."]


@pytest.mark.slow
def test_the_command_needs_neither_jax_nor_robust_opt(honest, tmp_path):
  def run(*paths):
    code = (
      f"import runpy, sys\nsys.argv = {[str(TOOL), *map(str, paths)]!r}\n"
      f"sys.modules |= dict.fromkeys(('jax', 'flax', 'robust_opt'))\n"
      f"runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

  done = run(*honest.paths)
  assert (done.returncode, done.stderr) == (0, "")
  assert " is true: " in done.stdout
  write_sealed(tmp_path / "lie.npz", told_of(honest))
  done = run(tmp_path / "lie.npz", *honest.paths[1:])
  assert (done.returncode, done.stderr) == (1, "")
  assert done.stdout.startswith("It states a robust accuracy of ")
  assert run(tmp_path / "none.npz", *honest.paths[1:]).returncode == 2


def told_of(honest):
  """A lie without its seal."""
  file = told(honest, rounded_up, 0)
  return {key: value for key, value in file.items() if key != "sha256"}


DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "nets").is_dir(), reason="the nets of others are not here")
@pytest.mark.parametrize(
  "u", [ro.LInf(0.1, (0.0, 1.0)), ro.L2(1.5, (0.0, 1.0))], ids=["linf", "l2"]
)
def test_honest_verdicts_of_a_network_for_mnist_pass(u, tmp_path, monkeypatch):
  monkeypatch.setitem(phases.VERSIONS, "quick", (phases.apgd_ce(10), phases.apgd_t(10, 3)))
  test = datasets.load("mnist", "test", data_dir=str(DATA), cache_dir=str(tmp_path))
  net = models.ARCHITECTURES["ConvNet"]()
  arrays = torch_files.read(DATA / "nets" / "mnist_cnn_a_adv.model")
  arrays = {key: np.asarray(value) for key, value in arrays.items()}
  file = weight_files.WeightsFile(arrays, {})
  loaded = weights.loaded(net, file, Path("cnn_a"), (28, 28, 1))
  honest = Honest(loaded, test.images[:200], test.labels[:200], u, tmp_path)
  assert len(honest.file["images"]) > 0
  assert honest.problems(honest.file) == []
  assert missed(honest, range(len(LIES))) == []
