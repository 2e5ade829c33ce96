"""The uncertainty sets that each attack takes.

|  attack                                         |  sets                             |
|  pgd                                            |  every set with a projection      |
|  apgd, square                                   |  LInf, L2, L1                     |
|  fab, fab_minimal, deepfool, pdpgd              |  LInf, L2, L1 with a finite box   |
|  fast_minimum_norm                              |  those and L0 with a finite box   |
|  hop_skip_jump                                  |  LInf, L2 with a finite box       |
|  ddn, carlini_wagner, szegedy, boundary         |  L2 with a finite box             |
|  sigma_zero, sparse_rs                          |  L0 with a finite box             |
|  grid_search                                    |  Transforms                       |
|  patch                                          |  Patch                            |

check_support("fab", ro.L2(0.5))  # InputError: fab needs a set with a finite box, ...
"""

import math
from typing import NamedTuple

from robust_opt.checks import described
from robust_opt.errors import InputError
from robust_opt.sets import L0, L2, Ball, Patch, Transforms, UncertaintySet, check_ball


class Support(NamedTuple):
  """The sets that an attack takes.

  Attributes:
    kind: their common class; `UncertaintySet` means every set with a projection.
    box: whether they need a finite box.
    l0: whether it takes `L0` besides.
  """

  kind: type[UncertaintySet]
  box: bool = False
  l0: bool = False


SUPPORT = {
  "pgd": Support(UncertaintySet),
  "apgd": Support(Ball),
  "square": Support(Ball),
  "fab": Support(Ball, box=True),
  "fab_minimal": Support(Ball, box=True),
  "deepfool": Support(Ball, box=True),
  "fast_minimum_norm": Support(Ball, box=True, l0=True),
  "pdpgd": Support(Ball, box=True),
  "hop_skip_jump": Support(Ball, box=True),
  "boundary": Support(L2, box=True),
  "ddn": Support(L2, box=True),
  "carlini_wagner": Support(L2, box=True),
  "szegedy": Support(L2, box=True),
  "sigma_zero": Support(L0, box=True),
  "sparse_rs": Support(L0, box=True),
  "grid_search": Support(Transforms),
  "patch": Support(Patch),
}


_EXAMPLES: dict[type[UncertaintySet], str] = {
  Transforms: "Transforms(30.0, 3.0)",
  Patch: "Patch(5)",
}


def check_support(attack: str, u: object) -> None:
  """InputError, naming the sets that the attack takes, if u is not one of them."""
  if attack not in SUPPORT:
    raise InputError(f"attack must be one of {', '.join(SUPPORT)}, but was {attack!r}.")
  kind, box, l0 = SUPPORT[attack]
  if kind is L0 or (l0 and isinstance(u, L0)):
    if not isinstance(u, L0) or u.box is None or not all(map(math.isfinite, u.box)):
      raise InputError(
        f"{attack} takes ro.sets.L0 with a finite box, as in ro.sets.L0(10, box=(0.0, 1.0)), not "
        f"{described(u)}."
      )
    return
  if kind in _EXAMPLES:
    if not isinstance(u, kind):
      words = f"takes ro.sets.{kind.__name__}, as in ro.sets.{_EXAMPLES[kind]}"
      raise InputError(f"{attack} {words}, not {described(u)}.")
    return
  if kind is not UncertaintySet:
    check_ball(u, attack, box=box)
  elif not isinstance(u, UncertaintySet) or type(u).project is UncertaintySet.project:
    what = f"a {type(u).__name__}" if isinstance(u, UncertaintySet) else repr(u)
    raise InputError(f"{attack} takes a set with a projection, as in ro.LInf(0.1), not {what}.")
  if not isinstance(u, kind):
    raise InputError(f"{attack} takes ro.{kind.__name__}, not a {type(u).__name__}.")
