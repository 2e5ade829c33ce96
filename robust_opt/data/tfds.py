"""Data sets of TensorFlow Datasets (TFDS) as arrays, without TensorFlow; see `datasets.load`.

TFDS reads a prepared data set without TensorFlow but needs it to prepare one; `published` has those
that need neither.
"""

import importlib.util
import re
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from robust_opt import extras
from robust_opt.errors import InputError

_CHUNK = 5_000  # records that TFDS decodes in one call
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_TIMEOUT_S = 5.0  # to check whether a host responds; TFDS itself retries for 200 s
_UNAVAILABLE = (500, 502, 503, 504)  # codes on which TFDS retries for as long


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


def with_tensorflow(name: str, root: Path, others: Iterable[str] = ()) -> Path:
  """Prepares a data set by TFDS under `root` as array_record, which needs TensorFlow.

  `others` are names besides TFDS's that an unknown name may be a slip of.

  Raises:
    InputError: an unknown name, TensorFlow is missing, no network, or the builder fails.
  """
  tfds = import_tfds()
  _check_known(name, [*others, *tfds.list_builders(with_community_datasets=False)])
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

  Case and punctuation do not count, and a name may be shortened: stanford for stanford_dogs.
  """
  plain = {each: re.sub(r"[\W_]", "", each).lower() for each in (name, *known)}
  own = plain.pop(name)
  near = [each for each, other in plain.items() if other == own]
  near = near or sorted((each for each in plain if plain[each].startswith(own)), key=len)
  close = get_close_matches(own, plain.values(), n=3)
  near = near or [each for other in close for each in plain if plain[each] == other]
  return f"did you mean {' or '.join(near[:3])}?" if near else ""


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
