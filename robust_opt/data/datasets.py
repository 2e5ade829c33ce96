"""Image-classification data sets as NumPy arrays on the host.

  train = load("mnist", "train")           # images uint8 [60000, 28, 28, 1], labels int32 [60000]
  train, valid = holdout(train, 0.1, seed=0)

Four sources: 'digits', which scikit-learn bundles; files that the authors of a data set publish
(`published`); image-classification data sets of TensorFlow Datasets (TFDS), read without
TensorFlow; and the user's own, by `from_arrays`. What was read from files is cached as one array,
which is checked against a hash on every read.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from absl import logging

from robust_opt import extras, layout
from robust_opt.data import archives, folders, huggingface, published, tfds
from robust_opt.data.folders import ImageFiles, read_folder
from robust_opt.data.published import PublishedArrays, PublishedImages
from robust_opt.data.sampling import random_order, stratified
from robust_opt.errors import InputError, WriteError
from robust_opt.files import read_sealed, write_sealed
from robust_opt.layout import ChannelAxis

_DIGITS_TEST = 360  # of 1,797 scans; 1,437 are left to train on
_DIGITS_SEED = 0
_NAME = re.compile(r"[A-Za-z]\w*(/\w[\w.\-]*)?(:\d+\.\d+\.\d+)?")


class Examples(NamedTuple):
  """Images and labels to evaluate on, in the layout of their maker."""

  x: np.ndarray  # [N, *S], floating point as stored; float32 in [0, 1] if they were integers
  y: np.ndarray  # [N], integers
  classes: tuple[str, ...]  # of a folder, their names


class Dataset(NamedTuple):
  """One split of an image-classification data set."""

  # [N, H, W, C], uint8 in [0, 255], or float32 in [0, 1] if made from floats. From
  # load(decode=False) the ImageFiles of a folder, which are used like an array.
  images: np.ndarray
  labels: np.ndarray  # [N], int32 in [0, num_classes); -1 where `few_labels` removed it
  num_classes: int
  name: str
  split: str
  classes: tuple[str, ...] = ()  # their names, if they have any

  @property
  def class_names(self) -> tuple[str, ...]:
    """The names of the classes; their numbers where they have none."""
    return self.classes or tuple(map(str, range(self.num_classes)))


def load(
  name: str,
  split: str,
  *,
  data_dir: str | None = None,
  cache_dir: str | None = None,
  download: bool = True,
  image_size: int = 0,
  decode: bool = True,
) -> Dataset:
  """Loads one split of a data set by name, in TFDS's order.

  The first of: bundled ('digits'); an .npz file; the cache; prepared under `data_dir` as
  array_record; what its authors publish (`published.PUBLISHED`), downloaded and checked against
  SHA-256 sums; a folder of images; TFDS's own preparation, if TensorFlow is installed.

  Args:
    name: 'digits'; a name in `published`; the name in TFDS: 'mnist', 'emnist/letters',
      'cifar10:3.0.2'; an .npz file (`archives.read_arrays`); a folder of class folders of images
      (`folders.read_folder`), or one that Hugging Face `datasets` saved (`huggingface.read_saved`).
    split: 'train', 'test', or another split of the data set.
    data_dir: folder of prepared TFDS data sets (data_dir/name/version/...), or of published files
      (data_dir/name/file); None is TFDS's default, $TFDS_DATA_DIR or ~/tensorflow_datasets.
    cache_dir: folder for the cache and the downloads; None is $XDG_CACHE_HOME/robust_opt or
      ~/.cache/robust_opt. If it is not writable, there is a warning and no cache.
    download: whether a data set that is not on this machine may be downloaded.
    image_size: of a folder of images, or published images: the height and width to resize them to;
      0: as they are.
    decode: whether to read the images of a folder now, or when they are indexed.

  Raises:
    InputError: an unknown name or split, or a data set that is missing and cannot be downloaded, is
      damaged, needs TensorFlow, or is not one of images of one shape and labels.
    MissingExtraError: the extra `data` (or `run`, for the digits) is not installed.
  """
  own, source = Path(name).expanduser(), published.find(name)
  if image_size and not (own.is_dir() or isinstance(source, PublishedImages)):
    raise InputError(
      f"data.image_size={image_size} has no effect on data.name={name!r}: only the images of a "
      "folder are resized"
    )
  if name == "digits":
    return _digits(split)
  if archives.is_archive(name):
    return _of_archive(name, split)
  if not _NAME.fullmatch(name) and not own.is_dir():
    hint = tfds.did_you_mean(name, ("digits", *published.PUBLISHED))
    raise InputError(
      f"data.name={name!r} is not the name of a data set: allowed are 'digits', a folder of class "
      "folders of images, and TensorFlow Datasets' name, name/config or name:1.2.3"
      f"{hint and f'; {hint}'}"
    )
  root, kept = _data_root(data_dir), cache_root(cache_dir)
  if isinstance(source, PublishedImages):
    own = published.image_folder(name, kept, root, download)
    return _of_folder(own, name, split, image_size, decode)
  prepared = (
    tfds.prepared_folder(root, published.name_in_tfds(name)) if _NAME.fullmatch(name) else None
  )
  if prepared is None and source is None and own.is_dir():
    return _of_folder(own, name, split, image_size, decode)
  if prepared is None and source is None and download:
    prepared = tfds.with_tensorflow(name, root, published.PUBLISHED)
  path = _cache_path(kept, name, split, prepared or source)
  cached = _read_cache(path, name, split)
  if cached is not None:
    return cached
  if prepared is not None:
    arrays = tfds.read_prepared(prepared, name, split)
  elif download:
    arrays = published.read_arrays(name, split, kept, root)
  else:
    raise InputError(
      f"data.name={name!r} is not prepared under data.data_dir={str(root)!r}, and download "
      "is off: allowed are 'digits' and the data sets in that folder"
    )
  dataset = from_arrays(*arrays, name=name, split=split, channel_axis=-1)
  _write_cache(path, dataset)
  return dataset


def _of_folder(root: Path, name: str, split: str, image_size: int, decode: bool) -> Dataset:
  """A split of a folder of images, or of one that Hugging Face `datasets` saved."""
  if huggingface.is_saved(root):
    pictures, labels, classes = huggingface.read_saved(root, split, image_size)
    return Dataset(pictures, labels, len(classes), name, split, classes)
  files, labels, classes = read_folder(root, split, image_size)
  images = np.asarray(files) if decode else cast(np.ndarray, files)
  return Dataset(images, labels, len(classes), name, split, classes)


def _of_archive(name: str, split: str) -> Dataset:
  """A split of an .npz file; a fifth of every class is the test set if the file has none."""
  if "test" in archives.splits_of(name):
    num_classes = from_arrays(*archives.read_arrays(name, "train"), name=name).num_classes
    return from_arrays(*archives.read_arrays(name, split), num_classes, name, split)
  whole = from_arrays(*archives.read_arrays(name, "train"), name=name)
  count = len(whole.labels)
  is_test = stratified(whole.labels, round(folders.TEST_FRACTION * count), folders.SEED)
  return _select(whole, is_test if split == "test" else ~is_test, split)


def from_arrays(
  images: Any,
  labels: Any,
  num_classes: int | None = None,
  name: str = "arrays",
  split: str = "train",
  channel_axis: ChannelAxis = layout.AUTO,
) -> Dataset:
  """A data set from arrays, which are checked, with the channels last.

  Args:
    images: [N, H, W, C], [N, C, H, W], or [N, H, W] for one channel; integers in [0, 255], which
      become uint8, or floats in [0, 1], which become float32.
    labels: [N] or [N, 1], integers in [0, num_classes), of any type; or one-hot [N, num_classes].
    num_classes: None takes the largest label + 1.
    name, split: those of the data set.
    channel_axis: of one image, 0 for [C, H, W]; see `robust_opt.layout.resolve`.

  Raises:
    InputError: another rank or type, no example, values outside their range or not finite,
      different numbers of images and labels.
  """
  array, y = _as_array("images", images), _class_indices(_as_array("labels", labels))
  axis = None if array.ndim == 3 else layout.resolve(channel_axis, array.shape[1:])
  x = layout.to_last(array, axis)
  if x.ndim != 4 or x.size == 0:
    raise InputError(
      f"images has shape {list(array.shape)}: allowed is [N, H, W, C], [N, C, H, W] or [N, H, W] "
      "with at least one image and one pixel"
    )
  if y.shape != x.shape[:1]:
    raise InputError(f"labels has shape {list(y.shape)}: allowed is [{len(x)}], one for each image")
  return Dataset(_checked_pixels(x), *_checked_labels(y, num_classes), name, split)


def read_examples(
  name: str, image_size: int = 0, data_dir: str | None = None, cache_dir: str | None = None
) -> Examples:
  """Images and labels to evaluate on: those to test by, of data that has such, or all of them.

  Integer images of files are taken as pixels in [0, 255], which is logged. Floating-point images
  are left as they are, in whatever units and layout.

  Args:
    name: files as for `archives.read_arrays`, a folder of class folders of images, or a name as for
      `load`.
    image_size, data_dir, cache_dir: as for `load`.

  Raises:
    InputError: it cannot be read, integer images leave [0, 255], or labels have no integers.
  """
  root = Path(name).expanduser()
  if root.is_dir():
    read = huggingface.read_saved if huggingface.is_saved(root) else read_folder
    files, labels, classes = read(root, "", image_size)
    return Examples(np.asarray(files) / np.float32(255), labels, classes)
  if not archives.is_archive(name):
    test = load(name, "test", data_dir=data_dir, cache_dir=cache_dir, image_size=image_size)
    scale = np.float32(255 if test.images.dtype == np.uint8 else 1)
    return Examples(test.images / scale, test.labels, test.classes)
  if image_size:
    raise InputError(f"data.image_size={image_size} has no effect: only a folder is resized")
  images, labels = archives.read_arrays(name)
  y = _class_indices(_as_array("labels", labels))
  if np.issubdtype(images.dtype, np.floating):
    return Examples(np.asarray(images), y, ())
  x = _checked_pixels(images)
  if x.dtype == np.uint8:
    logging.warning("%s: images of %s are taken as pixels from 0 to 255.", name, images.dtype)
    x = x / np.float32(255)
  return Examples(x, y, ())


def holdout(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
  """Holds out a random round(fraction N) of N examples, by the seed, the same on every machine.

  Returns (rest, held out), both in the order of `dataset`. The second split is named 'holdout'.

  Raises:
    InputError: fraction or seed outside their range, or a positive fraction that leaves one of
      the two parts empty.
  """
  if not 0 <= fraction < 1:
    raise InputError(f"fraction={fraction!r} is not allowed: a number in [0, 1) is")
  num_examples = len(dataset.labels)
  count = round(fraction * num_examples)
  if fraction > 0 and not 0 < count < num_examples:
    raise InputError(
      f"fraction={fraction!r} of {num_examples} examples holds out {count}: allowed are 0 and "
      "fractions that leave at least one example on either side"
    )
  held = np.zeros(num_examples, bool)
  held[random_order(num_examples, seed)[:count]] = True
  return _select(dataset, ~held, dataset.split), _select(dataset, held, "holdout")


def few_labels(dataset: Dataset, count: int, seed: int, keep_others: bool) -> Dataset:
  """The same data set with only `count` labels, equally many of every class, chosen by the seed.

  With `keep_others` the other examples stay, with the label -1. The labeled ones are then repeated
  until they are at least a quarter: one batch of 64 in 10^8 then has none.

  Raises:
    InputError: count is not a multiple of the classes, or a class has too few examples.
  """
  each, rest = divmod(count, dataset.num_classes)
  rarest = int(np.bincount(dataset.labels, minlength=dataset.num_classes).min())
  if each < 1 or rest or each > rarest:
    raise InputError(
      f"labels={count} is not allowed: a multiple of the {dataset.num_classes} classes is, up to "
      f"{rarest} of each"
    )
  order = random_order(len(dataset.labels), seed)
  has_label = np.zeros(len(order), bool)
  for label in range(dataset.num_classes):
    has_label[order[dataset.labels[order] == label][:each]] = True
  labeled = _select(dataset, has_label, dataset.split)
  if not keep_others:
    return labeled
  others = dataset.images[~has_label]
  times = max(1, -(-len(others) // (3 * count)))
  unknown = np.full(len(others), -1, np.int32)
  return dataset._replace(
    images=np.concatenate([np.tile(labeled.images, (times, 1, 1, 1)), others]),
    labels=np.concatenate([np.tile(labeled.labels, times), unknown]),
  )


def fingerprint(dataset: Dataset) -> str:
  """SHA-256, in hex, of the images and the labels: their types, shapes and values."""
  digest = hashlib.sha256()
  images = dataset.images
  if isinstance(images, ImageFiles):
    images = np.frombuffer(images.sha256().encode(), np.uint8)
  for array in (images, dataset.labels):
    digest.update(f"{array.dtype.name} {array.shape} ".encode())
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    digest.update(np.ascontiguousarray(little).data)
  return digest.hexdigest()


def fingerprints(
  name: str, data_dir: str | None = None, cache_dir: str | None = None
) -> dict[str, str]:
  """`fingerprint` of the train and test splits, by name; arguments as in `load`."""
  return {
    split: fingerprint(load(name, split, data_dir=data_dir, cache_dir=cache_dir))
    for split in ("train", "test")
  }


def _as_array(argument: str, value: Any) -> np.ndarray:
  try:
    return np.asarray(value)
  except (TypeError, ValueError) as error:
    raise InputError(f"{argument} is not an array of numbers ({tfds.first_line(error)})") from error


def _checked_pixels(images: np.ndarray) -> np.ndarray:
  if images.dtype == np.uint8:
    return np.ascontiguousarray(images)
  allowed = "allowed are integers in [0, 255] or floats in [0, 1]"
  integers = np.issubdtype(images.dtype, np.integer)
  if not integers and not np.issubdtype(images.dtype, np.floating):
    raise InputError(f"images has type {images.dtype}: {allowed}")
  low, high = images.min(), images.max()  # NaN if any pixel is
  if integers and 0 <= low <= high <= 255:
    return np.ascontiguousarray(images, np.uint8)
  if not (low >= 0 and high <= 1):
    raise InputError(f"images has pixels from {low} to {high}: {allowed}")
  return np.ascontiguousarray(images, np.float32)


def _class_indices(labels: np.ndarray) -> np.ndarray:
  """Labels [N] of one-hot ones, of a column, or of integers stored as floats."""
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if labels.ndim == 2 and np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all():
    return labels.argmax(axis=1)
  if np.issubdtype(labels.dtype, np.floating) and labels.ndim == 1:
    if not (labels == np.rint(labels)).all():
      raise InputError(f"labels has type {labels.dtype} and is not made of integers")
    return labels.astype(np.int64)
  return labels


def _checked_labels(labels: np.ndarray, num_classes: int | None) -> tuple[np.ndarray, int]:
  if not np.issubdtype(labels.dtype, np.integer):
    raise InputError(f"labels has type {labels.dtype}: allowed are integers")
  low, high = int(labels.min()), int(labels.max())
  count = high + 1 if num_classes is None else num_classes
  if not 0 <= low <= high < count:
    raise InputError(f"labels go from {low} to {high}: allowed is [0, {count}), the classes")
  return np.ascontiguousarray(labels, np.int32), int(count)


def _select(dataset: Dataset, which: np.ndarray, split: str) -> Dataset:
  return dataset._replace(images=dataset.images[which], labels=dataset.labels[which], split=split)


def _digits(split: str) -> Dataset:
  """scikit-learn's digits: 1,437 to train and 360 to test, images uint8 [N, 8, 8, 1].

  The split is fixed and stratified: the scans of each class are shuffled, and the test split takes
  the same fraction of every class, to within one scan. Both splits keep scikit-learn's order.
  """
  if split not in ("train", "test"):
    raise tfds.no_such_split("digits", split, ("train", "test"))
  extras.require("run", "sklearn")
  from sklearn.datasets import load_digits

  scans = load_digits()
  is_test = stratified(scans.target, _DIGITS_TEST, _DIGITS_SEED)
  images = np.round(scans.images * (255 / 16)).astype(np.uint8)
  members = is_test if split == "test" else ~is_test
  return from_arrays(images[members], scans.target[members], 10, "digits", split)


def _data_root(data_dir: str | None) -> Path:
  """The folder of prepared data sets; TFDS's default without importing it."""
  if not data_dir:
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
  root = Path(data_dir).expanduser()
  if not root.is_dir():
    raise InputError(f"data.data_dir={data_dir!r} is not a folder, with prepared sets or empty")
  return root


def cache_root(cache_dir: str | None = None) -> Path:
  """The folder of what is kept between runs, as in `load`."""
  default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "robust_opt")
  return Path(cache_dir or default).expanduser()


def _cache_path(root: Path, name: str, split: str, source: Path | PublishedArrays | None) -> Path:
  """The cache file of a split, as published or from a prepared folder in its current state."""
  version: Any = None
  if isinstance(source, Path):
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in source.iterdir())
    version = [str(source.resolve()), files]
  elif source is not None:
    version = source.version
  key = hashlib.sha256(json.dumps([name, split, version]).encode()).hexdigest()
  readable = re.sub(r"[^\w.\-]", "_", f"{name}-{split}")[:80]
  return root / f"{readable}-{key[:16]}.npz"


def _read_cache(path: Path, name: str, split: str) -> Dataset | None:
  """The cached split, or None if there is none or it is damaged."""
  if not path.exists():
    return None
  try:
    with read_sealed(path, "cache of a data set") as arrays:
      return Dataset(arrays["images"], arrays["labels"], int(arrays["num_classes"]), name, split)
  except InputError as error:
    logging.warning("%s It will be rebuilt.", error)
    return None


def _write_cache(path: Path, dataset: Dataset) -> None:
  arrays = {name: getattr(dataset, name) for name in ("images", "labels", "num_classes")}
  try:
    write_sealed(path, arrays, compressed=False)  # for speed
  except WriteError as error:
    logging.warning("The cache cannot be written and is not used: %s", error)
