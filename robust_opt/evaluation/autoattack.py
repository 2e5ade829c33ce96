"""AutoAttack: attacks one after the other, each on the examples that are still robust.

  u = ro.LInf(8 / 255, box=(0.0, 1.0))
  verdict = ro.autoattack(logits_fn, x, y, u)     # x [N, *S], pixels in [0, 1]
  verdict.robust_accuracy, verdict.broken_by, verdict.images

APGD on the cross-entropy, APGD on the targeted DLR loss, FAB toward each target, and Square (Croce
and Hein 2020, arXiv 2003.01690), for any number of classes. Remaining examples and their targets
are packed into batches of few sizes, so that nothing is recompiled as examples are broken; the
random numbers of an example come from its index in the data set and the target. An example counts
as broken only if the net, called once more in the batches and in the precision that
`robust_opt.verify` uses, misclassifies the stored image.

With a ResumeCache every finished batch is saved: a killed run resumes from there, over the same
batches, with bit-identical results.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from robust_opt import layout
from robust_opt.arrays import expand_like
from robust_opt.evaluation import adaptive, batches, network
from robust_opt.evaluation.adaptive import Ration
from robust_opt.evaluation.batches import Lanes, Packing
from robust_opt.evaluation.inputs import check_examples, check_ids, check_set
from robust_opt.evaluation.outcome import CLEAN, LEFT_OUT, ROBUST, Cost, Progress, ResumeCache
from robust_opt.evaluation.phases import Phase, Step, plan
from robust_opt.evaluation.targeting import aimed, targets_of
from robust_opt.layout import ChannelAxis
from robust_opt.precision import products, stated
from robust_opt.sets import Ball, UncertaintySet, lengths
from robust_opt.sets.examples import for_examples
from robust_opt.sets.radii import box_of, check_extent
from robust_opt.types import Array, LogitsFn


class Verdict(NamedTuple):
  """The outcome for every example of a data set of N.

  Attributes:
    names: of the possible causes of an error; the first is "clean".
    prediction: [N] int32, the class of the clean example.
    broken_by: [N] int32, an index into `names`, or -1 (ROBUST) if no attack succeeded; toward
      targets -2 (LEFT_OUT) if the net is right and the label is the target.
    images: [N, *S] float32, the adversarial image; the clean one where there is none.
    targets: [N] int32, the class that the net was to predict; None: any but the label.
    ration: of the version "adaptive", what it skipped; None: nothing.
  """

  names: tuple[str, ...]
  prediction: np.ndarray
  broken_by: np.ndarray
  images: np.ndarray
  targets: np.ndarray | None = None
  ration: Ration | None = None

  @property
  def clean_accuracy(self) -> float:
    """The fraction that the net classifies correctly."""
    return float(np.mean(self.broken_by != 0))

  @property
  def robust_accuracy(self) -> float:
    """The fraction that no attack broke: an upper bound of the robust accuracy."""
    return float(np.mean(self.broken_by < 0))

  @property
  def num_attacked(self) -> int:
    """The number of examples that were attacked: classified correctly, and not LEFT_OUT."""
    return int(np.sum((self.broken_by == ROBUST) | (self.broken_by > 0)))

  @property
  def success_rate(self) -> float:
    """The fraction of the attacked examples that an attack broke; 0 if there are none."""
    return float(np.sum(self.broken_by > 0)) / max(1, self.num_attacked)


def autoattack(
  logits_fn: LogitsFn,
  x: np.ndarray | Array,
  y: np.ndarray | Array,
  u: UncertaintySet,
  *,
  version: str | tuple[Phase, ...] = "standard",
  share: float | None = None,
  target: int | str | None = None,
  seed: int = 0,
  batch_size: int | None = None,
  ids: np.ndarray | None = None,
  channel_axis: ChannelAxis = layout.AUTO,
  precision: str | None = None,
  search_precision: str | None = None,
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
    u: the uncertainty set, with one radius for all examples or one for each, [N]. "standard" needs
      LInf, L2 or L1 with a box, or such a ball in `sets.Masked`, of one mask for all examples or of
      one for each; "quick" and "rand" take them without a box, too. Over a `sets.Union` the attacks
      run in each of its sets, on what no attack in any of them has broken.
    version: "standard"; "quick", two attacks with half the steps and a third of the targets;
      "rand", for a `ro.Randomized`: APGD on two losses with fresh draws at every step; "pgd", PGD
      with restarts on two losses, for every set with a projection; "grid", "sparse" and "patch" for
      `sets.Transforms`, L0 and Patch; "labels", without gradients or logits, for LInf and L2, of
      nets of which only the largest output counts; "adaptive", the standard version with the costly
      attacks only on a part of the images, and a bound of what that may miss
      (`evaluation.adaptive`); or a tuple of phases.
    share: of the images, that what "adaptive" skips may break, with a confidence of 95 %; None:
      `adaptive.SHARE`. The smaller, the more is attacked; 0: everything.
    target: None: any wrong prediction counts. A class, "least_likely" (the wrong class of the
      smallest clean logit) or "random" (a wrong class for each example): only the prediction of the
      target counts. Examples that are misclassified without an attack, or whose label is the
      target, are not attacked. See `attacks.targets`.
    seed: of all random numbers; the same seed gives the same result.
    batch_size: affects speed and memory; None: `batches.default_batch_size`, 100 on a CPU.
    ids: [N] int32, the indices in the data set of which x is a part: they seed the random numbers,
      so that a part is attacked as in the whole. None: 0 to N - 1.
    channel_axis: of one example, for Square: 0 for [C, H, W], -1 for [H, W, C], None if there is
      none; "auto" guesses it from the shape (`robust_opt.layout.resolve`).
    precision: of float32 products on accelerators, "float32", "tf32" or "bfloat16", of
      the attacks and of the predictions that count; None: `robust_opt.precision.stated`, float32.
    search_precision: that of the attacks alone. In TF32 they are several times faster on a GPU, and
      the verdict stays as sound as one in `precision`: an image counts only if it fools the net in
      that precision. The attacks are a little weaker if the net is.
    put: places the arrays of a batch on the devices; with a mesh it splits the first axis, and
      batch_size / 8 must be a multiple of the number of devices.
    cache: stores finished batches.
    report: called after every batch.

  Raises:
    InputError: see `inputs.check_set`, `inputs.check_examples`, `phases.plan` and
      `targets.check_target` and `adaptive.check`; ids are not one integer >= 0 for each image;
      channel_axis is not an axis of an example; an unknown precision.
  """
  precision = stated(precision)
  search_precision = stated(search_precision or precision)
  share = adaptive.check(share, version, target)
  check_set(u)
  steps = plan(version, logits_fn, u)
  phases = [step.phase for step in steps]
  gradients = any(phase.gradients for phase in phases)
  size = 1 if batch_size is None else batch_size
  kind = {"gradients": gradients, "allow_probabilities": not gradients}
  x, y = check_examples(logits_fn, x, y, u, size, **kind)
  check_extent(u, x.shape[1:])
  ids = check_ids(ids, len(x))
  if batch_size is None:
    batch_size = batches.default_batch_size(logits_fn, x)
  axis = layout.resolve(channel_axis, x.shape[1:])
  guess = layout.describe_guess(channel_axis, x.shape[1:])
  if guess:
    logging.warning("AutoAttack: %s; pass channel_axis to state it.", guess)
  net = network.as_argument(logits_fn, x)
  reference = network.checked_logits(logits_fn, net, x)
  predict = functools.partial(
    batches.predictions, net, batch_size=batch_size, put=put, precision=precision
  )
  prediction = predict(x)
  names = (CLEAN, *(step.name for step in steps))
  broken_by = np.where(prediction == y, ROBUST, 0).astype(np.int32)
  aims = None
  if target is not None:
    aims = targets_of(target, net, x, y, ids, seed, batch_size, put, precision)
    broken_by[(broken_by == ROBUST) & (aims == y)] = LEFT_OUT
  verdict = Verdict(names, prediction, broken_by, x.copy(), aims)
  data = _Data(net, x, y, ids, axis, jax.random.key(seed), predict, search_precision, put, aims)
  packing = batches.packing(batch_size, jax.default_backend(), jax.local_device_count())
  num_classes = _num_classes(net, x) if target is None else 2  # as `targeted` attacks see it
  targets = [_num_targets(phase, num_classes) for phase in phases]
  stages = _stages(steps, targets, version)
  run = functools.partial(_run, data, verdict, packing, cache, report)
  if version == adaptive.VERSION:
    scores = np.full(len(x), -np.inf, np.float32)

    def attack(index: int, among: np.ndarray, number: int) -> None:
      run(stages[index], number, adaptive.span(number), among, scores)

    ration = adaptive.attack(attack, broken_by, scores, share, seed)
    verdict = verdict._replace(ration=ration)
  else:
    for index, stage in enumerate(stages):
      ends = sum(targets[:index]), sum(targets[: index + 1])
      run(stage, index, (ends[0] / sum(targets), ends[1] / sum(targets)))
  network.check_unchanged(logits_fn, x, reference)
  return verdict


class _Stage(NamedTuple):
  """One phase of an evaluation.

  Attributes:
    step: its attacks and the set they search.
    cause: its index in `Verdict.names`.
    targets: the number of its attacks on an example.
    first: the stream of random numbers of the first of them.
    scored: whether margins are measured.
    few_break: whether it runs on examples of which few break.
  """

  step: Step
  cause: int
  targets: int
  first: int
  scored: bool
  few_break: bool


def _stages(
  steps: tuple[Step, ...], targets: list[int], version: str | tuple[Phase, ...]
) -> list[_Stage]:
  rationed = version == adaptive.VERSION
  first, used = {}, dict.fromkeys((id(step.u) for step in steps), 0)
  # In a union each set is attacked as it is alone: what breaks there breaks here.
  for index in adaptive.STREAMS if rationed else range(len(steps)):
    first[index] = used[id(steps[index].u)]
    used[id(steps[index].u)] += targets[index]
  core = adaptive.CORE if rationed else 0
  return [
    _Stage(step, i + 1, targets[i], first[i], scored=i < core, few_break=rationed and i >= core)
    for i, step in enumerate(steps)
  ]


def _run(
  data: "_Data",
  verdict: Verdict,
  packing: Packing,
  cache: ResumeCache,
  report: Callable[[Progress], None],
  stage: _Stage,
  number: int,
  span: tuple[float, float],
  among: np.ndarray | None = None,
  scores: np.ndarray | None = None,
) -> None:
  """Attacks the examples that remain, and writes into `verdict` what it breaks.

  Args:
    number: of this run, by which the cache names its batches.
    span: the completed fraction of the work before and after it.
    among: [N] bool, the examples to attack; None: all.
    scores: [N], raised to the margins that the attacks reach, if they are measured.
  """
  step, broken_by = stage.step, verdict.broken_by
  remain = broken_by == ROBUST
  attacked = np.flatnonzero(remain if among is None else remain & among)
  pending = batches.lanes_of(attacked, stage.targets, stage.first)
  total, used, batch = len(pending.ids), frozenset[int](), 0
  while len(pending.ids):
    lanes, size = batches.next_batch(pending, packing, used, stage.few_break)
    name = f"{number:02d}_{step.name.replace(' ', '_')}_{batch:05d}"
    covered = {"ids": data.ids[lanes.ids], "ranks": np.asarray(lanes.ranks)}
    measured = ("fooled", "images", "cost", *(["margins"] if stage.scored else []))
    ran = cache.stored(name, covered, measured)
    if ran is None:
      ran = _attack(data, step, lanes, size, stage.scored)
      cache.save(name, {**covered, **ran})
    # Of several targets of an example the first one counts.
    broken, chosen = np.unique(lanes.ids[ran["fooled"]], return_index=True)
    broken_by[broken], verdict.images[broken] = stage.cause, ran["images"][chosen]
    if scores is not None and stage.scored:
      np.fmax.at(scores, lanes.ids, ran["margins"])
    used, batch = used | {size}, batch + 1
    pending = batches.without(pending, len(lanes.ids), broken)
    done = span[0] + (span[1] - span[0]) * (1 - len(pending.ids) / total)
    rank = int(lanes.ranks[0]) if step.phase.num_targets and data.targets is None else None
    remaining = int(np.sum(broken_by == ROBUST))
    cost = Cost.of(ran["cost"].tolist())
    report(Progress(step.name, rank, remaining, len(broken_by), done, cost))


class _Data(NamedTuple):
  """What all batches of an evaluation share: network, examples, and how they are attacked."""

  net: LogitsFn
  x: np.ndarray
  y: np.ndarray
  ids: np.ndarray
  axis: ChannelAxis
  key: Array
  predict: Callable[[np.ndarray], np.ndarray]
  search_precision: str
  put: Callable[[Any], Any]
  targets: np.ndarray | None = None


def _attack(
  data: _Data, step: Step, lanes: Lanes, size: int, scored: bool
) -> dict[str, np.ndarray]:
  """Which lanes fool the network, in order, the images of those, the cost, and maybe margins."""
  began, compiling = time.monotonic(), batches.seconds_compiling()
  padded = batches.pad(lanes, size)
  make, classes = step.phase.make, data.y
  if data.targets is not None:
    make, classes = aimed(make), data.targets
  images, labels = data.x[padded.ids], classes[padded.ids]
  numbered = Lanes(*map(data.put, padded._replace(ids=data.ids[padded.ids])))
  with products(data.search_precision):
    arrays = (data.put(images), data.put(labels))
    u = for_examples(step.u, np.asarray(padded.ids), data.x.ndim)
    of_net = (make, data.axis, data.net, check_set(u), data.key)
    result = batches.run_lanes(*of_net, numbered, *arrays)
  # Added once, on the host.
  delta = np.asarray(result.delta)
  shrinkage = expand_like(_shrinkage(u, images[0].size), delta)
  images = (images + shrinkage * delta)[: len(lanes.ids)]
  as_labels = data.predict(images) == labels[: len(lanes.ids)]
  fooled = ~as_labels if data.targets is None else as_labels
  reached = {}
  if scored:
    with products(data.search_precision):
      of_lanes = (images, labels[: len(images)])
      reached["margins"] = batches.margins(data.net, *of_lanes, size, data.put)
  cost = Cost(
    time.monotonic() - began,
    batches.seconds_compiling() - compiling,
    1,
    len(lanes.ids),
    size - len(lanes.ids),
    *(int(number) * size for number in getattr(result, "passes", (0, 0))),
  )
  return {"fooled": fooled, "images": images[fooled], "cost": np.array(cost), **reached}


def _num_targets(phase: Phase, num_classes: int) -> int:
  """The number of attacks of a phase on an example, >= 1."""
  return max(1, min(phase.num_targets, num_classes - 1))


def _shrinkage(u: UncertaintySet, num_entries: int) -> np.ndarray:
  """The factor of delta that keeps x + delta, rounded to float32, in a ball; 1 for other sets.

  Of one radius [], of radii [B] theirs.
  """
  if not isinstance(u, Ball):
    return np.ones((), np.float32)
  largest = np.float32(max(map(abs, box_of(u))))
  half_ulp = np.spacing(np.nextafter(largest, np.float32(0))) / 2
  (rounding,) = lengths(u, np.full((1, num_entries), half_ulp))
  return np.maximum(0.0, 1.0 - rounding / np.asarray(u.radius, np.float64)).astype(np.float32)


def _num_classes(net: LogitsFn, x: np.ndarray) -> int:
  return jax.eval_shape(net, jax.ShapeDtypeStruct((1, *x.shape[1:]), jnp.float32)).shape[-1]
