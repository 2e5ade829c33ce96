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


def initialize(net: models.Net, keys: Array, shape: Sequence[int]) -> tuple[Params, ModelState]:
  """Every seed's variables, as its own of the keys [S] alone would give them."""
  try:
    return _initializer(net, tuple(shape))(keys)
  except TypeError:  # an attribute is a list, as in MLP(widths=[32]), which is no key of a cache
    return _initializer.__wrapped__(net, shape)(keys)


@functools.cache
def _initializer(net: models.Net, shape: tuple[int, ...]) -> Callable[[Array], PyTree]:
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
    in_axes, out_axes: 0, None, or a tree prefix of these (AXES), as in jax.vmap.
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
    def of(seed: int) -> Any:
      return _map_axes(lambda axis, a: a if axis is None else a[seed], in_axes, args)

    lengths = _map_axes(lambda axis, a: None if axis is None else len(a), in_axes, args)
    outs = [one(*of(seed), **statics) for seed in range(jax.tree.leaves(lengths)[0])]
    return _map_axes(lambda axis, *a: a[0] if axis is None else jnp.stack(a), out_axes, *outs)

  return looped


def vmap_is_faster(*, convolutional: bool) -> bool:
  """Whether seeds train faster in one program, by vmap, than in turn: dense nets on accelerators.

  Over weights of their own, vmap makes grouped convolutions of convolutions and batched products
  of dense layers. Images/s of all three seeds, Algorithm 1, batch size 128
  (`benchmarks.accelerator`):

    device             net                 in turn    vmap
    H200               VGG, bfloat16        39,400  34,800
    two CPU cores      MLP of 1024, 1024       898     456
                       MLP of 128, 128       8,190   5,940

  Dense nets were not measured on an accelerator; one of them alone is far too small to fill it.

  Args:
    convolutional: whether the nets have convolutions.
  """
  return jax.default_backend() != "cpu" and not convolutional


def compiled(
  scan: Callable[..., tuple[TrainState, TrainMetrics]], train: ArrayData, keys: Array, vmapped: bool
) -> Callable[[int], Callable[[TrainState], tuple[TrainState, TrainMetrics]]]:
  """num_steps -> a scan of all seeds; data and keys are its arguments, so that seeds share it."""
  run = over_seeds(scan, (AXES, None, 0), (AXES, 0), vmapped=vmapped, static=("num_steps",))
  return lambda num_steps: lambda state: run(state, train, keys, num_steps=num_steps)


def curve(folder: Path, names: Sequence[int]) -> dict[str, Any]:
  """{"steps" [P], "correct" [S, P]} as `engine.train_seeds` left them in a folder."""
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


def _map_axes(function: Callable[..., Any], axes: Any, *trees: Any) -> Any:
  """function(axis, *leaves) of the leaves of trees, of which `axes` is a prefix."""

  def subtree(axis: int | None, *parts: Any) -> Any:
    return jax.tree.map(functools.partial(function, axis), *parts)

  return jax.tree.map(subtree, axes, *trees, is_leaf=lambda axis: axis is None)
