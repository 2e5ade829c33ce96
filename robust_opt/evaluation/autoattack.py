"""AutoAttack: attacks one after the other, each on the examples that are still robust.

  u = ro.LInf(8 / 255, box=(0.0, 1.0))
  verdict = ro.autoattack(logits_fn, x, y, u)     # x [N, *S], pixels in [0, 1]
  verdict.robust_accuracy, verdict.broken_by, verdict.images

APGD on the cross-entropy, APGD on the targeted DLR loss, FAB toward each target, and Square (Croce
and Hein 2020, arXiv 2003.01690), for any number of classes. Remaining examples are gathered into
batches of at most two sizes, so that nothing is recompiled as examples are broken; the random
numbers of an example come from its index in the data set. An example counts as broken only if the
net, called once more in the batches that `robust_opt.verify` uses, misclassifies the stored image.

With a ResumeCache every finished batch is saved: a killed run resumes from there, over the same
batches, with bit-identical results.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from robust_opt import layout
from robust_opt.arrays import pad_to
from robust_opt.evaluation import network
from robust_opt.evaluation.batches import bucket, predictions, run_attack, split
from robust_opt.evaluation.inputs import box_of, check_examples, check_set
from robust_opt.evaluation.phases import Phase, phases_of
from robust_opt.layout import ChannelAxis
from robust_opt.sets import Ball, UncertaintySet, lengths
from robust_opt.types import Array, LogitsFn

ROBUST = -1  # in Verdict.broken_by
CLEAN = "clean"  # the first name: misclassified without any attack


class Verdict(NamedTuple):
  """The outcome for every example of a data set of N.

  Attributes:
    names: of the possible causes of an error; the first is "clean".
    prediction: [N] int32, the class of the clean example.
    broken_by: [N] int32, an index into `names`, or -1 (ROBUST) if no attack succeeded.
    images: [N, *S] float32, the adversarial image; the clean one where there is none.
  """

  names: tuple[str, ...]
  prediction: np.ndarray
  broken_by: np.ndarray
  images: np.ndarray

  @property
  def clean_accuracy(self) -> float:
    """The fraction that the net classifies correctly."""
    return float(np.mean(self.broken_by != 0))

  @property
  def robust_accuracy(self) -> float:
    """The fraction that no attack broke: an upper bound of the robust accuracy."""
    return float(np.mean(self.broken_by == ROBUST))


class ResumeCache(NamedTuple):
  """Storage for finished batches, by name; the default stores nothing.

  Attributes:
    load: name -> the saved arrays, or None.
    save: (name, arrays) -> None.
  """

  load: Callable[[str], Mapping[str, np.ndarray] | None] = lambda name: None
  save: Callable[[str, Mapping[str, np.ndarray]], None] = lambda name, arrays: None


class Progress(NamedTuple):
  """The state that is reported after every batch.

  Attributes:
    attack: the name of the phase.
    target: the rank of its target class; None if it is untargeted.
    remaining: the number of examples that are still robust.
    total: the number of examples.
    done: the completed fraction of the work.
  """

  attack: str
  target: int | None
  remaining: int
  total: int
  done: float


def autoattack(
  logits_fn: LogitsFn,
  x: np.ndarray | Array,
  y: np.ndarray | Array,
  u: UncertaintySet,
  *,
  version: str | tuple[Phase, ...] = "standard",
  seed: int = 0,
  batch_size: int = 100,
  channel_axis: ChannelAxis = layout.AUTO,
  put: Callable[[Any], Any] = jnp.asarray,
  cache: ResumeCache = ResumeCache(),  # noqa: B008
  report: Callable[[Progress], None] = lambda progress: None,
) -> Verdict:
  """Attacks a whole data set and returns the outcome for every example.

  Args:
    logits_fn: x [B, *S] -> logits [B, C], in evaluation mode, examples independent: any function
      that JAX can trace. The weights of a `jax.tree_util.Partial(apply, params)`, or of an NNX or
      Equinox module, are arguments of the compiled attacks, so that nets of one architecture share
      a compilation; weights that a function closes over are compiled in, and again if they change.
    x: [N, *S], float pixels in [0, 1].
    y: [N], integer labels in [0, C).
    u: the uncertainty set, with one radius for all examples. "standard" needs LInf, L2 or L1 with a
      box; "quick" and "rand" take them without a box, too.
    version: "standard"; "quick", two attacks with half the steps and a third of the targets;
      "rand", for a `ro.Randomized`: APGD on two losses with fresh draws at every step; "pgd", PGD
      with restarts on two losses, for every set with a projection; or a tuple of phases.
    seed: of all random numbers; the same seed gives the same result.
    batch_size: affects speed and memory.
    channel_axis: of one example, for Square: 0 for [C, H, W], -1 for [H, W, C], None if there is
      none; "auto" guesses it from the shape (`robust_opt.layout.resolve`).
    put: places the arrays of a batch on the devices; with a mesh it splits the first axis, and
      batch_size / 8 must be a multiple of the number of devices.
    cache: stores finished batches.
    report: called after every batch.

  Raises:
    InputError: see `inputs.check_set`, `inputs.check_examples` and `phases.phases_of`; channel_axis
      is not an axis of an example.
  """
  argument = check_set(u)
  phases = phases_of(version, logits_fn, u)
  gradients = any(phase.gradients for phase in phases)
  x, y = check_examples(logits_fn, x, y, u, batch_size, gradients=gradients)
  axis = layout.resolve(channel_axis, x.shape[1:])
  guess = layout.describe_guess(channel_axis, x.shape[1:])
  if guess:
    logging.warning("AutoAttack: %s; pass channel_axis to state it.", guess)
  net = network.as_argument(logits_fn, x)
  reference = network.checked_logits(logits_fn, net, x)
  predict = functools.partial(predictions, net, batch_size=batch_size, put=put)
  prediction = predict(x)
  names = (CLEAN, *(phase.name for phase in phases))
  broken_by = np.where(prediction == y, ROBUST, 0).astype(np.int32)
  verdict = Verdict(names, prediction, broken_by, x.copy())

  units = list(_units(phases, _num_classes(net, x)))
  for number, (index, phase, rank) in enumerate(units):
    key = jax.random.fold_in(jax.random.key(seed), number)
    batches = list(split(np.flatnonzero(broken_by == ROBUST), batch_size))
    for batch, ids in enumerate(batches):
      name = f"{number:02d}_{phase.name}_{batch:05d}"
      broken = cache.load(name)
      if broken is None:
        padded = pad_to(ids, bucket(len(ids), batch_size))
        arrays = (put(a) for a in (padded.astype(np.int32), x[padded], y[padded]))
        result = run_attack(phase.make, axis, net, argument, np.int32(rank), key, *arrays)
        # Added once, on the host.
        images = x[ids] + _shrinkage(u, x[0].size) * np.asarray(result.delta)[: len(ids)]
        fooled = predict(images) != y[ids]
        broken = {"ids": ids[fooled], "images": images[fooled]}
        cache.save(name, broken)
      broken_by[broken["ids"]] = index + 1
      verdict.images[broken["ids"]] = broken["images"]
      remaining = int(np.sum(broken_by == ROBUST))
      done = (number + (batch + 1) / len(batches)) / len(units)
      target = rank if phase.num_targets else None
      report(Progress(phase.name, target, remaining, len(x), done))
  network.check_unchanged(logits_fn, x, reference)
  return verdict


def _units(phases: tuple[Phase, ...], num_classes: int) -> Iterator[tuple[int, Phase, int]]:
  """(index of the phase, phase, rank of the target) of every attack to run."""
  for index, phase in enumerate(phases):
    for rank in range(max(1, min(phase.num_targets, num_classes - 1))):
      yield index, phase, rank


def _shrinkage(u: UncertaintySet, num_entries: int) -> np.float32:
  """The factor of delta that keeps x + delta, rounded to float32, in a ball; 1 for other sets."""
  if not isinstance(u, Ball):
    return np.float32(1.0)
  largest = np.float32(max(map(abs, box_of(u))))
  half_ulp = np.spacing(np.nextafter(largest, np.float32(0))) / 2
  (rounding,) = lengths(u, np.full((1, num_entries), half_ulp))
  return np.float32(max(0.0, 1.0 - rounding / float(u.radius)))


def _num_classes(net: LogitsFn, x: np.ndarray) -> int:
  return jax.eval_shape(net, jax.ShapeDtypeStruct((1, *x.shape[1:]), jnp.float32)).shape[-1]
