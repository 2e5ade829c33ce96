"""Uncertainty sets of perturbations delta. A set is a value with four methods (base.py).

  u = ro.LInf(8 / 255, box=(0.0, 1.0))             # balls of a norm: LInf, L2, L1
  u = sets.GroupL21(0.5, sets.patches(4))          # few 4 x 4 patches change
  u = sets.Ellipsoid(1.0, scale)                   # scale [*S]: how far each pixel may go
  u = sets.L0(10, 1.0, box=(0.0, 1.0))             # at most ten entries change
  u = sets.Tangent(0.5, basis)                     # along the rows of basis [d, *S] only
  u = sets.TangentAt(0.5, basis_of)                # along basis_of(x) [B, d, *S], at every x
  u = sets.LInfL2(8 / 255, 0.5)                    # both at once, exact
  u = sets.Intersection(first, second)             # any two convex sets, approximate
  u = sets.Product((first, second), ((4, 4), (9,)))  # one set per block of [B, 16 + 9]
  u = sets.Masked(ro.L2(0.5), mask)                # only where mask [*S] or [B, *S] is True
  u = sets.Transforms(30.0, 3.0)                   # rotations and translations; samples only

All give the same guarantees for zero, tiny, huge and NaN gradients (balls.py), and take radii [] or
[B] that may be traced.

|  set           |  convex  |  steepest ascent  |  projection                              |
|  LInf, L2, L1  |  yes     |  exact            |  exact                                   |
|  GroupL21      |  yes     |  exact            |  exact                                   |
|  GroupLInf2    |  yes     |  exact            |  exact                                   |
|  Ellipsoid     |  yes     |  exact            |  exact, by a root search                 |
|  L0            |  no      |  exact            |  exact; may not be unique                |
|  Tangent       |  yes     |  exact            |  exact                                   |
|  TangentAt     |  yes     |  exact            |  exact                                   |
|  LInfL2        |  yes     |  exact            |  exact                                   |
|  Intersection  |  yes     |  feasible only    |  in the limit of its iterations          |
|  Product       |  as its blocks, every column                                             |
|  Masked        |  as the masked set, every column                                         |
|  Transforms    |  no      |  none             |  none: `ro.grid_search` searches it      |
"""

from robust_opt.sets.balls import BALLS, L1, L2, Ball, LInf, ball_of, check_ball, lengths
from robust_opt.sets.base import Box, Radius, UncertaintySet, set_dataclass, static
from robust_opt.sets.groups import GroupL21, GroupLInf2, Groups, channels, patches
from robust_opt.sets.intersections import Intersection, LInfL2
from robust_opt.sets.masks import Masked
from robust_opt.sets.products import Product
from robust_opt.sets.shapes import L0, BasisOf, Ellipsoid, Tangent, TangentAt
from robust_opt.sets.spatial import Transforms

__all__ = [
  "BALLS",
  "L0",
  "L1",
  "L2",
  "Ball",
  "BasisOf",
  "Box",
  "Ellipsoid",
  "GroupL21",
  "GroupLInf2",
  "Groups",
  "Intersection",
  "LInf",
  "LInfL2",
  "Masked",
  "Product",
  "Radius",
  "Tangent",
  "TangentAt",
  "Transforms",
  "UncertaintySet",
  "ball_of",
  "channels",
  "check_ball",
  "lengths",
  "patches",
  "set_dataclass",
  "static",
]
