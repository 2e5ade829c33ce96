"""Adversarial examples of an evaluation, and a confusion matrix under attack.

  evaluated = load_examples(run, evaluation, limit=60, locations={})
  evaluated.examples[0].perturbed            # a PNG as a data: URL

A verdict holds the adversarial images, but neither the clean ones nor the predictions on the
perturbed ones: network and data are loaded again. Where that fails, `problem` says why.
"""

import base64
import functools
import io
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image

from robust_opt import losses
from robust_opt.errors import RunError
from robust_opt.evaluation import verdict
from robust_opt.evaluation.batches import plain_logits
from robust_opt.evaluation.trust_checks import TIES
from robust_opt.experiments import target
from robust_opt.report.data import Evaluation, Run

_ANOTHER_NETWORK = "The evaluation is of another network than the one found now."


class Example(NamedTuple):
  """An image that an attack made the network misclassify; images are data: URLs of PNGs."""

  test_index: int  # in the test set
  label: int  # the true class
  attack: str  # the attack that succeeded
  size: float  # of the perturbation, in the norm of the evaluation
  prediction: int  # class predicted for the clean image
  perturbed: str  # the adversarial image
  # None where network and data could not be loaded:
  clean: str | None = None
  delta: str | None = None  # scaled around gray
  max_change: float | None = None  # of a pixel
  confidence: float | None = None  # in `prediction`, in [0, 1]
  perturbed_prediction: int | None = None
  perturbed_confidence: float | None = None


class Examples(NamedTuple):
  """What the page shows of the images of an evaluation."""

  examples: tuple[Example, ...]  # some, from every attack and class as far as they go
  total: int  # how many images an attack made the network misclassify
  confusion: np.ndarray | None  # [C, C] counts, true class by class predicted under attack
  problem: str  # why network and data could not be loaded; empty if they could


def load_examples(
  run: Run, evaluation: Evaluation, limit: int, locations: Mapping[str, str]
) -> Examples:
  """Loads network and data of the evaluation, and predicts clean and adversarial images.

  At most `limit` examples; locations: data_dir and cache_dir, where they are not the run's own.
  """
  stored, outcome = evaluation.stored, evaluation.stored.verdict
  total, count = len(stored.broken_ids), len(stored.labels)
  subset = balanced_subset(stored, limit)
  examples = [_example(stored, k) for k in subset]
  try:
    loaded = _load(run, stored, locations)
  except RunError as error:
    return Examples(tuple(examples), total, None, str(error))
  x, batch_size = loaded.x[:count], min(stored.claim.batch_size, count)
  kind = losses.KINDS.get(loaded.loss, "softmax")

  def probabilities(images: np.ndarray) -> np.ndarray:
    logits = jnp.asarray(plain_logits(loaded.logits_fn, images, batch_size), jnp.float32)
    return np.asarray(losses.probabilities(logits, kind))

  perturbed, clean = probabilities(outcome.images), probabilities(x[stored.broken_ids])
  others = np.sum(np.argmax(clean, axis=1) != outcome.prediction[stored.broken_ids])
  if others > max(1, TIES * total):
    return Examples(tuple(examples), total, None, _ANOTHER_NETWORK)
  for position, k in enumerate(subset):
    example = examples[position]
    delta = outcome.images[k] - x[example.test_index]
    examples[position] = example._replace(
      clean=png(x[example.test_index]),
      delta=png(scaled(delta)),
      max_change=float(np.max(np.abs(delta))),
      confidence=float(clean[k, example.prediction]),
      perturbed_prediction=int(np.argmax(perturbed[k])),
      perturbed_confidence=float(np.max(perturbed[k])),
    )
  return Examples(tuple(examples), total, _confusion(stored, perturbed), "")


def _example(stored: verdict.StoredVerdict, k: int) -> Example:
  """What the verdict file holds of its k-th misclassified image."""
  index, outcome = int(stored.broken_ids[k]), stored.verdict
  return Example(
    test_index=index,
    label=int(stored.labels[index]),
    attack=outcome.names[outcome.broken_by[index]],
    size=float(stored.norms[k]),
    prediction=int(outcome.prediction[index]),
    perturbed=png(outcome.images[k]),
  )


def _confusion(stored: verdict.StoredVerdict, perturbed: np.ndarray) -> np.ndarray:
  """From the probabilities [K, C] of the misclassified images."""
  predictions = np.array(stored.verdict.prediction)
  predictions[stored.broken_ids] = np.argmax(perturbed, axis=1)
  confusion = np.zeros((perturbed.shape[1],) * 2, int)
  np.add.at(confusion, (stored.labels, predictions), 1)
  return confusion


def _load(
  run: Run, stored: verdict.StoredVerdict, locations: Mapping[str, str]
) -> target.EvalTarget:
  """Network and data, if they still are those of the evaluation."""
  source = {key: value for key, value in stored.claim.source.items() if key != "examples"}
  if run.results:  # it may have moved
    source["workdir"] = str(run.workdir)
  loaded = _target(**source | {key: place for key, place in locations.items() if place})
  count = len(stored.labels)
  if loaded.net_sha256 != stored.claim.net_sha256:
    raise RunError(_ANOTHER_NETWORK)
  if verdict.data_sha256(loaded.x[:count], loaded.y[:count]) != stored.claim.data_sha256:
    raise RunError("The evaluation is of other images or labels than those found now.")
  return loaded


@functools.lru_cache(maxsize=1)
def _target(**source: str) -> target.EvalTarget:
  """Kept for the next evaluation of the same run."""
  return target.load(source)


def balanced_subset(stored: verdict.StoredVerdict, limit: int) -> list[int]:
  """Positions among the misclassified, at most `limit`, from each attack and class in turn."""
  groups: dict[Any, list[int]] = defaultdict(list)
  for k, index in enumerate(stored.broken_ids):
    groups[stored.verdict.broken_by[index], stored.labels[index]].append(k)
  turns = sorted((turn, group, k) for group, ks in groups.items() for turn, k in enumerate(ks))
  return sorted(k for _, _, k in turns[:limit])


def scaled(delta: np.ndarray) -> np.ndarray:
  """A perturbation as an image: gray is no change, black and white the largest."""
  span = np.max(np.abs(delta))
  return 0.5 + delta / (2 * span) if span > 0 else np.full_like(delta, 0.5)


def png(image: np.ndarray) -> str:
  """[H, W] or [H, W, C] in [0, 1], C 1 or 3, as the data: URL of a PNG."""
  pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels.squeeze(-1) if pixels.shape[2:] == (1,) else pixels).save(file, "PNG")
  return data_url(file.getvalue())


def data_url(content: bytes) -> str:
  """A PNG as part of the page."""
  return "data:image/png;base64," + base64.b64encode(content).decode()
