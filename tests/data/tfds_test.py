"""TFDS's sets without TensorFlow: read where prepared."""

import importlib.util
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robust_opt.data import datasets, published
from robust_opt.data import tfds as prepare
from robust_opt.errors import InputError

GENUINE = Path(__file__).parents[2].parent / "shared" / "data"
needs_genuine = pytest.mark.skipif(not GENUINE.is_dir(), reason="the prepared sets are not here")


@pytest.fixture
def places(tmp_path):
  (tmp_path / "sets").mkdir()
  return {"data_dir": str(tmp_path / "sets"), "cache_dir": str(tmp_path / "cache")}


# Sets that only TensorFlow prepares


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("CIFAR10", r"did you mean cifar10\?"),
    ("tinyimagenet", r"did you mean tiny_imagenet\?"),
    ("fashionMnist", r"did you mean fashion_mnist\?"),
    ("imagnet2012", "did you mean imagenet2012"),
    ("CIFAR-10", r"is not the name of a data set: .*; did you mean cifar10\?"),
    ("qqqqqqqqq", "is it spelled"),
  ],
)
def test_unknown_names(name, message, places):
  with pytest.raises(InputError, match=message):
    datasets.load(name, "test", **places)


def install_tensorflow(monkeypatch, spec):
  """Makes tensorflow look installed, or absent if spec is None."""
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(
    "importlib.util.find_spec", lambda name: spec if name == "tensorflow" else find_spec(name)
  )


@pytest.mark.parametrize("name", ["emnist/letters", "mnist:1.0.0"])
def test_without_tensorflow_the_message_says_what_to_install(name, places, monkeypatch):
  install_tensorflow(monkeypatch, None)
  with pytest.raises(InputError, match=r'python -m pip install "\.\[prepare\]"') as caught:
    datasets.load(name, "test", **places)
  assert f"data.name={name!r}" in str(caught.value)


@pytest.fixture(scope="module")
def tiny_sets():
  """TFDS builders of small sets; TFDS prepares images that are PNG already without TensorFlow."""
  tfds = prepare.import_tfds()

  def png(value, width=5, channels=1):
    buffer = io.BytesIO()
    pixels = np.full((4, width, channels), value, np.uint8)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(buffer, "PNG")
    buffer.seek(0)
    return buffer

  class TinyBase(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    FEATURES = ("picture", "kind")

    def _info(self):
      image, label = self.FEATURES
      features = {
        image: tfds.features.Image(shape=(None, None, 1)),
        label: tfds.features.ClassLabel(num_classes=3),
        "other": tfds.features.ClassLabel(num_classes=2),
      }
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=self.FEATURES if image == "picture" else None,
      )

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(), "validation": self._generate_examples()}

    def _generate_examples(self):
      image, label = self.FEATURES
      for i in range(7):
        yield i, {image: png(i, self.width(i)), label: i % 3, "other": 0}

    def width(self, i):
      return 5

  class TinySupervised(TinyBase):
    pass

  class TinyNamed(TinyBase):
    FEATURES = ("image", "label")

  class TinyUneven(TinyBase):
    def width(self, i):
      return 5 + (i == 3)

  class TinyBare(TinyBase):
    FEATURES = ("scan", "kind")

  return {"supervised": TinySupervised, "named": TinyNamed, "uneven": TinyUneven, "bare": TinyBare}


@pytest.fixture(scope="module")
def tiny_root(tiny_sets, tmp_path_factory):
  root = tmp_path_factory.mktemp("tiny")
  for builder in tiny_sets.values():
    builder(data_dir=root, file_format="array_record").download_and_prepare()
  return root


@pytest.mark.parametrize("name", ["tiny_supervised", "tiny_named:1.0.0"])
def test_prepared_sets_are_read_in_the_order_of_tfds_writer(name, tiny_root, tmp_path):
  for split in ("train", "validation"):
    dataset = datasets.load(name, split, data_dir=str(tiny_root), cache_dir=str(tmp_path))
    order = published.tfds_order(split, 7)
    assert dataset.images.shape == (7, 4, 5, 1)
    assert dataset.images[:, 0, 0, 0].tolist() == order
    assert dataset.labels.tolist() == [i % 3 for i in order]
    assert dataset[2:] == (3, name, split, ())


@pytest.mark.parametrize(
  ("name", "split", "message"),
  [
    ("tiny_supervised", "test", "has no split 'test': it has train, validation"),
    ("tiny_uneven", "train", r"different shapes, \[4, 5, 1\] and \[4, 6, 1\]"),
    ("tiny_bare", "train", "is not an image-classification data set: it has .*scan"),
  ],
)
def test_prepared_sets_that_do_not_fit(name, split, message, tiny_root, tmp_path):
  with pytest.raises(InputError, match=message):
    datasets.load(name, split, data_dir=str(tiny_root), cache_dir=str(tmp_path))


def copy_of_tiny(tiny_root, root, name="tiny_named"):
  shutil.copytree(tiny_root / "tiny_named", root / name)
  return root / name / "1.0.0"


def test_tfrecord_is_said_to_need_tensorflow(tiny_root, tmp_path):
  info = copy_of_tiny(tiny_root, tmp_path) / "dataset_info.json"
  info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
  with pytest.raises(InputError, match=r"format that needs TensorFlow.*as array_record"):
    datasets.load("tiny_named", "train", data_dir=str(tmp_path), cache_dir=str(tmp_path))


@pytest.mark.parametrize("pattern", ["*train*", "dataset_info.json", "features.json"])
def test_damaged_preparations(pattern, tiny_root, tmp_path):
  (path,) = copy_of_tiny(tiny_root, tmp_path).glob(pattern)
  path.write_bytes(path.read_bytes()[:20])
  with pytest.raises(InputError, match=r"data\.name='tiny_named' in .* cannot be read"):
    datasets.load("tiny_named", "train", data_dir=str(tmp_path), cache_dir=str(tmp_path))


def test_configurations_must_be_named(tiny_root, tmp_path):
  copy_of_tiny(tiny_root, tmp_path, "family/one")
  with pytest.raises(InputError, match="names no configuration: allowed is 'family/one'"):
    datasets.load("family", "train", data_dir=str(tmp_path), cache_dir=str(tmp_path))


def test_with_tensorflow_tfds_prepares(places, monkeypatch):
  tfds = prepare.import_tfds()
  asked = []

  class Builder:
    def download_and_prepare(self):
      asked.append("prepared")
      raise AssertionError("Manual download is required.\nMore about it.")

  def builder(name, **kwargs):
    asked.append((name, kwargs))
    return Builder()

  install_tensorflow(monkeypatch, object())
  monkeypatch.setattr(prepare, "url_infos", lambda name: {})
  monkeypatch.setattr(tfds, "builder", builder)
  with pytest.raises(InputError, match=r"cannot be prepared .*: Manual download is required\.$"):
    datasets.load("svhn_cropped", "train", **places)
  root = Path(places["data_dir"])
  assert asked == [("svhn_cropped", {"data_dir": root, "file_format": "array_record"}), "prepared"]


def test_what_tfds_prepares_is_read_and_cached(places, tiny_sets, monkeypatch):
  # The builder is found by name and needs no TensorFlow: the whole way, but for the check.
  install_tensorflow(monkeypatch, object())
  assert len(datasets.load("tiny_named", "train", **places).labels) == 7
  with monkeypatch.context() as patch:
    patch.setattr(prepare, "read_prepared", None)  # the second time must not come so far
    assert len(datasets.load("tiny_named", "train", **places).labels) == 7
  shutil.rmtree(Path(places["data_dir"]) / "tiny_named")
  with pytest.raises(InputError, match="is off"):
    datasets.load("tiny_named", "train", download=False, **places)


# The genuine sets


@needs_genuine
def test_genuine_cifar10_lies_in_tfds_order():
  builder = prepare.import_tfds().builder_from_directory(GENUINE / "cifar10" / "3.0.2")
  records = builder.as_data_source(split="test").__getitems__(range(100))
  ids = [record["id"].decode() for record in records]
  assert ids == [f"test_{i:05d}" for i in published.tfds_order("test", 10_000)[:100]]
