"""What an update of each method costs beside one of standard training, on the paper's MNIST net.

  python -m benchmarks.method_costs [--steps 20] [--repeats 7] [--methods robust free pgd]

Every update is the library's own, within its jitted scan, at batch 100 on random images, which
change no time (except of L-BFGS, whose line search is as long as it needs). The timings are
interleaved, so that another process disturbs all of them alike. `robust_opt.papers.family` times
the updates of its nets in the same way, on its own data.
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
  parser.add_argument("--steps", type=int, default=20, help="batches in one scan")
  parser.add_argument("--repeats", type=int, default=7, help="timings of each method")
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
  found = costs.side_by_side(configs, train, args.steps, args.repeats)

  print(f"batch 100, median [minimum] of {args.repeats}")
  print("| method | passes an update | ms an update | beside standard | first call, s |")
  print("|---|---|---|---|---|")
  for name in names:
    cost, passes = found[name], methods.ALL[name].passes / methods.ALL[name].updates
    median, least = 1e3 * statistics.median(cost.seconds), 1e3 * min(cost.seconds)
    ratio = costs.ratio(cost, found["standard"])
    print(f"| {name} | {passes:g} | {median:.1f} [{least:.1f}] | {ratio:.2f} | {cost.first:.1f} |")


if __name__ == "__main__":
  main()
