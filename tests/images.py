"""Folders of images for tests."""

import numpy as np
from PIL import Image


def write_class_folders(root, classes, count, size, suffix="png", mode="RGB", seed=0):
  """`count` noisy images [H, W] in a folder for each class, each class of another brightness."""
  rng = np.random.default_rng(seed)
  for level, name in enumerate(classes):
    (root / name).mkdir(parents=True)
    shape = (*size, 3) if mode == "RGB" else size
    for number in range(count):
      pixels = rng.integers(0, 50, shape) + level * (200 // len(classes))
      Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:03}.{suffix}")
  return root
