"""A folder of class folders of images: PNG, JPEG or WebP, grey or color.

  images, labels, classes = read_folder(Path("flowers"), "train", image_size=32)
  images[5]                   # uint8 [32, 32, 3], decoded when it is indexed
  np.asarray(images)          # uint8 [N, 32, 32, 3], all of them

Either the folder has one folder for each class, and a fifth of every class is the test set, or it
has `train` and `test` (or `val`) with the same classes in each. Classes are sorted by name. As in
Tiny ImageNet, `val` may instead hold `val_annotations.txt`, of lines FILE, CLASS, ..., and the
files in `images`; it is then the test set.
"""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from robust_opt import extras
from robust_opt.data.sampling import stratified
from robust_opt.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
TEST_FRACTION = 0.2  # of every class, where there is no test set
_TEST_NAMES = ("test", "val", "valid", "validation")
ANNOTATIONS = "val_annotations.txt"
_GREY = ("1", "L", "LA")
SEED = 0


class ImageFiles:
  """N image files as an array of shape [N, H, W, C], uint8, decoded when they are indexed.

  An integer gives an image [H, W, C]; a slice or a mask [N] gives the files it selects, undecoded.
  """

  dtype = np.dtype(np.uint8)
  ndim = 4

  def __init__(self, paths: Sequence[Path], shape: tuple[int, int, int]) -> None:
    self.paths = np.array([str(path) for path in paths], dtype=object)
    self.shape = (len(self.paths), *shape)

  def __len__(self) -> int:
    return len(self.paths)

  @property
  def nbytes(self) -> int:
    """The size of the decoded images."""
    return int(np.prod(self.shape))

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, int | np.integer):
      return decode(Path(self.paths[index]), self.shape[1:])
    return ImageFiles(self.paths[index], self.shape[1:])

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    with ThreadPoolExecutor() as pool:  # decoders release the interpreter's lock
      decoded = list(pool.map(self.__getitem__, range(len(self))))
    return np.asarray(np.stack(decoded) if decoded else np.zeros(self.shape, np.uint8), dtype)

  def sha256(self) -> str:
    """Of the contents of the files and the shape to which they are decoded."""
    with ThreadPoolExecutor() as pool:
      digests = pool.map(lambda path: hashlib.sha256(Path(path).read_bytes()).digest(), self.paths)
      return hashlib.sha256(b"".join([repr(self.shape).encode(), *digests])).hexdigest()


class Folder(NamedTuple):
  """A split of a folder: labels int32 [N] index `classes`, the sorted names of its folders."""

  images: ImageFiles
  labels: np.ndarray
  classes: tuple[str, ...]


def read_folder(root: Path, split: str, image_size: int = 0) -> Folder:
  """Lists the images of a split.

  Args:
    root: the folder.
    split: "train" or "test"; empty: the test set if there are both, otherwise all images.
    image_size: height and width in pixels to which every image is cropped (at the center, to a
      square) and resized; 0: as they are, all of one size.

  Raises:
    InputError: no images, fewer than two classes, other classes in train and test, images of
      several sizes without `image_size`, or a file that is no readable image.
    MissingExtraError: Pillow is not installed.
  """
  extras.require("data", "PIL")
  if split not in ("train", "test", ""):
    raise InputError(f"data.name={str(root)!r} has no split {split!r}: it has train, test")
  test_roots = [root / name for name in _TEST_NAMES if (root / name).is_dir()]
  # Tiny ImageNet has a test folder too, without labels.
  annotated = [folder for folder in test_roots if (folder / ANNOTATIONS).is_file()]
  test_root = next(iter([*annotated, *test_roots]), None)
  if (root / "train").is_dir() and test_root is not None:
    parts = {"train": _list(root / "train"), "test": _list(test_root)}
    if parts["train"].keys() != parts["test"].keys():
      only = ", ".join(sorted(parts["train"].keys() ^ parts["test"].keys()))
      raise InputError(
        f"data.name={str(root)!r} must have the same classes in train and "
        f"{test_root.name}, but only one of them has {only}"
      )
    everything = [path for part in parts.values() for paths in part.values() for path in paths]
    files = parts[split or "test"]
    paths, labels = _flat(files)
  else:
    files = _list(root)
    everything, labels = _flat(files)
    paths = everything
    if split:
      is_test = stratified(labels, round(TEST_FRACTION * len(labels)), SEED)
      members = np.flatnonzero(is_test if split == "test" else ~is_test)
      paths, labels = [everything[i] for i in members], labels[members]
  return Folder(ImageFiles(paths, common_shape(root, everything, image_size)), labels, tuple(files))


def decode(path: Path | BinaryIO, shape: tuple[int, ...]) -> np.ndarray:
  """One image as uint8 [H, W, C]; C is 1 for grey.

  Raises:
    InputError: it cannot be read.
  """
  from PIL import Image, ImageOps

  height, width, channels = shape
  try:
    with Image.open(path) as image:
      upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
      if upright.size != (width, height):
        upright = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
      return np.asarray(upright, np.uint8).reshape(shape)
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
    raise InputError(f"{path} is not a readable image ({error})") from error


def _list(root: Path) -> dict[str, list[Path]]:
  """The image files of each class, sorted."""
  if (root / ANNOTATIONS).is_file():
    return _list_annotated(root)
  files = {
    folder.name: sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    for folder in sorted(root.iterdir())
    if folder.is_dir() and not folder.name.startswith(".")
  }
  empty = [name for name, paths in files.items() if not paths]
  if len(files) < 2 or empty:
    found = f"{', '.join(empty)} with no images" if empty else f"{len(files)} folders"
    raise InputError(
      f"data.name={str(root)!r} must have a folder of {', '.join(SUFFIXES)} images for each of at "
      f"least two classes, but has {found}"
    )
  return files


def _list_annotated(root: Path) -> dict[str, list[Path]]:
  """The same of a folder whose classes are in ANNOTATIONS."""
  files: dict[str, list[Path]] = {}
  for line in (root / ANNOTATIONS).read_text(encoding="utf-8").splitlines():
    file, tab, rest = line.partition("\t")
    if not tab:
      raise InputError(f"{root / ANNOTATIONS} must have lines FILE, tab, CLASS, but has {line!r}")
    files.setdefault(rest.partition("\t")[0], []).append(root / "images" / file)
  return {name: sorted(files[name]) for name in sorted(files)}


def _flat(files: dict[str, list[Path]]) -> tuple[list[Path], np.ndarray]:
  counts = [len(paths) for paths in files.values()]
  labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
  return [path for paths in files.values() for path in paths], labels


def common_shape(
  root: Path, files: Iterable[Path | BinaryIO], image_size: int
) -> tuple[int, int, int]:
  """[H, W, C] to decode to: C is 1 if all images are grey. Reads the headers only.

  An InputError, which names `root`, if there are several sizes and image_size is 0.
  """
  with ThreadPoolExecutor() as pool:
    headers = list(pool.map(_header, files))
  channels = 1 if all(mode in _GREY for mode, _ in headers) else 3
  sizes = sorted({size for _, size in headers})
  if image_size:
    return image_size, image_size, channels
  if len(sizes) > 1:
    small, large = (f"{height} x {width}" for height, width in (sizes[0], sizes[-1]))
    raise InputError(
      f"data.name={str(root)!r} has images of {len(sizes)} sizes, from {small} to {large} pixels: "
      "set data.image_size, the height and width to resize them to"
    )
  return *sizes[0], channels


def _header(path: Path | BinaryIO) -> tuple[str, tuple[int, int]]:
  from PIL import Image, UnidentifiedImageError

  try:
    with Image.open(path) as image:
      width, height = image.size
      turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # the orientation
      return image.mode, (width, height) if turned else (height, width)
  except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
    raise InputError(f"{path} is not a readable image ({error})") from error
