"""Certified accuracy of ResNet-2B on CIFAR-10, next to what its authors and auto_LiRPA report.

  python -m benchmarks.certificates --data_dir=DIR --weights=resnet2b.pth [--examples=500]
      [--radius=2/255] [--method=alpha-crown] [--max_units=1024] [--save=ours.npz]
      [--against=theirs.npz]

Weights: alpha-beta-CROWN's repository (BSD 3-Clause), trained at l_inf 2/255. `--save` writes the
margins; `--against` compares them with those of another tool, margins [N] in the same order, such
as `benchmarks/certificates_torch.py` writes in an environment with auto_LiRPA.
"""

import argparse
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

import robust_opt as ro
from robust_opt.data import datasets
from robust_opt.evaluation.collection import pixels

MOMENTS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)}


def main() -> None:
  """Prints the certified accuracy, its time, and the largest difference of the margins."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--weights", required=True, type=Path)
  parser.add_argument("--examples", type=int, default=500)
  parser.add_argument("--radius", type=Fraction, default=Fraction(2, 255))
  parser.add_argument("--method", default="crown")
  parser.add_argument("--batch_size", type=int, default=20)
  parser.add_argument("--max_units", type=int, default=256)
  parser.add_argument("--save", type=Path)
  parser.add_argument("--against", type=Path)
  options = parser.parse_args()
  net = ro.load_torch(options.weights, "ResNet2B", image_shape=(32, 32, 3), **MOMENTS)
  test = datasets.load("cifar10", "test", data_dir=options.data_dir)
  x, y = pixels(test.images[: options.examples]), test.labels[: options.examples]
  u = ro.LInf(float(options.radius), box=(0.0, 1.0))

  def certify(count: int) -> ro.Certificate:
    return ro.certify(
      *(net.logits_fn, x[:count], y[:count], u, options.method),
      batch_size=options.batch_size,
      max_units=options.max_units,
    )

  began = time.perf_counter()
  certify(min(options.batch_size, len(x)))
  first, began = time.perf_counter() - began, time.perf_counter()
  found = certify(len(x))
  seconds = time.perf_counter() - began
  print(
    f"{options.method} at l_inf {options.radius}: {100 * found.certified.mean():.2f} % of {len(x)} "
    f"certified in {seconds:.1f} s, after {first:.1f} s of a first batch; slack up to "
    f"{found.slack.max():.1e}"
  )
  if options.save:
    np.savez(options.save, margins=found.margins, slack=found.slack)
  if options.against:
    theirs = np.load(options.against)["margins"]
    ours = (found.margins + found.slack)[: len(theirs)]
    difference = np.abs(ours - theirs[: len(ours)])
    print(
      f"theirs: {100 * np.mean(theirs > 0):.2f} % of {len(theirs)}; without slack margins differ "
      f"by {np.median(difference):.1e} in the median, by up to {difference.max():.1e}"
    )


if __name__ == "__main__":
  main()
