"""The checks of a trust report that look at the gradients of the net at clean images.

  gradients = measure(net, x, y, batch_size, box)          # one program, seconds
  checks = [zeros(gradients, right), finite(gradients), slope(gradients), pixels(net, x, gradients)]

They cost no attack, so that `robust_opt.evaluate` makes them before it spends time. AutoAttack
checks only for zero gradients, in the first batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import losses
from robust_opt.arrays import expand_like, pad_to
from robust_opt.evaluation.batches import logits_of
from robust_opt.evaluation.trust_checks import Check, at_most, check_of
from robust_opt.precision import wide
from robust_opt.sets.base import Box
from robust_opt.types import Array, LogitsFn, LossFn

# Of the images: a trained net's gradient, in float32, is nonzero up to margins of about 80.
FLAT = 0.01
# Of the images: those at which no step along the gradient may increase the margin.
DOWNHILL = 0.1
LENGTHS = (0.01, 0.03, 0.1)  # of those steps, in l_2
# Of the change of the logits under noise: the part of pixels that may have no gradient.
BLIND = 0.1
NOISE = 0.05  # at most, in every pixel


class Gradients(NamedTuple):
  """What the gradients at N images show.

  Attributes:
    flat: [N] bool, whether that of the cross-entropy is exactly 0.
    finite: [N] bool, whether that of the cross-entropy and that of the margin are finite.
    still: [N] bool, whether that of the margin leads nowhere in the box.
    rises: [N] bool, whether the margin increases along its gradient, by one of LENGTHS.
    used: [*S] bool, the entries at which that of the margin is not 0 for some image.
  """

  flat: np.ndarray | Array
  finite: np.ndarray | Array
  still: np.ndarray | Array
  rises: np.ndarray | Array
  used: np.ndarray | Array


def measure(
  net: LogitsFn, x: np.ndarray, y: np.ndarray, batch_size: int, box: Box = (0.0, 1.0)
) -> Gradients:
  """Of a net from `network.as_argument`, at x [N, *S] within the box, with labels y [N]."""
  parts, ends = [], np.array(box, np.float32)
  for start in range(0, len(x), batch_size):
    images, labels = x[start : start + batch_size], y[start : start + batch_size]
    measured = _measure(net, pad_to(images, batch_size), pad_to(labels, batch_size), ends)
    parts.append([np.asarray(values)[: len(images)] for values in measured])
  whole = Gradients(*(np.concatenate(column) for column in zip(*parts, strict=True)))
  return whole._replace(used=np.any(whole.used, axis=0))


@jax.jit
def _measure(net: LogitsFn, x: Array, y: Array, box: Array) -> Gradients:
  logits, pullback = jax.vjp(net, x)

  def ascent(loss: LossFn) -> tuple[Array, Array]:
    value, of_logits = jax.vjp(lambda logits: loss(logits, y), logits)
    (grad,) = pullback(of_logits(jnp.ones_like(value))[0])
    return value, grad.astype(wide(x.dtype))

  def every(holds: Array) -> Array:
    return jnp.all(holds, axis=range(1, holds.ndim))

  _, of_entropy = ascent(losses.cross_entropy)
  margin, of_margin = ascent(losses.margin)
  low, high = box
  inward = jnp.where((x <= low) & (of_margin < 0) | (x >= high) & (of_margin > 0), 0.0, of_margin)
  largest = jnp.max(jnp.abs(inward), axis=range(1, x.ndim))
  unit = inward / expand_like(jnp.where(largest > 0, largest, 1.0), x)
  norm = jnp.sqrt(jnp.sum(unit**2, axis=range(1, x.ndim)))
  unit = unit / expand_like(jnp.maximum(norm, 1.0), x)
  after = [
    losses.margin(net(jnp.clip(x + length * unit, low, high).astype(x.dtype)), y)
    for length in LENGTHS
  ]
  return Gradients(
    every(of_entropy == 0),
    every(jnp.isfinite(of_entropy) & jnp.isfinite(of_margin)),
    every(inward == 0),
    jnp.max(jnp.stack(after), axis=0) > margin,
    of_margin != 0,
  )


def zeros(gradients: Gradients, right: np.ndarray) -> Check:
  """The gradient of the cross-entropy is seldom exactly 0; `right`: the ids that are."""
  flat, allowed = int(np.sum(gradients.flat[right])), max(1, int(FLAT * len(right)))
  measured = (
    f"the gradient of the cross-entropy is exactly 0 at {flat} of the {len(right)} images that are "
    f"classified correctly; allowed are {allowed}"
  )
  return at_most(allowed, "gradients", flat, len(right), measured)


def finite(gradients: Gradients) -> Check:
  """No gradient is inf or NaN."""
  count = int(np.sum(~gradients.finite))
  measured = f"gradients are inf or NaN at {count} of {len(gradients.finite)} images"
  return check_of("finite gradients", count == 0, measured)


def slope(gradients: Gradients) -> Check:
  """The margin increases along its gradient."""
  moving = gradients.finite & ~gradients.still
  count, allowed = int(np.sum(moving & ~gradients.rises)), max(1, int(DOWNHILL * np.sum(moving)))
  measured = (
    f"no step of {', '.join(map(str, LENGTHS))} along its gradient increases the margin at {count} "
    f"of {np.sum(moving)} images; allowed are {allowed}"
  )
  unclear = "" if np.sum(moving) > allowed else "too few images have a gradient"
  return check_of("slope", count <= allowed, measured, unclear)


def pixels(
  net: LogitsFn, x: np.ndarray, gradients: Gradients, batch_size: int, seed: int, box: Box
) -> Check:
  """Entries that change the logits have a gradient."""
  blind = int(np.sum(~gradients.used))
  measured = f"{blind} of {gradients.used.size} entries have no gradient at any image"
  if not blind:
    return check_of("pixels", True, measured)
  noise = np.random.default_rng(seed).uniform(-NOISE, NOISE, x.shape).astype(np.float32)

  def change(noise: np.ndarray) -> float:
    moved = np.clip(x + noise, np.float32(box[0]), np.float32(box[1]))
    return float(np.mean(np.abs(_centered(net, moved, batch_size) - clean)))

  clean = _centered(net, x, batch_size)
  everywhere, there = change(noise), change(noise * ~gradients.used)
  measured += (
    f"; noise of up to {NOISE:g} there alone changes the logits by {there:.2g}, everywhere by "
    f"{everywhere:.2g}; allowed is a share of {BLIND:g}"
  )
  return check_of("pixels", there <= BLIND * everywhere, measured)


def _centered(net: LogitsFn, x: np.ndarray, batch_size: int) -> np.ndarray:
  """The logits [N, C] in float64, without what is common to all classes."""
  logits = logits_of(net, x, batch_size).astype(np.float64)
  return logits - logits.mean(axis=1, keepdims=True)
