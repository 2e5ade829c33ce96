"""robust_opt: robust optimization of neural networks, min over theta of max over delta in U.

import robust_opt as ro
robust_loss = ro.robustify(loss, ro.steepest(ro.L2(0.5)))
"""

from typing import TYPE_CHECKING, Any

from robust_opt import losses, sets
from robust_opt.certificates.bounds import Certificate, certify
from robust_opt.certificates.training import ibp
from robust_opt.errors import InputError
from robust_opt.evaluation.accuracy import make_evaluate
from robust_opt.evaluation.autoattack import Verdict, autoattack
from robust_opt.evaluation.minimal import Distances, minimal
from robust_opt.evaluation.network import Randomized
from robust_opt.export import export_onnx
from robust_opt.maximizers import (
  AscentInfo,
  AscentState,
  Attack,
  InnerMaximizer,
  ScheduledAttack,
  apgd,
  ascend,
  frank_wolfe,
  grid_search,
  lbfgs,
  noise,
  noisy_step,
  only_if,
  pgd,
  power_iteration,
  projected,
  restarts,
  robustify,
  steepest,
)
from robust_opt.objectives import (
  RobustObjective,
  ScheduledObjective,
  gradient_penalty,
  mart,
  mixture,
  robust,
  trades,
  virtual,
)
from robust_opt.sets import L1, L2, LInf, UncertaintySet, projections
from robust_opt.sets.scaling import ramp
from robust_opt.training import (
  ArrayData,
  EpochPlan,
  TrainMetrics,
  TrainState,
  init_state,
  make_scan,
  make_train_step,
)
from robust_opt.types import Batch, Scored
from robust_opt.weights import load, load_torch, save_weights

if TYPE_CHECKING:
  from robust_opt.experiments.target import load_run

__version__ = "0.1.0"

__all__ = [
  "L1",
  "L2",
  "ArrayData",
  "AscentInfo",
  "AscentState",
  "Attack",
  "Batch",
  "Certificate",
  "Distances",
  "EpochPlan",
  "InnerMaximizer",
  "InputError",
  "LInf",
  "Randomized",
  "RobustObjective",
  "ScheduledAttack",
  "ScheduledObjective",
  "Scored",
  "TrainMetrics",
  "TrainState",
  "UncertaintySet",
  "Verdict",
  "apgd",
  "ascend",
  "autoattack",
  "certify",
  "export_onnx",
  "frank_wolfe",
  "gradient_penalty",
  "grid_search",
  "ibp",
  "init_state",
  "lbfgs",
  "load",
  "load_run",
  "load_torch",
  "losses",
  "make_evaluate",
  "make_scan",
  "make_train_step",
  "mart",
  "minimal",
  "mixture",
  "noise",
  "noisy_step",
  "only_if",
  "pgd",
  "power_iteration",
  "projected",
  "projections",
  "ramp",
  "restarts",
  "robust",
  "robustify",
  "save_weights",
  "sets",
  "steepest",
  "trades",
  "virtual",
]


def __getattr__(name: str) -> Any:
  """load_run, imported when it is first used: it needs the packages of the extra `run`."""
  if name == "load_run":
    from robust_opt.experiments.target import load_run

    return load_run
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  """The public names, without the submodules that other imports make attributes of the package."""
  return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
