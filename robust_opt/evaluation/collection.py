"""Adversarial collections (Shaham et al. 2015, section 5): examples that ONE net gets wrong.

  collection = collect(logits_of, ascend, test.images, test.labels, {"l2": 0.55}, net=sha256)
  save(collection, path)                                 # .npz, no pickle
  collection = load(path)
  verify(collection, logits_of, test.images, test.labels, net)

From every test point that the net classifies correctly, one ascent step in each norm; those are
kept that the net then gets wrong, so that it scores exactly 0 on its own collection. Images stay
float32: rounded to 8 bits, perturbations of a small radius would change or vanish (`rounded`
makes the 8-bit version on purpose).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import losses
from robust_opt.errors import InputError
from robust_opt.evaluation.accuracy import perturb
from robust_opt.evaluation.verdict import TOLERANCE
from robust_opt.files import read_sealed, write_sealed
from robust_opt.maximizers import Attack
from robust_opt.objectives import RobustObjective
from robust_opt.sets import BALLS, lengths
from robust_opt.types import ApplyFn, Array, Batch, ModelState, Params

# A logit difference that another batch size or machine may round away. Examples whose error is
# smaller are left out: the net must be wrong on the collection wherever it is loaded.
MARGIN = 1e-3

LogitsOf = Callable[[np.ndarray], np.ndarray]  # images [N, *S] float32 -> logits [N, C]
Ascend = Callable[[str, float, np.ndarray, np.ndarray], np.ndarray]  # (norm, radius, x, y) -> delta


class Collection(NamedTuple):
  """Adversarial examples of one net.

  Attributes:
    images: [M, *S], float32, in pixels of [0, 1] (outside of it where the set has no box).
    labels: [M], int32, the true classes.
    source_ids: [M], int32, the place of each one's source in the test set.
    norms: [M], '<U4': linf, l2 or l1.
    radii: [M], float64, in pixels.
    net: SHA-256 of the net that they were made from.
  """

  images: np.ndarray
  labels: np.ndarray
  source_ids: np.ndarray
  norms: np.ndarray
  radii: np.ndarray
  net: str


def make_logits_of(
  apply: ApplyFn, batch_size: int
) -> Callable[[Params, ModelState, np.ndarray], np.ndarray]:
  """(params, model_state, images [N, *S] float32 on the host) -> logits [N, C], one compilation."""

  @jax.jit
  def logits(params: Params, model_state: ModelState, x: Array) -> Array:
    return apply(params, model_state, x, train=False, key=None)[0]

  return lambda params, model_state, images: in_batches(
    lambda x: logits(params, model_state, x), batch_size, images
  )


def make_ascend(
  apply: ApplyFn,
  objective: RobustObjective,
  make_attack: Callable[[str, Array], Attack],
  batch_size: int,
) -> Callable[[Params, ModelState, str, float, np.ndarray, np.ndarray], np.ndarray]:
  """(params, model_state, norm, radius, x [N, *S], y [N]) -> delta [N, *S], on the host.

  Args:
    apply: the model, used in evaluation mode.
    objective: whose inner value the attack ascends.
    make_attack: (norm, radius []) -> attack without a random start; called under trace.
    batch_size: examples at a time; it changes speed and memory, not the answer.
  """

  @jax.jit(static_argnames="norm")
  def one_batch(
    params: Params, model_state: ModelState, radius: Array, x: Array, y: Array, norm: str
  ) -> Array:
    batch = Batch(x, y, jnp.arange(x.shape[0], dtype=jnp.int32))
    attack, key = make_attack(norm, radius), jax.random.key(0)
    return perturb(apply, params, model_state, objective, attack, batch, key).delta

  def ascend(
    params: Params, model_state: ModelState, norm: str, radius: float, x: np.ndarray, y: np.ndarray
  ) -> np.ndarray:
    traced = jnp.float32(radius)
    return in_batches(
      lambda x, y: one_batch(params, model_state, traced, x, y, norm=norm), batch_size, x, y
    )

  return ascend


def in_batches(function: Callable[..., Array], batch_size: int, *arrays: np.ndarray) -> np.ndarray:
  """function over batches of one shape; the last is padded, and the padding cut off again."""
  count = len(arrays[0])
  if count == 0:
    arrays = tuple(np.zeros((1, *a.shape[1:]), a.dtype) for a in arrays)
  out = []
  for start in range(0, max(count, 1), batch_size):
    parts = [a[start : start + batch_size] for a in arrays]
    missing = batch_size - len(parts[0])
    parts = [np.concatenate([p, np.repeat(p[-1:], missing, axis=0)]) for p in parts]
    out.append(function(*parts))  # dispatched without waiting for the one before
  return np.concatenate([np.asarray(o) for o in out])[:count]


def collect(
  logits_of: LogitsOf,
  ascend: Ascend,
  images: np.ndarray,
  labels: np.ndarray,
  radii: Mapping[str, float],
  net: str,
) -> Collection:
  """One ascent step from every correctly classified example in every norm; keeps the errors.

  Args:
    logits_of: the net in evaluation mode.
    ascend: (norm, radius, x, y) -> delta.
    images: [N, *S], uint8 or float32 in [0, 1], of the test set.
    labels: [N].
    radii: in pixels, by norm.
    net: the net's SHA-256.
  """
  x, labels = pixels(images), np.asarray(labels, np.int32)
  ids = np.flatnonzero(correct(logits_of, x, labels)).astype(np.int32)
  parts = []
  for norm, radius in radii.items():
    adversarial = _rounded_inwards(x[ids], ascend(norm, radius, x[ids], labels[ids]))
    kept = _error(logits_of(adversarial), labels[ids]) > MARGIN
    count = int(kept.sum())
    parts.append(
      Collection(
        images=adversarial[kept],
        labels=labels[ids][kept],
        source_ids=ids[kept],
        norms=np.full(count, norm, "<U4"),
        radii=np.full(count, radius, np.float64),
        net=net,
      )
    )
  return Collection(
    images=np.concatenate([part.images for part in parts]),
    labels=np.concatenate([part.labels for part in parts]),
    source_ids=np.concatenate([part.source_ids for part in parts]),
    norms=np.concatenate([part.norms for part in parts]),
    radii=np.concatenate([part.radii for part in parts]),
    net=net,
  )


def correct(logits_of: LogitsOf, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Whether each example is classified as its label, [M] bool, as `losses.correct` decides it."""
  return np.asarray(losses.correct(jnp.asarray(logits_of(images)), jnp.asarray(labels)))


def rounded(images: np.ndarray) -> np.ndarray:
  """What an 8-bit image file would keep: the nearest of 0, 1/255, ..., 1, as float32."""
  return np.clip(np.rint(images * np.float32(255)), 0, 255).astype(np.float32) / np.float32(255)


def pixels(images: np.ndarray) -> np.ndarray:
  """float32 in [0, 1]; on the host, since a GPU may divide by 255 to another last bit."""
  if images.dtype == np.uint8:
    return images.astype(np.float32) / np.float32(255)
  return np.asarray(images, np.float32)


def relative_norms(collection: Collection, images: np.ndarray) -> np.ndarray:
  """|image - source| / radius of each example in its norm, [M], computed in float64.

  Args:
    collection: M examples.
    images: [N, *S], the test set that they were made from.
  """
  delta = collection.images.astype(np.float64) - pixels(images)[collection.source_ids]
  norms = np.select(
    [collection.norms == name for name in BALLS],
    [lengths(ball, delta) for ball in BALLS.values()],
    np.inf,
  )
  return norms / collection.radii


def save(collection: Collection, path: Path) -> None:
  """Writes an .npz that loads without pickle; the same collection gives the same bytes."""
  write_sealed(path, collection._asdict())


def load(path: Path) -> Collection:
  """Reads a collection and checks that it is what was written.

  Raises:
    InputError: the file is absent, damaged, changed, or no collection.
  """
  with read_sealed(path, "collection") as arrays:
    return Collection(net=str(arrays.pop("net")), **arrays)


def verify(
  collection: Collection, logits_of: LogitsOf, images: np.ndarray, labels: np.ndarray, net: str
) -> None:
  """Checks a collection against the net and the test set that it was made from.

  Args:
    collection: from `load`.
    logits_of: the net in evaluation mode.
    images: [N, *S], the test set.
    labels: [N].
    net: the net's SHA-256.

  Raises:
    InputError: it belongs to another net or test set, a perturbation is longer than its radius by
      more than a relative 1e-6, or the net classifies an example correctly.
  """
  if collection.net != net:
    raise InputError(f"The collection was made from net {collection.net}, not from {net}.")
  _check_shapes(collection, images)
  if not np.array_equal(collection.labels, labels[collection.source_ids]):
    raise InputError("The collection's labels are not those of its sources in this test set.")
  furthest = relative_norms(collection, images).max(initial=0.0)
  if not furthest <= 1 + TOLERANCE:
    raise InputError(f"A perturbation of the collection is {furthest:.7f} of its radius long.")
  right = int(correct(logits_of, collection.images, collection.labels).sum())
  if right:
    raise InputError(
      f"The net classifies {right} of the {len(collection.labels)} examples of its own "
      f"collection correctly; it must be wrong on all of them."
    )


def _check_shapes(collection: Collection, images: np.ndarray) -> None:
  """InputError where the arrays do not fit together, or the test set has no such examples."""
  many = collection.images.shape[:1]
  if collection.images.shape != many + images.shape[1:]:
    raise InputError(
      f"The collection holds images of shape {collection.images.shape[1:]}, but the test set "
      f"{images.shape[1:]}."
    )
  for name in ("labels", "norms", "radii", "source_ids"):
    shape = getattr(collection, name).shape
    if shape != many:
      raise InputError(f"The collection's {name} have the shape {shape}, but must have {many}.")
  known = (collection.source_ids >= 0) & (collection.source_ids < len(images))
  if not known.all():
    raise InputError(
      f"{np.sum(~known)} of the collection's sources are not among the {len(images)} test images."
    )


def _error(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """How wrong the net is, [N]: its largest wrong logit minus the label's; NaN for NaN logits."""
  rows = np.arange(len(labels))
  wrong = np.array(logits, np.float32)
  wrong[rows, labels] = -np.inf
  return wrong.max(axis=1) - logits[rows, labels]


def _rounded_inwards(x: np.ndarray, delta: np.ndarray) -> np.ndarray:
  """x + delta in float32, no pixel further from x than delta says, so that no norm grows.

  Near 1 the rounding of a float32 moves a pixel by 3e-8: that may be more than the relative 1e-6 of
  a radius of 0.01 over l_inf, and of a larger one over l_2.
  """
  delta = delta.astype(np.float32)
  image = x + delta
  beyond = np.abs(image.astype(np.float64) - x) > np.abs(delta)
  image[beyond] = np.nextafter(image[beyond], x[beyond])
  return image
