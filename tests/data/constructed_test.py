"""Data sets of robust or non-robust features: what is changed, by how much, and what is written."""

import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_opt as ro
from robust_opt import construct, models
from robust_opt.data import constructed, datasets
from robust_opt.data.constructed import Settings
from robust_opt.errors import InputError
from robust_opt.experiments import build, config
from robust_opt.experiments import run as experiment

pytestmark = pytest.mark.usefixtures("no_pictures")


def linear_net(seed=0):
  """(weights, logits_fn) of three classes on six pixels."""
  w = jnp.asarray(np.random.default_rng(seed).normal(size=(6, 3)), jnp.float32)
  return w, lambda x: x @ w


def images(count=5, seed=1):
  return jnp.asarray(0.3 + 0.4 * np.random.default_rng(seed).random((count, 6)), jnp.float32)


def test_targets_are_within_reach_and_no_further():
  """Within the ball and the box, nearer to the target, and to rounding at the edge of the ball."""
  _, logits_fn = linear_net()
  x, targets = images(), jnp.array([0, 1, 2, 0, 1])
  made = constructed.towards(logits_fn, x, targets, Settings(0.2, 50, 0.05))
  before, after = (ro.losses.cross_entropy(logits_fn(z), targets) for z in (x, made))
  assert np.all(after < before)
  assert np.all(np.linalg.norm(made - x, axis=1) <= 0.2 * (1 + 1e-5))
  assert np.all(np.linalg.norm(made - x, axis=1) >= 0.19)
  assert made.min() >= 0
  assert made.max() <= 1


def test_a_target_of_two_classes_in_closed_form():
  """The steepest way is along the difference of the weights, whatever the steps."""
  w, _ = linear_net()
  pair, x = w[:, :2], images()
  made = constructed.towards(lambda x: x @ pair, x, jnp.ones(5, jnp.int32), Settings(0.1, 30, 0.02))
  along = pair[:, 1] - pair[:, 0]
  np.testing.assert_allclose(
    made - x, np.tile(0.1 * along / np.linalg.norm(along), (5, 1)), atol=1e-5
  )


def test_an_inversion_takes_over_what_the_features_see_and_nothing_else():
  """Of features that are some of the pixels: those become x's, the others stay start's."""
  x, start = images(seed=1), images(seed=2)
  made = constructed.inverted(lambda x: x[:, :2], x, start, Settings(0.0, 400, 0.005))
  np.testing.assert_allclose(made[:, :2], x[:, :2], atol=0.006)
  np.testing.assert_array_equal(made[:, 2:], start[:, 2:])
  made = constructed.inverted(lambda x: 10 * x, 1.2 * jnp.round(x), start, Settings(0.0, 200, 0.1))
  assert made.min() >= 0
  assert made.max() <= 1


def test_random_targets_and_other_ids_are_uniform():
  keys = jax.random.split(jax.random.key(0), 4000)
  counts = np.bincount(constructed.random_targets(keys, 5), minlength=5)
  assert np.all(np.abs(counts - 800) < 5 * np.sqrt(800))
  ids = jnp.full(4000, 2)
  places = np.bincount(constructed.other_ids(keys, ids, 5), minlength=5)
  assert places[2] == 0
  assert np.all(np.abs(places[[0, 1, 3, 4]] - 1000) < 5 * np.sqrt(1000))
  np.testing.assert_array_equal(constructed.next_class(jnp.array([0, 3, 4]), 5), [1, 4, 0])
  with pytest.raises(InputError, match="at least 2, but were 1"):
    constructed.other_ids(keys, ids, 1)


@pytest.mark.parametrize("net", [models.MLP(widths=(7, 5)), models.MnistCNN()], ids=["mlp", "cnn"])
def test_a_representation_is_what_the_last_layer_reads(net):
  shape = (28, 28, 1)
  params, state = models.init(net, jax.random.key(0), shape)
  x = jnp.asarray(np.random.default_rng(0).random((3, *shape)), jnp.float32)
  features, _ = jax.jit(functools.partial(models.representation(net), train=False, key=None))(
    params, state, x
  )
  last = params["dense2" if isinstance(net, models.MnistCNN) else "Dense_2"]
  logits, _ = models.from_linen(net)(params, state, x, train=False, key=None)
  np.testing.assert_allclose(features @ last["kernel"] + last["bias"], logits, atol=1e-5)


def trained(workdir, **changes):
  c = config.digits()
  c.training.epochs, c.training.watch_examples, c.evaluation.sweep = 8, 0, (0.0,)
  config.choose(c, "attack", "none")
  c.data.train_examples = 400
  c.update_from_flattened_dict(changes)
  return experiment.run(c, workdir)


@pytest.fixture(scope="module")
def net_run(tmp_path_factory):
  """The work directory of a net of the digits."""
  workdir = tmp_path_factory.mktemp("net") / "run"
  trained(workdir)
  return workdir


def options(run, output, **changed):
  given = {"kind": "random", "settings": Settings(1.0, 10, 0.25), "shard_size": 150}
  return construct.Options({"workdir": str(run)}, output=output, **(given | changed))


@pytest.mark.slow
def test_a_data_set_is_made_resumed_and_learned_from(net_run, tmp_path):
  made = construct.run(options(net_run, tmp_path / "set"))
  assert len(made.labels) == 360  # of 400, a tenth is held out
  card = json.loads((tmp_path / "set" / "card.json").read_text())
  assert card["files"] == ["shard-00000.npz", "shard-00001.npz", "shard-00002.npz"]
  shard = constructed.read_shard(tmp_path / "set" / "shard-00001.npz")
  np.testing.assert_array_equal(shard.ids, np.arange(150, 300))
  assert "Ilyas" in (tmp_path / "set" / "README.md").read_text()

  # Another division into files, and one of them again: the same examples.
  (tmp_path / "set" / "shard-00001.npz").write_bytes(b"cut short")
  with pytest.raises(InputError, match="not a readable shard of a constructed data set"):
    constructed.load(tmp_path / "set")
  construct.run(options(net_run, tmp_path / "set"))
  other = construct.run(options(net_run, tmp_path / "other", shard_size=1000))
  again = constructed.load(tmp_path / "set")
  np.testing.assert_array_equal(again.labels, made.labels)
  np.testing.assert_allclose(again.images, made.images, atol=1e-6)
  np.testing.assert_array_equal(other.labels, made.labels)

  # Whoever made it takes the images for what they are labeled, and a new net learns from them.
  with pytest.raises(InputError, match="holds another study"):
    construct.run(options(net_run, tmp_path / "set", seed=1))
  with pytest.raises(InputError, match=r"^--radius=9 allows every image"):
    construct.run(options(net_run, tmp_path / "nine", settings=Settings(9.0, 10, 0.25)))
  learned = trained(tmp_path / "learned", **{"data.train_files": str(tmp_path / "set")})
  assert learned["train_examples"] == 360
  assert learned["data_sha256"]["train"] == datasets.fingerprint(again)


@pytest.mark.slow
@pytest.mark.parametrize("kind", constructed.KINDS)
def test_the_net_takes_what_is_made_for_what_it_is_labeled(kind, net_run, tmp_path):
  given = {"kind": kind, "settings": Settings(3.0, 100, 0.2), "examples": 100}
  made = construct.run(options(net_run, tmp_path / "set", **given))
  net = construct.target.load_run(net_run)
  predicted = np.argmax(net.logits_fn(jnp.asarray(made.images)), -1)
  assert np.mean(predicted == made.labels) > 0.9
  shards = constructed.read_shard(tmp_path / "set" / "shard-00000.npz")
  if kind == "inverted":
    np.testing.assert_array_equal(shards.labels, shards.original_labels)
  if kind == "deterministic":
    np.testing.assert_array_equal(shards.labels, (shards.original_labels + 1) % 10)


def write_set(folder, num_classes=10, label=3):
  """A whole data set, by hand."""
  rng = np.random.default_rng(0)
  labels = np.full(64, label, np.int32)
  shard = constructed.Shard(
    rng.random((64, 8, 8, 1)).astype(np.float32), labels, np.arange(64, dtype=np.int32), labels
  )
  folder.mkdir()
  constructed.write_shard(folder / "shard-00000.npz", shard)
  card = {"name": "by hand", "num_classes": num_classes, "files": ["shard-00000.npz"]}
  (folder / "card.json").write_text(json.dumps(card))
  return folder


def test_classes_of_another_set_are_refused(tmp_path):
  c = config.digits()
  c.training.batch_size = 32
  c.data.train_files = str(write_set(tmp_path / "ten"))
  assert len(build.splits(c).train.labels) == 64
  c.data.train_files = str(write_set(tmp_path / "twenty", num_classes=20, label=15))
  with pytest.raises(InputError, match="holds 20 classes, but digits has 10"):
    build.splits(c)


def test_examples_without_a_label_cannot_be_made_into_others(tmp_path, monkeypatch):
  class Net(NamedTuple):
    train: datasets.Dataset

  digits = datasets.load("digits", "train")
  few = datasets.few_labels(digits, 100, 0, keep_others=True)
  monkeypatch.setattr(construct.target, "load_run", lambda workdir: Net(few))
  with pytest.raises(InputError, match="was trained on examples without a label"):
    construct.run(options(tmp_path / "run", tmp_path / "set"))
  assert not (tmp_path / "set").exists()


def test_what_cannot_be_made(tmp_path):
  with pytest.raises(InputError, match="holds no finished data set"):
    constructed.load(tmp_path)
  with pytest.raises(InputError, match="--shard_size must be >= 1"):
    construct.run(options(tmp_path / "run", tmp_path / "set", shard_size=0))
  with pytest.raises(InputError, match="Give --workdir"):
    construct.run(options("", tmp_path / "set"))
