"""Training: the state, the step, the scan over many steps, optimizers and penalties.

state = init_state(params, model_state, optimizer)
step = make_train_step(apply, optimizer, ro.robust(), ro.steepest(ro.L2(0.5)))
scan = jax.jit(make_scan(step, EpochPlan(len(labels), 100)), static_argnums=3)
state, metrics = scan(state, ArrayData(images, labels), key, 1000)
"""

from robust_opt.training.scan import ArrayData, EpochPlan, make_scan, take
from robust_opt.training.state import (
  Streams,
  TrainMetrics,
  TrainState,
  TrainStep,
  evaluated,
  init_state,
  streams,
)
from robust_opt.training.step import make_train_step

__all__ = [
  "ArrayData",
  "EpochPlan",
  "Streams",
  "TrainMetrics",
  "TrainState",
  "TrainStep",
  "evaluated",
  "init_state",
  "make_scan",
  "make_train_step",
  "streams",
  "take",
]
