"""Inner maximizers: how the adversary finds delta in its uncertainty set.

attack = ro.ascend(ro.pgd(ro.LInf(0.3), step=ro.LInf(0.01)), num_steps=40)
delta, info = attack(value_fn, key, x)                 # x + delta raises value_fn
robust_loss = ro.robustify(loss, attack)               # same arguments as loss
"""

from robust_opt.maximizers.apgd import apgd
from robust_opt.maximizers.base import (
  AscentInfo,
  AscentState,
  Attack,
  InnerMaximizer,
  ScheduledAttack,
  ascend,
  only_if,
  restarts,
)
from robust_opt.maximizers.first_order import (
  frank_wolfe,
  noise,
  noisy_step,
  pgd,
  power_iteration,
  projected,
  steepest,
)
from robust_opt.maximizers.grid import grid_search
from robust_opt.maximizers.lbfgs import lbfgs
from robust_opt.maximizers.robustify import robustify

__all__ = [
  "AscentInfo",
  "AscentState",
  "Attack",
  "InnerMaximizer",
  "ScheduledAttack",
  "apgd",
  "ascend",
  "frank_wolfe",
  "grid_search",
  "lbfgs",
  "noise",
  "noisy_step",
  "only_if",
  "pgd",
  "power_iteration",
  "projected",
  "restarts",
  "robustify",
  "steepest",
]
