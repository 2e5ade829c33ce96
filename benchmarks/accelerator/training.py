"""Throughput of robust_opt's training: a compiled scan of updates over random images on the device.

row = throughput("vgg", "bfloat16", "algorithm 1", batch=128, size=FULL)
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import robust_opt as ro
from benchmarks import clock
from benchmarks.accelerator import machine
from robust_opt import models
from robust_opt.experiments import seeds
from robust_opt.maximizers import Attack
from robust_opt.training import TrainState, TrainStep
from robust_opt.types import Batch

IMAGE = (32, 32, 3)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BOX = (0.0, 1.0)
# Updates of all methods; PGD computes 10 more forward and backward passes to the input.
METHODS = ("standard", "algorithm 1", "pgd-10")
NUM_ASCENTS = {"standard": 0, "algorithm 1": 1, "pgd-10": 10}
L2_RADIUS, LINF_RADIUS, LINF_STEP = 0.05, 8 / 255, 2 / 255


class Size(NamedTuple):
  """How large and how long measurements are; TINY shows on a CPU that everything runs."""

  examples: int = 50_000
  width: float = 1.0
  nets: tuple[str, ...] = ("vgg",)
  precisions: tuple[str, ...] = machine.PRECISIONS
  steps: int = 100
  repeats: int = 3
  batches: tuple[int, ...] = (128, 1024, 512)
  matrix: int = 8192
  images: int = 512  # attacked by AutoAttack
  epochs: int = 60  # of the net that AutoAttack attacks, on the images of --data_dir
  phases: tuple[str, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")


FULL = Size()
TINY = Size(64, 1 / 16, ("mlp",), ("float32",), 2, 1, (8,), 256, 8, 1, ("apgd-ce",))


def vgg(dtype: Any, width: float) -> nn.Module:
  """The net of Shaham et al. for CIFAR-10."""
  return models.VGG(mean=MEAN, std=STD, dtype=dtype, width=width)


def mlp(dtype: Any, width: float) -> nn.Module:
  """Three dense layers, to compare seeds under vmap without convolutions."""
  del dtype
  return models.MLP(widths=(int(1024 * width),) * 2, mean=MEAN, std=STD)


# dtype, factor of the widths -> net. Another net is a line here, and one in torch_training.NETS.
NETS: dict[str, Callable[[Any, float], nn.Module]] = {"vgg": vgg, "mlp": mlp}


def attack_of(method: str) -> Attack:
  """The ascent of a method."""
  if method == "pgd-10":
    step = ro.LInf(LINF_STEP, BOX)
    return ro.ascend(ro.pgd(ro.LInf(LINF_RADIUS, BOX), step), NUM_ASCENTS[method])
  return ro.ascend(ro.frank_wolfe(ro.L2(L2_RADIUS)), NUM_ASCENTS[method])


def optimizer() -> optax.GradientTransformation:
  """SGD with momentum and weight decay, as in the paper's code."""
  return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))


def throughput(name: str, precision: str, method: str, batch: int, size: Size) -> dict[str, Any]:
  """Images/s, compile time, memory, and the share of the peak that the net's products achieve."""
  net = _net(name, precision, size)
  step = _step(net, method)
  state, key = _state(net), jax.random.key(1)
  with machine.products(precision):
    scan = functools.partial(_scan(step, batch, size), num_steps=size.steps)
    row = _timed(jax.jit(scan, donate_argnums=0), state, _data(size), key, size)
    flops = _flops_per_image(net, method, batch)
  images = batch * size.steps / row.pop("seconds")
  peak = machine.vendor_peak(precision)
  share = {"share_of_peak": flops * images / (peak * 1e12)} if peak else {}
  return {"images_per_s": images, "gflop_per_image": flops / 1e9, **share, **row}


def seeds_throughput(
  name: str, precision: str, batch: int, count: int, vmapped: bool, size: Size
) -> dict[str, Any]:
  """Images/s of `count` seeds of Algorithm 1 together, in turn or under vmap."""
  net = _net(name, precision, size)
  keys = jax.random.split(jax.random.key(1), count)
  params, model_state = jax.vmap(lambda key: models.init(net, key, IMAGE))(keys)
  state = seeds.stacked_state(params, model_state, optimizer())
  with machine.products(precision):
    scan = functools.partial(_scan(_step(net, "algorithm 1"), batch, size), num_steps=size.steps)
    axes = (seeds.AXES, None, 0)
    together = seeds.over_seeds(scan, axes, (seeds.AXES, 0), vmapped=vmapped)

    def run() -> None:
      jax.block_until_ready(together(state, _data(size), keys))

    began = time.perf_counter()
    run()
    first = time.perf_counter() - began
    seconds = clock.median_seconds(run, size.repeats)
  return {"images_per_s": count * batch * size.steps / seconds, "compile_s": first - seconds}


def _net(name: str, precision: str, size: Size) -> nn.Module:
  dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
  return NETS[name](dtype, size.width)


def _step(net: nn.Module, method: str) -> TrainStep:
  # In train mode as in the authors' code, and as is the rule in PyTorch.
  return ro.make_train_step(
    models.from_linen(net), optimizer(), ro.robust(), attack_of(method), ascent_in_train_mode=True
  )


def _scan(step: TrainStep, batch: int, size: Size) -> Callable[..., Any]:
  return ro.make_scan(step, ro.EpochPlan(max(size.examples, batch), batch))


def _state(net: nn.Module) -> TrainState:
  params, model_state = models.init(net, jax.random.key(0), IMAGE)
  return ro.init_state(params, model_state, optimizer())


@functools.cache
def _data(size: Size) -> ro.ArrayData:
  """Random images: the speed does not depend on them."""
  rng = np.random.default_rng(0)
  count = max(size.examples, *size.batches)
  images = rng.integers(0, 256, (count, *IMAGE), np.uint8)
  return jax.device_put(ro.ArrayData(images, rng.integers(0, 10, count, np.int32)))


def _timed(jitted: Any, state: Any, data: ro.ArrayData, key: Any, size: Size) -> dict[str, float]:
  began = time.perf_counter()
  compiled = jitted.lower(state, data, key).compile()
  compile_s = time.perf_counter() - began
  box = [state]

  def run() -> None:
    box[0], metrics = compiled(box[0], data, key)
    jax.block_until_ready(metrics)
    box[0] = dataclasses.replace(box[0], step=jnp.zeros((), jnp.int32))  # the same epoch again

  seconds = clock.median_seconds(run, size.repeats)
  memory = compiled.memory_analysis()
  held = {} if memory is None else {"memory_mb": _held(memory) / 1e6}
  return {"seconds": seconds, "compile_s": compile_s, **held}


def _held(memory: Any) -> int:
  """Bytes of the program's arguments (the data set included), results and temporaries."""
  kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  return int(kept + memory.temp_size_in_bytes)


def _flops_per_image(net: nn.Module, method: str, batch: int) -> float:
  """By XLA's analysis of one update, which counts the body of a loop once.

  Hence what an ascent adds is the difference between one and none.
  """

  def flops(method: str) -> float:
    state = jax.eval_shape(lambda: _state(net))
    shapes: Any = ((IMAGE, jnp.float32), ((), jnp.int32), ((), jnp.int32))
    of: Any = jax.ShapeDtypeStruct
    one = Batch(*(of((batch, *shape), dtype) for shape, dtype in shapes))
    lowered = jax.jit(_step(net, method)).lower(state, one, jax.random.key(0))
    # Before optimization, or where the backend tells no such costs, as a GPU, after it.
    analysis: Any = lowered.cost_analysis() or lowered.compile().cost_analysis()
    return float(analysis["flops"]) / batch

  standard = flops("standard")
  ascents = NUM_ASCENTS[method]
  return standard + (ascents * (flops("algorithm 1") - standard) if ascents else 0.0)
