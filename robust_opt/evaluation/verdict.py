"""The file of an evaluation, and the check of every claim in it.

  save(path, verdict, claim, x, y)
  problems = verify(load(path), logits_fn, x, y, net_sha256)     # [] if everything in it is true

It holds the prediction for every image, the attack that broke it, and the adversarial images in
float32, so that anyone with the net and the data can check them. It loads without pickle.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt.arrays import expand_like
from robust_opt.errors import InputError
from robust_opt.evaluation import adaptive
from robust_opt.evaluation import moves as moves_lib
from robust_opt.evaluation.autoattack import Verdict
from robust_opt.evaluation.batches import CPU_BATCH, predictions
from robust_opt.evaluation.outcome import CLEAN, LEFT_OUT, ROBUST
from robust_opt.evaluation.targeting import parsed, targets_of
from robust_opt.files import read_sealed, write_sealed
from robust_opt.sets import L2, Ball, UncertaintySet, Union, ball_of, lengths
from robust_opt.sets.build import build_set, config_sha256
from robust_opt.sets.masks import Masked, for_examples
from robust_opt.sets.spatial import Transforms
from robust_opt.types import LogitsFn

TOLERANCE = 1e-6  # of the radius
GAUGE_TOLERANCE = 1e-4  # for sets other than balls, whose gauges are computed in float32
_IMAGES_AT_A_TIME = 256


class Claim(NamedTuple):
  """The subject of a verdict."""

  set: dict[str, Any]  # the config of the uncertainty set, for `sets.build.build_set`
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

  @property
  def u(self) -> UncertaintySet:
    """The uncertainty set."""
    return build_set(self.set)

  @property
  def norm(self) -> str:
    """The norm of a ball, as in BALLS; the class of any other set."""
    return self.u.name if isinstance(self.u, Ball) else type(self.u).__name__

  @property
  def radius(self) -> float:
    """In pixels of [0, 1]; NaN for a set that has no radius."""
    return float(self.set.get("radius", math.nan))

  @property
  def flags(self) -> dict[str, str]:
    """The flags of `robust_opt.evaluate` that name the set."""
    if isinstance(self.u, Ball) and self.set == ball_config(self.norm, self.radius):
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


def _largest(u: UncertaintySet) -> float:
  """The size of the largest perturbations of a set: the radius of a ball, gauge 1."""
  return float(u.radius) if isinstance(u, Ball) else 1.0


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
  transforms = moves_lib.transforms_of(claim.u)
  if transforms is not None:
    moves = moves_lib.found(transforms, images, x[broken])
  arrays = {
    "names": verdict.names,
    "prediction": verdict.prediction,
    "broken_by": verdict.broken_by,
    "labels": np.asarray(y, np.int32),
    "broken_ids": broken.astype(np.int32),
    "images": images,
    "norms": sizes(for_examples(claim.u, broken, x.ndim), images, x[broken], moves),
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


def verify(
  stored: StoredVerdict, logits_fn: LogitsFn, x: np.ndarray, y: np.ndarray, net_sha256: str
) -> list[str]:
  """The false claims of a verdict, one sentence each; [] if all are true.

  x [N, *S] float32 and y [N] are the images and labels of the whole set, net_sha256 is that of the
  net's arrays.
  """
  claim = stored.claim
  problems = list(_shape_problems(stored, x))  # all other checks rely on shapes and dtypes
  if problems:
    return problems
  same_set = claim.set_sha256 in ("", config_sha256(claim.set))
  checks = {
    "It was made on other images or labels.": claim.data_sha256 == data_sha256(x, y),
    "The arrays of its set have changed.": same_set,
    "It was made for another net.": claim.net_sha256 == net_sha256,
    "Its labels are not those of the data set.": np.array_equal(stored.labels, y),
  }
  problems = [problem for problem, holds in checks.items() if not holds]
  problems += _ration_problems(stored)
  return [*problems, *_image_problems(stored, x), *_prediction_problems(stored, logits_fn, x, y)]


def _ration_problems(stored: StoredVerdict) -> Iterator[str]:
  ration, version = stored.verdict.ration, stored.claim.version
  if (ration is None) == (version == adaptive.VERSION):
    which = "what it skipped" if ration is None else "that it skipped attacks"
    yield f"It is of the version {version}, but does {'not ' * (ration is None)}state {which}."
  elif ration is not None:
    yield from adaptive.problems(ration, stored.verdict.broken_by, stored.claim.seed)


def _shape_problems(stored: StoredVerdict, x: np.ndarray) -> Iterator[str]:
  verdict, all_of, broken = stored.verdict, x.shape[:1], (stored.broken_ids.size,)
  if verdict.broken_by.shape != all_of or verdict.images.shape[1:] != x.shape[1:]:
    yield (
      f"It covers {verdict.broken_by.size} examples of shape {verdict.images.shape[1:]}, but the "
      f"data set has {len(x)} of shape {x.shape[1:]}."
    )
    return
  expected = {
    "predictions": (verdict.prediction, all_of, np.integer),
    "attacks": (verdict.broken_by, all_of, np.integer),
    "labels": (stored.labels, all_of, np.integer),
    "ids of broken examples": (stored.broken_ids, broken, np.integer),
    "norms": (stored.norms, broken, np.floating),
    "images": (verdict.images, verdict.images.shape, np.floating),
  }
  if (verdict.targets is not None) != bool(stored.claim.target):
    yield f"It states the target {stored.claim.target!r}, which its arrays contradict."
  if stored.moves is not None:
    expected["moves"] = (stored.moves, (*broken, 3), np.floating)
  if verdict.targets is not None:
    expected["targets"] = (verdict.targets, all_of, np.integer)
  for name, (array, shape, kind) in expected.items():
    if array.shape != shape or not np.issubdtype(array.dtype, kind):
      yield (
        f"Its {name} have the shape {array.shape} and the type {array.dtype}, but must have "
        f"{shape} and {kind.__name__}."
      )
  if not verdict.names:
    yield "It names no attack."


def _image_problems(stored: StoredVerdict, x: np.ndarray) -> Iterator[str]:
  u, images = stored.claim.u, stored.verdict.images
  broken = np.flatnonzero(stored.verdict.broken_by > 0)
  if not np.array_equal(stored.broken_ids, broken) or len(images) != len(broken):
    yield (
      f"It states that {len(broken)} examples are broken, but holds {len(images)} images of "
      f"{len(stored.broken_ids)} examples."
    )
    return
  entries = tuple(range(1, images.ndim))
  infinite = np.sum(~np.isfinite(images).all(axis=entries))
  if infinite:
    yield f"{infinite} of its images are not finite."
  box = getattr(u, "box", None)
  if box is not None:
    outside = np.sum(~((images >= box[0]) & (images <= box[1])).all(axis=entries))
    if outside:
      yield f"{outside} of its images leave [{box[0]:g}, {box[1]:g}]."
  if isinstance(u, Ball):
    largest, rtol, what = float(u.radius) * (1 + TOLERANCE), 1e-9, "norm"
  else:
    largest, rtol, what = 1 + GAUGE_TOLERANCE, GAUGE_TOLERANCE, "gauge"
  actual = sizes(for_examples(u, broken, x.ndim), images, x[broken], stored.moves)
  if not np.all(actual <= largest):
    worst = np.max(actual, initial=0.0)
    yield f"A perturbation has {what} {worst:.7g}, but at most {largest:.7g} is allowed."
  impossible = np.sum(np.isinf(actual))
  if impossible and isinstance(u, Transforms):
    words = "of its images are not made by the rotations and translations that it states."
    yield f"{impossible} {words}"
  if impossible and isinstance(u, Masked):
    yield f"{impossible} of its images are changed outside of the mask."
  if not np.allclose(actual, stored.norms, rtol=rtol, atol=1e-12):
    yield f"The {what}s that it states are not those of its images."


def _prediction_problems(
  stored: StoredVerdict, logits_fn: LogitsFn, x: np.ndarray, y: np.ndarray
) -> Iterator[str]:
  claim, verdict = stored.claim, stored.verdict
  predict = functools.partial(
    predictions, logits_fn, batch_size=_batch_size(claim), precision=claim.precision
  )
  prediction = predict(x)
  changed = np.sum(prediction != verdict.prediction)
  if changed:
    yield f"The net classifies {changed} clean images differently than it states."
  least = ROBUST if verdict.targets is None else LEFT_OUT
  known = (verdict.broken_by >= least) & (verdict.broken_by < len(verdict.names))
  if not known.all() or verdict.names[0] != CLEAN:
    yield f"{np.sum(~known)} examples are broken by an attack that it does not list."
  disagreements = np.sum((verdict.broken_by == 0) != (prediction != y))
  if disagreements:
    yield f"It misstates whether the net is right on {disagreements} clean images."
  attacked, of_broken = predict(verdict.images), np.clip(stored.broken_ids, 0, len(y) - 1)
  if verdict.targets is None:
    right = _count(attacked, y[of_broken], np.equal)
    if right:
      yield f"The net is right on {right} of its adversarial images."
  else:
    yield from _target_problems(stored, logits_fn, x, y)
    missed = _count(attacked, verdict.targets[of_broken], np.not_equal)
    if missed:
      yield f"The net does not predict the target on {missed} of its adversarial images."
  fraction = verdict.robust_accuracy
  if fraction != stored.robust_accuracy:
    yield (
      f"It states a robust accuracy of {stored.robust_accuracy:.6f}, but its examples give "
      f"{fraction:.6f}."
    )


def _count(a: np.ndarray, b: np.ndarray, compare: Callable[..., Any]) -> int:
  """How often it holds; always, if the lengths differ."""
  return int(np.sum(compare(a, b))) if len(a) == len(b) else len(a)


def _target_problems(
  stored: StoredVerdict, logits_fn: LogitsFn, x: np.ndarray, y: np.ndarray
) -> Iterator[str]:
  """Whether the targets are those of the rule, and left out is whose label is the target."""
  claim, outcome = stored.claim, stored.verdict
  rule, examples = parsed(claim.target) or 0, (x, y, np.arange(len(x)), claim.seed)
  size, precision = _batch_size(claim), claim.precision
  try:
    expected = targets_of(rule, logits_fn, *examples, size, precision=precision)
  except InputError as error:
    yield str(error)
    return
  others = np.sum(outcome.targets != expected)
  if others:
    yield f"{others} of its targets are not those of {claim.target}."
  left_out = (outcome.prediction == y) & (outcome.targets == y)
  disagreements = np.sum((outcome.broken_by == LEFT_OUT) != left_out)
  if disagreements:
    yield f"It misstates for {disagreements} images whether their label is the target."


def _batch_size(claim: Claim) -> int:
  """That of the claim, for the same rounding; but that of an accelerator is too large for a CPU."""
  elsewhere = jax.default_backend() == "cpu" and "cpu" not in claim.device.lower()
  return min(claim.batch_size, CPU_BATCH) if elsewhere else claim.batch_size
