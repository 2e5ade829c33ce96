"""TFDS's sets without TensorFlow: read where prepared, downloaded where not, from loopback."""

import functools
import gzip
import hashlib
import http.server
import importlib.util
import io
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robust_opt.data import datasets
from robust_opt.data import tfds as prepare
from robust_opt.errors import InputError

GENUINE = Path(__file__).parents[2].parent / "shared" / "data"
needs_genuine = pytest.mark.skipif(not GENUINE.is_dir(), reason="the prepared sets are not here")
SETS = [(name, split) for name in prepare.ARCHIVES for split in ("train", "test")]


# Archives as the makers publish them, small


def idx(array):
  header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
  return gzip.compress(header + array.tobytes(), compresslevel=1)


def mnist_files(images, labels, split):
  stem = {"train": "train", "test": "t10k"}[split]
  return {
    f"{stem}-images-idx3-ubyte.gz": idx(images[..., 0]),
    f"{stem}-labels-idx1-ubyte.gz": idx(labels),
  }


def cifar10_files(images, labels, split):
  records = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(-1, 3072)], 1)
  parts = {f"data_batch_{i + 1}": part for i, part in enumerate(np.array_split(records, 5))}
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
    for name, part in (parts if split == "train" else {"test_batch": records}).items():
      member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
      member.size = part.size
      archive.addfile(member, io.BytesIO(part.tobytes()))
  return {"cifar-10-binary.tar.gz": buffer.getvalue()}


def example(name, split, num_examples=30):
  """(files, images, labels), the arrays in the order of the files."""
  rng = np.random.default_rng(len(name) + len(split))
  shape = (32, 32, 3) if name == "cifar10" else (28, 28, 1)
  images = rng.integers(0, 256, (num_examples, *shape), np.uint8)
  labels = rng.integers(0, 10, num_examples).astype(np.uint8)
  pack = cifar10_files if name == "cifar10" else mnist_files
  return pack(images, labels, split), images, labels


class Handler(http.server.SimpleHTTPRequestHandler):
  """Serves a folder. A name in `server.breaks` is sent by half; then the server hangs up."""

  def log_message(self, *args):
    pass

  def do_GET(self):
    self.server.served.append(self.path.lstrip("/"))
    if self.path.lstrip("/") not in self.server.breaks:
      return super().do_GET()
    content = Path(self.translate_path(self.path)).read_bytes()
    self.send_response(200)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content[: len(content) // 2])
    self.wfile.flush()
    self.server.half_sent.set()
    self.server.hang_up.wait(20)

  def do_HEAD(self):
    if self.server.head_answer is None:
      return super().do_HEAD()
    self.send_response(self.server.head_answer)
    self.end_headers()


class Host:
  """A loopback host, and what TFDS is made to register for it."""

  def __init__(self, root, monkeypatch):
    root.mkdir()
    self.root, self.registered = root, {}
    handler = functools.partial(Handler, directory=root)
    self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    self.server.daemon_threads = True
    self.server.served, self.server.breaks, self.server.head_answer = [], set(), None
    self.server.half_sent, self.server.hang_up = threading.Event(), threading.Event()
    self.server.hang_up.set()
    self.address = f"http://127.0.0.1:{self.server.server_port}/"
    self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
    self.thread.start()
    monkeypatch.setattr(prepare, "url_infos", lambda name: self.registered)

  def publish(self, files, registered=None):
    """Serves files; registers the checksums of `registered` for them, or their own."""
    for name, content in files.items():
      (self.root / name).write_bytes(content)
      self.register(name, (registered or files)[name])

  def register(self, name, content):
    checksum = hashlib.sha256(content).hexdigest()
    info = prepare.import_tfds().download.checksums.UrlInfo(len(content), checksum, name)
    self.registered[self.address + name] = info

  def close(self):
    self.server.hang_up.set()
    self.server.shutdown()
    self.server.server_close()
    self.thread.join()


@pytest.fixture
def host(tmp_path, monkeypatch):
  monkeypatch.setenv("NO_PROXY", "127.0.0.1")
  host = Host(tmp_path / "www", monkeypatch)
  yield host
  host.close()


@pytest.fixture
def places(tmp_path):
  (tmp_path / "sets").mkdir()
  return {"data_dir": str(tmp_path / "sets"), "cache_dir": str(tmp_path / "cache")}


def kept(places):
  return sorted(p.name for p in (Path(places["cache_dir"]) / "downloads").iterdir())


def forget_arrays(places):
  for path in Path(places["cache_dir"]).glob("*.npz"):
    path.unlink()


# Downloads


@pytest.mark.parametrize(("name", "split"), SETS)
def test_download_gives_the_archives_examples_in_tfds_order(name, split, host, places):
  from tensorflow_datasets.core import hashing

  files, images, labels = example(name, split)
  host.publish(files)
  dataset = datasets.load(name, split, **places)
  order = sorted(range(len(labels)), key=hashing.Hasher(split).hash_key)
  np.testing.assert_array_equal(dataset.images, images[order])
  np.testing.assert_array_equal(dataset.labels, labels[order])
  assert dataset.images.flags.c_contiguous
  assert dataset[2:] == (10, name, split, ())


@pytest.mark.parametrize("name", prepare.ARCHIVES)
def test_tfds_registers_the_files_that_we_unpack(name):
  infos = prepare.url_infos(name)
  names = {url.rpartition("/")[2] for url in infos}
  archive = prepare.ARCHIVES[name]
  assert {file for files in archive.files.values() for file in files} == names
  assert str(prepare.import_tfds().builder_cls(name).VERSION) == archive.version


def test_downloads_stay_and_a_damaged_one_is_fetched_anew(host, places):
  files, _, _ = example("mnist", "test")
  host.publish(files)
  marks, served = [], []
  for name, damage in (("mnist", 0), ("mnist:3.0.1", 0), ("mnist", 1)):
    forget_arrays(places)
    for path in (Path(places["cache_dir"]) / "downloads").glob("*" if damage else "none"):
      path.write_bytes(path.read_bytes()[:-1])
    marks.append(datasets.fingerprint(datasets.load(name, "test", **places)))
    served.append(len(host.server.served))
  assert len(set(marks)) == 1
  assert served == [2, 2, 4]


def fails_then_works(host, places, message, mend, name="mnist"):
  """Loading says `message` in one line and keeps no file; after `mend` it works."""
  start = time.monotonic()
  with pytest.raises(InputError, match=message) as caught:
    datasets.load(name, "test", **places)
  assert time.monotonic() - start < 100  # it does not wait for what will not come
  text = str(caught.value)
  assert text.startswith(f"data.name='{name}'")
  assert "data.data_dir" in text
  assert "\n" not in text
  assert kept(places) == []
  mend()
  assert len(datasets.load(name, "test", **places).labels) == 30


@pytest.mark.parametrize("instead", ["nothing", "another file"])
def test_a_file_that_is_not_as_registered(instead, host, places):
  files, _, _ = example("mnist", "test")
  others, _, _ = example("mnist", "test", num_examples=31)
  host.publish(others, registered=files)
  if instead == "nothing":
    for name in files:
      (host.root / name).unlink()
  words = {"nothing": "HTTP code: 404", "another file": "differs from the checksum"}[instead]
  fails_then_works(host, places, words, lambda: host.publish(files))


def test_broken_transfer(host, places):
  files, _, _ = example("cifar10", "test")
  host.publish(files)
  host.server.breaks |= set(files)
  fails_then_works(host, places, "Connection broken", host.server.breaks.clear, "cifar10")


def test_a_host_in_trouble_and_one_that_only_refuses_to_be_asked(host, places):
  host.publish(example("mnist", "test")[0])
  host.server.head_answer = 503

  def mend():
    host.server.head_answer = 405

  fails_then_works(host, places, "answers with HTTP code 503", mend)


def test_unreachable_host(host, places):
  files, _, _ = example("mnist", "test")
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  good, host.address = host.address, f"http://127.0.0.1:{port}/"
  for name, content in files.items():
    host.register(name, content)

  def mend():
    host.registered.clear()
    host.address = good
    host.publish(files)

  fails_then_works(host, places, f"127.0.0.1:{port} cannot be reached", mend)


@pytest.mark.parametrize(
  ("name", "damage"),
  [
    ("mnist", lambda content: content[: len(content) // 2]),
    ("mnist", lambda content: gzip.compress(gzip.decompress(content)[:-1])),
    ("mnist", lambda content: gzip.compress(b"other" + gzip.decompress(content)[5:])),
    ("cifar10", lambda content: b"<html>no gzip</html>"),
    ("cifar10", lambda content: gzip.compress(bytes(10240))),
  ],
)
def test_an_archive_that_cannot_be_unpacked(name, damage, host, places):
  files, _, _ = example(name, "test")
  host.publish({file: damage(content) for file, content in files.items()})
  with pytest.raises(InputError, match="cannot be unpacked"):
    datasets.load(name, "test", **places)
  assert list(Path(places["cache_dir"]).glob("*.npz")) == []


def test_images_and_labels_of_different_number(host, places):
  files, images, _ = example("mnist", "test")
  host.publish(files | {"t10k-images-idx3-ubyte.gz": idx(images[:-1, :, :, 0])})
  with pytest.raises(InputError, match="29 images came with 30 labels"):
    datasets.load("mnist", "test", **places)


CHILD = """
import sys
from robust_opt.data import datasets
from robust_opt.data import tfds as prepare
UrlInfo = prepare.import_tfds().download.checksums.UrlInfo
infos = {url: UrlInfo(*info) for url, info in REGISTERED.items()}
prepare.url_infos = lambda name: infos
datasets.load("cifar10", "test", **PLACES)
"""


def test_killed_in_the_middle_of_a_download(host, places):
  files, _, _ = example("cifar10", "test")
  host.publish(files)
  host.server.breaks |= set(files)
  host.server.hang_up.clear()
  infos = {url: (int(i.size), i.checksum, i.filename) for url, i in host.registered.items()}
  code = f"REGISTERED, PLACES = {infos!r}, {places!r}\n" + CHILD
  child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
  assert host.server.half_sent.wait(300)
  child.send_signal(signal.SIGKILL)
  child.wait()
  host.server.hang_up.set()
  host.server.breaks.clear()
  assert not any(name.endswith("gz") for name in kept(places))
  assert len(datasets.load("cifar10", "test", **places).labels) == 30
  assert any(name.endswith("cifar-10-binary.tar.gz") for name in kept(places))


def test_other_splits_are_refused_before_any_download(host, places):
  with pytest.raises(InputError, match="'mnist' has no split 'valid': it has train, test"):
    datasets.load("mnist", "valid", **places)
  assert host.server.served == []


# Sets that only TensorFlow prepares


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("CIFAR10", r"did you mean cifar10\?"),
    ("svhn", r"did you mean svhn_cropped\?"),
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
    order = prepare.tfds_order(split, 7)
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
def test_genuine_mnist_from_archives_equals_the_prepared_set(host, places):
  prepared = datasets.load("mnist", "test", data_dir=str(GENUINE), cache_dir=places["cache_dir"])
  assert prepared.images.shape == (10_000, 28, 28, 1)
  order = prepare.tfds_order("test", 10_000)
  images, labels = np.empty_like(prepared.images), np.empty(10_000, np.uint8)
  images[order], labels[order] = prepared.images, prepared.labels
  assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # as in LeCun's file
  host.publish(mnist_files(images, labels, "test"))
  unpacked = datasets.load("mnist", "test", **places)
  np.testing.assert_array_equal(unpacked.images, prepared.images)
  np.testing.assert_array_equal(unpacked.labels, prepared.labels)


@needs_genuine
def test_genuine_cifar10_lies_in_tfds_order():
  builder = prepare.import_tfds().builder_from_directory(GENUINE / "cifar10" / "3.0.2")
  records = builder.as_data_source(split="test").__getitems__(range(100))
  ids = [record["id"].decode() for record in records]
  assert ids == [f"test_{i:05d}" for i in prepare.tfds_order("test", 10_000)[:100]]
