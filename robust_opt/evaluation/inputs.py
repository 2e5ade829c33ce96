"""Validation of the inputs of an evaluation: images, labels, set and network.

u = check_set(ro.LInf(8 / 255, box=(0.0, 1.0)))
x, y = check_examples(logits_fn, x, y, u, batch_size=100)
"""

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import precision
from robust_opt.checks import check_callable
from robust_opt.errors import InputError
from robust_opt.evaluation import network
from robust_opt.sets import UncertaintySet
from robust_opt.sets.examples import check_fits, radii_of, with_parts
from robust_opt.sets.radii import box_of
from robust_opt.types import Array, LogitsFn


def check_set(u: UncertaintySet) -> UncertaintySet:
  """u as the argument of compiled attacks, its numbers as float32 scalars, arrays as they are.

  Raises:
    InputError: u is not a set, or a radius is not a finite positive number.
  """
  if not isinstance(u, UncertaintySet):
    raise InputError(f"u must be a set, as in ro.LInf(8 / 255, box=(0.0, 1.0)), but was {u!r}.")
  for part in with_parts(u):
    for name, radius in radii_of(part).items():
      values = np.atleast_1d(radius)
      wrong = values[~((values > 0) & np.isfinite(values))]
      if wrong.size:
        raise InputError(
          f"{name} must be a finite number > 0, in pixels of [0, 1], not {wrong[0]}."
        )
  return jax.tree.map(lambda leaf: leaf if np.ndim(leaf) else np.float32(leaf), u)


def check_examples(
  logits_fn: LogitsFn,
  x: np.ndarray | Array,
  y: np.ndarray | Array,
  u: UncertaintySet,
  batch_size: int,
  *,
  allow_probabilities: bool = False,
  gradients: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
  """x as float32 and y as int32, if they can be attacked.

  Args:
    logits_fn, x, y, u, batch_size: as for `autoattack`.
    allow_probabilities: whether the outputs may be probabilities.
    gradients: whether the network must be differentiable.

  Raises:
    InputError: an empty data set; images that are not floating point or leave the box of u, or
      [0, 1]; radii or masks that do not fit them; labels that are not classes of the net; outputs
      that are not finite floating-point logits [B, C] of at least 2 classes; a net whose gradient
      cannot be traced; a batch size below 1.
  """
  if batch_size < 1:
    raise InputError(f"batch_size must be an integer >= 1, but was {batch_size}.")
  check_callable("logits_fn", logits_fn, "x [B, *S] -> logits [B, C]")
  images, labels = np.asarray(x), np.asarray(y)
  if images.ndim == 1 < labels.ndim:
    raise InputError(
      f"Images come before labels, but the shapes are {images.shape} and {labels.shape}: swap them."
    )
  if images.size == 0 or labels.shape != images.shape[:1]:
    raise InputError(
      f"There must be at least one image and as many labels as images, but the shapes are "
      f"{images.shape} and {labels.shape}."
    )
  if not np.issubdtype(images.dtype, np.floating):
    raise InputError(f"Images must be floating point, pixels in [0, 1], but are {images.dtype}.")
  if not np.issubdtype(labels.dtype, np.integer):
    raise InputError(f"Labels must be integers, but are {labels.dtype}.")
  images, labels = images.astype(np.float32), labels.astype(np.int32)
  low, high = box_of(u)
  if not (np.isfinite(images).all() and images.min() >= low and images.max() <= high):
    raise InputError(
      f"Images must be finite and in [{low:g}, {high:g}], but lie in [{images.min():.4g}, "
      f"{images.max():.4g}]; a net that takes other units must convert them itself."
    )
  check_fits(u, images.shape)
  _check_outputs(logits_fn, images, labels, allow_probabilities)
  if gradients:
    network.check_differentiable(logits_fn, images[: network.NUM_CHECKED])
  return images, labels


def check_ids(ids: np.ndarray | None, count: int) -> np.ndarray:
  """The ids as int32, [count]; None: 0 to count - 1.

  Raises:
    InputError: they are not one integer >= 0 for each image.
  """
  checked = np.asarray(np.arange(count) if ids is None else ids)
  if checked.shape != (count,) or not np.issubdtype(checked.dtype, np.integer):
    raise InputError(
      f"ids must be {count} integers, one for each image, but have the shape {checked.shape} and "
      f"the type {checked.dtype}."
    )
  if checked.min() < 0 or checked.max() > np.iinfo(np.int32).max:
    raise InputError(
      f"ids must be from 0 to {np.iinfo(np.int32).max}, but lie in [{checked.min()}, "
      f"{checked.max()}]."
    )
  return checked.astype(np.int32)


def are_probabilities(logits: np.ndarray) -> bool:
  """Whether all outputs [N, C] are >= 0 and sum to 1, up to rounding by eps / 2."""
  allowed = max(1e-3, float(jnp.finfo(logits.dtype).eps))
  sums = logits.astype(np.float64).sum(axis=1)
  return bool(np.all(logits >= 0) and np.all(np.abs(sums - 1) <= allowed))


def _check_outputs(
  logits_fn: LogitsFn, images: np.ndarray, labels: np.ndarray, allow_probabilities: bool
) -> None:
  sample = images[: network.NUM_CHECKED]
  try:
    outputs = logits_fn(jnp.asarray(sample))
  except Exception as error:
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    raise InputError(f"The net fails on images of shape {sample.shape}: {reason}") from error
  if not isinstance(outputs, (jax.Array, np.ndarray)):
    raise InputError(
      f"The net must return one array of logits [B, C], but returned a {type(outputs).__name__}; "
      f"of several outputs, return the logits alone."
    )
  logits = np.asarray(outputs)
  precision.check_floating(logits, "The net's logits")
  if logits.ndim != 2 or len(logits) != len(sample) or logits.shape[1] < 2:
    raise InputError(
      f"The net must return logits [{len(sample)}, C] of at least 2 classes for {len(sample)} "
      f"images, but returned the shape {logits.shape}."
    )
  if not np.isfinite(logits).all():
    raise InputError("The net's logits must be finite, but some are inf or NaN on clean images.")
  if labels.min() < 0 or labels.max() >= logits.shape[1]:
    raise InputError(
      f"Labels must lie in [0, {logits.shape[1]}), the classes of the net, but lie in "
      f"[{labels.min()}, {labels.max()}]."
    )
  if are_probabilities(logits) and not allow_probabilities:
    raise InputError(
      "The net must return logits, but its outputs are >= 0 and sum to 1, as probabilities do: "
      "the gradient of a confident net would be lost in the softmax."
    )
