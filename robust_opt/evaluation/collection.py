"""Adversarial collections (Shaham et al. 2015, section 5): examples that ONE network gets wrong.

  collection = collect(logits_of, ascend, test.images, test.labels, [ro.L2(0.55)], net=sha256)
  save(collection, path)                                 # .npz, no pickle
  collection = load(path)
  verify(collection, logits_of, test.images, test.labels, net)

One ascent step in each norm from every test example that the network classifies correctly; the
results that it misclassifies are kept, so that it scores exactly 0 on its own collection. Images
stay float32: rounding to 8 bits would change or remove perturbations of a small radius (`rounded`
makes the 8-bit version).
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from robust_opt import losses
from robust_opt.arrays import pad_to
from robust_opt.errors import InputError
from robust_opt.evaluation.accuracy import perturb
from robust_opt.evaluation.verdict import TOLERANCE
from robust_opt.files import read_sealed, write_sealed
from robust_opt.maximizers import Attack
from robust_opt.objectives import RobustObjective
from robust_opt.sets import BALLS, Ball, lengths
from robust_opt.types import ApplyFn, Array, Batch, ModelState, Params

# Logit differences below this may change sign with the batch size or machine. Such examples are
# left out: the network must be wrong on its collection wherever it is loaded.
MARGIN = 1e-3

LogitsOf = Callable[[np.ndarray], np.ndarray]  # images [N, *S] float32 -> logits [N, C]
Ascend = Callable[[Ball, np.ndarray, np.ndarray], np.ndarray]  # (u, x, y) -> delta


class Collection(NamedTuple):
  """Adversarial examples of one network.

  Attributes:
    images: [M, *S], float32, in pixels of [0, 1] (beyond it where the set has no box).
    labels: [M], int32, the true classes.
    source_ids: [M], int32, the index of the clean example in the test set.
    norms: [M], '<U4': linf, l2 or l1.
    radii: [M], float64, in pixels.
    net: SHA-256 of the network.
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
  make_attack: Callable[[Ball], Attack],
  batch_size: int,
) -> Callable[[Params, ModelState, Ball, np.ndarray, np.ndarray], np.ndarray]:
  """(params, model_state, u, x [N, *S], y [N]) -> delta [N, *S] on the host.

  Arguments as for `make_evaluate`, but make_attack takes a ball and must not start at random.
  """

  @jax.jit
  def one_batch(params: Params, model_state: ModelState, u: Ball, x: Array, y: Array) -> Array:
    batch = Batch(x, y, jnp.arange(x.shape[0], dtype=jnp.int32))
    attack, key = make_attack(u), jax.random.key(0)
    return perturb(apply, params, model_state, objective, attack, batch, key).delta

  def ascend(
    params: Params, model_state: ModelState, u: Ball, x: np.ndarray, y: np.ndarray
  ) -> np.ndarray:
    u = dataclasses.replace(u, radius=jnp.float32(u.radius))
    return in_batches(lambda x, y: one_batch(params, model_state, u, x, y), batch_size, x, y)

  return ascend


def in_batches(function: Callable[..., Array], batch_size: int, *arrays: np.ndarray) -> np.ndarray:
  """Applies function in batches of one shape; the last is padded, and the padding removed."""
  count = len(arrays[0])
  if count == 0:
    arrays = tuple(np.zeros((1, *a.shape[1:]), a.dtype) for a in arrays)
  out = []
  for start in range(0, max(count, 1), batch_size):
    parts = [pad_to(a[start : start + batch_size], batch_size) for a in arrays]
    out.append(function(*parts))  # dispatched without waiting for the previous batch
  return np.concatenate([np.asarray(o) for o in out])[:count]


def collect(
  logits_of: LogitsOf,
  ascend: Ascend,
  images: np.ndarray,
  labels: np.ndarray,
  balls: Iterable[Ball],
  net: str,
) -> Collection:
  """One ascent step from every correctly classified example in every norm; keeps the errors.

  Args:
    logits_of: the network in evaluation mode.
    ascend: (u, x, y) -> delta.
    images: [N, *S], uint8 or float32 in [0, 1], of the test set.
    labels: [N].
    balls: one per norm.
    net: SHA-256 of the network.
  """
  x, labels = pixels(images), np.asarray(labels, np.int32)
  ids = np.flatnonzero(correct(logits_of, x, labels)).astype(np.int32)
  parts = []
  for u in balls:
    adversarial = _rounded_inward(x[ids], ascend(u, x[ids], labels[ids]))
    kept = _error(logits_of(adversarial), labels[ids]) > MARGIN
    norms = np.full(kept.sum(), u.name, "<U4")
    radii = np.full(kept.sum(), u.radius, np.float64)
    parts.append((adversarial[kept], labels[ids][kept], ids[kept], norms, radii))
  columns = map(np.concatenate, zip(*parts, strict=True))
  return Collection(net=net, **dict(zip(Collection._fields, columns)))


def correct(logits_of: LogitsOf, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Whether each example is classified as its label, [M] bool, by `losses.correct`."""
  return np.asarray(losses.correct(jnp.asarray(logits_of(images)), jnp.asarray(labels)))


def rounded(images: np.ndarray) -> np.ndarray:
  """Images rounded as in an 8-bit file, to the nearest of 0, 1/255, ..., 1, as float32."""
  return np.clip(np.rint(images * np.float32(255)), 0, 255).astype(np.float32) / np.float32(255)


def pixels(images: npt.ArrayLike) -> np.ndarray:
  """float32 in [0, 1]; on the host, since division by 255 on a GPU may round differently."""
  images = np.asarray(images)
  if images.dtype == np.uint8:
    return images.astype(np.float32) / np.float32(255)
  return np.asarray(images, np.float32)


def relative_norms(collection: Collection, images: np.ndarray) -> np.ndarray:
  """|image - source| / radius of each example in its norm, [M] float64; images: the test set."""
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
  """Reads a collection and checks its SHA-256.

  Raises:
    InputError: the file is absent, damaged, changed, or not a collection.
  """
  with read_sealed(path, "collection") as arrays:
    return Collection(net=str(arrays.pop("net")), **arrays)


def verify(
  collection: Collection, logits_of: LogitsOf, images: np.ndarray, labels: np.ndarray, net: str
) -> None:
  """Checks a collection against its network and test set.

  Arguments as for `collect`.

  Raises:
    InputError: it belongs to another network or test set, a perturbation exceeds its radius by more
      than a relative 1e-6, or the network classifies an example correctly.
  """
  if collection.net != net:
    raise InputError(f"The collection was made from net {collection.net}, not from {net}.")
  _check_shapes(collection, images)
  if not np.array_equal(collection.labels, labels[collection.source_ids]):
    raise InputError("The collection's labels are not those of its sources in this test set.")
  furthest = relative_norms(collection, images).max(initial=0.0)
  if not furthest <= 1 + TOLERANCE:
    raise InputError(f"A perturbation of the collection is {furthest:.7f} of its radius.")
  right = int(correct(logits_of, collection.images, collection.labels).sum())
  if right:
    raise InputError(
      f"The net classifies {right} of the {len(collection.labels)} examples of its own "
      f"collection correctly; it must be wrong on all of them."
    )


def _check_shapes(collection: Collection, images: np.ndarray) -> None:
  """InputError if the shapes are inconsistent or a source is not in the test set."""
  count = collection.images.shape[:1]
  if collection.images.shape != count + images.shape[1:]:
    raise InputError(
      f"The collection holds images of shape {collection.images.shape[1:]}, but the test set "
      f"{images.shape[1:]}."
    )
  for name in ("labels", "norms", "radii", "source_ids"):
    shape = getattr(collection, name).shape
    if shape != count:
      raise InputError(f"The collection's {name} have the shape {shape}, but must have {count}.")
  valid = (collection.source_ids >= 0) & (collection.source_ids < len(images))
  if not valid.all():
    raise InputError(
      f"{np.sum(~valid)} of the collection's sources are not among the {len(images)} test images."
    )


def _error(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """The largest wrong logit minus the label's, [N]; NaN for NaN logits."""
  rows = np.arange(len(labels))
  wrong = np.array(logits, np.float32)
  wrong[rows, labels] = -np.inf
  return wrong.max(axis=1) - logits[rows, labels]


def _rounded_inward(x: np.ndarray, delta: np.ndarray) -> np.ndarray:
  """x + delta in float32, no pixel further from x than |delta|, so that no norm grows.

  Near 1, rounding to float32 changes a pixel by up to 3e-8, which may exceed a relative 1e-6 of an
  l_inf radius of 0.01, or of a larger l_2 radius.
  """
  delta = delta.astype(np.float32)
  image = x + delta
  beyond = np.abs(image.astype(np.float64) - x) > np.abs(delta)
  image[beyond] = np.nextafter(image[beyond], x[beyond])
  return image
