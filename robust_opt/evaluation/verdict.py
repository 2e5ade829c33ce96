"""The file that an evaluation leaves, and the check of every claim in it.

  save(path, verdict, claim, x, y)
  problems = verify(path, logits_fn, x, y, net_sha256)     # [] if all of it is true

It says of every image what the net makes of it and which attack broke it, and holds the adversarial
images in float32: whoever has the net and the data can ask the net again. It loads without pickle.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robust_opt.evaluation.autoattack import CLEAN, STANDS, Verdict, predictions
from robust_opt.files import read_sealed, write_sealed
from robust_opt.types import LogitsFn

TOLERANCE = 1e-6  # of the radius


class Claim(NamedTuple):
  """What a verdict is about.

  Attributes:
    norm: "linf", "l2" or "l1".
    radius: in pixels of [0, 1].
    version: of the ensemble.
    seed: of the ensemble.
    batch_size: of the ensemble and of the predictions.
    source: where net and data are found again: what `robust_opt.evaluate` was told.
    net_sha256: of the net's arrays; empty where the net is a function that holds none.
    data_sha256: of images and labels.
    device: what computed it, and by which version of jax.
  """

  norm: str
  radius: float
  version: str
  seed: int
  batch_size: int
  source: dict[str, Any]
  net_sha256: str
  data_sha256: str
  device: str


class Stored(NamedTuple):
  """A verdict file: the claim, the verdict with `images` of the broken alone, what else it says.

  Attributes:
    claim: what it is about.
    verdict: prediction and broken_by [N]; images [K, *S] of the K examples that an attack broke.
    labels: [N].
    broken_ids: [K], the places of those examples.
    norms: [K], the lengths of their perturbations in the norm of the claim.
    robust_accuracy: the share that stands.
  """

  claim: Claim
  verdict: Verdict
  labels: np.ndarray
  broken_ids: np.ndarray
  norms: np.ndarray
  robust_accuracy: float


def lengths(delta: np.ndarray, norm: str) -> np.ndarray:
  """The norm of every perturbation [K, *S] -> [K], in float64."""
  flat = np.abs(delta.astype(np.float64)).reshape(len(delta), math.prod(delta.shape[1:]))
  if norm == "linf":
    return flat.max(axis=1, initial=0.0)
  return flat.sum(axis=1) if norm == "l1" else np.sqrt((flat**2).sum(axis=1))


def data_sha256(x: np.ndarray, y: np.ndarray) -> str:
  """Of images [N, *S] and labels [N], as they are attacked."""
  sha = hashlib.sha256(f"{x.shape}".encode())
  sha.update(np.ascontiguousarray(x, np.float32).tobytes())
  sha.update(np.ascontiguousarray(y, np.int32).tobytes())
  return sha.hexdigest()


def save(path: Path, verdict: Verdict, claim: Claim, x: np.ndarray, y: np.ndarray) -> None:
  """Writes the file; the same verdict gives the same bytes.

  Args:
    path: where to, ending in .npz.
    verdict: with the images of all N examples.
    claim: what it is about.
    x: [N, *S], the clean images.
    y: [N], the labels.
  """
  broken = np.flatnonzero(verdict.broken_by > 0)
  images = verdict.images[broken]
  arrays = {
    "names": verdict.names,
    "prediction": verdict.prediction,
    "broken_by": verdict.broken_by,
    "labels": np.asarray(y, np.int32),
    "broken_ids": broken.astype(np.int32),
    "images": images,
    "norms": lengths(images.astype(np.float64) - x[broken], claim.norm),
    "robust_accuracy": verdict.robust_accuracy,
    "claim": json.dumps(claim._asdict(), sort_keys=True),
  }
  write_sealed(path, arrays)


def load(path: Path) -> Stored:
  """Reads a verdict file as it was written.

  Raises:
    InputError: the file is absent, damaged, or no verdict.
  """
  with read_sealed(path, "verdict") as arrays:
    return Stored(
      Claim(**json.loads(str(arrays["claim"]))),
      Verdict(
        tuple(map(str, arrays["names"])),
        arrays["prediction"],
        arrays["broken_by"],
        arrays["images"],
      ),
      arrays["labels"],
      arrays["broken_ids"],
      arrays["norms"],
      float(arrays["robust_accuracy"]),
    )


def verify(
  stored: Stored, logits_fn: LogitsFn, x: np.ndarray, y: np.ndarray, net_sha256: str
) -> list[str]:
  """Every claim of a verdict that is not true, one sentence each; [] if all are.

  Args:
    stored: from `load`.
    logits_fn: the net, x [B, *S] -> logits [B, C].
    x: [N, *S] float32, the clean images of the whole set.
    y: [N], their labels.
    net_sha256: of the net's arrays.
  """
  claim = stored.claim
  problems = _shapes(stored, x)
  if problems:
    return problems

  def claims(true: bool, otherwise: str) -> None:
    if not true:
      problems.append(otherwise)

  claims(claim.data_sha256 == data_sha256(x, y), "It was made on other images or labels.")
  claims(claim.net_sha256 == net_sha256, "It was made of another net.")
  claims(np.array_equal(stored.labels, y), "Its labels are not those of the data set.")
  problems += _geometry(stored, x)
  problems += _answers(stored, logits_fn, x, y)
  return problems


def _shapes(stored: Stored, x: np.ndarray) -> list[str]:
  """What nothing else can be asked of; arrays of other shapes would not even be comparable."""
  verdict = stored.verdict
  if verdict.broken_by.shape != x.shape[:1] or verdict.images.shape[1:] != x.shape[1:]:
    return [
      f"It covers {verdict.broken_by.size} examples of shape {verdict.images.shape[1:]}, but the "
      f"data set has {len(x)} of shape {x.shape[1:]}."
    ]
  broken = (stored.broken_ids.size,)
  wanted = {
    "predictions": (verdict.prediction, x.shape[:1], np.integer),
    "attacks": (verdict.broken_by, x.shape[:1], np.integer),
    "labels": (stored.labels, x.shape[:1], np.integer),
    "ids of broken examples": (stored.broken_ids, broken, np.integer),
    "lengths": (stored.norms, broken, np.floating),
    "images": (verdict.images, verdict.images.shape, np.floating),
  }
  problems = [
    f"Its {name} have the shape {array.shape} and the type {array.dtype}, but must have {shape} "
    f"and {kind.__name__}."
    for name, (array, shape, kind) in wanted.items()
    if array.shape != shape or not np.issubdtype(array.dtype, kind)
  ]
  if not verdict.names:
    problems.append("It names no attack.")
  return problems


def _geometry(stored: Stored, x: np.ndarray) -> list[str]:
  claim, verdict = stored.claim, stored.verdict
  broken = np.flatnonzero(verdict.broken_by > 0)
  if not np.array_equal(stored.broken_ids, broken) or len(verdict.images) != len(broken):
    return [
      f"It says that {len(broken)} examples are broken, but holds {len(verdict.images)} images of "
      f"{len(stored.broken_ids)} examples."
    ]
  problems, images = [], verdict.images
  entries = tuple(range(1, images.ndim))
  finite = np.isfinite(images).all(axis=entries)
  if not finite.all():
    problems.append(f"{np.sum(~finite)} of its images are not finite.")
  inside = ((images >= 0) & (images <= 1)).all(axis=entries)
  if not inside.all():
    problems.append(f"{np.sum(~inside)} of its images leave [0, 1].")
  found = lengths(images.astype(np.float64) - x[broken], claim.norm)
  if np.any(~(found <= claim.radius * (1 + TOLERANCE))):
    worst = np.max(found, initial=0.0)
    problems.append(f"A perturbation is {worst:.7g} long, of a radius of {claim.radius:.7g}.")
  if not np.allclose(found, stored.norms, rtol=1e-9, atol=1e-12):
    problems.append("The lengths that it states are not those of its images.")
  return problems


def _answers(stored: Stored, logits_fn: LogitsFn, x: np.ndarray, y: np.ndarray) -> list[str]:
  claim, verdict = stored.claim, stored.verdict
  problems = []
  prediction = predictions(logits_fn, x, claim.batch_size)
  changed = int(np.sum(prediction != verdict.prediction))
  if changed:
    problems.append(f"The net answers {changed} clean images otherwise than it says.")
  known = (verdict.broken_by >= STANDS) & (verdict.broken_by < len(verdict.names))
  if not known.all() or verdict.names[0] != CLEAN:
    problems.append(f"{np.sum(~known)} examples are broken by an attack that it does not name.")
  wrong = prediction != y
  told = int(np.sum((verdict.broken_by == 0) != wrong))
  if told:
    problems.append(f"Of {told} clean images it is untrue whether the net is right on them.")
  attacked = predictions(logits_fn, verdict.images, claim.batch_size)
  labels = y[np.clip(stored.broken_ids, 0, len(y) - 1)]
  right = int(np.sum(attacked == labels)) if len(attacked) == len(labels) else len(attacked)
  if right:
    problems.append(f"The net is right on {right} of its adversarial images.")
  share = float(np.mean(verdict.broken_by == STANDS))
  if share != stored.robust_accuracy:
    problems.append(
      f"It states a robust accuracy of {stored.robust_accuracy:.6f}, but its examples give "
      f"{share:.6f}."
    )
  return problems
