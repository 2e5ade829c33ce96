"""The check of every claim in a verdict file.

problems = verify(verdict.load(path), logits_fn, x, y, net_sha256)   # [] if everything is true
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from robust_opt.errors import InputError
from robust_opt.evaluation import adaptive
from robust_opt.evaluation.batches import CPU_BATCH, predictions
from robust_opt.evaluation.outcome import CLEAN, LEFT_OUT, ROBUST
from robust_opt.evaluation.targeting import parsed, targets_of
from robust_opt.evaluation.verdict import (
  GAUGE_TOLERANCE,
  TOLERANCE,
  Claim,
  StoredVerdict,
  data_sha256,
  sizes,
)
from robust_opt.sets import Ball
from robust_opt.sets.build import config_sha256
from robust_opt.sets.examples import for_examples
from robust_opt.sets.masks import Masked
from robust_opt.sets.spatial import Transforms
from robust_opt.types import LogitsFn


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
  problems += _image_problems(stored, x, y)
  return [*problems, *_prediction_problems(stored, logits_fn, x, y)]


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


def _image_problems(stored: StoredVerdict, x: np.ndarray, y: np.ndarray) -> Iterator[str]:
  images = stored.verdict.images
  broken = np.flatnonzero(stored.verdict.broken_by > 0)
  u = for_examples(stored.claim.u(y), broken, x.ndim)
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
    limit, rtol, what = np.asarray(u.radius, np.float64) * (1 + TOLERANCE), 1e-9, "norm"
  else:
    limit, rtol, what = np.array(1 + GAUGE_TOLERANCE), GAUGE_TOLERANCE, "gauge"
  actual = sizes(u, images, x[broken], stored.moves)
  largest = np.broadcast_to(limit, actual.shape)
  if not np.all(actual <= largest):
    worst = np.argmax(actual / largest)
    yield (
      f"A perturbation has {what} {actual[worst]:.7g}, but at most {largest[worst]:.7g} is allowed."
    )
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
