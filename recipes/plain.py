"""Plain functions, with parameters in a dict: a robust loss, and AutoAttack on the result.

  python recipes/plain.py

Trains a small network on scikit-learn's digits twice, with `loss` and with its worst case over the
l_inf ball, and evaluates both with AutoAttack. Replace `init` and `logits_fn` with your own
functions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import robust_opt as ro
from robust_opt.data import datasets

RADIUS = 0.15  # in pixels of [0, 1]


def init(key: jax.Array) -> dict[str, jax.Array]:
  """Fresh parameters."""
  keys = jax.random.split(key)
  return {
    "w1": jax.random.normal(keys[0], (64, 128)) / 8,
    "b1": jnp.zeros(128),
    "w2": jax.random.normal(keys[1], (128, 10)) / 11,
    "b2": jnp.zeros(10),
  }


def logits_fn(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
  """[B, 8, 8, 1], pixels in [0, 1] -> logits [B, 10]."""
  hidden = jax.nn.relu(x.reshape(len(x), -1) @ params["w1"] + params["b1"])
  return hidden @ params["w2"] + params["b2"]


def loss(params: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
  """The mean cross-entropy of a batch."""
  return optax.softmax_cross_entropy_with_integer_labels(logits_fn(params, x), y).mean()


robust_loss = ro.robustify(loss, ro.steepest(ro.LInf(RADIUS)))  # the one line


def train(loss: Callable[..., Any], epochs: int = 20) -> dict[str, jax.Array]:
  """Parameters after some epochs of Adam on this loss."""
  digits = datasets.load("digits", "train")
  images, labels = digits.images / np.float32(255), digits.labels
  params, optimizer = init(jax.random.key(0)), optax.adam(2e-3)
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
    net = jax.tree_util.Partial(logits_fn, train(objective))
    verdict = ro.autoattack(net, images, labels, ro.LInf(RADIUS, box=(0.0, 1.0)), version="quick")
    print(f"{name}: {verdict.clean_accuracy:.0%} clean, {verdict.robust_accuracy:.0%} under attack")
    verdicts[name] = verdict
  return verdicts


if __name__ == "__main__":
  main()
