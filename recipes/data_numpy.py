"""Your own NumPy arrays: copied to the device once, and trained on by one compiled scan.

  python recipes/data_numpy.py

Trains a small network on scikit-learn's digits twice, without an attack and with three steps of PGD
over the l_inf ball, and evaluates both with AutoAttack. Replace `images` and `labels` with your own
arrays. For data sets that do not fit on the device see data_grain.py.
"""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import robust_opt as ro

RADIUS = 0.15  # in pixels of [0, 1]

images, labels = load_digits(return_X_y=True)  # [1797, 64] in [0, 16], [1797]
# Pixels in [0, 1] as float32, or uint8 in [0, 255], which takes a quarter of the memory and is
# divided by 255 batch by batch.
images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)
train_data = ro.ArrayData(images[:1400], labels[:1400])
test_images, test_labels = images[1400:1480], labels[1400:1480]

net = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(10)])


def apply(
  params: Any, model_state: Any, x: jax.Array, *, train: bool, key: jax.Array | None
) -> tuple[jax.Array, Any]:
  """A model as the training step calls it; this one has neither a mode nor a state."""
  del train, key
  logits: Any = net.apply(params, x)
  return logits, model_state


def train(num_steps: int, epochs: int = 20) -> Any:
  """Parameters after some epochs of Adam against so many steps of PGD; 0: standard training."""
  optimizer = optax.adam(2e-3)
  params = net.init(jax.random.key(0), train_data.images[:1])
  pgd = ro.pgd(ro.LInf(RADIUS), step=ro.LInf(RADIUS / 2), random_start=num_steps > 0)
  attack = ro.ascend(pgd, num_steps)
  step = ro.make_train_step(apply, optimizer, ro.robust(), attack)
  plan = ro.EpochPlan(num_examples=len(train_data.labels), batch_size=64)
  run = jax.jit(ro.make_scan(step, plan), static_argnums=3)  # shuffles every epoch anew

  state = ro.init_state(params, {}, optimizer)
  for _ in range(epochs):
    state, _ = run(state, train_data, jax.random.key(1), plan.num_steps)
  return state.params


def main() -> dict[str, ro.Verdict]:
  """What AutoAttack leaves of the standard and of the robust net, on 80 test digits."""
  verdicts = {}
  for name, num_steps in {"standard": 0, "robust": 3}.items():
    logits_fn = jax.tree_util.Partial(net.apply, train(num_steps))
    verdict = ro.autoattack(
      logits_fn, test_images, test_labels, ro.LInf(RADIUS, box=(0.0, 1.0)), version="quick"
    )
    print(f"{name}: {verdict.clean_accuracy:.0%} clean, {verdict.robust_accuracy:.0%} under attack")
    verdicts[name] = verdict
  return verdicts


if __name__ == "__main__":
  main()
