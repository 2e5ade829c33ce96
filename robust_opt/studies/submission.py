"""The files that a submission to RobustBench requires, from a verdict.

write(folder, find("cifar10/Linf/Me2026Net"), stored, x, axis=2)

folder/model_info/cifar10/Linf/Me2026Net.json   the fields of RobustBench's own files
folder/x_adv.npy                                [N, C, H, W] float32, see `adversarial_tensor`
"""

from pathlib import Path
from typing import Any

import numpy as np

from robust_opt.evaluation.verdict import StoredVerdict
from robust_opt.experiments.robustbench import Entry
from robust_opt.files import atomic_write, write_json
from robust_opt.sets.radii import number
from robust_opt.sets.words import in_words
from robust_opt.tables import counted

TEST_IMAGES = 10_000  # of CIFAR-10 and CIFAR-100
X_ADV = "x_adv.npy"


def write(
  folder: Path, entry: Entry, stored: StoredVerdict, x: np.ndarray, axis: int | None
) -> list[Path]:
  """Writes both files; returns their paths.

  Args:
    folder: where.
    entry: the leaderboard and the ID.
    stored: the verdict.
    x: the clean images, [N, H, W, C].
    axis: of the channels of one image, 2 here; None: there is none.
  """
  info = folder / "model_info" / f"{entry.path}.json"
  write_json(info, model_info(entry, stored))
  with atomic_write(folder / X_ADV) as file:
    np.save(file, adversarial_tensor(stored, x, axis))
  return [info, folder / X_ADV]


def model_info(entry: Entry, stored: StoredVerdict) -> dict[str, Any]:
  """RobustBench's description of a network; what a verdict cannot know is None, to be filled in."""
  verdict = stored.verdict
  return {
    "link": None,
    "name": None,
    "authors": None,
    "additional_data": None,
    "number_forward_passes": 1,
    "dataset": entry.dataset,
    "venue": None,
    "architecture": entry.net.title if entry.net else None,
    "eps": entry.radius,
    "clean_acc": _percent(verdict.clean_accuracy),
    "reported": None,
    "autoattack_acc": _percent(stored.robust_accuracy),
    "footnote": " ".join(_remarks(entry, stored)),
  }


def adversarial_tensor(stored: StoredVerdict, x: np.ndarray, axis: int | None) -> np.ndarray:
  """All images [N, C, H, W] float32: adversarial where an attack succeeded, else clean.

  That is what RobustBench's evaluation has, and what it stores by torch.save.
  """
  images = np.array(x, np.float32)
  images[stored.broken_ids] = stored.verdict.images
  if axis is None:
    return images
  return np.ascontiguousarray(np.moveaxis(images, 1 + axis, 1))


def _remarks(entry: Entry, stored: StoredVerdict) -> list[str]:
  """Who measured, and in what the measurement is not that of the leaderboard."""
  claim, total = stored.claim, len(stored.labels)
  parts = ["Measured by the AutoAttack of robust_opt (JAX)."]
  if claim.version != "standard":
    parts.append(f"Not the standard version: {claim.version}.")
  if total != TEST_IMAGES:
    parts.append(f"Only {counted(total, 'image')} of {TEST_IMAGES:,}.")
  if claim.norm != entry.norm or not np.isclose(claim.radius, number(entry.radius), rtol=1e-6):
    parts.append(f"Not the threat model of the leaderboard: {in_words(claim.set)}.")
  return parts


def _percent(fraction: float) -> str:
  """As RobustBench writes it: two digits, without zeros at the end."""
  return str(round(100 * fraction, 2))
