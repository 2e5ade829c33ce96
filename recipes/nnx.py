"""Flax NNX: split the module into values and structure; its loss is then a pure function.

  python recipes/nnx.py

Trains a small network on scikit-learn's digits twice, with `loss` and with its worst case over the
l_inf ball, and evaluates both with AutoAttack. Replace `Net` with your own module.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import robust_opt as ro
from robust_opt.data import datasets

RADIUS = 0.15  # in pixels of [0, 1]


class Net(nnx.Module):
  """[B, 8, 8, 1], pixels in [0, 1] -> logits [B, 10]."""

  def __init__(self, rngs: nnx.Rngs) -> None:
    self.hidden = nnx.Linear(64, 128, rngs=rngs)
    self.out = nnx.Linear(128, 10, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """The logits."""
    return self.out(nnx.relu(self.hidden(x.reshape(len(x), -1))))


# A module that updates itself (batch statistics, the keys of dropout) must not do so within the
# ascent, which has a trace of its own. Split such a one into (nnx.Param, ...) and train it as in
# linen.py by an `apply` that merges with copy=True, calls model.train() or model.eval(), and
# returns nnx.state(model, nnx.Not(nnx.Param)) beside the logits.
STRUCTURE, INITIAL = nnx.split(Net(nnx.Rngs(0)), nnx.Param)


def logits_fn(params: nnx.State, x: jax.Array) -> jax.Array:
  """The module as a pure function."""
  return nnx.merge(STRUCTURE, params)(x)


class ForRuns:
  """The same for runs, from this folder: robust_opt.main --config.model.name=nnx:ForRuns."""

  def init(self, key: jax.Array, image_shape: tuple[int, ...]) -> tuple[nnx.State, dict[str, Any]]:
    """Initial parameters."""
    return nnx.state(Net(nnx.Rngs(key)), nnx.Param), {}

  def apply(self, params: nnx.State, model_state: Any, x: Any, train: bool, key: Any) -> Any:
    """The logits, and no state."""
    return logits_fn(params, x), model_state


def loss(params: nnx.State, x: jax.Array, y: jax.Array) -> jax.Array:
  """The mean cross-entropy of a batch."""
  return optax.softmax_cross_entropy_with_integer_labels(logits_fn(params, x), y).mean()


robust_loss = ro.robustify(loss, ro.steepest(ro.LInf(RADIUS)))  # the one line


def train(loss: Callable[..., Any], epochs: int = 20) -> nnx.State:
  """Parameters after some epochs of Adam on this loss."""
  digits = datasets.load("digits", "train")
  images, labels = digits.images / np.float32(255), digits.labels
  params, optimizer = INITIAL, optax.adam(2e-3)
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
