"""PGD-40 on the paper's MNIST net: robust_opt, torchattacks and Foolbox in one process.

  python -m benchmarks.pgd --data_dir=DIR --workdir=runs/parity [--repeats 5]

All attack the same 100 test images with the same PGD-trained weights: l_inf, 40 steps of radius /
10 from a uniform random start, in the box. Foolbox runs in its PyTorch mode and in its JAX mode,
the latter with the plain and with the jitted net. The timings are interleaved, so that other
processes affect all of them alike; the first call, which compiles, is timed separately.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchattacks

import robust_opt as ro
from benchmarks import nets, torch_nets
from robust_opt import losses
from robust_opt.attacks import white_box
from robust_opt.keys import keys_of
from robust_opt.types import Array

BATCH, STEPS, RELATIVE_STEP = 100, 40, 0.1
Entry = Callable[[], np.ndarray]  # runs the attack: whether each image is broken, [N]


def robust_opt_entry(net: nets.Net, radius: float) -> Entry:
  """One compiled program: the loop, the net and its gradient."""
  x, y = jnp.asarray(net.x[:BATCH]), jnp.asarray(net.y[:BATCH])

  @jax.jit
  def fooled(radius: Array) -> Array:
    maximizer = ro.pgd(
      ro.LInf(radius, (0.0, 1.0)), ro.LInf(RELATIVE_STEP * radius), random_start=True
    )
    attack = white_box.ascent(ro.ascend(maximizer, STEPS, keep_best=True), losses.cross_entropy)
    keys = keys_of(jax.random.key(0), jnp.arange(BATCH))
    return attack(keys, net.logits_fn, x, y).fooled

  return lambda: np.asarray(fooled(jnp.float32(radius)))


def torchattacks_entry(net: nets.Net, radius: float) -> Entry:
  """Eager PyTorch."""
  attack = torchattacks.PGD(net.module, eps=radius, alpha=RELATIVE_STEP * radius, steps=STEPS)
  x, y = torch_nets.channels_first(net.x[:BATCH]), torch.from_numpy(net.y[:BATCH]).long()
  return lambda: (net.module(attack(x, y)).argmax(dim=1) != y).numpy()


def foolbox_torch_entry(net: nets.Net, radius: float) -> Entry:
  """Eager PyTorch."""
  model = foolbox.PyTorchModel(net.module, bounds=(0, 1), device="cpu")
  x, y = torch_nets.channels_first(net.x[:BATCH]), torch.from_numpy(net.y[:BATCH]).long()
  attack = foolbox.attacks.LinfPGD(rel_stepsize=RELATIVE_STEP, steps=STEPS)
  return lambda: attack(model, x, y, epsilons=radius)[2].numpy()


def foolbox_jax_entry(net: nets.Net, radius: float, jit: bool) -> Entry:
  """Eager JAX with the plain or the jitted net."""
  model = foolbox.JAXModel(jax.jit(net.logits_fn) if jit else net.logits_fn, bounds=(0, 1))
  x, y = jnp.asarray(net.x[:BATCH]), jnp.asarray(net.y[:BATCH])
  attack = foolbox.attacks.LinfPGD(rel_stepsize=RELATIVE_STEP, steps=STEPS)
  return lambda: np.asarray(attack(model, x, y, epsilons=radius)[2])


ENTRIES: dict[str, Callable[[nets.Net, float], Entry]] = {
  "robust_opt": robust_opt_entry,
  "torchattacks": torchattacks_entry,
  "Foolbox, PyTorch mode": foolbox_torch_entry,
  "Foolbox, JAX mode": functools.partial(foolbox_jax_entry, jit=False),
  "Foolbox, JAX mode, jitted net": functools.partial(foolbox_jax_entry, jit=True),
}


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data_dir", required=True, help="folder of prepared TFDS sets")
  parser.add_argument("--workdir", type=Path, required=True, help="folder of the trained net")
  parser.add_argument("--repeats", type=int, default=5)
  args = parser.parse_args()
  net = nets.load("mnist", "pgd", args.workdir / "nets", args.data_dir)
  radius = net.radii["linf"]
  entries = {name: make(net, radius) for name, make in ENTRIES.items()}

  first, robust = {}, {}
  for name, entry in entries.items():
    began = time.perf_counter()
    robust[name] = 1 - entry().mean()
    first[name] = time.perf_counter() - began
  times: dict[str, list[float]] = {name: [] for name in entries}
  for _ in range(args.repeats):
    for name, entry in entries.items():
      began = time.perf_counter()
      entry()
      times[name].append(time.perf_counter() - began)
  median = {name: statistics.median(values) for name, values in times.items()}

  print(f"s for {BATCH} images, median [minimum] of {args.repeats}")
  print("| | s | relative to robust_opt | first call | robust accuracy |")
  print("|---|---|---|---|---|")
  for name in entries:
    print(
      f"| {name} | {median[name]:.3f} [{min(times[name]):.3f}] "
      f"| {median[name] / median['robust_opt']:.1f} | {first[name]:.1f} s "
      f"| {100 * robust[name]:.0f} % |"
    )


if __name__ == "__main__":
  main()
