"""Image-classification data sets that Hugging Face `datasets` has saved to disk.

  images, labels, classes = read_saved(Path("beans"), "train", image_size=32)

The folder is that of `save_to_disk`, of a DatasetDict with `train` and `test` (or `validation`), or
of one Dataset, of which a fifth of every class is the test set. Columns are found by their types:
the one of images, and the one of class labels or else of integers.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from robust_opt import extras
from robust_opt.data import folders
from robust_opt.data.sampling import stratified
from robust_opt.errors import InputError

_TEST_NAMES = ("test", "validation", "valid", "val")


def is_saved(root: Path) -> bool:
  """Whether a folder is one of `save_to_disk`."""
  names = ("dataset_dict.json", "dataset_info.json")
  return any((root / name).is_file() for name in names)


def read_saved(
  root: Path, split: str, image_size: int = 0
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
  """Reads and decodes a split, all of it into memory.

  Args:
    root: the folder.
    split: "train" or "test"; empty: the test set if there is one, otherwise all images.
    image_size: as for `folders.read_folder`.

  Returns:
    Images uint8 [N, H, W, C], labels int32 [N], and the names of the classes.

  Raises:
    InputError: no such split or columns, images of several sizes without `image_size`, an image
      that cannot be read, or examples without a label.
    MissingExtraError: `datasets` or Pillow is not installed.
  """
  extras.require("recipes", "datasets")
  extras.require("data", "PIL")
  import datasets

  if split not in ("train", "test", ""):
    raise InputError(f"data.name={str(root)!r} has no split {split!r}: it has train, test")
  try:
    saved = datasets.load_from_disk(str(root))
  except Exception as error:  # of Arrow, of JSON or of the file system
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise InputError(
      f"data.name={str(root)!r} cannot be read as a saved data set ({reason})"
    ) from error
  parts = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
  test = next((name for name in _TEST_NAMES if name in parts), None)
  if not (test or "train" in parts) or (split == "train" and "train" not in parts):
    raise InputError(
      f"data.name={str(root)!r} must have a split train or one of {', '.join(_TEST_NAMES)}, but "
      f"has {', '.join(parts) or 'none'}"
    )
  image, label = _columns(root, next(iter(parts.values())).features)
  used = {name: parts[name] for name in ("train", test) if name and name in parts}
  undecoded = {
    name: part.cast_column(image, datasets.Image(decode=False)) for name, part in used.items()
  }
  cells = [row[image] for part in undecoded.values() for row in part.select_columns([image])]
  shape = folders.common_shape(root, map(_source, cells), image_size)
  part = undecoded["train" if split == "train" or test is None else test]
  labels = np.asarray(part.with_format("numpy")[label][:])
  members = np.arange(len(labels))
  if test is None and split:
    is_test = stratified(labels, round(folders.TEST_FRACTION * len(labels)), folders.SEED)
    members = np.flatnonzero(is_test if split == "test" else ~is_test)
  rows = part.select(members).select_columns([image])
  images = np.stack([folders.decode(_source(row[image]), shape) for row in rows])
  return images, labels[members].astype(np.int32), _classes(root, used, label)


def _columns(root: Path, features: Any) -> tuple[str, str]:
  """The names of the columns of images and of labels."""
  import datasets

  def of(allowed: Any) -> list[str]:
    return [name for name, feature in features.items() if allowed(feature)]

  images = of(lambda feature: isinstance(feature, datasets.Image))
  labels = of(lambda feature: isinstance(feature, datasets.ClassLabel)) or of(
    lambda feature: "int" in str(getattr(feature, "dtype", ""))
  )
  for kind, found in (("images", images), ("class labels or integers", labels)):
    if len(found) != 1:
      there = ", ".join(f"{name} ({type(f).__name__})" for name, f in features.items())
      raise InputError(
        f"data.name={str(root)!r} must have one column of {kind}, but its columns are {there}"
      )
  return images[0], labels[0]


def _classes(root: Path, parts: dict[str, Any], label: str) -> tuple[str, ...]:
  """The names of class labels; the numbers of integers, up to the largest of all splits."""
  named = getattr(next(iter(parts.values())).features[label], "names", None)
  values = np.concatenate([np.asarray(p.with_format("numpy")[label][:]) for p in parts.values()])
  low, high = (int(values.min()), int(values.max())) if len(values) else (0, -1)
  count = len(named) if named else high + 1
  if not 0 <= low <= high < count:
    raise InputError(
      f"data.name={str(root)!r} has labels from {low} to {high}, but they must be in [0, {count})"
    )
  return tuple(named) if named else tuple(map(str, range(count)))


def _source(cell: dict[str, Any]) -> Any:
  """The file of an undecoded image."""
  return io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"])
