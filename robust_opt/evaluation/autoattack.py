"""AutoAttack: four attacks one after the other, each on the examples that still stand.

  verdict = ro.autoattack(logits_fn, x, y, norm="linf", radius=0.3)     # x [N, *S] in [0, 1]
  verdict.robust_accuracy, verdict.broken_by, verdict.images

APGD on the cross-entropy, APGD on the targeted DLR loss, FAB towards each target, and Square (Croce
and Hein 2020, arXiv 2003.01690), for any number of classes. Survivors are gathered into batches of
at most two sizes, so that nothing is compiled anew as examples fall; an example's random numbers
come from its place in the data set. An example counts as broken only when the net, asked once more
in the batches that `robust_opt.verify` uses, misclassifies the very image that is kept.

A run with `parts` writes down every batch that is done: killed, it goes on from there, over the
same batches, to the same bits.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from robust_opt import layout, losses, precision
from robust_opt.attacks import white_box
from robust_opt.attacks.fab import fab
from robust_opt.attacks.square import square
from robust_opt.attacks.types import Found, LogitsAttack
from robust_opt.errors import InputError
from robust_opt.evaluation import network
from robust_opt.keys import keys_of
from robust_opt.layout import ChannelAxis
from robust_opt.maximizers import Attack, apgd, restarts
from robust_opt.maximizers.apgd import apgd_shrinking_l1
from robust_opt.sets import L1, ball_of
from robust_opt.types import Array, LogitsFn

BOX = (0.0, 1.0)
NORMS = ("linf", "l2", "l1")
STANDS = -1  # in Verdict.broken_by
CLEAN = "clean"  # the first name: what is misclassified without any attack


class Phase(NamedTuple):
  """One attack of the ensemble.

  Attributes:
    name: as AutoAttack has it.
    make: (norm, radius [], rank [], channel axis of an example or None) -> attack.
    num_targets: how many target classes it goes through, at most all wrong ones; 0: untargeted.
    gradients: whether it needs those of the network.
  """

  name: str
  make: Callable[[str, Array, Array, int | None], LogitsAttack]
  num_targets: int = 0
  gradients: bool = True


class Verdict(NamedTuple):
  """What became of every example of a data set of N.

  Attributes:
    names: what may have broken an example; the first is "clean".
    prediction: [N] int32, the class of the clean example.
    broken_by: [N] int32, a place in `names`, or -1 where the example stands.
    images: [N, *S] float32, the adversarial image; the clean one where there is none.
  """

  names: tuple[str, ...]
  prediction: np.ndarray
  broken_by: np.ndarray
  images: np.ndarray

  @property
  def clean_accuracy(self) -> float:
    """The share that the net classifies correctly."""
    return float(np.mean(self.broken_by != 0))

  @property
  def robust_accuracy(self) -> float:
    """The share that no attack broke: an upper bound of the robust accuracy."""
    return float(np.mean(self.broken_by == STANDS))


class Parts(NamedTuple):
  """Where finished batches are kept, by name; nowhere by default.

  Attributes:
    load: name -> the arrays that were saved, or None.
    save: (name, arrays).
  """

  load: Callable[[str], Mapping[str, np.ndarray] | None] = lambda name: None
  save: Callable[[str, Mapping[str, np.ndarray]], None] = lambda name, arrays: None


class Progress(NamedTuple):
  """What is reported after every batch: of which attack, and how many of all examples stand."""

  words: str
  standing: int
  total: int
  done: float  # of the phases


def _apgd(norm: str, radius: Array, num_steps: int) -> Attack:
  u = ball_of(norm)(radius, BOX)
  if isinstance(u, L1):
    return apgd_shrinking_l1(u, num_steps, keep_best=True)
  return apgd(u, num_steps, keep_best=True)


def _apgd_ce(num_steps: int, l1_restarts: int = 1, fresh_noise: bool = False) -> Phase:
  def make(norm: str, radius: Array, rank: Array, channel_axis: int | None) -> LogitsAttack:
    del rank, channel_axis
    attack = _apgd(norm, radius, num_steps)
    if norm == "l1" and l1_restarts > 1:
      attack = restarts(attack, l1_restarts)
    return white_box.ascent(attack, losses.cross_entropy, fresh_noise)

  return Phase("apgd-ce", make)


def _apgd_dlr(num_steps: int, fresh_noise: bool = False) -> Phase:
  def make(norm: str, radius: Array, rank: Array, channel_axis: int | None) -> LogitsAttack:
    del rank, channel_axis
    return white_box.ascent(_apgd(norm, radius, num_steps), losses.dlr, fresh_noise)

  return Phase("apgd-dlr", make)


def _apgd_t(num_steps: int, num_targets: int) -> Phase:
  def make(norm: str, radius: Array, rank: Array, channel_axis: int | None) -> LogitsAttack:
    del channel_axis
    return white_box.targeted_ascent(_apgd(norm, radius, num_steps), losses.targeted_dlr, rank)

  return Phase("apgd-t", make, num_targets)


def _fab_t(num_steps: int, num_targets: int) -> Phase:
  def make(norm: str, radius: Array, rank: Array, channel_axis: int | None) -> LogitsAttack:
    del channel_axis
    return fab(norm, radius, BOX, num_steps, target_rank=rank)

  return Phase("fab-t", make, num_targets)


def _square(num_queries: int) -> Phase:
  def make(norm: str, radius: Array, rank: Array, channel_axis: int | None) -> LogitsAttack:
    del rank
    return square(norm, radius, BOX, num_queries, channel_axis=channel_axis)

  return Phase("square", make, gradients=False)


# Built once: a phase is a compile-time constant, compared by identity. AutoAttack, too, restarts
# its first attack over l_1; there it then tries five targets where this tries nine.
VERSIONS: dict[str, tuple[Phase, ...]] = {
  "standard": (_apgd_ce(100, l1_restarts=5), _apgd_t(100, 9), _fab_t(100, 9), _square(5000)),
  "rand": (_apgd_ce(100, fresh_noise=True), _apgd_dlr(100, fresh_noise=True)),
  "quick": (_apgd_ce(50), _apgd_t(50, 3)),
}


def autoattack(
  logits_fn: LogitsFn,
  x: np.ndarray | Array,
  y: np.ndarray | Array,
  *,
  norm: str,
  radius: float | Array,
  version: str | tuple[Phase, ...] = "standard",
  seed: int = 0,
  batch_size: int = 100,
  channel_axis: ChannelAxis = layout.AUTO,
  place: Callable[[Any], Any] = jnp.asarray,
  parts: Parts = Parts(),  # noqa: B008
  report: Callable[[Progress], None] = lambda progress: None,
) -> Verdict:
  """Attacks a whole data set and says what became of every example.

  Args:
    logits_fn: x [B, *S] -> logits [B, C], every example by itself, in evaluation mode. Any function
      that JAX can trace. Weights of a `jax.tree_util.Partial(apply, params)`, or of an NNX or
      Equinox module, are arguments of the compiled attacks, so that one compilation serves every
      net of one architecture; weights that a function closes over are compiled in, anew when they
      have changed.
    x: [N, *S], float pixels in [0, 1].
    y: [N], integer labels in [0, C).
    norm: "linf", "l2" or "l1".
    radius: > 0, in pixels; one number for all examples.
    version: "standard"; "quick", two attacks of half the steps and a third of the targets; "rand",
      for a `nets.Randomized`, which answers at random: APGD on two losses, every step with fresh
      draws; or phases of your own.
    seed: of all random numbers; the same seed gives the same answer.
    batch_size: examples at a time; it changes speed and memory.
    channel_axis: of one example, for Square: 0 for [C, H, W], -1 for [H, W, C], None if there is
      none; "auto" guesses it from the shape (`robust_opt.layout.resolve`).
    place: puts the arrays of a batch on the devices; with a mesh it splits the first axis, of which
      batch_size / 8 must then be a multiple of the devices.
    parts: where finished batches are kept.
    report: told of every batch.

  Raises:
    InputError: see `checked`; channel_axis is not an axis of an example.
  """
  radius = one_radius(radius)
  phases = phases_of(version, logits_fn)
  gradients = any(phase.gradients for phase in phases)
  x, y = checked(logits_fn, x, y, norm, radius, batch_size, gradients=gradients)
  axis = layout.resolve(channel_axis, x.shape[1:])
  guess = layout.guess_in_words(channel_axis, x.shape[1:])
  if guess:
    logging.warning("AutoAttack: %s; pass channel_axis to state it.", guess)
  net = network.as_argument(logits_fn, x)
  reference = network.checked_logits(logits_fn, net, x)
  predict = functools.partial(predictions, net, batch_size=batch_size, place=place)
  prediction, num_classes = predict(x), _num_classes(net, x)
  names = (CLEAN, *(phase.name for phase in phases))
  state = Verdict(
    names, prediction, np.where(prediction == y, STANDS, 0).astype(np.int32), x.copy()
  )

  units = [
    (place_of_phase, phase, rank)
    for place_of_phase, phase in enumerate(phases)
    for rank in range(max(1, min(phase.num_targets, num_classes - 1)))
  ]
  for number, (place_of_phase, phase, rank) in enumerate(units):
    key = jax.random.fold_in(jax.random.key(seed), number)
    standing = np.flatnonzero(state.broken_by == STANDS)
    batches = list(split(standing, batch_size))
    for index, ids in enumerate(batches):
      name = f"{number:02d}_{phase.name}_{index:05d}"
      done = parts.load(name)
      if done is None:
        images = _attack_batch(
          net, phase, norm, radius, rank, axis, key, x, y, ids, batch_size, place
        )
        fooled = predict(images) != y[ids]
        done = {"ids": ids[fooled], "images": images[fooled]}
        parts.save(name, done)
      state.broken_by[done["ids"]] = place_of_phase + 1
      state.images[done["ids"]] = done["images"]
      left = int(np.sum(state.broken_by == STANDS))
      share = (number + (index + 1) / len(batches)) / len(units)
      target = f", target {rank + 1}" if phase.num_targets else ""
      report(Progress(f"{phase.name}{target}", left, len(x), share))
  network.check_unchanged(logits_fn, x, reference)
  return state


def phases_of(version: str | tuple[Phase, ...], logits_fn: LogitsFn) -> tuple[Phase, ...]:
  """The phases of a version by name; an InputError if it is not for this kind of network."""
  if not isinstance(version, str):
    return version
  if version not in VERSIONS:
    raise InputError(f"version must be one of {', '.join(VERSIONS)}, but was {version!r}.")
  if (version == "rand") != isinstance(logits_fn, network.Randomized):
    raise InputError(
      f'version="rand" is for a ro.Randomized (--draws) and the other versions are for '
      f"deterministic networks, but version was {version!r} for a {type(logits_fn).__name__}."
    )
  return VERSIONS[version]


def rounding(norm: str, num_entries: int) -> float:
  """How long the rounding error of a float32 image in [0, 1] can be: half an ulp an entry."""
  return {"linf": 1.0, "l2": math.sqrt(num_entries), "l1": float(num_entries)}[norm] * 2.0**-25


def split(ids: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
  """Into whole batches, then batches of an eighth, of which the last is padded when it is run."""
  small = bucket(1, batch_size)
  start = 0
  while start < len(ids):
    size = batch_size if len(ids) - start >= batch_size - small else small
    yield ids[start : start + size]
    start += size


def bucket(count: int, batch_size: int) -> int:
  """The size of the batch that so many examples are run in."""
  small = max(1, batch_size // 8)
  return small if count <= small else batch_size


def predictions(
  logits_fn: LogitsFn, x: np.ndarray, batch_size: int, place: Callable[[Any], Any] = jnp.asarray
) -> np.ndarray:
  """The class of every image, [N] int32, -1 where a logit is inf or NaN; always in one batch size.

  Padding makes every batch whole, so that the same image in the same place gives the same bits.
  """
  net = network.as_argument(logits_fn, x)
  found = [
    np.asarray(_predict(net, place(_padded(x[start : start + batch_size], batch_size))))
    for start in range(0, len(x), batch_size)
  ]
  return np.concatenate([np.zeros(0, np.int32), *found])[: len(x)]


def checked(
  logits_fn: LogitsFn,
  x: np.ndarray | Array,
  y: np.ndarray | Array,
  norm: str,
  radius: float | Array,
  batch_size: int,
  *,
  allow_probabilities: bool = False,
  gradients: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
  """x as float32 and y as int32, if they can be attacked.

  Args:
    logits_fn: as for `autoattack`, and so are x, y, norm, radius and batch_size.
    x: images.
    y: labels.
    norm: of the ball.
    radius: of the ball.
    batch_size: examples at a time.
    allow_probabilities: whether the outputs may be probabilities.
    gradients: whether the network must be differentiable.

  Raises:
    InputError: an empty set, images that are not floating point or leave [0, 1], labels that are
      none of the net's classes, logits that are NaN, not floating point, of one class, or of
      another shape than [B, C], outputs that are no array or are probabilities, a net whose
      gradient cannot be traced, an unknown norm, a radius that is not one positive number, or a
      batch size below 1.
  """
  if norm not in NORMS:
    raise InputError(f"norm must be one of {', '.join(NORMS)}, but was {norm!r}.")
  one_radius(radius)
  if batch_size < 1:
    raise InputError(f"batch_size must be an integer >= 1, but was {batch_size}.")
  images, labels = np.asarray(x), np.asarray(y)
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
  if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
    raise InputError(
      f"Images must be finite and in [0, 1], but lie in [{images.min():.4g}, {images.max():.4g}]; "
      f"a net that takes other units must convert them itself."
    )
  _check_outputs(logits_fn, images, labels, allow_probabilities)
  if gradients:
    network.check_differentiable(logits_fn, images[: network.NUM_CHECKED])
  return images, labels


def one_radius(radius: float | np.ndarray | Array) -> float:
  """The radius of an evaluation, a number or an array [], as a float.

  Raises:
    InputError: it is not one number, or not finite and > 0.
  """
  if np.ndim(radius):
    raise InputError(
      f"radius must be one number for all examples, but was an array of the shape "
      f"{np.shape(radius)}."
    )
  if not 0 < radius < np.inf:
    raise InputError(f"radius must be a finite number > 0, in pixels of [0, 1], but was {radius}.")
  return float(radius)


def sum_rounding(dtype: Any) -> float:
  """How far from 1 probabilities of a type may sum: each is off by at most eps / 2 of itself."""
  return max(1e-3, float(jnp.finfo(dtype).eps))


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
  dtype = precision.check_floating(logits, "The net's logits")
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
  sums = logits.astype(np.float64).sum(axis=1)
  probabilities = np.all(logits >= 0) and np.all(np.abs(sums - 1) <= sum_rounding(dtype))
  if probabilities and not allow_probabilities:
    raise InputError(
      "The net must return logits, but its outputs are >= 0 and sum to 1, as probabilities do: "
      "the gradient of a confident net would be lost in the softmax."
    )


def _attack_batch(
  net: Any,
  phase: Phase,
  norm: str,
  radius: float,
  rank: int,
  axis: int | None,
  key: Array,
  x: np.ndarray,
  y: np.ndarray,
  ids: np.ndarray,
  batch_size: int,
  place: Callable[[Any], Any],
) -> np.ndarray:
  """The images that a phase makes of some examples, [len(ids), *S]."""
  padded = _padded(ids, bucket(len(ids), batch_size))
  images, labels, places = place(x[padded]), place(y[padded]), place(padded.astype(np.int32))
  found = _attack(
    phase, norm, axis, net, np.float32(radius), np.int32(rank), key, places, images, labels
  )
  # Added once, on the host; shortened by what the rounding of x + delta may add to its length.
  shorter = np.float32(max(0.0, 1.0 - rounding(norm, x[0].size) / radius))
  return x[ids] + shorter * np.asarray(found.delta)[: len(ids)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _attack(
  phase: Phase,
  norm: str,
  axis: int | None,
  net: LogitsFn,
  radius: Array,
  rank: Array,
  key: Array,
  ids: Array,
  x: Array,
  y: Array,
) -> Found:
  return phase.make(norm, radius, rank, axis)(keys_of(key, ids), net, x, y)


@jax.jit
def _predict(net: LogitsFn, x: Array) -> Array:
  return losses.predicted(net(x))


def _num_classes(net: LogitsFn, x: np.ndarray) -> int:
  return jax.eval_shape(net, jax.ShapeDtypeStruct((1, *x.shape[1:]), jnp.float32)).shape[-1]


def _padded(array: np.ndarray, count: int) -> np.ndarray:
  """Repeats the last entry until there are so many."""
  return array[np.minimum(np.arange(count), len(array) - 1)]
