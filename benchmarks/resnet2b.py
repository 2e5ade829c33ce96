"""ResNet-2B on CIFAR-10 at l_inf 2/255: what our attacks leave, next to its authors' PGD.

  python -m benchmarks.resnet2b --data_dir=DIR --weights=FILE.pth|.safetensors [--examples=10000]

The quick version attacks every image. The survivors nearest to the boundary, by its linearization
at the clean image, are attacked again: by PGD from random starts, on which the published number
rests, by Square, and by APGD toward their targets. Weights: alpha-beta-CROWN's repository (BSD
3-Clause), which states 69.25 % clean and 54.82 % under PGD.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import robust_opt as ro
from benchmarks.certificates import MOMENTS
from robust_opt import losses
from robust_opt.data import datasets
from robust_opt.evaluation.collection import pixels
from robust_opt.evaluation.phases import apgd_t, pgd_phase, square_phase
from robust_opt.types import Array, LogitsFn

_BATCH = 500
AGAIN = (
  pgd_phase("pgd-margin", losses.margin, 100, relative_step=0.05, num_restarts=100),
  square_phase(5000),
  *(apgd_t(100, 4)._replace(name=f"apgd-t-{start}") for start in range(1, 9)),
)


def linearized_distances(logits_fn: LogitsFn, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """The l_inf distance [N] at which the linearized net would change its class."""

  def distance(x: Array, y: Array) -> Array:
    def logits(x: Array) -> Array:
      return logits_fn(x[None])[0]

    z, slopes = logits(x), jax.jacrev(logits)(x)
    reach = jnp.abs(slopes - slopes[y]).sum(axis=(1, 2, 3))
    return jnp.min(jnp.where(jnp.arange(len(z)) == y, jnp.inf, (z[y] - z) / reach))

  of_batch = jax.jit(jax.vmap(distance))
  starts = range(0, len(x), _BATCH)
  return np.concatenate([of_batch(x[i : i + _BATCH], y[i : i + _BATCH]) for i in starts])


def main() -> None:
  """Prints how many images each attack breaks, and the accuracy that remains."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--weights", required=True, type=Path)
  parser.add_argument("--examples", type=int, default=10_000)
  parser.add_argument("--nearest", type=int, default=300)
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  net = ro.load_torch(options.weights, "ResNet2B", image_shape=(32, 32, 3), **MOMENTS)
  test = datasets.load("cifar10", "test", data_dir=options.data_dir)
  x, y = pixels(test.images[: options.examples]), test.labels[: options.examples]
  u = ro.LInf(2 / 255, box=(0.0, 1.0))
  first = ro.autoattack(net.logits_fn, x, y, u, version="quick", seed=options.seed)
  _print(first, len(x), len(x))
  survivors = np.flatnonzero(first.broken_by == -1)
  distances = linearized_distances(net.logits_fn, x[survivors], y[survivors])
  near = np.sort(survivors[np.argsort(distances)[: options.nearest]])
  again = ro.autoattack(
    *(net.logits_fn, x[near], y[near], u), version=AGAIN, seed=options.seed, ids=near
  )
  _print(again, len(near), len(survivors))
  left = len(survivors) - int(np.sum(again.broken_by != -1))
  print(f"{100 * first.clean_accuracy:.2f} % clean, {100 * left / len(x):.2f} % after all attacks")


def _print(verdict: ro.Verdict, count: int, of: int) -> None:
  broke = [f"{name} {np.sum(verdict.broken_by == i)}" for i, name in enumerate(verdict.names)]
  print(f"{count} of {of} images: {', '.join(broke)}", flush=True)


if __name__ == "__main__":
  main()
