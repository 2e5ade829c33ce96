"""Haiku: a robust loss is one line, and AutoAttack takes the transformed function.

  python recipes/haiku_model.py

Trains a small network on scikit-learn's digits twice, with `loss` and with its worst case over the
l_inf ball, and evaluates both with AutoAttack. Replace `forward` with your own function.
"""

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import numpy as np
import optax

import robust_opt as ro
from robust_opt.data import datasets

RADIUS = 0.15  # in pixels of [0, 1]


def forward(x: jax.Array) -> jax.Array:
  """[B, 8, 8, 1], pixels in [0, 1] -> logits [B, 10]."""
  return hk.nets.MLP([128, 10])(hk.Flatten()(x))


# With batch normalization or dropout: hk.transform_with_state of a forward(x, train), trained as in
# linen.py by an `apply` that calls net.apply(params, model_state, key, x, train).
net: hk.Transformed = hk.without_apply_rng(hk.transform(forward))


class ForRuns:
  """For runs, from this folder: robust_opt.main --config.model.name=haiku_model:ForRuns."""

  def init(self, key: jax.Array, image_shape: tuple[int, ...]) -> tuple[hk.Params, dict[str, Any]]:
    """Initial parameters."""
    return net.init(key, np.zeros((1, *image_shape), np.float32)), {}

  def apply(self, params: hk.Params, model_state: Any, x: Any, train: bool, key: Any) -> Any:
    """The logits, and no state."""
    return net.apply(params, x), model_state


def loss(params: hk.Params, x: jax.Array, y: jax.Array) -> jax.Array:
  """The mean cross-entropy of a batch."""
  return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x), y).mean()


robust_loss = ro.robustify(loss, ro.steepest(ro.LInf(RADIUS)))  # the one line


def train(loss: Callable[..., Any], epochs: int = 20) -> hk.Params:
  """Parameters after some epochs of Adam on this loss."""
  digits = datasets.load("digits", "train")
  images, labels = digits.images / np.float32(255), digits.labels
  params, optimizer = net.init(jax.random.key(0), images[:1]), optax.adam(2e-3)
  opt_state = optimizer.init(params)

  @jax.jit
  def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
    updates, opt_state = optimizer.update(jax.grad(loss)(params, x, y), opt_state)
    return optax.apply_updates(params, updates), opt_state

  rng = np.random.default_rng(0)
  for _ in range(epochs):
    for ids in rng.permutation(len(labels))[: len(labels) // 64 * 64].reshape(-1, 64):
      params, opt_state = step(params, opt_state, images[ids], labels[ids])
  return params


def main() -> dict[str, ro.Verdict]:
  """What AutoAttack leaves of the standard and of the robust net, on 80 test digits."""
  digits = datasets.load("digits", "test")
  images, labels = digits.images[:80] / np.float32(255), digits.labels[:80]
  verdicts = {}
  for name, objective in {"standard": loss, "robust": robust_loss}.items():
    logits_fn = jax.tree_util.Partial(net.apply, train(objective))
    verdict = ro.autoattack(
      logits_fn, images, labels, ro.LInf(RADIUS, box=(0.0, 1.0)), version="quick"
    )
    print(f"{name}: {verdict.clean_accuracy:.0%} clean, {verdict.robust_accuracy:.0%} under attack")
    verdicts[name] = verdict
  return verdicts


if __name__ == "__main__":
  main()
