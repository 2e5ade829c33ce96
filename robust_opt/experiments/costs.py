"""What an update costs: configs timed side by side in one process, so that load disturbs all alike.

costs = side_by_side({"standard": config, "robust": other}, train, steps=20, repeats=5)
ratio(costs["robust"], costs["standard"])       # 1.6: the median of the paired ratios
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from robust_opt.data.datasets import Dataset
from robust_opt.experiments import build
from robust_opt.experiments.assembly import initial_run
from robust_opt.training import ArrayData, make_scan

Run = Callable[[], object]


class Cost(NamedTuple):
  """Of one config; of Free training each replay of a batch is an update."""

  first: float  # seconds of the first call, compiling included
  seconds: tuple[float, ...]  # an update's, one for each repeat


def side_by_side(
  configs: Mapping[str, ConfigDict], train: Dataset, steps: int, repeats: int
) -> dict[str, Cost]:
  """Times every config's own updates in its jitted scan, `steps` batches a call, in turns."""
  runs = {name: _updates_of(config, train, steps) for name, config in configs.items()}
  first = {name: _timed(run) for name, run in runs.items()}
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(repeats):
    for name, run in runs.items():
      seconds[name].append(_timed(run) / steps / build.updates_of_a_batch(configs[name]))
  return {name: Cost(first[name], tuple(seconds[name])) for name in runs}


def ratio(cost: Cost, other: Cost) -> float:
  """The ratio of the two update times: the median over paired repeats."""
  return statistics.median(a / b for a, b in zip(cost.seconds, other.seconds, strict=True))


def _updates_of(config: ConfigDict, train: Dataset, steps: int) -> Run:
  """So many batches, as `assembly` would train them on one device."""
  plan, net, optimizer, state, _ = initial_run(config, train)
  u = build.own_set(config, train.images)
  step = build.update(config, net, optimizer, u, train.images.shape[1:], plan.num_steps)
  scan = jax.jit(make_scan(step, plan), static_argnums=3)
  data = jax.device_put(ArrayData(train.images, train.labels))
  return lambda: jax.block_until_ready(scan(state, data, jax.random.key(1), steps))


def _timed(run: Run) -> float:
  start = time.perf_counter()
  run()
  return time.perf_counter() - start
