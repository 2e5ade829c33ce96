"""The minimal-norm suite and the attacks of adv_lib: distances, optimality, calls and time.

  python -m benchmarks.minimal --workdir=runs/minimal [--dataset=mnist]
      [--data_dir=DIR] [--kinds standard pgd] [--norms l2 linf l1 l0] [--examples 100]

Every attack of adv_lib gets the whole budget that the suite divides among its attacks: 2,000
forward and backward passes per image, the protocol of AttackBench (Cina et al. 2025, arXiv
2404.19460). Optimality is its measure: how close the area under the curve of accuracy against
radius comes to that of the best distance known for every image, here over all rows of a net and a
norm. A perturbation counts only if the PyTorch net misclassifies it within [0, 1]. Seconds are of
processor time, which other programs disturb less, ours of a second call, without compiling.
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import robust_opt as ro
from benchmarks import nets, torch_nets
from benchmarks.parity import Counted, Counter
from robust_opt.evaluation.minimal import SUITES, optimality
from robust_opt.sets import BALLS, L0, lengths

ORDERS = {"l0": 0, "l1": 1, "l2": 2, "linf": float("inf")}
OURS = "robust_opt"


class Line(NamedTuple):
  """One attack on one net: distances [N], processor seconds, passes per image."""

  distance: np.ndarray
  seconds: float
  calls: float


def their_attacks(norm: str, num_calls: int) -> dict[str, Callable[..., torch.Tensor]]:
  """Name -> (module, images, labels) -> images, each with that budget; defaults of AttackBench."""
  from adv_lib import attacks

  steps, order = num_calls // 2, ORDERS[norm]
  fab_steps = num_calls // 11  # two forward passes and nine gradients of ten classes
  alma = functools.partial(attacks.alma, num_steps=steps, distance=norm, init_lr_distance=1.0)
  fmn = functools.partial(attacks.fmn, norm=order, steps=steps)
  fab = functools.partial(attacks.fab, norm=order, n_iter=fab_steps)
  pdpgd = functools.partial(attacks.pdpgd, norm=order, num_steps=steps)
  return {
    "l2": {
      "ddn": functools.partial(attacks.ddn, steps=steps, levels=None),
      "fmn": fmn,
      "fab": fab,
      "alma": alma,
      "pdgd": functools.partial(attacks.pdgd, num_steps=steps),
      "carlini_wagner": functools.partial(attacks.carlini_wagner_l2, max_iterations=steps // 9),
      "deepfool": attacks.df,
    },
    "linf": {"fmn": fmn, "fab": fab, "pdpgd": pdpgd},
    "l1": {"fmn": fmn, "fab": fab, "pdpgd": pdpgd, "alma": alma},
    "l0": {
      "fmn": fmn,
      "sigma_zero": functools.partial(attacks.sigma_zero, num_steps=steps),
      "pdpgd": functools.partial(pdpgd, proximal_operator=23),
    },
  }[norm]


def compare(net: nets.Net, norm: str, num: int, num_calls: int) -> dict[str, Line]:
  """All attacks on the first images."""
  x, y = net.x[:num], net.y[:num]
  run = functools.partial(ro.minimal, net.logits_fn, x, y, norm, num_calls=num_calls)
  run()  # compiles
  began = time.process_time()
  found = run()
  seconds = time.process_time() - began
  lines = {OURS: Line(distances(net, norm, x, y, found.x_adv), seconds, found.num_calls)}
  images, labels = torch_nets.channels_first(x), torch.from_numpy(y).long()
  for name, attack in their_attacks(norm, num_calls).items():
    counter = Counter()
    began = time.process_time()
    result = attack(Counted(net.module, counter), images, labels)
    seconds = time.process_time() - began
    moved = torch_nets.channels_last(result)
    calls = (counter.forward + counter.backward) / num
    lines[name] = Line(distances(net, norm, x, y, moved), seconds, calls)
  return lines


def distances(
  net: nets.Net, norm: str, x: np.ndarray, y: np.ndarray, images: np.ndarray
) -> np.ndarray:
  """0 where the clean image is misclassified, inf where the other image is not, [N]."""

  def wrong(images: np.ndarray) -> np.ndarray:
    return net.module(torch_nets.channels_first(images)).numpy().argmax(axis=1) != y

  boxed = ((images >= 0) & (images <= 1)).reshape(len(x), -1).all(axis=1)
  ball: Any = L0 if norm == "l0" else BALLS[norm]
  found = np.where(wrong(images) & boxed, lengths(ball, images.astype(np.float64) - x), np.inf)
  return np.where(wrong(x), 0.0, found)


def markdown(title: str, lines: dict[str, Line]) -> str:
  """The rows of a net and a norm, and one for the best of each image over the attacks of adv_lib.

  The mean of the distances is the area under the curve.
  """
  theirs = [line.distance for name, line in lines.items() if name != OURS]
  union = Line(
    np.min(theirs, axis=0),
    sum(line.seconds for name, line in lines.items() if name != OURS),
    sum(line.calls for name, line in lines.items() if name != OURS),
  )
  best = np.minimum(lines[OURS].distance, union.distance)
  rows = []
  for name, line in {**lines, "all of adv_lib": union}.items():
    found = line.distance[np.isfinite(line.distance)]
    rows.append(
      f"| {title} | {name} | {np.mean(found):.4f} | {np.mean(np.isfinite(line.distance)):.0%} | "
      f"{optimality(line.distance, best):.4f} | {line.calls:.0f} | {line.seconds:.1f} |"
    )
  return "\n".join(rows)


def main() -> None:
  """Runs the comparisons and prints their rows."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--data_dir", default="", help="folder of prepared TFDS sets")
  parser.add_argument("--dataset", default=nets.SMALL, choices=(nets.SMALL, *nets.DATASETS))
  parser.add_argument("--kinds", nargs="+", default=("standard", "pgd"), choices=nets.KINDS)
  parser.add_argument("--norms", nargs="+", default=tuple(SUITES), choices=tuple(SUITES))
  parser.add_argument("--examples", type=int, default=100, help="number of test images")
  parser.add_argument("--num_calls", type=int, default=2000, help="the budget for an image")
  args = parser.parse_args()
  print("| net, norm | attack | mean distance | found | optimality | calls | s |")
  print("|---|---|---|---|---|---|---|")
  for kind in args.kinds:
    net = nets.load(args.dataset, kind, args.workdir / "nets", args.data_dir)
    for norm in args.norms:
      lines = compare(net, norm, args.examples, args.num_calls)
      print(markdown(f"{args.dataset} {kind}, {norm}", lines), flush=True)


if __name__ == "__main__":
  main()
