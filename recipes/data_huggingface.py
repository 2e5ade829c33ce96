"""Batches from Hugging Face `datasets`, for a robust training step.

  python recipes/data_huggingface.py

Trains a small network on scikit-learn's digits twice, with `loss` and with its worst case over the
l_inf ball, and evaluates both with AutoAttack. Replace `dataset` with your own, as
`datasets.load_dataset` returns it; nothing is downloaded here.
"""

from collections.abc import Callable
from typing import Any

import datasets
import flax.linen as nn
import jax
import numpy as np
import optax

import robust_opt as ro
from robust_opt.data import datasets as data

RADIUS = 0.15  # in pixels of [0, 1]

net = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(10)])


def dataset(split: str) -> datasets.Dataset:
  """Images uint8 in [0, 255], in memory; columns come out as NumPy arrays.

  Without with_format a set answers with lists of lists and PIL images.
  """
  digits = data.load("digits", split)
  columns = {"image": digits.images.reshape(-1, 64), "label": digits.labels}
  return datasets.Dataset.from_dict(columns).with_format("numpy")


def pixels(images: np.ndarray) -> np.ndarray:
  """Radii are in pixels of [0, 1]; uint8 comes out as int64, like every integer."""
  return images.astype(np.float32) / 255


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

  digits = dataset("train")
  for epoch in range(epochs):
    # A last batch of fewer would compile the step once more.
    for batch in digits.shuffle(seed=epoch).iter(batch_size=64, drop_last_batch=True):
      params, opt_state = step(params, opt_state, pixels(batch["image"]), batch["label"])
  return params


def main() -> dict[str, ro.Verdict]:
  """What AutoAttack leaves of the standard and of the robust net, on 80 test digits."""
  test = dataset("test")[:80]
  verdicts = {}
  for name, objective in {"standard": loss, "robust": robust_loss}.items():
    logits_fn = jax.tree_util.Partial(net.apply, train(objective))
    verdict = ro.autoattack(
      logits_fn,
      pixels(test["image"]),
      test["label"],
      ro.LInf(RADIUS, box=(0.0, 1.0)),
      version="quick",
    )
    print(f"{name}: {verdict.clean_accuracy:.0%} clean, {verdict.robust_accuracy:.0%} under attack")
    verdicts[name] = verdict
  return verdicts


if __name__ == "__main__":
  main()
