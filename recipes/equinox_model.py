"""Equinox: a robust loss is one line, and AutoAttack takes the arrays of the model.

  python recipes/equinox_model.py

Trains a small network on scikit-learn's digits twice, with `loss` and with its worst case over the
l_inf ball, and evaluates both with AutoAttack. Replace `new_model` with your own module.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import robust_opt as ro
from robust_opt.data import datasets

RADIUS = 0.15  # in pixels of [0, 1]


def new_model(key: jax.Array | None = None) -> eqx.Module:
  """Of ONE example, as is the custom: [8, 8, 1], pixels in [0, 1] -> logits [10]."""
  key = jax.random.key(0) if key is None else key
  mlp = eqx.nn.MLP(64, 10, width_size=128, depth=1, key=key)
  return eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), mlp])


class ForRuns:
  """For runs, from this folder: robust_opt.main --config.model.name=equinox_model:ForRuns."""

  def init(self, key: jax.Array, image_shape: tuple[int, ...]) -> tuple[Any, dict[str, Any]]:
    """Initial parameters."""
    return eqx.filter(new_model(key), eqx.is_inexact_array), {}

  def apply(self, params: Any, model_state: Any, x: Any, train: bool, key: Any) -> Any:
    """The logits, and no state."""
    return jax.vmap(eqx.combine(params, new_model()))(x), model_state


def loss(model: Any, x: jax.Array, y: jax.Array) -> jax.Array:
  """The mean cross-entropy of a batch."""
  return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


# The model goes through as it is, functions among its leaves and all. One with eqx.nn.BatchNorm or
# dropout is trained as in linen.py: `apply` combines params with the rest and knows the mode.
robust_loss = ro.robustify(loss, ro.steepest(ro.LInf(RADIUS)))  # the one line


def train(loss: Callable[..., Any], epochs: int = 20) -> Any:
  """The model after some epochs of Adam on this loss."""
  digits = datasets.load("digits", "train")
  images, labels = digits.images / np.float32(255), digits.labels
  model, optimizer = new_model(), optax.adam(2e-3)
  opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

  @eqx.filter_jit
  def step(model: Any, opt_state: Any, x: np.ndarray, y: np.ndarray) -> tuple[Any, Any]:
    grads = eqx.filter_grad(loss)(model, x, y)
    updates, opt_state = optimizer.update(grads, opt_state)
    return eqx.apply_updates(model, updates), opt_state

  rng = np.random.default_rng(0)
  for _ in range(epochs):
    for ids in rng.permutation(len(labels))[: len(labels) // 64 * 64].reshape(-1, 64):
      model, opt_state = step(model, opt_state, images[ids], labels[ids])
  return model


_, STRUCTURE = eqx.partition(new_model(), eqx.is_array)


def logits_fn(arrays: Any, x: jax.Array) -> jax.Array:
  """What AutoAttack is given: jax.jit takes the arrays of a model, and nothing else of it."""
  return jax.vmap(eqx.combine(arrays, STRUCTURE))(x)


def main() -> dict[str, ro.Verdict]:
  """What AutoAttack leaves of the standard and of the robust net, on 80 test digits."""
  digits = datasets.load("digits", "test")
  images, labels = digits.images[:80] / np.float32(255), digits.labels[:80]
  verdicts = {}
  for name, objective in {"standard": loss, "robust": robust_loss}.items():
    net = jax.tree_util.Partial(logits_fn, eqx.filter(train(objective), eqx.is_array))
    verdict = ro.autoattack(net, images, labels, ro.LInf(RADIUS, box=(0.0, 1.0)), version="quick")
    print(f"{name}: {verdict.clean_accuracy:.0%} clean, {verdict.robust_accuracy:.0%} under attack")
    verdicts[name] = verdict
  return verdicts


if __name__ == "__main__":
  main()
