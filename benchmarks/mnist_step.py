"""Training steps on the paper's MNIST net: robust_opt in a jitted scan, PyTorch in eager mode.

  python benchmarks/mnist_step.py [--steps 20] [--repeats 9] [--norm linf] [--data_dir DIR]

Three kinds of steps with a batch size of 100: standard, Algorithm 1 (one ascent step, one descent
step) and PGD-10. Both frameworks gather the batch from uint8 images and perform the same steps. The
timings are interleaved, so that other processes affect all of them alike. DIR is a folder of
prepared TFDS sets; without it the images are random, which does not affect the times.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F

import robust_opt as ro
from robust_opt import models

BATCH, RADIUS, PGD_STEPS = 100, 0.1, 10
MEAN, STD = 0.1000, 0.2752
ASCENT_STEPS = {"standard": 0, "Algorithm 1": 1, "PGD-10": PGD_STEPS}
Epoch = Callable[[], None]  # runs args.steps training steps and waits for them


def robust_opt_epoch(x: np.ndarray, y: np.ndarray, steps: int, k: int, norm: str) -> Epoch:
  """k ascent steps before each descent step, in one jitted scan as in robust_opt.main."""
  net = models.MnistCNN(mean=MEAN, std=STD)
  params, model_state = models.init(net, jax.random.key(0), (28, 28, 1))
  optimizer = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(1e-3, momentum=0.9))
  ball, step_ball = ro.sets.BALLS[norm](RADIUS), ro.sets.BALLS[norm](RADIUS / 4)
  maximizer = ro.frank_wolfe(ball) if k <= 1 else ro.pgd(ball, step_ball, random_start=False)
  attack = ro.ascend(maximizer, k)
  step = ro.make_train_step(models.from_linen(net), optimizer, ro.robust(), attack)
  scan = jax.jit(ro.make_scan(step, ro.EpochPlan(len(y), BATCH)), static_argnums=3)
  state = ro.init_state(params, model_state, optimizer)
  data = ro.ArrayData(jnp.asarray(x), jnp.asarray(y))
  return lambda: jax.block_until_ready(scan(state, data, jax.random.key(1), steps))


def torch_epoch(
  x: np.ndarray, y: np.ndarray, order: np.ndarray, k: int, norm: str, layout: torch.memory_format
) -> Epoch:
  """The same steps in eager mode."""
  model = torch.nn.Sequential(
    torch.nn.Conv2d(1, 32, 5), torch.nn.ReLU(), torch.nn.MaxPool2d(3),
    torch.nn.Conv2d(32, 64, 5), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
    torch.nn.Flatten(), torch.nn.Linear(256, 200), torch.nn.ReLU(), torch.nn.Linear(200, 10),
  )  # fmt: skip
  for parameter in model.parameters():
    if parameter.ndim == 4:
      parameter.data = parameter.data.contiguous(memory_format=layout)
  optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-3)
  inputs, labels = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(y).long()
  batches = torch.from_numpy(order).long()
  rate = RADIUS if k == 1 else RADIUS / 4

  def loss(x: torch.Tensor, y: torch.Tensor, reduction: str) -> torch.Tensor:
    return F.cross_entropy(model((F.pad(x, (2, 2, 2, 2)) - MEAN) / STD), y, reduction=reduction)

  def length(delta: torch.Tensor) -> torch.Tensor:
    return delta.square().sum((1, 2, 3), keepdim=True).sqrt()

  def ascend(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    model.requires_grad_(False)
    delta = torch.zeros_like(x)
    for _ in range(k):
      delta.requires_grad_(True)
      (g,) = torch.autograd.grad(loss(x + delta, y, "sum"), delta)
      delta = delta.detach()
      if norm == "linf":
        delta = (delta + rate * g.sign()).clamp(-RADIUS, RADIUS)
      else:
        delta = delta + rate * g / length(g).clamp(min=1e-12)
        delta = delta * (RADIUS / length(delta).clamp(min=1e-12)).clamp(max=1)
    model.requires_grad_(True)
    return delta

  def epoch() -> None:
    for index in batches:
      images = (inputs[index].float() / 255).contiguous(memory_format=layout)
      if k:
        images = images + ascend(images, labels[index])
      optimizer.zero_grad()
      loss(images, labels[index], "mean").backward()
      optimizer.step()

  return epoch


def load(data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
  """Images [N, 28, 28, 1] uint8 and labels [N] int32."""
  if data_dir is None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (6000, 28, 28, 1)) * (rng.random((6000, 28, 28, 1)) < 0.2)
    return x.astype(np.uint8), rng.integers(0, 10, 6000).astype(np.int32)
  import tensorflow_datasets as tfds

  source = tfds.data_source("mnist", split="train", data_dir=data_dir)
  examples = source.__getitems__(range(6000))
  x = np.stack([example["image"] for example in examples])
  return x, np.array([example["label"] for example in examples], np.int32)


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=20, help="training steps per scan")
  parser.add_argument("--repeats", type=int, default=9, help="timings per entry")
  parser.add_argument("--norm", choices=["linf", "l2"], default="linf")
  parser.add_argument("--data_dir", help="folder of prepared TFDS sets; random images without it")
  args = parser.parse_args()
  torch.set_num_threads(2)

  x, y = load(args.data_dir)
  order = np.random.default_rng(1).permutation(len(x))
  order = np.resize(order, (args.steps, BATCH)).astype(np.int32)
  columns = ["robust_opt", "torch NCHW", "torch channels_last"]
  epochs: dict[tuple[str, str], Epoch] = {}
  for row, k in ASCENT_STEPS.items():
    epochs[row, columns[0]] = robust_opt_epoch(x, y, args.steps, k, args.norm)
    arguments = (x, y, order, k, args.norm)
    epochs[row, columns[1]] = torch_epoch(*arguments, torch.contiguous_format)
    epochs[row, columns[2]] = torch_epoch(*arguments, torch.channels_last)

  def timed(epoch: Epoch) -> float:
    start = time.perf_counter()
    epoch()
    return time.perf_counter() - start

  first = {entry: timed(epoch) for entry, epoch in epochs.items()}
  times: dict[tuple[str, str], list[float]] = {entry: [] for entry in epochs}
  for _ in range(args.repeats):
    for entry, epoch in epochs.items():
      times[entry].append(1e3 * timed(epoch) / args.steps)
  median = {entry: statistics.median(values) for entry, values in times.items()}

  print(f"ms per step, batch size {BATCH}, {args.norm}: median [minimum] of {args.repeats}")
  print(f"| step | {' | '.join(columns)} | robust_opt / best torch |\n|---|---|---|---|---|")
  for row in ASCENT_STEPS:
    cells = [f"{median[row, c]:.1f} [{min(times[row, c]):.1f}]" for c in columns]
    ratio = median[row, columns[0]] / min(median[row, c] for c in columns[1:])
    print(f"| {row} | {' | '.join(cells)} | {ratio:.2f} |")
  for row in ("Algorithm 1", "PGD-10"):
    cells = [f"{median[row, c] / median['standard', c]:.2f}" for c in columns]
    print(f"| {row} / standard | {' | '.join(cells)} | |")
  compile_times = [
    f"{row} {first[row, columns[0]] - median[row, columns[0]] * args.steps / 1e3:.1f} s"
    for row in ASCENT_STEPS
  ]
  print(f"\nCompilation of robust_opt: {', '.join(compile_times)}")
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  print(f"Peak resident memory of the process with both frameworks: {peak:.0f} MiB")


if __name__ == "__main__":
  main()
