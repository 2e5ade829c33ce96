"""Adversarial examples of an evaluation to look at, and what the net takes all of them for.

  attacked = ask(run, evaluation, limit=60)
  attacked.examples[0].perturbed            # a PNG as a data: address
  attacked.confusion                        # [C, C], true class by answer under attack

A verdict holds the adversarial images, but neither the clean ones nor the net's answers to the
perturbed: net and data are loaded again and asked. Where that fails, `problem` says why and the
examples are what the file alone tells.
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
from robust_opt.experiments import target
from robust_opt.report.data import Evaluation, Run


class Example(NamedTuple):
  """An image that an attack broke.

  Attributes:
    place: in the data set.
    label: the true class.
    attack: which attack broke it.
    length: of the perturbation, in the norm of the evaluation.
    taken_for: the class of the clean image.
    perturbed: the adversarial image, a data: address of a PNG.
    clean: likewise; None where the data could not be loaded.
    delta: the perturbation stretched around grey; None likewise.
    span: the largest change of a pixel; None likewise.
    confidence: in taken_for, in [0, 1]; None likewise.
    fooled_into: the class of the adversarial image; None likewise.
    fooled_confidence: in fooled_into; None likewise.
  """

  place: int
  label: int
  attack: str
  length: float
  taken_for: int
  perturbed: str
  clean: str | None = None
  delta: str | None = None
  span: float | None = None
  confidence: float | None = None
  fooled_into: int | None = None
  fooled_confidence: float | None = None


class Attacked(NamedTuple):
  """What is shown of an evaluation.

  Attributes:
    examples: some of the broken ones, every attack and class among them as far as they go.
    broken: how many an attack broke.
    confusion: [C, C] counts, true class by answer under attack (for those that stand, the true
      class); None where the net could not be asked.
    problem: why not, a sentence; empty if it could.
  """

  examples: tuple[Example, ...]
  broken: int
  confusion: np.ndarray | None
  problem: str


def ask(run: Run, evaluation: Evaluation, limit: int, places: Mapping[str, str]) -> Attacked:
  """Loads net and data of the run again and asks the net.

  Args:
    run: whose net was evaluated.
    evaluation: of it.
    limit: how many examples at most.
    places: data_dir and cache_dir, where they are not the run's own.
  """
  stored = evaluation.stored
  chosen = choose(stored, limit)
  count, outcome = len(stored.labels), stored.verdict
  known = [
    Example(
      place=int(stored.broken_ids[k]),
      label=int(stored.labels[stored.broken_ids[k]]),
      attack=outcome.names[outcome.broken_by[stored.broken_ids[k]]],
      length=float(stored.norms[k]),
      taken_for=int(outcome.prediction[stored.broken_ids[k]]),
      perturbed=png(outcome.images[k]),
    )
    for k in chosen
  ]
  try:
    found = _load(run, evaluation, places)
  except RunError as error:
    return Attacked(tuple(known), len(stored.broken_ids), None, str(error))
  x, size = found.x[:count], min(stored.claim.batch_size, count)
  kind = losses.KINDS[run.config.get("objective.loss", "cross_entropy")]

  def beliefs(images: np.ndarray) -> np.ndarray:
    logits = jnp.asarray(plain_logits(found.logits_fn, images, size), jnp.float32)
    return np.asarray(losses.probabilities(logits, kind))

  attacked, clean = beliefs(outcome.images), beliefs(x[stored.broken_ids])
  after = np.array(outcome.prediction)
  after[stored.broken_ids] = np.argmax(attacked, axis=1)
  confusion = np.zeros((attacked.shape[1],) * 2, int)
  np.add.at(confusion, (stored.labels, after), 1)
  examples = [
    example._replace(
      clean=png(x[example.place]),
      delta=png(stretched(outcome.images[k] - x[example.place])),
      span=float(np.max(np.abs(outcome.images[k] - x[example.place]))),
      confidence=float(clean[k, example.taken_for]),
      fooled_into=int(np.argmax(attacked[k])),
      fooled_confidence=float(np.max(attacked[k])),
    )
    for k, example in zip(chosen, known)
  ]
  return Attacked(tuple(examples), len(stored.broken_ids), confusion, "")


def _load(run: Run, evaluation: Evaluation, places: Mapping[str, str]) -> target.EvalTarget:
  """Net and data of an evaluation, if they still are those that it was made on."""
  stored = evaluation.stored
  checkpoint = stored.claim.source.get("checkpoint", "")
  found = _subject(str(run.workdir), checkpoint, **places)
  count = len(stored.labels)
  if found.net_sha256 != stored.claim.net_sha256:
    raise RunError("The evaluation was made of another net than the run holds now.")
  if verdict.data_sha256(found.x[:count], found.y[:count]) != stored.claim.data_sha256:
    raise RunError("The evaluation was made on other images or labels than are found now.")
  return found


@functools.lru_cache(maxsize=1)
def _subject(
  workdir: str, checkpoint: str, data_dir: str = "", cache_dir: str = ""
) -> target.EvalTarget:
  """Kept for the next evaluation of the same run."""
  source = {"workdir": workdir, "checkpoint": checkpoint}
  return target.load({**source, "data_dir": data_dir, "cache_dir": cache_dir})


def choose(stored: verdict.StoredVerdict, limit: int) -> list[int]:
  """Places among the broken, at most `limit`: each attack and class in turn gives its next."""
  groups: dict[Any, list[int]] = defaultdict(list)
  for k, place in enumerate(stored.broken_ids):
    groups[stored.verdict.broken_by[place], stored.labels[place]].append(k)
  turns = sorted((turn, group, k) for group, ks in groups.items() for turn, k in enumerate(ks))
  return sorted(k for _, _, k in turns[:limit])


def stretched(delta: np.ndarray) -> np.ndarray:
  """A perturbation as an image: grey is no change, black and white the largest."""
  span = np.max(np.abs(delta))
  return 0.5 + delta / (2 * span) if span > 0 else np.full_like(delta, 0.5)


def png(image: np.ndarray) -> str:
  """[H, W] or [H, W, C] in [0, 1], C 1 or 3, as the data: address of a PNG."""
  pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels.squeeze(-1) if pixels.shape[2:] == (1,) else pixels).save(file, "PNG")
  return data_address(file.getvalue())


def data_address(content: bytes) -> str:
  """A PNG within the page."""
  return "data:image/png;base64," + base64.b64encode(content).decode()
