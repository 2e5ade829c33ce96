"""The cost of an update of each method, relative to standard training, on the paper's MNIST net.

  python -m benchmarks.method_costs [--steps 20] [--repeats 7] [--methods robust free pgd]

Runs the updates of robust_opt in a jitted scan, with batches of 100 random images: only the time of
L-BFGS, which has a line search, depends on the data. The timings are interleaved, so that other
processes affect all methods alike. `robust_opt.papers.family` times its updates in the same way, on
its own data.
"""

import argparse
import statistics

import numpy as np

from robust_opt.data.datasets import Dataset
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import costs, methods

NUM_IMAGES = 6000


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=20, help="batches per scan")
  parser.add_argument("--repeats", type=int, default=7, help="timings per method")
  parser.add_argument("--methods", nargs="+", choices=methods.ALL, default=list(methods.ALL))
  args = parser.parse_args()
  names = list(dict.fromkeys(["standard", *args.methods]))

  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (NUM_IMAGES, 28, 28, 1)) * (rng.random((NUM_IMAGES, 28, 28, 1)) < 0.2)
  y = rng.integers(0, 10, NUM_IMAGES).astype(np.int32)
  configs = {name: config_lib.mnist_methods() for name in names}
  for name, config in configs.items():
    methods.ALL[name].apply(config)
  train = Dataset(x.astype(np.uint8), y, 10, "random", "train")
  measured = costs.side_by_side(configs, train, args.steps, args.repeats)

  print(f"batch 100, median [minimum] of {args.repeats}")
  print("| method | passes per update | ms per update | relative to standard | first call, s |")
  print("|---|---|---|---|---|")
  for name in names:
    cost, passes = measured[name], methods.ALL[name].passes / methods.ALL[name].updates
    median, minimum = 1e3 * statistics.median(cost.seconds), 1e3 * min(cost.seconds)
    ratio = costs.ratio(cost, measured["standard"])
    times = f"{median:.1f} [{minimum:.1f}] | {ratio:.2f} | {cost.first:.1f}"
    print(f"| {name} | {passes:g} | {times} |")


if __name__ == "__main__":
  main()
