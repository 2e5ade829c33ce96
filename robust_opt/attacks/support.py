"""The uncertainty sets that each attack takes.

|  attack                                         |  sets                             |
|  pgd                                            |  every set with a projection      |
|  apgd, square                                   |  LInf, L2, L1                     |
|  fab, fab_minimal, deepfool, fast_minimum_norm  |  LInf, L2, L1 with a finite box   |
|  szegedy                                        |  L2 with a finite box             |

check_support("fab", ro.L2(0.5))  # InputError: fab needs a set with a finite box, ...
"""

from typing import NamedTuple

from robust_opt.errors import InputError
from robust_opt.sets import L2, Ball, UncertaintySet, check_ball


class Support(NamedTuple):
  """The sets that an attack takes.

  Attributes:
    kind: their common class; `UncertaintySet` means every set with a projection.
    box: whether they need a finite box.
  """

  kind: type[UncertaintySet]
  box: bool = False


SUPPORT = {
  "pgd": Support(UncertaintySet),
  "apgd": Support(Ball),
  "square": Support(Ball),
  "fab": Support(Ball, box=True),
  "fab_minimal": Support(Ball, box=True),
  "deepfool": Support(Ball, box=True),
  "fast_minimum_norm": Support(Ball, box=True),
  "szegedy": Support(L2, box=True),
}


def check_support(attack: str, u: object) -> None:
  """InputError, naming the sets that the attack takes, if u is not one of them."""
  if attack not in SUPPORT:
    raise InputError(f"attack must be one of {', '.join(SUPPORT)}, but was {attack!r}.")
  kind, box = SUPPORT[attack]
  if kind is not UncertaintySet:
    check_ball(u, attack, box=box)
  elif not isinstance(u, UncertaintySet) or type(u).project is UncertaintySet.project:
    what = f"a {type(u).__name__}" if isinstance(u, UncertaintySet) else repr(u)
    raise InputError(f"{attack} takes a set with a projection, as in ro.LInf(0.1), not {what}.")
  if not isinstance(u, kind):
    raise InputError(f"{attack} takes ro.{kind.__name__}, not a {type(u).__name__}.")
