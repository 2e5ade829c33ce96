"""The file of an evaluation.

  save(path, verdict, claim, x, y)
  stored = load(path)                  # `verification.verify` checks every claim in it

It holds the prediction for every image, the attack that broke it, and the adversarial images in
float32, so that anyone with the net and the data can check them. It loads without pickle.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from robust_opt.arrays import expand_like
from robust_opt.evaluation import adaptive
from robust_opt.evaluation import moves as moves_lib
from robust_opt.evaluation.autoattack import Verdict
from robust_opt.files import read_sealed, write_sealed
from robust_opt.sets import BALLS, L2, Ball, UncertaintySet, Union, ball_of, lengths
from robust_opt.sets.balls import norm_of
from robust_opt.sets.build import build_set
from robust_opt.sets.examples import for_examples, of_labels
from robust_opt.sets.spatial import Transforms

TOLERANCE = 1e-6  # of the radius
GAUGE_TOLERANCE = 1e-4  # for sets other than balls, whose gauges are computed in float32
_IMAGES_AT_A_TIME = 256


class Claim(NamedTuple):
  """The subject of a verdict."""

  # The config of the uncertainty set, for `sets.build.build_set`, or with `class_radii`.
  set: dict[str, Any]
  version: str  # of the ensemble
  seed: int  # of the ensemble
  batch_size: int  # of the ensemble and of the predictions
  source: dict[str, Any]  # of net and data, as flags of `robust_opt.evaluate`
  net_sha256: str  # of the net's arrays; empty for a function without arrays
  data_sha256: str  # of images and labels
  device: str  # the hardware and the version of JAX
  set_sha256: str = ""  # of `set`, the contents of its files included; empty in older files
  precision: str = "float32"  # of products in the predictions, `robust_opt.precision.PRODUCTS`
  search_precision: str = "float32"  # of those in the attacks
  target: str = ""  # a class or one of `targets.RULES`; empty: any wrong prediction counted

  def u(self, labels: np.ndarray) -> UncertaintySet:
    """The uncertainty set of examples of these labels [N]."""
    return build_set(of_labels(self.set, labels))

  @property
  def norm(self) -> str:
    """The norm of a ball, as in BALLS; the class of any other set."""
    return norm_of(self.set)

  @property
  def radius(self) -> float:
    """In pixels of [0, 1]; NaN for a set that has none, or several."""
    radius = self.set.get("radius")
    return float(radius) if isinstance(radius, int | float) else math.nan

  @property
  def flags(self) -> dict[str, str]:
    """The flags of `robust_opt.evaluate` that name the set."""
    if self.norm in BALLS and self.set == ball_config(self.norm, self.radius):
      return {"norm": self.norm, "radius": repr(self.radius)}
    return {"set": json.dumps(self.set)}


class StoredVerdict(NamedTuple):
  """The contents of a verdict file."""

  claim: Claim  # the subject of the verdict
  verdict: Verdict  # its images are those of the K examples that an attack broke, [K, *S]
  labels: np.ndarray  # [N]
  broken_ids: np.ndarray  # [K], the indices of those examples
  norms: np.ndarray  # [K], of their perturbations in a ball; their gauges in any other set
  robust_accuracy: float  # the fraction of robust examples
  moves: np.ndarray | None = None  # [K, 3], of rotations and translations: `moves.found`


def accuracies(verdict: Verdict) -> list[dict[str, Any]]:
  """Clean, then after each attack in turn: the images it broke, those standing, the accuracy."""
  total = standing = len(verdict.broken_by)
  rows = []
  for index, name in enumerate(verdict.names):
    broke = int(np.sum(verdict.broken_by == index))
    standing -= broke
    rows.append({"after": name, "broke": broke, "standing": standing, "accuracy": standing / total})
  return rows


def ball_config(norm: str, radius: float) -> dict[str, Any]:
  """The config of the ball of that norm and radius within [0, 1]."""
  return {"name": ball_of(norm).__name__, "radius": radius, "box": [0.0, 1.0]}


def sizes(
  u: UncertaintySet, images: np.ndarray, x: np.ndarray, moves: np.ndarray | None = None
) -> np.ndarray:
  """The norm of images - x, both [K, *S], in a ball, the gauge in any other set, [K] float64.

  Of `Transforms` it is that of the moves [K, 3] (`moves.sizes`).

  The gauge is that of the nearest point of the set if the rounding of x + delta to float32 can
  explain the difference, as for a plane, whose points do not survive rounding.
  """
  deltas = images.astype(np.float64) - x
  if isinstance(u, Ball):
    return lengths(u, deltas)
  if isinstance(u, Union):  # each measured by itself, balls exactly
    of_each = [sizes(part, images, x, moves) / _largest(part) for part in u.sets]
    return np.min(np.stack(of_each), axis=0)
  if isinstance(u, Transforms):
    return moves_lib.sizes(u, images, x, moves)
  rounding = 2.0**-24 * math.sqrt(math.prod(x.shape[1:]))
  gauges = [np.zeros(0)]
  for start in range(0, len(x), _IMAGES_AT_A_TIME):
    batch = slice(start, start + _IMAGES_AT_A_TIME)
    delta, clean = deltas[batch].astype(np.float32), jnp.asarray(x[batch])
    part = for_examples(u, np.arange(len(x))[batch], x.ndim)
    nearest = np.asarray(part.project(jnp.asarray(delta), clean))
    rounded = lengths(L2, delta - nearest) <= rounding
    delta = np.where(expand_like(rounded, delta), nearest, delta)
    gauges.append(np.asarray(part.gauge(jnp.asarray(delta), clean), np.float64))
  return np.concatenate(gauges)


def _largest(u: UncertaintySet) -> np.ndarray:
  """The size of the largest perturbations of a set, [] or [N]: the radius of a ball, gauge 1."""
  return np.asarray(u.radius if isinstance(u, Ball) else 1.0, np.float64)


def data_sha256(x: np.ndarray, y: np.ndarray) -> str:
  """SHA-256 of images [N, *S] and labels [N] as float32 and int32."""
  sha = hashlib.sha256(f"{x.shape}".encode())
  sha.update(np.ascontiguousarray(x, np.float32).tobytes())
  sha.update(np.ascontiguousarray(y, np.int32).tobytes())
  return sha.hexdigest()


def save(path: Path, verdict: Verdict, claim: Claim, x: np.ndarray, y: np.ndarray) -> None:
  """Writes the file; the same verdict gives the same bytes.

  The verdict has the images of all N examples; x [N, *S] are the clean images and y [N] the labels.
  """
  broken = np.flatnonzero(verdict.broken_by > 0)
  images, moves = verdict.images[broken], None
  u = claim.u(y)
  transforms = moves_lib.transforms_of(u)
  if transforms is not None:
    moves = moves_lib.found(transforms, images, x[broken])
  arrays = {
    "names": verdict.names,
    "prediction": verdict.prediction,
    "broken_by": verdict.broken_by,
    "labels": np.asarray(y, np.int32),
    "broken_ids": broken.astype(np.int32),
    "images": images,
    "norms": sizes(for_examples(u, broken, x.ndim), images, x[broken], moves),
    "robust_accuracy": verdict.robust_accuracy,
    "claim": json.dumps(claim._asdict(), sort_keys=True),
  }
  rest = {"targets": verdict.targets, "moves": moves}
  arrays |= {name: array for name, array in rest.items() if array is not None}
  if verdict.ration is not None:
    arrays |= adaptive.to_arrays(verdict.ration)
  write_sealed(path, arrays)


def load(path: Path) -> StoredVerdict:
  """Reads a verdict file.

  Raises:
    InputError: the file is absent, damaged, or not a verdict.
  """
  with read_sealed(path, "verdict") as arrays:
    claim = json.loads(str(arrays["claim"]))
    if "set" not in claim:  # before version 0.2: the norm and the radius of a ball in [0, 1]
      claim["set"] = ball_config(claim.pop("norm"), claim.pop("radius"))
    names = tuple(map(str, arrays["names"]))
    of_all = arrays["prediction"], arrays["broken_by"], arrays["images"], arrays.get("targets")
    outcome = Verdict(names, *of_all, adaptive.of_arrays(arrays))
    rest = arrays["labels"], arrays["broken_ids"], arrays["norms"]
    accuracy, moves = float(arrays["robust_accuracy"]), arrays.get("moves")
    return StoredVerdict(Claim(**claim), outcome, *rest, accuracy, moves)
