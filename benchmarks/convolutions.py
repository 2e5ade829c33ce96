"""A robust training step of a small ConvNet with nn.Conv, and with robust_opt.models.layers.Conv.

  python -m benchmarks.convolutions

Synthetic images [100, 28, 28, 1]; the gradient of the clean loss, of its worst case over one step,
and of that over PGD of 5 steps, compiled. Parameters and values of both nets agree.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app

import robust_opt as ro
from benchmarks.clock import median_seconds
from robust_opt.models import layers
from robust_opt.types import Array, Params

BATCH, REPEATS = 100, 5
U = ro.LInf(0.1, box=(0.0, 1.0))
PGD = ro.pgd(U, ro.LInf(0.025), random_start=False)
ATTACKS = {
  "standard": ro.ascend(PGD, 0),
  "one step": ro.steepest(U),
  "PGD-5": ro.ascend(PGD, 5),
}


class Net(nn.Module):
  """The CNN of Flax's tutorial on MNIST, with convolutions of one kind."""

  conv: type[nn.Module]

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, H, W, 1] -> logits [B, 10]."""
    for index, features in enumerate((32, 64)):
      conv = self.conv(features, (3, 3), name=f"conv{index}")
      x = nn.avg_pool(nn.relu(conv(x)), (2, 2), strides=(2, 2))
    return nn.Dense(10)(nn.relu(nn.Dense(256)(x.reshape(len(x), -1))))


def gradient_of(
  conv: type[nn.Module], attack: ro.Attack, x: Array, y: Array
) -> Callable[[], Array]:
  """The compiled gradient of the robust loss; it returns the loss when the device is done."""
  net = Net(conv)
  params = net.init(jax.random.key(0), x[:1])

  def loss(params: Params, x: Array, y: Array) -> Array:
    logits: Any = net.apply(params, x)
    return jnp.mean(ro.losses.cross_entropy(logits, y))

  gradient = jax.jit(jax.value_and_grad(ro.robustify(loss, attack)))
  return lambda: jax.block_until_ready(gradient(params, x, y))[0]


def main(argv: list[str]) -> None:
  """Prints a row for every attack, from interleaved timings."""
  del argv
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.random((BATCH, 28, 28, 1)), jnp.float32)
  y = jnp.asarray(rng.integers(0, 10, BATCH))
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
  print("| gradient | nn.Conv, ms | layers.Conv, ms | ratio |\n|---|---|---|---|")
  for name, attack in ATTACKS.items():
    runs = [gradient_of(conv, attack, x, y) for conv in (nn.Conv, layers.Conv)]
    np.testing.assert_allclose(runs[0](), runs[1](), rtol=1e-3)
    timings = np.array([[median_seconds(run, 1) for run in runs] for _ in range(REPEATS)])
    (theirs, ours), (least_theirs, least) = np.median(timings, axis=0), np.min(timings, axis=0)
    print(
      f"| {name} | {1000 * theirs:.0f} [{1000 * least_theirs:.0f}] | {1000 * ours:.0f} "
      f"[{1000 * least:.0f}] | {theirs / ours:.1f} |"
    )


if __name__ == "__main__":
  app.run(main)
