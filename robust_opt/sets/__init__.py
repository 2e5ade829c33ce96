"""Uncertainty sets of perturbations delta. A set is a value with four methods (base.py).

|  set                                |  what changes                  |  ascent, projection      |
|  LInf(8 / 255, box), L2, L1         |  all entries, by a norm        |  exact                   |
|  GroupL21(0.5, patches(4))          |  few 4 x 4 patches             |  exact                   |
|  GroupLInf2(0.5, channels)          |  each channel by itself        |  exact                   |
|  Ellipsoid(1.0, scale)              |  pixel j by scale_j            |  exact                   |
|  L0(10, 1.0, box), not convex       |  at most ten entries           |  exact, not unique       |
|  Tangent(0.5, basis)                |  along the rows of basis       |  exact                   |
|  TangentAt(0.5, basis_of)           |  along basis_of(x) at every x  |  exact                   |
|  LInfL2(8 / 255, 0.5, box)          |  within both                   |  exact                   |
|  Intersection(first, second)        |  within two convex sets        |  feasible, approximate   |
|  Union((a, b)), not convex          |  within either of them         |  as of the best of them  |
|  Product((a, b), ((4, 4), (9,)))    |  blocks of [B, 16 + 9]         |  as of the blocks        |
|  Masked(u, mask)                    |  where mask is True            |  as of u                 |
|  Patch(5), not convex               |  a square of pixels, anywhere  |  exact, not unique       |
|  Transforms(30.0, 3.0), not convex  |  rotations, translations       |  none: `ro.grid_search`  |

All give the same guarantees for zero, tiny, huge and NaN gradients (balls.py), and take radii [] or
[B] that may be traced. A field out of its range is an InputError, as are examples that do not fit.
"""

from robust_opt.sets.balls import BALLS, L1, L2, Ball, LInf, ball_of, check_ball, lengths
from robust_opt.sets.base import Box, Radius, UncertaintySet, set_dataclass, static
from robust_opt.sets.groups import GroupL21, GroupLInf2, Groups, channels, patches
from robust_opt.sets.intersections import Intersection, LInfL2
from robust_opt.sets.masks import Masked
from robust_opt.sets.patch import Patch
from robust_opt.sets.products import Product
from robust_opt.sets.shapes import L0, BasisOf, Ellipsoid, Tangent, TangentAt
from robust_opt.sets.spatial import Transforms
from robust_opt.sets.unions import Union

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
  "Patch",
  "Product",
  "Radius",
  "Tangent",
  "TangentAt",
  "Transforms",
  "UncertaintySet",
  "Union",
  "ball_of",
  "channels",
  "check_ball",
  "lengths",
  "patches",
  "set_dataclass",
  "static",
]
