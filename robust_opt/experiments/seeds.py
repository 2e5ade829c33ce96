"""Networks of several seeds trained together: TrainStates stacked along a first axis of S seeds.

  experiment = assemble(config, splits, seed_keys=keys, vmapped=True)      # keys [S]
  f = over_seeds(f_of_one, (AXES, None, 0), (AXES, 0), vmapped=True, static=("num_steps",))
  params, model_state = of_seed(state, 0)

The step counter is the only part of a state that the seeds share: without a shuffle they then also
share the batches, and the first layer is one large product over all seeds.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from robust_opt import models
from robust_opt.arrays import digest
from robust_opt.experiments.metrics import read_metrics
from robust_opt.training import ArrayData, TrainMetrics, TrainState, init_state
from robust_opt.types import Array, ModelState, Params, PyTree

# Where the axis of seeds lies in a stacked TrainState (None: shared).
AXES: Any = TrainState(step=None, params=0, model_state=0, opt_state=0, memory=0)  # type: ignore[arg-type]


def initializer(net: nn.Module) -> Callable[[Array, tuple[int, ...]], tuple[Params, ModelState]]:
  """(keys [S], image shape) -> every seed's variables, as its own key alone would give them."""
  return lambda keys, shape: _initializer(net, shape)(keys)


def _initializer(net: nn.Module, shape: tuple[int, ...]) -> Callable[[Array], PyTree]:
  try:
    return _compiled_initializer(net, shape)
  except TypeError:  # an attribute is a list, as in MLP(widths=[32]), which is no key of a cache
    return _compiled_initializer.__wrapped__(net, shape)


@functools.cache
def _compiled_initializer(net: nn.Module, shape: tuple[int, ...]) -> Callable[[Array], PyTree]:
  """Compiled once for all networks of one architecture."""
  return jax.jit(jax.vmap(lambda key: models.init(net, key, shape)))


def stacked_state(
  params: Params, model_state: ModelState, optimizer: optax.GradientTransformation
) -> TrainState:
  """The state before the first update, of stacked variables."""
  init = jax.vmap(lambda p, s: init_state(p, s, optimizer), out_axes=AXES)
  return jax.jit(init)(params, model_state)


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
    vmapped: all seeds in one program, or one after the other through the same program
      (`vmap_is_faster`).
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


def vmap_is_faster(*, convolutional: bool) -> bool:
  """Whether seeds train faster in one program, by vmap, than in turn: dense nets on accelerators.

  Over weights of their own, vmap makes grouped convolutions of convolutions and batched products
  of dense layers. Images/s of all three seeds, Algorithm 1, batch size 128
  (`benchmarks.accelerator`):

    device  net           in turn    vmap
    H200    VGG, bfloat16  39,400  34,800

  Args:
    convolutional: whether the nets have convolutions.
  """
  return jax.default_backend() != "cpu" and not convolutional


def compiled(
  scan: Callable[..., tuple[TrainState, TrainMetrics]],
  train: ArrayData,
  keys: Array,
  vmapped: bool,
) -> Callable[[int], Callable[[TrainState], tuple[TrainState, TrainMetrics]]]:
  """num_steps -> a scan of all seeds; data and keys are its arguments, so that seeds share it."""
  axes, out_axes = (AXES, None, 0), (AXES, 0)
  run = over_seeds(scan, axes, out_axes, vmapped=vmapped, static=("num_steps",))
  return lambda num_steps: lambda state: run(state, train, keys, num_steps=num_steps)


def curve(folder: Path, names: Sequence[int]) -> dict[str, Any]:
  """{"steps" [P], "correct" [S, P]} as `SeedsLog` left them in a folder."""
  records = read_metrics(folder / "metrics.jsonl")
  correct = [[record[f"seed{name}/test_correct"] for record in records] for name in names]
  return {"steps": [record["step"] for record in records], "correct": correct}


def of_seed(state: TrainState, seed: int) -> tuple[PyTree, PyTree]:
  """(params, model_state) of one seed of a stacked state."""
  return jax.tree.map(lambda a: a[seed], (state.params, state.model_state))


def net_digests(state: TrainState, num_seeds: int) -> list[str]:
  """SHA-256 of what each seed's network computes with: its parameters and batch statistics."""
  host = jax.tree.map(np.asarray, (state.params, state.model_state))
  return [digest(jax.tree.map(lambda a, s=s: a[s], host)) for s in range(num_seeds)]


def _map_axes(split: Callable[..., Any], shared: Callable[..., Any], axes: Any, *trees: Any) -> Any:
  """split over the leaves that have an axis of seeds, shared over the others."""

  def subtree(axis: int | None, *parts: Any) -> Any:
    return jax.tree.map(shared if axis is None else split, *parts)

  return jax.tree.map(subtree, axes, *trees, is_leaf=lambda axis: axis is None)
