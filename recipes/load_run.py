"""A finished run, loaded: attack its network, and train it further, over a ball that grows.

  python recipes/load_run.py

Here a short standard run on scikit-learn's digits comes first; yours is the --workdir of
robust_opt.main. The loop at the end is yours to change. To start a whole run from the weights of
another one, there is --config.init_from=WORKDIR.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import robust_opt as ro
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import run as run_lib
from robust_opt.experiments.target import TrainedNet

RADIUS = 0.15  # in pixels of [0, 1]


def standard_run(workdir: Path) -> None:
  """What `python -m robust_opt.main --config=configs/digits_standard.py` does, in ten epochs."""
  config = config_lib.digits()
  config_lib.choose(config, "attack", "none")
  config.training.epochs = 10
  config.evaluation.sweep = (0.0, 1.0)
  run_lib.run(config, workdir)


def continued(run: TrainedNet, epochs: int = 12) -> ro.TrainState:
  """The state after more epochs, against one step over a ball that grows for the first half."""
  images, labels = run.examples("train")
  optimizer = optax.adam(1e-3)
  state = ro.init_state(run.params, run.model_state, optimizer)
  grows = epochs * (len(labels) // 64) // 2
  attack = ro.ScheduledAttack(lambda step: ro.steepest(ro.ramp(ro.LInf(RADIUS), step, grows)))
  step = jax.jit(ro.make_train_step(run.apply, optimizer, ro.robust(), attack))
  rng, key = np.random.default_rng(0), jax.random.key(1)
  for _ in range(epochs):
    order = rng.permutation(len(labels)).astype(np.int32)
    for ids in order[: len(labels) // 64 * 64].reshape(-1, 64):
      batch = ro.Batch(*map(jnp.asarray, (images[ids], labels[ids], ids)))
      state, _ = step(state, batch, jax.random.fold_in(key, state.step))
  return state


def main() -> None:
  """What AutoAttack leaves of the run and of the network trained further, on 80 test digits."""
  with tempfile.TemporaryDirectory() as folder:
    standard_run(Path(folder) / "run")
    run = ro.load_run(Path(folder) / "run")

  state, (x, y) = continued(run), run.examples("test", 80)
  nets = {"standard": run, "robust": run.with_weights(state.params, state.model_state)}
  for name, net in nets.items():
    verdict = ro.autoattack(net.logits_fn, x, y, ro.LInf(RADIUS, (0.0, 1.0)), version="quick")
    print(f"{name}: {verdict.clean_accuracy:.0%} clean, {verdict.robust_accuracy:.0%} under attack")


if __name__ == "__main__":
  main()
