"""Nets of several seeds trained together: TrainStates stacked along a first axis of S seeds.

  state = init(net, optimizer, keys, image_shape)              # keys [S]
  epochs = over_seeds(make_epochs(run, evaluate, num_steps, points=4), (AXES, None, None, 0),
                      (AXES, 0), vmapped=True, static=("num_epochs",))
  state, curve = epochs(state, train, test, keys, num_epochs=10)      # curve [S, 40]

All seeds are one compiled program, and whole epochs one call of it, so that dispatch costs nothing.
The step counter is the only part of a state that the seeds share: without a shuffle they then also
share the batches, and the first layer is one large product over all seeds.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from robust_opt import models, tables
from robust_opt.arrays import digest
from robust_opt.errors import DivergedError, InputError
from robust_opt.evaluation.accuracy import Evaluation
from robust_opt.experiments.checkpoint import Checkpoints
from robust_opt.experiments.metrics import MetricWriter, read_metrics
from robust_opt.training import ArrayData, TrainMetrics, TrainState, init_state
from robust_opt.types import Array, PyTree

# Where the axis of seeds lies in a stacked TrainState (None: shared).
AXES: Any = TrainState(step=None, params=0, model_state=0, opt_state=0, memory=0)  # type: ignore[arg-type]


class Curve(NamedTuple):
  """What training reports at P points; the arrays of S seeds are [S, P].

  Attributes:
    loss: mean loss at the perturbed batches since the point before.
    zero_gradients: int32, examples since then whose first input gradient was exactly zero.
    correct: int32, clean examples of the test set that are classified correctly.
  """

  loss: Array
  zero_gradients: Array
  correct: Array


def init(
  net: nn.Module,
  optimizer: optax.GradientTransformation,
  keys: Array,
  image_shape: Sequence[int],
) -> TrainState:
  """Fresh states for keys [S], each as its own seed alone would have it."""

  make = _initializer if _is_hashable(net) else _initializer.__wrapped__
  params, model_state = make(net, tuple(image_shape))(keys)
  return jax.jit(jax.vmap(lambda p, s: init_state(p, s, optimizer), out_axes=AXES))(
    params, model_state
  )


@functools.cache
def _initializer(net: nn.Module, image_shape: tuple[int, ...]) -> Callable[[Array], PyTree]:
  """Compiled once for all nets of one architecture."""
  return jax.jit(jax.vmap(lambda key: models.init(net, key, image_shape)))


def _is_hashable(net: nn.Module) -> bool:
  """Not where an attribute is a list, as in MLP(widths=[32])."""
  try:
    hash(net)
  except TypeError:
    return False
  return True


def make_epochs(
  run: Callable[[TrainState, ArrayData, Array, int], tuple[TrainState, TrainMetrics]],
  evaluate: Callable[[PyTree, PyTree, ArrayData], Evaluation],
  num_steps: int,
  points: int = 1,
) -> Callable[..., tuple[TrainState, Curve]]:
  """Whole epochs of one seed as one lax.scan, with clean test accuracy on the way.

  Args:
    run: from training.make_scan.
    evaluate: (params, model_state, data) -> Evaluation; its clean half is what is used.
    num_steps: updates an epoch.
    points: how often an epoch the curve is taken; it must divide num_steps.

  Returns:
    epochs(state, train, test, key, num_epochs) -> (state, Curve [num_epochs * points]).

  Raises:
    InputError: points do not divide num_steps.
  """
  if points < 1 or num_steps % points:
    raise InputError(f"points must divide the {num_steps} updates of an epoch, but was {points}.")

  def epochs(
    state: TrainState, train: ArrayData, test: ArrayData, key: Array, num_epochs: int
  ) -> tuple[TrainState, Curve]:
    def part(state: TrainState, _: None) -> tuple[TrainState, Curve]:
      state, metrics = run(state, train, key, num_steps // points)
      clean = evaluate(state.params, state.model_state, test).clean_correct
      return state, Curve(
        jnp.mean(metrics.loss),
        jnp.sum(metrics.zero_gradients),
        jnp.sum(clean, dtype=jnp.int32),
      )

    return jax.lax.scan(part, state, length=num_epochs * points)

  return epochs


def over_seeds(
  function: Callable[..., Any],
  in_axes: tuple[Any, ...],
  out_axes: Any = 0,
  *,
  vmapped: bool,
  static: Sequence[str] = (),
) -> Callable[..., Any]:
  """A function of one seed as one of all seeds, jitted; either way the same numbers.

  Args:
    function: (*args, **static) -> pytree.
    in_axes: for every argument 0, None, or a tree prefix of these (AXES), as in jax.vmap.
    out_axes: likewise.
    vmapped: all seeds in one program, or one after the other through the same program (on CPU
      that is often faster, since a batched matmul is not).
    static: names of keyword arguments that are compile-time constants.
  """
  if vmapped:

    def mapped(*args: Any, **statics: Any) -> Any:
      return jax.vmap(functools.partial(function, **statics), in_axes, out_axes)(*args)

    return jax.jit(mapped, static_argnames=tuple(static))

  # jax.jit reuses the trace of a function that it has seen, with what that closed over then; a
  # partial is a new function.
  one = jax.jit(functools.partial(function), static_argnames=tuple(static))

  def looped(*args: Any, **statics: Any) -> Any:
    count = len(jax.tree.leaves(_map_axes(lambda a: a, lambda a: None, in_axes, args))[0])
    outs = []
    for seed in range(count):
      mine = _map_axes(lambda a, seed=seed: a[seed], lambda a: a, in_axes, args)
      outs.append(one(*mine, **statics))
    return _map_axes(lambda *a: jnp.stack(a), lambda *a: a[0], out_axes, *outs)

  return looped


def train(
  folder: Path,
  state: TrainState,
  run: Callable[..., tuple[TrainState, Curve]],
  *,
  epochs: int,
  epochs_per_call: int,
  steps_per_epoch: int,
  names: Sequence[int],
  timed: Callable[[], AbstractContextManager[None]],
  progress: Callable[..., None],
) -> TrainState:
  """Stacked states to the last epoch, from the newest checkpoint in the folder on.

  Args:
    folder: gets checkpoints/ and metrics.jsonl, with every seed's curve.
    state: before the first update.
    run: (state, num_epochs) -> (state, Curve [S, P]).
    epochs: in all.
    epochs_per_call: between two checkpoints.
    steps_per_epoch: updates an epoch.
    names: the S seeds, which name the metrics.
    timed: a context in which a call is timed.
    progress: (epochs, words, skipped=) is told of every call.

  Raises:
    DivergedError: the loss of a seed is no longer finite; the checkpoint before stands.
  """
  folder.mkdir(parents=True, exist_ok=True)
  checkpoints = Checkpoints(folder / "checkpoints", keep=1)
  restored = checkpoints.restore(state)
  state = state if restored is None else restored
  epoch = int(state.step) // steps_per_epoch
  if epoch:
    progress(epoch, f"{epoch} of {tables.counted(epochs, 'epoch')} done before", skipped=True)
  if epoch < epochs:
    with MetricWriter(folder, int(state.step)) as writer:
      while epoch < epochs:
        count = min(epochs_per_call, epochs - epoch)
        with timed():
          state, curve = run(state, count)
          curve = jax.tree.map(np.asarray, curve)
          bad = np.argwhere(~np.isfinite(curve.loss))
          if len(bad):
            raise DivergedError(
              f"The loss of seed {names[bad[0, 0]]} is no longer finite after epoch {epoch}; "
              f"in {folder} {checkpoints.last_words()}."
            )
          _write_curve(writer, curve, names, epoch * steps_per_epoch, count * steps_per_epoch)
          checkpoints.save(state)
        epoch += count
        words = f"epoch {epoch}/{epochs}, loss {curve.loss[:, -1].mean():.4f}"
        progress(count, f"{words}, {curve.correct[:, -1].mean():.1f} right on the test set")
  checkpoints.close()
  return state


def curve(folder: Path, names: Sequence[int]) -> dict[str, Any]:
  """{"steps" [P], "correct" [S, P]} as `train` left them in a folder."""
  records = read_metrics(folder / "metrics.jsonl")
  correct = [[record[f"seed{name}/test_correct"] for record in records] for name in names]
  return {"steps": [record["step"] for record in records], "correct": correct}


def _write_curve(
  writer: MetricWriter, curve: Curve, names: Sequence[int], start: int, num_steps: int
) -> None:
  points = curve.loss.shape[1]
  for point in range(points):
    values: dict[str, float | int] = {}
    for index, name in enumerate(names):
      values[f"seed{name}/loss"] = float(curve.loss[index, point])
      values[f"seed{name}/zero_gradients"] = int(curve.zero_gradients[index, point])
      values[f"seed{name}/test_correct"] = int(curve.correct[index, point])
    writer.write(start + (point + 1) * num_steps // points, values)


def of_seed(state: TrainState, seed: int) -> tuple[PyTree, PyTree]:
  """(params, model_state) of one seed of a stacked state."""
  return jax.tree.map(lambda a: a[seed], (state.params, state.model_state))


def net_digests(state: TrainState, num_seeds: int) -> list[str]:
  """SHA-256 of what each seed's net computes with: its parameters and batch statistics."""
  host = jax.tree.map(np.asarray, (state.params, state.model_state))
  return [digest(jax.tree.map(lambda a, s=s: a[s], host)) for s in range(num_seeds)]


def _map_axes(split: Callable[..., Any], shared: Callable[..., Any], axes: Any, *trees: Any) -> Any:
  """split over the leaves that have an axis of seeds, shared over the others."""

  def subtree(axis: int | None, *parts: Any) -> Any:
    return jax.tree.map(shared if axis is None else split, *parts)

  return jax.tree.map(subtree, axes, *trees, is_leaf=lambda axis: axis is None)
