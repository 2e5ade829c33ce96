"""Flax Linen, with batch normalization: the library's training step, and AutoAttack on the result.

  python recipes/linen.py

Trains a small ConvNet on scikit-learn's digits twice, without an attack and with three steps of PGD
over the l_inf ball, and evaluates both with AutoAttack. Replace `Net` with your own module; its
__call__ takes (x, train). For your own loss see existing_loop.py.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import robust_opt as ro
from robust_opt import models
from robust_opt.data import datasets
from robust_opt.models.layers import Conv

RADIUS = 0.15  # in pixels of [0, 1]


class Net(nn.Module):
  """[B, 8, 8, 1], pixels in [0, 1] -> logits [B, 10]."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """In training mode batch statistics are the batch's, otherwise the running ones."""
    x = Conv(16, (3, 3))(x)  # as nn.Conv, but faster in an attack of several steps on a CPU
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
    x = nn.avg_pool(x, (2, 2), strides=(2, 2))
    x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
    return nn.Dense(10)(x)


apply = models.from_linen(Net())


def train(num_steps: int, epochs: int = 15) -> ro.TrainState:
  """The state after some epochs of Adam against so many steps of PGD; 0: standard training."""
  digits = datasets.load("digits", "train")
  images, labels = digits.images / np.float32(255), digits.labels
  optimizer = optax.adam(2e-3)
  params, batch_stats = models.init(Net(), jax.random.key(0), image_shape=(8, 8, 1))
  state = ro.init_state(params, batch_stats, optimizer)
  pgd = ro.pgd(ro.LInf(RADIUS), step=ro.LInf(RADIUS / 2), random_start=num_steps > 0)
  attack = ro.ascend(pgd, num_steps)
  # The adversary sees the running statistics, so that every example has one of its own; the learner
  # those of the batch, and it alone updates them. (`robustify` has one loss for both.)
  step = jax.jit(ro.make_train_step(apply, optimizer, ro.robust(), attack))

  rng, key = np.random.default_rng(0), jax.random.key(1)
  for _ in range(epochs):
    order = rng.permutation(len(labels)).astype(np.int32)
    for ids in order[: len(labels) // 64 * 64].reshape(-1, 64):
      batch = ro.Batch(*map(jnp.asarray, (images[ids], labels[ids], ids)))
      state, _ = step(state, batch, jax.random.fold_in(key, state.step))
  return state


def logits_fn(state: ro.TrainState, x: jax.Array) -> jax.Array:
  """What AutoAttack is given: the net in evaluation mode."""
  return apply(state.params, state.model_state, x, train=False, key=None)[0]


def main() -> dict[str, ro.Verdict]:
  """What AutoAttack leaves of the standard and of the robust net, on 80 test digits."""
  digits = datasets.load("digits", "test")
  images, labels = digits.images[:80] / np.float32(255), digits.labels[:80]
  verdicts = {}
  for name, num_steps in {"standard": 0, "robust": 3}.items():
    net = jax.tree_util.Partial(logits_fn, train(num_steps))
    verdict = ro.autoattack(net, images, labels, ro.LInf(RADIUS, box=(0.0, 1.0)), version="quick")
    print(f"{name}: {verdict.clean_accuracy:.0%} clean, {verdict.robust_accuracy:.0%} under attack")
    verdicts[name] = verdict
  return verdicts


if __name__ == "__main__":
  main()
