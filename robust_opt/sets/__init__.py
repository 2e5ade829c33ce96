"""Uncertainty sets with structure: groups, ellipsoids, tangents, intersections, masks and more.

  u = structured.group_l21(0.5, structured.patches(4))  # few 4 x 4 patches carry the change
  u = structured.ellipsoid(1.0, scale)                  # scale [*S]: how far each pixel may go
  u = structured.l0(10, 1.0, box=(0.0, 1.0))            # at most ten entries change
  u = structured.tangent(0.5, basis)                    # along the rows of basis [d, *S] only
  u = structured.tangent_at(0.5, basis_of)              # along basis_of(x) [B, d, *S], at every x
  u = structured.linf_l2(8 / 255, 0.5)                  # both at once, exact
  u = structured.intersection(first, second)            # any two convex sets, approximate
  u = structured.product((first, (4, 4)), (second, (9,)))  # a set for each block of [B, 16 + 9]
  u = structured.masked(ro.l2(0.5), mask)               # only where mask [*S] or [B, *S] is True

Every function returns an UncertaintySet as those of uncertainty.py do, with the same promises for
zero, tiny, huge and NaN gradients, and a radius [] or [B] that may be traced.

|  set           |  convex  |  steepest ascent  |  projection                              |
|  group_l21     |  yes     |  exact            |  exact                                   |
|  group_linf2   |  yes     |  exact            |  exact                                   |
|  ellipsoid     |  yes     |  exact            |  exact, by a root search                 |
|  l0            |  no      |  exact            |  exact (a nearest point, of maybe many)  |
|  tangent       |  yes     |  exact            |  exact                                   |
|  tangent_at    |  yes     |  exact            |  exact                                   |
|  linf_l2       |  yes     |  exact            |  exact                                   |
|  intersection  |  yes     |  feasible only    |  in the limit of its iterations          |
|  product       |  if its blocks are, every column                                         |
|  masked        |  as the set that it masks, every column                                  |
"""

from robust_opt.sets.groups import Groups, channels, group_l21, group_linf2, patches
from robust_opt.sets.intersections import intersection, linf_l2
from robust_opt.sets.masks import masked
from robust_opt.sets.products import product
from robust_opt.sets.shapes import BasisOf, ellipsoid, l0, tangent, tangent_at

__all__ = [
  "BasisOf",
  "Groups",
  "channels",
  "ellipsoid",
  "group_l21",
  "group_linf2",
  "intersection",
  "l0",
  "linf_l2",
  "masked",
  "patches",
  "product",
  "tangent",
  "tangent_at",
]
