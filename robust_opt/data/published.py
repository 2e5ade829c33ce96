"""Data sets from the files that their authors publish, without TensorFlow; see `datasets.load`.

|  name           |  published as                                      |
|  mnist          |  IDX files                                         |
|  fashion_mnist  |  IDX files                                         |
|  cifar10        |  the binary version                                |
|  cifar100       |  the binary version; labels are the 100 fine ones  |
|  svhn           |  cropped digits, MATLAB files                      |
|  imagenette     |  images, the shorter side 160 pixels               |
|  tiny_imagenet  |  images of 64x64; the test set is `val`            |

Arrays equal those that TensorFlow Datasets (TFDS) prepares, element by element and in its order.
"""

import functools
import gzip
import hashlib
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from robust_opt.data.downloads import File, fetch, unpack
from robust_opt.data.tfds import Arrays, no_such_split
from robust_opt.errors import InputError, MissingExtraError

Unpack = Callable[[Sequence[Path], str], tuple[np.ndarray, np.ndarray]]  # (files, split) -> x, y


class PublishedArrays(NamedTuple):
  """Files of images of one shape."""

  tfds_name: str
  version: str  # of the TFDS data set that the arrays equal
  num_classes: int
  files: dict[str, tuple[File, ...]]  # split -> its files
  unpack: Unpack


class PublishedImages(NamedTuple):
  """An archive of image files, as `folders.read_folder` reads them."""

  file: File
  folder: str  # in the archive


Published = PublishedArrays | PublishedImages


def _unpack_idx(paths: Sequence[Path], split: str) -> tuple[np.ndarray, np.ndarray]:
  """MNIST's format: a gzip file of images and one of labels, each with a big-endian header."""
  images, labels = (_read_idx(path, rank) for path, rank in zip(paths, (3, 1), strict=True))
  return images[..., None], labels


def _read_idx(path: Path, rank: int) -> np.ndarray:
  content = gzip.decompress(path.read_bytes())
  start = 4 + 4 * rank
  shape = np.frombuffer(content[4:start], ">u4").astype(int)
  return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _unpack_cifar(
  members: dict[str, list[str]], num_labels: int, paths: Sequence[Path], split: str
) -> tuple[np.ndarray, np.ndarray]:
  """CIFAR's binary format: records of a byte for each label, then 3 planes of 32x32.

  Of several labels the last is the finest.
  """
  records = []
  with tarfile.open(paths[0], "r:gz") as archive:
    for name in members[split]:
      member = archive.extractfile(name)
      assert member is not None
      records.append(np.frombuffer(member.read(), np.uint8).reshape(-1, num_labels + 3 * 32 * 32))
  table = np.concatenate(records)
  images = table[:, num_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  return images, table[:, num_labels - 1]


def _unpack_svhn(paths: Sequence[Path], split: str) -> tuple[np.ndarray, np.ndarray]:
  """MATLAB's X [32, 32, 3, N] and y [N, 1], where the digit 0 is 10."""
  from scipy.io import loadmat

  content = loadmat(paths[0], variable_names=("X", "y"))
  return content["X"].transpose(3, 0, 1, 2), content["y"][:, 0] % 10


def _idx_files(host: str, *sums: str) -> dict[str, tuple[File, ...]]:
  """Images and labels to train on, then to test on; `sums` in that order."""
  kinds = ("images-idx3", "labels-idx1")
  names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in kinds]
  files = [File(f"{host}/{name}", sha256) for name, sha256 in zip(names, sums, strict=True)]
  return {"train": tuple(files[:2]), "test": tuple(files[2:])}


_TORONTO = "https://www.cs.toronto.edu/~kriz"
_SVHN = "http://ufldl.stanford.edu/housenumbers"
_CIFAR10_FILE = File(
  f"{_TORONTO}/cifar-10-binary.tar.gz",
  "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
_CIFAR10_MEMBERS = {
  "train": [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)],
  "test": ["cifar-10-batches-bin/test_batch.bin"],
}
_CIFAR100_FILE = File(
  f"{_TORONTO}/cifar-100-binary.tar.gz",
  "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)
_CIFAR100_MEMBERS = {split: [f"cifar-100-binary/{split}.bin"] for split in ("train", "test")}

# The sums are those that TFDS registers; of tiny_imagenet, those of its users.
PUBLISHED: dict[str, Published] = {
  "mnist": PublishedArrays(
    *("mnist", "3.0.1", 10),
    _idx_files(
      "https://storage.googleapis.com/cvdf-datasets/mnist",
      "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
      "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
      "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
      "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    _unpack_idx,
  ),
  "fashion_mnist": PublishedArrays(
    *("fashion_mnist", "3.0.1", 10),
    _idx_files(
      "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
      "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
      "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
      "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
      "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
    _unpack_idx,
  ),
  "cifar10": PublishedArrays(
    *("cifar10", "3.0.2", 10),
    dict.fromkeys(("train", "test"), (_CIFAR10_FILE,)),
    functools.partial(_unpack_cifar, _CIFAR10_MEMBERS, 1),
  ),
  "cifar100": PublishedArrays(
    *("cifar100", "3.0.2", 100),
    dict.fromkeys(("train", "test"), (_CIFAR100_FILE,)),
    functools.partial(_unpack_cifar, _CIFAR100_MEMBERS, 2),
  ),
  "svhn": PublishedArrays(
    *("svhn_cropped", "3.1.0", 10),
    {
      "train": (
        File(
          f"{_SVHN}/train_32x32.mat",
          "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        ),
      ),
      "test": (
        File(
          f"{_SVHN}/test_32x32.mat",
          "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        ),
      ),
    },
    _unpack_svhn,
  ),
  "imagenette": PublishedImages(
    File(
      "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz",
      "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5",
    ),
    "imagenette2-160",
  ),
  "tiny_imagenet": PublishedImages(
    File(
      "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
      "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
    ),
    "tiny-imagenet-200",
  ),
}


def find(name: str) -> Published | None:
  """The data set 'name' or, of arrays, 'name:version' if it is that version."""
  base, _, version = name.partition(":")
  found = PUBLISHED.get(base)
  known = found.version if isinstance(found, PublishedArrays) else ""
  return found if version in ("", known) else None


def name_in_tfds(name: str) -> str:
  """The name, with its version, under which TFDS prepares a data set."""
  base, colon, version = name.partition(":")
  found = PUBLISHED.get(base)
  own = found.tfds_name if isinstance(found, PublishedArrays) else base
  return f"{own}{colon}{version}"


def read_arrays(name: str, split: str, cache: Path, data_dir: Path) -> Arrays:
  """A split of PublishedArrays; downloads what is neither in `data_dir`/NAME nor in `cache`.

  Raises:
    InputError: no such split, or a file that cannot be had intact.
  """
  found = find(name)
  assert isinstance(found, PublishedArrays)
  if split not in found.files:
    raise no_such_split(name, split, found.files)
  with _writable(_downloads(cache, name)) as folder:
    paths = [_fetch(name, file, Path(folder), data_dir) for file in found.files[split]]
    images, labels = found.unpack(paths, split)
  order = tfds_order(split, len(labels))
  return Arrays(images[order], labels[order], found.num_classes)


def image_folder(name: str, cache: Path, data_dir: Path, download: bool) -> Path:
  """The unpacked folder of PublishedImages; downloaded and unpacked if it is not in `cache` yet.

  Raises:
    InputError: the archive cannot be had intact, or not be unpacked.
  """
  found = find(name)
  assert isinstance(found, PublishedImages)
  folder = cache / "images" / found.file.sha256[:16] / found.folder
  if folder.is_dir():
    return folder
  if not download:
    raise InputError(f"data.name={name!r} is not in {cache}, and download is off")
  return unpack(_fetch(name, found.file, _downloads(cache, name), data_dir), folder)


def tfds_order(split: str, num_examples: int) -> list[int]:
  """TFDS's order: example i is number `order[i]` of the archive.

  TFDS sorts the examples by the MD5 of the split's name followed by their number in the archive.
  """

  def rank(number: int) -> bytes:
    return hashlib.md5(f"{split}{number}".encode(), usedforsecurity=False).digest()

  return sorted(range(num_examples), key=rank)


def _downloads(cache: Path, name: str) -> Path:
  return cache / "downloads" / name.partition(":")[0]


def _fetch(name: str, file: File, folder: Path, data_dir: Path) -> Path:
  try:
    return fetch(file, folder, (data_dir / name.partition(":")[0],))
  except MissingExtraError:
    raise
  except InputError as error:
    raise InputError(
      f"data.name={name!r} is not prepared under data.data_dir and cannot be downloaded: {error}"
      "; without a download there are 'digits' and the array_record data sets in data.data_dir"
    ) from error


def _writable(folder: Path) -> AbstractContextManager[str]:
  """`folder`, created if needed, or a temporary one if it is not writable."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    return nullcontext(str(folder))
  except OSError as error:
    logging.warning("Downloads are not kept: %s cannot be written (%s).", folder, error)
    return tempfile.TemporaryDirectory()
