"""Perturbation sequences: images that change a little more, or get new noise, in every frame.

  every = stored(Path("CIFAR-10-P"))
  frames = every.frames("tilt", 0, 100)              # uint8 [100, T, H, W, C]

Source: Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions
and perturbations" (arXiv 1903.12261), section 3.3.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from robust_opt.data.archives import read_npy
from robust_opt.errors import InputError

# The mean flip rate is over these 10; the other perturbations are for validation.
BENCHMARK = (
  *("gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "spatter"),
  *("brightness", "translate", "rotate", "tilt", "scale"),
)


class Sequences(NamedTuple):
  """N sequences of each perturbation."""

  names: tuple[str, ...]
  size: int  # N
  frames: Callable[[str, int, int], np.ndarray]  # (name, start, stop) -> uint8 [n, T, H, W, C]


def is_stored(folder: Path) -> bool:
  """Whether a folder holds sequences rather than corrupted images with labels."""
  return folder.is_dir() and any(folder.glob("*.npy")) and not (folder / "labels.npy").exists()


def stored(folder: Path, examples: int = 0) -> Sequences:
  """Files as of CIFAR-10-P: NAME.npy of uint8 [N, T, H, W, C].

  Args:
    folder: of the files.
    examples: the first so many sequences of each; 0: all.

  Raises:
    InputError: files of another layout.
  """
  files = {path.stem: read_npy(path) for path in sorted(folder.glob("*.npy"))}
  count = len(next(iter(files.values())))
  for name, array in files.items():
    if array.ndim != 5 or array.dtype != np.uint8 or len(array) != count or array.shape[1] < 2:
      raise InputError(
        f"{folder}/{name}.npy must be uint8 [{count}, T, H, W, C], of T >= 2 frames, but is "
        f"{array.dtype} {list(array.shape)}; corrupted images need a labels.npy beside them."
      )
  taken = min(examples, count) or count

  def frames(name: str, start: int, stop: int) -> np.ndarray:
    return np.asarray(files[name][start : min(stop, taken)])

  return Sequences(tuple(files), taken, frames)
