"""The attacks of robust_opt, torchattacks and adv_lib on the same weights and images.

  python -m benchmarks.parity --data_dir=DIR --workdir=runs/parity [--datasets mnist cifar10]
      [--norms linf l2 l1] [--kinds standard fgsm pgd masked] [--examples 200]

Measures for each net, norm and attack: robust accuracies; the fraction of images on which both
sides agree, and with --controls on which robust_opt agrees with itself under another seed; seconds
per image (compilation is given separately); forward and backward passes per image. An image counts
as broken only if the returned image is misclassified, in the box, and in the ball up to a relative
1e-4. Each comparison is stored in --workdir, so that the command resumes where it was stopped; the
tables are printed at the end. `--phases ensemble` and `--phases apgd-ce apgd-t fab-t square` choose
the attacks.
"""

import argparse
import functools
import itertools
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

import robust_opt as ro
from benchmarks import clock, nets, torch_nets
from benchmarks.torch_attacks import EVERYTHING, NORMS, PHASES, torch_attack
from robust_opt.arrays import digest
from robust_opt.evaluation.phases import Phase
from robust_opt.evaluation.verdict import data_sha256
from robust_opt.sets import BALLS, Ball, lengths
from robust_opt.studies.study import Study, sha256_of
from robust_opt.types import Array, LogitsFn

BATCH, COUNTED = 100, 16


class Counter:
  """Counts the images in forward and backward passes of a net."""

  def __init__(self) -> None:
    self.forward = self.backward = 0

  def per_image(self, examples: int) -> dict[str, float]:
    """Passes per attacked image."""
    return {"forward": self.forward / examples, "backward": self.backward / examples}


class Counted(torch.nn.Module):
  """A module that counts its passes."""

  def __init__(self, module: torch.nn.Module, counter: Counter) -> None:
    super().__init__()
    self.module, self.counter = module, counter
    # torchattacks restores the mode of the model and of all its submodules. A new wrapper is in
    # training mode, and batch norm would be updated by the attacks.
    self.eval()

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> [B, K]."""
    self.counter.forward += len(x)
    if x.requires_grad:
      x = x.view_as(x)
      x.register_hook(self._count_backward)
    return self.module(x)

  def _count_backward(self, gradient: torch.Tensor) -> None:
    self.counter.backward += len(gradient)


def counted(logits_fn: LogitsFn, counter: Counter) -> LogitsFn:
  """The same function with counted passes; slower, so not for timings."""

  def add(forwards: int, backwards: int) -> None:
    counter.forward += forwards
    counter.backward += backwards

  @jax.custom_vjp
  def identity(x: Array) -> Array:
    jax.debug.callback(functools.partial(add, len(x), 0))
    return x

  def forward(x: Array) -> tuple[Array, None]:
    return identity(x), None

  def backward(residual: None, gradient: Array) -> tuple[Array]:
    del residual
    jax.debug.callback(functools.partial(add, 0, len(gradient)))
    return (gradient,)

  identity.defvjp(forward, backward)
  return lambda x: logits_fn(identity(x))


def our_attack(name: str) -> str | tuple[Phase, ...]:
  """The corresponding `version` of ro.autoattack."""
  return "standard" if name == EVERYTHING else (PHASES[name],)


def compare(net: nets.Net, name: str, norm: str, examples: int, controls: bool) -> dict[str, Any]:
  """One row of the table, and the outcome for each image."""
  x, y, radius = net.x[:examples], net.y[:examples], net.radii[norm]
  u = BALLS[norm](radius, box=(0.0, 1.0))
  arguments: dict[str, Any] = {"u": u, "version": our_attack(name)}
  with clock.compiling() as seconds_compiling:
    began = time.perf_counter()
    verdict = ro.autoattack(net.logits_fn, x, y, batch_size=BATCH, **arguments)
    seconds = time.perf_counter() - began - seconds_compiling[0]
  ours = broken(net, x, y, verdict.images, u)
  line: dict[str, Any] = {
    "radius": radius,
    "examples": examples,
    "clean": float(np.mean(verdict.broken_by != 0)),
    "ours": {
      "robust": float(np.mean(~ours)),
      "claimed": verdict.robust_accuracy,
      "seconds": seconds / examples,
      "compile_seconds": seconds_compiling[0],
    },
    "broken": ours.tolist(),
  }
  if controls:
    again = ro.autoattack(net.logits_fn, x, y, batch_size=BATCH, seed=1, **arguments)
    line["agreement_with_itself"] = float(np.mean(ours == (again.broken_by >= 0)))
    counter = Counter()
    few = slice(0, COUNTED)  # one full batch, so that no padding is counted
    ro.autoattack(counted(net.logits_fn, counter), x[few], y[few], batch_size=COUNTED, **arguments)
    jax.effects_barrier()
    line["ours"]["evaluations"] = counter.per_image(COUNTED)
  counter = Counter()
  attack = torch_attack(name, norm, radius, Counted(net.module, counter))
  if attack is None:
    return line
  began = time.perf_counter()
  images = []
  for start in range(0, examples, BATCH):
    batch = torch_nets.channels_first(x[start : start + BATCH])
    labels = torch.from_numpy(y[start : start + BATCH]).long()
    images.append(torch_nets.channels_last(attack(batch, labels)))
  seconds = time.perf_counter() - began
  if net.module.training:
    raise RuntimeError("The attack left the net in training mode.")
  theirs = broken(net, x, y, np.concatenate(images), u)
  line["theirs"] = {
    "robust": float(np.mean(~theirs)),
    "seconds": seconds / examples,
    "evaluations": counter.per_image(examples),
  }
  line["agreement"] = float(np.mean(ours == theirs))
  line["their_broken"] = theirs.tolist()
  return line


def broken(net: nets.Net, x: np.ndarray, y: np.ndarray, images: np.ndarray, u: Ball) -> np.ndarray:
  """Whether each image is misclassified by the PyTorch net and in the ball and box, [N]."""
  logits = net.module(torch_nets.channels_first(images)).numpy()
  inside = lengths(u, images - x) <= float(u.radius) * (1 + 1e-4)
  boxed = ((images >= 0) & (images <= 1)).reshape(len(x), -1).all(axis=1)
  return (logits.argmax(axis=1) != y) & inside & boxed


def markdown(lines: dict[tuple[str, str, str, str], dict[str, Any]]) -> str:
  """All comparisons in one table."""
  head = (
    "| net | norm, radius | attack | clean | robust_opt | theirs | agreement | two seeds "
    "| s/image | theirs | ratio | forward, backward | theirs | compilation |"
  )
  rows = [head, "|" + "---|" * (head.count("|") - 1)]
  for (dataset, kind, norm, name), line in lines.items():
    ours, theirs = line["ours"], line.get("theirs")
    cells = [
      f"{dataset} {kind}", f"{norm} {line['radius']:.4g}", name, f"{100 * line['clean']:.1f}",
      f"{100 * ours['robust']:.1f}",
      f"{100 * theirs['robust']:.1f}" if theirs else "",
      f"{100 * line['agreement']:.1f}" if theirs else "",
      f"{100 * line['agreement_with_itself']:.1f}" if "agreement_with_itself" in line else "",
      f"{ours['seconds']:.3f}",
      f"{theirs['seconds']:.3f}" if theirs else "",
      f"{ours['seconds'] / theirs['seconds']:.2f}" if theirs else "",
      *(
        "{forward:.0f}, {backward:.0f}".format(**side["evaluations"])
        if side and "evaluations" in side
        else ""
        for side in (ours, theirs)
      ),
      f"{ours['compile_seconds']:.1f}",
    ]  # fmt: skip
    rows.append("| " + " | ".join(cells) + " |")
  return "\n".join(rows)


def main() -> None:
  """Runs the comparisons that are not in --workdir yet, and prints all of them."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data_dir", required=True, help="folder of prepared TFDS sets")
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--datasets", nargs="+", default=nets.DATASETS, choices=nets.DATASETS)
  parser.add_argument("--kinds", nargs="+", default=nets.KINDS, choices=nets.KINDS)
  parser.add_argument("--norms", nargs="+", default=tuple(NORMS), choices=NORMS)
  parser.add_argument("--phases", nargs="+", default=(*PHASES, EVERYTHING))
  parser.add_argument("--examples", type=int, default=200, help="number of test images")
  parser.add_argument(
    "--controls", action="store_true", help="also run a second seed and count passes"
  )
  args = parser.parse_args()
  entries = list(itertools.product(args.datasets, args.kinds, args.norms, args.phases))
  description = {"examples": args.examples, "controls": args.controls}
  study = Study(args.workdir, description, work=float(len(entries)))
  load = functools.cache(nets.load)
  lines = {}
  for entry in entries:
    dataset, kind, norm, name = entry
    net = load(dataset, kind, args.workdir / "nets", args.data_dir)
    lines[entry] = study.once(
      " ".join(entry),
      args.workdir / f"{'_'.join(entry)}.json",
      sha256_of(digest(jax.tree.leaves(net.logits_fn)), data_sha256(net.x, net.y)),
      functools.partial(compare, net, name, norm, args.examples, args.controls),
      work=1.0,
    )
    print(markdown({entry: lines[entry]}).splitlines()[-1], flush=True)
  study.close()
  print("\n" + markdown(lines))


if __name__ == "__main__":
  main()
