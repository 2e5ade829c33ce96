"""Images/s of standard training and Algorithm 1 for VGG on CIFAR-10 shapes, by precision.

  python benchmarks/vgg_cifar.py [--batch_size=128] [--steps=100] [--repeats=5] [--width=1]

For accelerators; with random images, since the speed does not depend on the data. Each row is a
compiled scan of training steps over data on the device; rows of one precision are timed
alternately, and medians are printed.
"""

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

import robust_opt as ro
from robust_opt import models

NUM_EXAMPLES = 50_000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def prepare(
  dtype: str, num_ascents: int, batch_size: int, steps: int, width: float
) -> tuple[Callable[[], None], float]:
  """A function that runs `steps` training steps and waits for them, and its compile time in s."""
  net = models.VGG(mean=MEAN, std=STD, dtype=jnp.dtype(dtype), width=width)
  params, model_state = models.init(net, jax.random.key(0), (32, 32, 3))
  optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))
  attack = ro.ascend(ro.frank_wolfe(ro.L2(0.05)), num_ascents)
  step = ro.make_train_step(models.from_linen(net), optimizer, ro.robust(), attack)
  plan = ro.EpochPlan(NUM_EXAMPLES, batch_size)
  key = jax.random.key(1)
  data = ro.ArrayData(
    jax.random.randint(key, (NUM_EXAMPLES, 32, 32, 3), 0, 256).astype(jnp.uint8),
    jax.random.randint(key, (NUM_EXAMPLES,), 0, 10),
  )
  scan = jax.jit(functools.partial(ro.make_scan(step, plan), num_steps=steps), donate_argnums=0)
  state = ro.init_state(params, model_state, optimizer)
  began = time.perf_counter()
  compiled = scan.lower(state, data, key).compile()
  compile_seconds = time.perf_counter() - began
  box = [state]

  def run() -> None:
    box[0], metrics = compiled(box[0], data, key)
    jax.block_until_ready(metrics)
    box[0] = dataclasses.replace(box[0], step=jnp.zeros((), jnp.int32))  # repeat the same epoch

  return run, compile_seconds


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--batch_size", type=int, default=128)
  parser.add_argument("--steps", type=int, default=100)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--width", type=float, default=1.0, help="factor of the number of features")
  args = parser.parse_args()
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, batch {args.batch_size}")
  print(f"{'':10} {'training':12} {'images/s':>10} {'ms/step':>9} {'ratio':>6} {'compile s':>10}")
  for dtype in ("float32", "bfloat16"):
    runs = {
      name: prepare(dtype, ascents, args.batch_size, args.steps, args.width)
      for name, ascents in (("standard", 0), ("Algorithm 1", 1))
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(args.repeats + 1):
      for name, (run, _) in runs.items():
        began = time.perf_counter()
        run()
        if repeat:  # the first warms up
          seconds[name].append((time.perf_counter() - began) / args.steps)
    base = statistics.median(seconds["standard"])
    for name, (_, compile_seconds) in runs.items():
      step = statistics.median(seconds[name])
      print(
        f"{dtype:10} {name:12} {args.batch_size / step:10,.0f} {1e3 * step:9.2f} "
        f"{step / base:6.2f} {compile_seconds:10.1f}"
      )


if __name__ == "__main__":
  main()
