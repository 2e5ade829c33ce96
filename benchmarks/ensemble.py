"""Training time of 12 maxout nets, sequentially and under vmap, relative to that of one.

  python -m benchmarks.ensemble --data_dir=DIR

Trains as the ensemble of robust_opt.papers.goodfellow2015 does, on 10,000 MNIST images; measures
one epoch, after one that compiles.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np

from robust_opt.experiments import build
from robust_opt.experiments.assembly import assemble
from robust_opt.papers.goodfellow2015 import study

MEMBERS, NUM_IMAGES = 12, 10_000


def epoch_seconds(members: int, vmapped: bool, data_dir: str) -> float:
  """Wall time of one epoch of all members."""
  preset = study.PRESETS["paper", "mnist"]
  options = study.Options(dataset="mnist", workdir=Path(), preset=preset, data_dir=data_dir)
  config = study.config_of(options, "maxout", 0)
  config.data.train_examples = NUM_IMAGES
  splits = build.splits(config)
  keys = jax.vmap(jax.random.key)(np.arange(members))
  ensemble = assemble(config, splits, keys, vmapped)
  scan = ensemble.compile(ensemble.plan.num_steps)
  state, _ = scan(ensemble.state)
  jax.block_until_ready(state)
  start = time.perf_counter()
  jax.block_until_ready(scan(state))
  return time.perf_counter() - start


def main() -> None:
  """Prints the three times and two ratios."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data_dir", default="", help="folder of prepared TFDS sets")
  args = parser.parse_args()
  one = epoch_seconds(1, False, args.data_dir)
  print(f"one net: {one:.2f} s")
  for vmapped in (False, True):
    several = epoch_seconds(MEMBERS, vmapped, args.data_dir)
    how = "vmap" if vmapped else "sequential"
    print(f"{MEMBERS} nets, {how}: {several:.2f} s, {several / one:.1f} x")


if __name__ == "__main__":
  main()
