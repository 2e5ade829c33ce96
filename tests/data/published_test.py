"""Data sets as their authors publish them: small archives of the same formats, from loopback."""

import functools
import gzip
import hashlib
import http.server
import io
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from robust_opt.data import datasets, published
from robust_opt.data import tfds as prepare
from robust_opt.data.published import PUBLISHED, PublishedArrays
from robust_opt.errors import InputError

GENUINE = Path(__file__).parents[2].parent / "shared" / "data"
needs_genuine = pytest.mark.skipif(not GENUINE.is_dir(), reason="the prepared sets are not here")
ARRAYS = [name for name, entry in PUBLISHED.items() if isinstance(entry, PublishedArrays)]


# Archives as the makers publish them, small


def idx(array):
  header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
  return gzip.compress(header + array.tobytes(), compresslevel=1)


def mnist_files(images, labels, split):
  return [idx(images[..., 0]), idx(labels)]


def tar_gz(contents):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
    for name, content in contents.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return buffer.getvalue()


def planes(images):
  return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def cifar10_files(images, labels, split):
  records = np.concatenate([labels[:, None], planes(images)], 1)
  parts = {f"data_batch_{i + 1}": part for i, part in enumerate(np.array_split(records, 5))}
  parts = parts if split == "train" else {"test_batch": records}
  contents = {f"cifar-10-batches-bin/{name}.bin": part.tobytes() for name, part in parts.items()}
  return [tar_gz(contents)]


def cifar100_files(images, labels, split):
  records = np.concatenate([labels[:, None] // 5, labels[:, None], planes(images)], 1)
  return [tar_gz({f"cifar-100-binary/{split}.bin": records.tobytes()})]


def svhn_files(images, labels, split):
  buffer = io.BytesIO()
  digits = np.where(labels == 0, 10, labels)[:, None]
  savemat(buffer, {"X": images.transpose(1, 2, 3, 0), "y": digits}, do_compression=True)
  return [buffer.getvalue()]


PACK = {
  "mnist": mnist_files,
  "fashion_mnist": mnist_files,
  "cifar10": cifar10_files,
  "cifar100": cifar100_files,
  "svhn": svhn_files,
}


def example(name, split, num_examples=30):
  """(contents of its files, images, labels), the arrays in the order of the files."""
  rng = np.random.default_rng(len(name) + len(split))
  shape = (28, 28, 1) if "mnist" in name else (32, 32, 3)
  images = rng.integers(0, 256, (num_examples, *shape), np.uint8)
  labels = rng.integers(0, PUBLISHED[name].num_classes, num_examples).astype(np.uint8)
  labels[0] = 0
  return PACK[name](images, labels, split), images, labels


def jpeg(value, mode="RGB"):
  buffer = io.BytesIO()
  Image.new(mode, (64, 64), value).save(buffer, "JPEG")
  return buffer.getvalue()


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


class Host:
  """A loopback host that stands for those of PUBLISHED."""

  def __init__(self, root, monkeypatch):
    root.mkdir()
    self.root, self.monkeypatch = root, monkeypatch
    handler = functools.partial(Handler, directory=root)
    self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    self.server.daemon_threads = True
    self.server.served, self.server.breaks = [], set()
    self.server.half_sent, self.server.hang_up = threading.Event(), threading.Event()
    self.server.hang_up.set()
    self.address = f"http://127.0.0.1:{self.server.server_port}/"
    self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
    self.thread.start()

  def publish(self, name, contents, split="test", registered=None):
    """Serves a set's files; registers the sums of `registered` for them, or their own."""
    entry = PUBLISHED[name]
    arrays = isinstance(entry, PublishedArrays)
    files = []
    originals = entry.files[split] if arrays else [entry.file]
    for file, content, known in zip(originals, contents, registered or contents, strict=True):
      (self.root / file.name).write_bytes(content)
      sha256 = hashlib.sha256(known).hexdigest()
      files.append(file._replace(url=self.address + file.name, sha256=sha256))
    changed = {"files": entry.files | {split: tuple(files)}} if arrays else {"file": files[0]}
    self.monkeypatch.setitem(PUBLISHED, name, entry._replace(**changed))

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
  folder = Path(places["cache_dir"]) / "downloads"
  return sorted(path.name for path in folder.rglob("*") if path.is_file())


def forget_arrays(places):
  for path in Path(places["cache_dir"]).glob("*.npz"):
    path.unlink()


# Arrays


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ARRAYS)
def test_download_gives_the_published_examples_in_tfds_order(name, split, host, places):
  from tensorflow_datasets.core import hashing

  contents, images, labels = example(name, split)
  host.publish(name, contents, split)
  dataset = datasets.load(name, split, **places)
  order = sorted(range(len(labels)), key=hashing.Hasher(split).hash_key)
  np.testing.assert_array_equal(dataset.images, images[order])
  np.testing.assert_array_equal(dataset.labels, labels[order])
  assert dataset.images.flags.c_contiguous
  assert dataset[2:] == (PUBLISHED[name].num_classes, name, split, ())


def test_tfds_registers_the_same_files_sums_and_versions():
  for name in ARRAYS:
    entry = PUBLISHED[name]
    infos = prepare.url_infos(entry.tfds_name)
    for file in {file for files in entry.files.values() for file in files}:
      assert infos[file.url].checksum == file.sha256, file
    assert str(prepare.import_tfds().builder_cls(entry.tfds_name).VERSION) == entry.version
  imagenette = PUBLISHED["imagenette"].file
  assert prepare.url_infos("imagenette")[imagenette.url].checksum == imagenette.sha256


def test_downloads_stay_and_a_damaged_one_is_fetched_anew(host, places):
  host.publish("mnist", example("mnist", "test")[0])
  marks, served = [], []
  for name, damage in (("mnist", 0), ("mnist:3.0.1", 0), ("mnist", 1)):
    forget_arrays(places)
    for path in (Path(places["cache_dir"]) / "downloads").rglob("*.gz" if damage else "none"):
      content = bytearray(path.read_bytes())
      content[20] ^= 1
      path.write_bytes(content)
    marks.append(datasets.fingerprint(datasets.load(name, "test", **places)))
    served.append(len(host.server.served))
  assert len(set(marks)) == 1
  assert served == [2, 2, 4]


@pytest.mark.parametrize("root", ["data_dir", "cache_dir"])
def test_files_put_there_by_hand_need_no_host(root, host, places):
  (content,), _, labels = example("cifar100", "test")
  host.publish("cifar100", [content])
  own = Path(places[root], *["downloads"] * (root == "cache_dir"), "cifar100")
  own.mkdir(parents=True)
  (own / "cifar-100-binary.tar.gz").write_bytes(content)
  host.close()
  assert len(datasets.load("cifar100", "test", **places).labels) == len(labels)
  assert host.server.served == []


def test_a_file_of_the_users_with_another_sum_is_not_used_and_stays(host, places):
  (content,), _, _ = example("svhn", "test")
  host.publish("svhn", [content])
  own = Path(places["data_dir"], "svhn", "test_32x32.mat")
  own.parent.mkdir()
  own.write_bytes(content[:-1])
  assert len(datasets.load("svhn", "test", **places).labels) == 30
  assert host.server.served == ["test_32x32.mat"]
  assert own.read_bytes() == content[:-1]


def fails_then_works(host, places, message, mend, name="mnist"):
  """Loading says `message` and what to do, in one line, and keeps no file; then it works."""
  with pytest.raises(InputError, match=message) as caught:
    datasets.load(name, "test", **places)
  text = str(caught.value)
  assert text.startswith(f"data.name='{name}'")
  assert f"into {Path(places['cache_dir'], 'downloads', name)}" in text
  assert "\n" not in text
  assert kept(places) == []
  mend()
  assert len(datasets.load(name, "test", **places).labels) == 30


@pytest.mark.parametrize("instead", ["nothing", "one byte"])
def test_a_file_that_is_not_as_published(instead, host, places):
  contents, _, _ = example("mnist", "test")
  others = [content[:20] + bytes([content[20] ^ 1]) + content[21:] for content in contents]
  host.publish("mnist", others, registered=contents)
  if instead == "nothing":
    for path in host.root.iterdir():
      path.unlink()
  words = {"nothing": "HTTP code 404", "one byte": "is not the published one"}[instead]
  fails_then_works(host, places, words, lambda: host.publish("mnist", contents))


def test_broken_transfer(host, places):
  host.publish("cifar10", example("cifar10", "test")[0])
  host.server.breaks |= {"cifar-10-binary.tar.gz"}
  fails_then_works(host, places, "Connection broken", host.server.breaks.clear, "cifar10")


def test_unreachable_host(host, places):
  contents, _, _ = example("mnist", "test")
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  good, host.address = host.address, f"http://127.0.0.1:{port}/"
  host.publish("mnist", contents)
  host.address = good
  mend = functools.partial(host.publish, "mnist", contents)
  fails_then_works(host, places, f"127.0.0.1:{port} cannot be reached", mend)


CHILD = """
from robust_opt.data import datasets, published
known = published.PUBLISHED[NAME]
published.PUBLISHED[NAME] = known._replace(files={"test": (published.File(*FILE),)})
datasets.load(NAME, "test", **PLACES)
"""


def test_killed_in_the_middle_of_a_download(host, places):
  host.publish("cifar10", example("cifar10", "test")[0])
  host.server.breaks |= {"cifar-10-binary.tar.gz"}
  host.server.hang_up.clear()
  (file,) = PUBLISHED["cifar10"].files["test"]
  code = f"NAME, FILE, PLACES = 'cifar10', {tuple(file)!r}, {places!r}\n" + CHILD
  child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
  assert host.server.half_sent.wait(300)
  child.send_signal(signal.SIGKILL)
  child.wait()
  host.server.hang_up.set()
  host.server.breaks.clear()
  assert not any(name.endswith("gz") for name in kept(places))
  assert len(datasets.load("cifar10", "test", **places).labels) == 30
  assert "cifar-10-binary.tar.gz" in kept(places)


def test_other_splits_are_refused_before_any_download(host, places):
  with pytest.raises(InputError, match="'mnist' has no split 'valid': it has train, test"):
    datasets.load("mnist", "valid", **places)
  assert host.server.served == []


# Images


def tiny_imagenet():
  """Two classes, of which one image is gray, and a test folder without labels."""
  contents, rows = {}, []
  for number, name in enumerate(("n02", "n01")):
    for i in range(3):
      mode, value = ("L", 9) if i == 0 else ("RGB", (90 * number, 50 * i, 0))
      contents[f"train/{name}/images/{name}_{i}.JPEG"] = jpeg(value, mode)
    contents[f"train/{name}/{name}_boxes.txt"] = b"boxes"
    contents[f"val/images/val_{number}.JPEG"] = jpeg((200, 200 * number, 0))
    rows.append(f"val_{number}.JPEG\t{name}\t0\t0\t63\t63")
  contents["val/val_annotations.txt"] = "\n".join(rows).encode() + b"\n"
  contents["test/images/test_0.JPEG"] = jpeg((0, 0, 0))
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    for name, content in contents.items():
      archive.writestr(f"tiny-imagenet-200/{name}", content)
  return buffer.getvalue()


def imagenette():
  contents = {}
  for split, count in (("train", 3), ("val", 2)):
    for number, name in enumerate(("n01440764", "n02102040")):
      for i in range(count):
        contents[f"imagenette2-160/{split}/{name}/{i}.JPEG"] = jpeg((90 * number, 0, 0))
  return tar_gz(contents)


def test_tiny_imagenet(host, places):
  host.publish("tiny_imagenet", [tiny_imagenet()])
  train = datasets.load("tiny_imagenet", "train", **places)
  test = datasets.load("tiny_imagenet", "test", **places)
  assert train.images.shape == (6, 64, 64, 3)
  assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
  assert train.classes == test.classes == ("n01", "n02")
  assert test.labels.tolist() == [0, 1]  # val_1 is of n01
  green = test.images[:, 32, 32, 1]
  assert green[0] > 190
  assert green[1] < 10
  assert host.server.served == ["tiny-imagenet-200.zip"]


def test_imagenette_is_resized_and_decoded_when_it_is_read(host, places):
  host.publish("imagenette", [imagenette()])
  split = functools.partial(datasets.load, "imagenette", image_size=8, decode=False, **places)
  train, test = split("train"), split("test")
  assert train.images.shape == (6, 8, 8, 3)
  assert test.labels.tolist() == [0, 0, 1, 1]
  assert train.images[5][0, 0, 0] in range(80, 100)
  shutil.rmtree(Path(places["cache_dir"]) / "downloads")
  host.close()
  assert len(split("test", download=False).labels) == 4  # unpacked before


@pytest.mark.parametrize("line", ["val_0.JPEG n01", ""])
def test_annotations_that_are_none(line, tmp_path):
  (tmp_path / "train" / "n01").mkdir(parents=True)
  (tmp_path / "val").mkdir()
  for path in ("train/n01/a.JPEG", "train/n02/b.JPEG"):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_bytes(jpeg((1, 2, 3)))
  (tmp_path / "val" / "val_annotations.txt").write_text(line)
  with pytest.raises(InputError, match=r"must have lines FILE|same classes in train and val"):
    datasets.load(str(tmp_path), "test")


# The genuine sets


@needs_genuine
def test_genuine_mnist_from_archives_equals_the_prepared_set(host, places):
  prepared = datasets.load("mnist", "test", data_dir=str(GENUINE), cache_dir=places["cache_dir"])
  assert prepared.images.shape == (10_000, 28, 28, 1)
  order = published.tfds_order("test", 10_000)
  images, labels = np.empty_like(prepared.images), np.empty(10_000, np.uint8)
  images[order], labels[order] = prepared.images, prepared.labels
  assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # as in LeCun's file
  host.publish("mnist", mnist_files(images, labels, "test"))
  unpacked = datasets.load("mnist", "test", **places)
  np.testing.assert_array_equal(unpacked.images, prepared.images)
  np.testing.assert_array_equal(unpacked.labels, prepared.labels)
