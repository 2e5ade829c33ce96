"""Certified accuracy of ResNet-2B on CIFAR-10, next to what its authors and auto_LiRPA report.

  python -m benchmarks.certificates --data_dir=DIR --weights=resnet2b.pth [--start=0]
      [--examples=500] [--radius=2/255] [--method=alpha-crown] [--max_units=128] [--save=ours.npz]
      [--against=theirs.npz] [--exact]

Weights: alpha-beta-CROWN's repository (BSD 3-Clause), trained at l_inf 2/255. `--save` writes the
images, proofs and margins; `--against` compares the margins with those of another tool, margins [N]
of the same images, such as `benchmarks/certificates_torch.py` writes in an environment with
auto_LiRPA. `--exact` leaves out the allowance for rounding, as other tools do: these are no proofs.
"""

import argparse
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

import robust_opt as ro
from robust_opt.certificates import rounding
from robust_opt.data import datasets
from robust_opt.evaluation.collection import pixels

MOMENTS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)}


def main() -> None:
  """Prints the certified accuracy, its time, and the differences of the margins."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--weights", required=True, type=Path)
  parser.add_argument("--start", type=int, default=0)
  parser.add_argument("--examples", type=int, default=500)
  parser.add_argument("--radius", type=Fraction, default=Fraction(2, 255))
  parser.add_argument("--method", default="crown")
  parser.add_argument("--batch_size", type=int, default=20)
  parser.add_argument("--max_units", type=int, default=128)
  parser.add_argument("--save", type=Path)
  parser.add_argument("--against", type=Path)
  parser.add_argument("--exact", action="store_true")
  options = parser.parse_args()
  if options.exact:
    rounding.unit_roundoff = lambda dtype: 0.0
  net = ro.load_torch(options.weights, "ResNet2B", image_shape=(32, 32, 3), **MOMENTS)
  test = datasets.load("cifar10", "test", data_dir=options.data_dir)
  part = slice(options.start, options.start + options.examples)
  x, y = pixels(test.images[part]), test.labels[part]
  began = time.process_time()
  found = ro.certify(
    *(net.logits_fn, x, y, ro.LInf(float(options.radius), box=(0.0, 1.0)), options.method),
    batch_size=options.batch_size,
    max_units=options.max_units,
  )
  print(
    f"{options.method} at l_inf {options.radius}: {found.certified.sum()} of {len(x)} certified in "
    f"{time.process_time() - began:.1f} CPU s, compilation included; slack "
    f"{np.median(found.slack):.1e} in the median, up to {found.slack.max():.1e}"
  )
  if options.save:
    np.savez(options.save, x=x, y=y, certified=found.certified, margins=found.margins)
  if options.against:
    theirs = np.load(options.against)["margins"]
    difference = found.margins - theirs
    print(
      f"theirs: {np.sum(theirs > 0)} of {len(theirs)}; {np.sum(found.certified != (theirs > 0))} "
      f"images differ; margins are higher by {np.median(difference):.1e} in the median, "
      f"{difference.min():.1e} to {difference.max():.1e}"
    )


if __name__ == "__main__":
  main()
