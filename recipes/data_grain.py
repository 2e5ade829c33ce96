"""Batches from Grain, reshuffled every epoch, for a robust training step.

  python recipes/data_grain.py

Trains a small network on scikit-learn's digits twice, with `loss` and with its worst case over the
l_inf ball, and evaluates both with AutoAttack. Replace `source` with your own source: anything with
__len__ and __getitem__, such as grain.sources.ArrayRecordDataSource.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import grain
import jax
import numpy as np
import optax

import robust_opt as ro
from robust_opt.data import datasets

RADIUS = 0.15  # in pixels of [0, 1]

Example = dict[str, np.ndarray]

net = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(10)])


def source(split: str) -> list[Example]:
  """Scans as they lie on disk: uint8 in [0, 255]."""
  digits = datasets.load("digits", split)
  return [{"image": image, "label": label} for image, label in zip(digits.images, digits.labels)]


def to_pixels(example: Example) -> Example:
  """Radii are in pixels of [0, 1]; standardization, if any, is the first layer of the model."""
  return {**example, "image": example["image"].astype(np.float32).ravel() / 255}


def batches(epochs: int) -> grain.MapDataset:
  """Batches of 64. A last one of fewer would compile the step once more, so it is dropped."""
  digits = grain.MapDataset.source(source("train")).seed(0).shuffle().map(to_pixels)
  return digits.repeat(epochs).batch(64, drop_remainder=True)


def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
  """The mean cross-entropy of a batch."""
  return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x), y).mean()


robust_loss = ro.robustify(loss, ro.steepest(ro.LInf(RADIUS)))  # the one line


def train(loss: Callable[..., Any], epochs: int = 20) -> Any:
  """Parameters after some epochs of Adam on this loss."""
  params, optimizer = net.init(jax.random.key(0), np.zeros((1, 64))), optax.adam(2e-3)
  opt_state = optimizer.init(params)

  @jax.jit
  def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
    updates, opt_state = optimizer.update(jax.grad(loss)(params, x, y), opt_state)
    return optax.apply_updates(params, updates), opt_state

  for batch in batches(epochs):  # .to_iter_dataset() reads ahead in threads
    params, opt_state = step(params, opt_state, batch["image"], batch["label"])
  return params


def main() -> dict[str, ro.Verdict]:
  """What AutoAttack leaves of the standard and of the robust net, on 80 test digits."""
  test = grain.MapDataset.source(source("test")).map(to_pixels).batch(80)[0]
  verdicts = {}
  for name, objective in {"standard": loss, "robust": robust_loss}.items():
    logits_fn = jax.tree_util.Partial(net.apply, train(objective))
    verdict = ro.autoattack(
      logits_fn, test["image"], test["label"], ro.LInf(RADIUS, box=(0.0, 1.0)), version="quick"
    )
    print(f"{name}: {verdict.clean_accuracy:.0%} clean, {verdict.robust_accuracy:.0%} under attack")
    verdicts[name] = verdict
  return verdicts


if __name__ == "__main__":
  main()
