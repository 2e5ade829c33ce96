"""Data sets of TensorFlow Datasets (TFDS) as arrays, without TensorFlow; see `datasets.load`.

TFDS reads a prepared data set without TensorFlow but needs it to prepare one. `from_archives` never
needs it: URLs and checksums are TFDS's, the standard library unpacks, and the arrays equal those
that TFDS prepares, element by element.
"""

import gzip
import hashlib
import importlib.util
import os
import re
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from absl import logging

from robust_opt import extras
from robust_opt.errors import InputError

_CHUNK = 5_000  # records that TFDS decodes in one call
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_TIMEOUT_S = 5.0  # to check whether a host responds; TFDS itself retries for 200 s
_UNAVAILABLE = (500, 502, 503, 504)  # codes on which TFDS retries for as long
_DAMAGED = (OSError, EOFError, KeyError, ValueError, zlib.error, tarfile.TarError)


class Arrays(NamedTuple):
  """One split: images uint8 [N, H, W, C], labels integer [N], the number of classes."""

  images: np.ndarray
  labels: np.ndarray
  num_classes: int


def prepared_folder(root: Path, name: str) -> Path | None:
  """The folder root/name/version of a prepared data set; by default the newest version."""
  base, _, version = name.partition(":")
  versions = [folder for folder in _finished(root / base, "*") if version in ("", folder.name)]
  if versions:
    return max(versions, key=lambda folder: [int(number) for number in folder.name.split(".")])
  configs = {f"{base}/{folder.parent.name}" for folder in _finished(root / base, "*/*")}
  if configs:
    names = " or ".join(map(repr, sorted(configs)))
    raise InputError(f"data.name={name!r} names no configuration: allowed is {names}")
  return None


def _finished(folder: Path, pattern: str) -> list[Path]:
  """The folders of finished preparations, each named by its version."""
  folders = [file.parent for file in folder.glob(f"{pattern}/dataset_info.json")]
  return [folder for folder in folders if _VERSION.fullmatch(folder.name)]


def read_prepared(folder: Path, name: str, split: str) -> Arrays:
  """Reads a split of a prepared data set, in the order of its files; an InputError if it cannot."""
  where = f"data.name={name!r} in {str(folder)!r}"
  try:
    builder = import_tfds().builder_from_directory(folder)
    if split not in builder.info.splits:
      raise no_such_split(name, split, builder.info.splits)
    image_key, label_key = _feature_keys(builder.info, name)
    images, labels = _stack(builder.as_data_source(split=split), image_key, label_key, where)
    return Arrays(images, labels, builder.info.features[label_key].num_classes)
  except InputError:
    raise
  except NotImplementedError as error:
    raise InputError(
      f"{where} is prepared in a format that needs TensorFlow to be read: allowed is a "
      "data.data_dir that holds the set as array_record, or does not hold it"
    ) from error
  except Exception as error:  # of TFDS, array_record and protobuf: RuntimeError, ParseError, ...
    raise InputError(f"{where} cannot be read: {first_line(error)}") from error


def _feature_keys(info: Any, name: str) -> tuple[str, str]:
  """The names of the image and label features."""
  kinds = import_tfds().features
  features = dict(info.features.items())
  candidates: list[tuple[Any, ...]] = [("image", "label"), info.supervised_keys or ()]
  for keys in candidates:
    pair = [features.get(key) for key in keys if isinstance(key, str)]
    if [type(feature) for feature in pair] == [kinds.Image, kinds.ClassLabel]:
      return keys[0], keys[1]
  raise InputError(
    f"data.name={name!r} is not an image-classification data set: it has {', '.join(features)}, "
    "and one Image and one ClassLabel are needed"
  )


def _stack(source: Any, image_key: str, label_key: str, where: str) -> list[np.ndarray]:
  """All records as one array of images and one of labels; in chunks, for speed."""
  records: list[Any] = []
  for start in range(0, len(source), _CHUNK):
    chunk = source.__getitems__(range(start, min(start + _CHUNK, len(source))))
    records += [(record[image_key], record[label_key]) for record in chunk]
    shapes = sorted({image.shape for image, _ in [records[0], *records[start:]]})
    if len(shapes) > 1:
      raise InputError(
        f"{where} has images of different shapes, {list(shapes[0])} and {list(shapes[1])} among "
        "them: allowed are data sets whose images have one shape"
      )
  return [np.stack(column) for column in zip(*records)]


def _unpack_idx(paths: list[Path], split: str) -> tuple[np.ndarray, np.ndarray]:
  """MNIST's format: a gzip file of images and one of labels, each with a big-endian header."""
  images, labels = (_read_idx(path, rank) for path, rank in zip(paths, (3, 1), strict=True))
  return images[..., None], labels


def _read_idx(path: Path, rank: int) -> np.ndarray:
  content = gzip.decompress(path.read_bytes())
  start = 4 + 4 * rank
  if content[:4] != bytes([0, 0, 8, rank]):  # 8 stands for unsigned bytes
    raise ValueError(f"the header {content[:4]!r} is not IDX of rank {rank}")
  shape = np.frombuffer(content[4:start], ">u4").astype(int)
  return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _unpack_cifar10(paths: list[Path], split: str) -> tuple[np.ndarray, np.ndarray]:
  """CIFAR-10's binary format: records of one byte for the label, then 3 planes of 32 x 32."""
  numbers = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
  records = []
  with tarfile.open(paths[0], "r:gz") as archive:
    for number in numbers:
      member = archive.extractfile(f"cifar-10-batches-bin/{number}.bin")
      if member is None:
        raise ValueError(f"{number}.bin is not a file")
      records.append(np.frombuffer(member.read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32))
  table = np.concatenate(records)
  return table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), table[:, 0]


class Archive(NamedTuple):
  """The files that the authors of a data set publish."""

  version: str  # of the TFDS data set that the arrays equal
  num_classes: int
  files: dict[str, list[str]]  # split -> names of its files, the last part of their URLs
  unpack: Callable[[list[Path], str], tuple[np.ndarray, np.ndarray]]  # (files, split) -> x, y


_MNIST_FILES = {
  "train": ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"],
  "test": ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"],
}
_CIFAR10_FILES = {split: ["cifar-10-binary.tar.gz"] for split in ("train", "test")}
ARCHIVES = {
  "mnist": Archive("3.0.1", 10, _MNIST_FILES, _unpack_idx),
  "fashion_mnist": Archive("3.0.1", 10, _MNIST_FILES, _unpack_idx),
  "cifar10": Archive("3.0.2", 10, _CIFAR10_FILES, _unpack_cifar10),
}


def find_archive(name: str) -> Archive | None:
  """The archive of 'name' or 'name:version', if there is one of that version."""
  base, _, version = name.partition(":")
  archive = ARCHIVES.get(base)
  return archive if archive and version in ("", archive.version) else None


def from_archives(name: str, split: str, downloads: Path) -> Arrays:
  """Downloads one of ARCHIVES, unless its files are intact in `downloads`, and unpacks a split.

  Raises:
    InputError: no such split, no network, no such file, a wrong checksum, a damaged archive.
  """
  archive = find_archive(name)
  assert archive is not None
  if split not in archive.files:
    raise no_such_split(name, split, archive.files)
  with _writable(downloads) as folder:
    paths = [_fetch(name, filename, Path(folder)) for filename in archive.files[split]]
    try:
      images, labels = archive.unpack(paths, split)
    except _DAMAGED as error:
      raise _undownloadable(name, f"{paths[0].name} cannot be unpacked ({error})") from error
  if len(images) != len(labels):
    raise _undownloadable(name, f"{len(images)} images came with {len(labels)} labels")
  order = tfds_order(split, len(labels))
  return Arrays(images[order], labels[order], archive.num_classes)


def tfds_order(split: str, num_examples: int) -> list[int]:
  """TFDS's order: example i is number `order[i]` of the archive.

  TFDS sorts the examples by the MD5 of the split's name followed by their number in the archive.
  """

  def rank(number: int) -> bytes:
    return hashlib.md5(f"{split}{number}".encode(), usedforsecurity=False).digest()

  return sorted(range(num_examples), key=rank)


def with_tensorflow(name: str, root: Path) -> Path:
  """Prepares a data set by TFDS under `root` as array_record, which needs TensorFlow.

  Raises:
    InputError: an unknown name, TensorFlow is missing, no network, or the builder fails.
  """
  tfds = import_tfds()
  _check_known(name, tfds.list_builders(with_community_datasets=False))
  where = f"under data.data_dir={str(root)!r}"
  if importlib.util.find_spec("tensorflow") is None:
    raise InputError(
      f"data.name={name!r} is not prepared {where} and preparing it needs TensorFlow: "
      f"{extras.command('prepare')}, or set data.data_dir to a folder that holds it as array_record"
    )
  for url in list(url_infos(name))[:1]:
    _check_reachable(name, url)
  try:
    builder = tfds.builder(name, data_dir=root, file_format="array_record")
    builder.download_and_prepare()
  except Exception as error:  # builders raise various exceptions; the user needs to see all of them
    raise InputError(
      f"data.name={name!r} cannot be prepared by TensorFlow Datasets {where}: {first_line(error)}"
    ) from error
  folder = prepared_folder(root, name)
  if folder is None:
    raise InputError(f"data.name={name!r} was prepared, but is not {where}")
  return folder


def import_tfds() -> Any:
  """The package tensorflow_datasets, imported lazily, because that takes a second or more."""
  extras.require("data", "tensorflow_datasets", "array_record", "importlib_resources", "PIL")
  with warnings.catch_warnings():  # deprecations in its dependencies
    warnings.simplefilter("ignore")
    import tensorflow_datasets as tfds
  return tfds


def url_infos(name: str) -> dict[str, Any]:
  """The files that TFDS downloads: URL -> tfds UrlInfo(size, checksum, filename)."""
  return import_tfds().builder_cls(_base(name)).url_infos or {}


def first_line(error: BaseException) -> str:
  """The first line of an error message."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def no_such_split(name: str, split: str, splits: Any) -> InputError:
  """The error for an unknown split."""
  return InputError(f"data.name={name!r} has no split {split!r}: it has {', '.join(splits)}")


def _base(name: str) -> str:
  """'emnist' of 'emnist/letters:3.1.0'."""
  return re.split("[:/]", name)[0]


def _check_known(name: str, known: list[str]) -> None:
  if _base(name) in known:
    return
  hint = did_you_mean(_base(name), [*known, "digits"]) or "is it spelled as in TFDS's catalog?"
  raise InputError(
    f"data.name={name!r} is neither 'digits' nor prepared under data.data_dir nor known to "
    f"TensorFlow Datasets: {hint}"
  )


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """A question with the closest names, up to three; empty if there is none.

  Case and punctuation do not count, and a name may be shortened: svhn for svhn_cropped.
  """
  plain = {each: re.sub(r"[\W_]", "", each).lower() for each in (name, *known)}
  own = plain.pop(name)
  near = [each for each, other in plain.items() if other == own]
  near = near or sorted((each for each in plain if plain[each].startswith(own)), key=len)
  close = get_close_matches(own, plain.values(), n=3)
  near = near or [each for other in close for each in plain if plain[each] == other]
  return f"did you mean {' or '.join(near[:3])}?" if near else ""


def _fetch(name: str, filename: str, folder: Path) -> Path:
  """The intact file `filename` of a data set in `folder`; downloaded if it is missing."""
  registered = {url.rpartition("/")[2]: (url, info) for url, info in url_infos(name).items()}
  if filename not in registered:
    raise _undownloadable(name, f"the installed TFDS registers no file {filename!r}")
  url, info = registered[filename]
  path = folder / f"{info.checksum[:16]}-{filename}"
  if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != info.checksum:
    _check_reachable(name, url)
    _download(name, url, info, path)
  return path


def _download(name: str, url: str, info: Any, path: Path) -> None:
  """Downloads `url` to `path`, which appears once the file is complete and verified."""
  download = import_tfds().download
  try:
    # An interrupted download stays in a folder that nothing reads.
    with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as incoming:
      manager = download.DownloadManager(
        download_dir=incoming, url_infos={url: info}, force_checksums_validation=True
      )
      os.replace(manager.download(url), path)
  except download.download_manager.NonMatchingChecksumError as error:
    why = f"the content of {url} differs from the checksum registered by TFDS"
    raise _undownloadable(name, why) from error
  except (download.DownloadError, OSError) as error:  # OSError: requests' errors, a full disk
    raise _undownloadable(name, first_line(error).rstrip(":. ")) from error


def _check_reachable(name: str, url: str) -> None:
  """Raises InputError unless the host of `url` responds within seconds (proxies are used)."""
  extras.require("data", "requests")
  import requests

  host = urlsplit(url).netloc
  try:
    answer = requests.head(url, timeout=_TIMEOUT_S, allow_redirects=True)
  except requests.RequestException as error:
    raise _undownloadable(name, f"{host} cannot be reached ({type(error).__name__})") from error
  if answer.status_code in _UNAVAILABLE:
    raise _undownloadable(name, f"{host} answers with HTTP code {answer.status_code}")


def _undownloadable(name: str, why: str) -> InputError:
  return InputError(
    f"data.name={name!r} is not prepared under data.data_dir and cannot be downloaded: {why}"
    "; without a download there are 'digits' and the array_record data sets in data.data_dir"
  )


def _writable(folder: Path) -> AbstractContextManager[str]:
  """`folder`, created if needed, or a temporary one if it is not writable."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    return nullcontext(str(folder))
  except OSError as error:
    logging.warning("Downloads are not kept: %s cannot be written (%s).", folder, error)
    return tempfile.TemporaryDirectory()
