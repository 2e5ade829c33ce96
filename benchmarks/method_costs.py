"""What an update of each method costs beside one of standard training, on the paper's MNIST net.

  python -m benchmarks.method_costs [--steps 20] [--repeats 7] [--methods robust free pgd]

Every update is the library's own, within its jitted scan, at batch 100 on random images, which
change no time (except of L-BFGS, whose line search is as long as it needs). The timings are
interleaved, so that another process disturbs all of them alike.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import robust_opt as ro
from robust_opt import build, methods, models, updates
from robust_opt import config as config_lib

NUM_IMAGES = 6000
Run = Callable[[], None]


def updates_of(name: str, x: np.ndarray, y: np.ndarray, steps: int) -> Run:
  """So many batches of a method, in one jitted scan."""
  config = config_lib.mnist_methods()
  methods.ALL[name].apply(config)
  plan = ro.EpochPlan(len(y), config.training.batch_size)
  attributes = {k: v for k, v in config.model.to_dict().items() if k != "name"}
  net = models.MnistCNN(**attributes)
  params, model_state = models.init(net, jax.random.key(0), x.shape[1:])
  optimizer = build.optimizer(config, plan.num_steps)
  update = updates.make(config, net, optimizer, x, plan.num_steps)
  scan = jax.jit(ro.make_scan(update.step, plan), static_argnums=3)
  state = ro.init_state(params, model_state, optimizer, update.memory)
  data = ro.ArrayData(jnp.asarray(x), jnp.asarray(y))
  return lambda: jax.block_until_ready(scan(state, data, jax.random.key(1), steps))


def timed(run: Run) -> float:
  """Seconds."""
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=20, help="batches in one scan")
  parser.add_argument("--repeats", type=int, default=7, help="timings of each method")
  parser.add_argument("--methods", nargs="+", choices=methods.ALL, default=list(methods.ALL))
  args = parser.parse_args()
  names = list(dict.fromkeys(["standard", *args.methods]))

  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (NUM_IMAGES, 28, 28, 1)) * (rng.random((NUM_IMAGES, 28, 28, 1)) < 0.2)
  y = rng.integers(0, 10, NUM_IMAGES).astype(np.int32)
  runs = {name: updates_of(name, x.astype(np.uint8), y, args.steps) for name in names}
  first = {name: timed(run) for name, run in runs.items()}
  times: dict[str, list[float]] = {name: [] for name in names}
  for _ in range(args.repeats):
    for name, run in runs.items():
      times[name].append(1e3 * timed(run) / args.steps / methods.ALL[name].updates)

  print(f"batch 100, median [minimum] of {args.repeats}")
  print("| method | passes an update | ms an update | beside standard | first call, s |")
  print("|---|---|---|---|---|")
  for name in names:
    ratio = statistics.median(a / b for a, b in zip(times[name], times["standard"], strict=True))
    median, least = statistics.median(times[name]), min(times[name])
    passes = methods.ALL[name].passes / methods.ALL[name].updates
    print(f"| {name} | {passes:g} | {median:.1f} [{least:.1f}] | {ratio:.2f} | {first[name]:.1f} |")


if __name__ == "__main__":
  main()
