"""The attacks of AutoAttack in PyTorch, by torchattacks and adv_lib, with the standard settings."""

from collections.abc import Callable
from typing import Any

import torch
import torchattacks

from robust_opt.evaluation.phases import VERSIONS

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
PHASES = {phase.name: phase for phase in VERSIONS["standard"]}
EVERYTHING = "ensemble"

# (images [B, C, H, W], labels [B]) -> images
TorchAttack = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def torch_attack(
  name: str, norm: str, radius: float, module: torch.nn.Module
) -> TorchAttack | None:
  """The attack of that name with the standard settings; None where no library has it."""
  if norm == "l1":
    if name == "apgd-ce":
      return lambda x, y: _adv_lib().apgd(
        module, x, y, radius, 1, n_iter=100, n_restarts=5, loss_function="ce", use_large_reps=True
      )
    if name == "apgd-t":
      return lambda x, y: _adv_lib().apgd_targeted(
        module, x, y, radius, 1, n_iter=100, num_targets=9, use_large_reps=True
      )
    if name != "fab-t":
      return None
  shared: dict[str, Any] = {"norm": NORMS[norm], "eps": radius, "n_restarts": 1, "seed": 0}
  make: dict[str, Callable[[], Any]] = {
    "apgd-ce": lambda: torchattacks.APGD(module, steps=100, loss="ce", **shared),
    "apgd-t": lambda: torchattacks.APGDT(module, steps=100, n_classes=10, **shared),
    "fab-t": lambda: torchattacks.FAB(
      module, steps=100, multi_targeted=True, n_classes=10, **shared
    ),
    "square": lambda: torchattacks.Square(module, n_queries=5000, **shared),
  }
  if name == EVERYTHING:
    # The class torchattacks.AutoAttack runs APGD and FAB for only 10 steps; the standard is 100.
    return torchattacks.MultiAttack([make[phase]() for phase in PHASES])
  return make[name]()


def _adv_lib() -> Any:
  from adv_lib.attacks import auto_pgd  # only l_1 needs it

  return auto_pgd
