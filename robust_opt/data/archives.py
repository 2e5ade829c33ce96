"""Images and labels from .npz files of any maker, or from .npy files.

  images, labels = read_arrays("digits.npz")                          # x and y
  images, labels = read_arrays("mnist.npz", "test")                   # x_test and y_test
  images, labels = read_arrays("own.npz:pictures,targets")            # by their names
  images, labels = read_arrays("images.npy,labels.npy")               # two files

Arrays are named as is usual: x, images or data, and y, labels or targets, with train or test before
or after them where the file holds both.
"""

import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from robust_opt.errors import InputError

IMAGES = ("x", "images", "image", "imgs", "img", "data", "inputs", "pixels")
LABELS = ("y", "labels", "label", "targets", "target", "classes")
SPLITS = {"train": ("train", "training", "tr"), "test": ("test", "testing", "te", "val", "valid")}
_DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


def is_archive(name: str) -> bool:
  """Whether a data set's name is that of .npz or .npy files."""
  return re.search(r"\.np[zy](:|,|$)", name) is not None


def read_arrays(name: str, split: str = "") -> tuple[np.ndarray, np.ndarray]:
  """Reads images and labels, as they are stored.

  Args:
    name: FILE.npz, FILE.npz:images,labels, or IMAGES.npy,LABELS.npy.
    split: "train" or "test", of a file that holds both; empty: the test arrays, if it does.

  Raises:
    InputError: a file that is missing or damaged, or no such arrays; the message lists those that
      there are.
  """
  if ".npy" in name and ".npz" not in name:
    paths = [Path(part).expanduser() for part in name.split(",")]
    if len(paths) != 2:
      raise InputError(f"{name!r} must be two files, IMAGES.npy,LABELS.npy, or one .npz file")
    images, labels = map(read_npy, paths)
    return images, labels
  file, _, named = name.partition(":")
  path = Path(file).expanduser()
  try:
    with path.open("rb") as raw:  # opened here: np.load leaves a damaged archive open
      archive = np.load(raw, allow_pickle=False)
      if isinstance(archive, np.ndarray):
        raise InputError(f"{path} holds one array: give IMAGES.npy,LABELS.npy, or an .npz of both")
      with archive:
        keys = _names(path, archive.files, named, split)
        return archive[keys[0]], archive[keys[1]]
  except InputError:
    raise
  except FileNotFoundError as error:
    raise InputError(f"{path} does not exist") from error
  except _DAMAGED as error:
    raise InputError(f"{path} cannot be read as an .npz file ({_reason(error)})") from error


def _reason(error: Exception) -> str:
  """Without NumPy's advice to unpickle a file that is no archive, which would run its code."""
  return "it is damaged or none" if "allow_pickle" in str(error) else str(error)


def splits_of(name: str) -> tuple[str, ...]:
  """Which of "train" and "test" an .npz file holds as arrays of their own; () if neither."""
  file, _, named = name.partition(":")
  if named or not file.endswith(".npz"):
    return ()
  try:
    with zipfile.ZipFile(Path(file).expanduser()) as archive:
      names = [entry.removesuffix(".npy") for entry in archive.namelist()]
  except (OSError, zipfile.BadZipFile):
    return ()  # read_arrays says what is wrong
  return tuple(split for split in SPLITS if _candidates(names, IMAGES, split))


def _names(path: Path, stored: list[str], named: str, split: str) -> tuple[str, str]:
  there = f"{path} holds {', '.join(stored) or 'no arrays'}"
  if named:
    keys = tuple(named.split(","))
    if len(keys) != 2 or not set(keys) <= set(stored):
      raise InputError(f"{path}:{named} must name images and labels among its arrays: {there}")
    return keys[0], keys[1]
  for wanted in (split, "") if split else ("test", "", "train"):
    found = [_candidates(stored, words, wanted) for words in (IMAGES, LABELS)]
    if all(len(keys) == 1 for keys in found):
      return found[0][0], found[1][0]
  raise InputError(
    f"{there}, but not one array of images ({', '.join(IMAGES[:3])}) and one of labels "
    f"({', '.join(LABELS[:2])}){' of ' + split if split else ''}: name them as {path}:IMAGES,LABELS"
  )


def _candidates(stored: list[str], words: tuple[str, ...], split: str) -> list[str]:
  """Names that consist of one of the words and, with a split, one of the split's names."""
  found = []
  for name in stored:
    parts = set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
    rest = parts - set(words)
    of_split = rest <= set(SPLITS[split]) and rest if split else not rest
    if parts & set(words) and of_split:
      found.append(name)
  return found


def read_npy(path: Path) -> np.ndarray:
  """The array of an .npy file, read as it is used; an InputError if there is none."""
  try:
    return np.lib.format.open_memmap(path, mode="r")
  except _DAMAGED as error:
    raise InputError(f"{path} cannot be read as an .npy file ({error})") from error
