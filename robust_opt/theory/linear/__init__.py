"""Robust linear models, where the theory is exact: counterparts, optima and their certificates.

  counterparts.margin_loss(w, b, x, y, ro.LInf(0.1))   # [N], the exact worst case, JAX
  solve.margin(x, y, ro.LInf(0.1))                     # its certified minimum (needs cvxpy)
  comparisons.paths(x, y, radii)                       # robust least squares is the lasso
  comparisons.algorithm1_gap(x, y, ro.LInf(0.1), key)  # Algorithm 1 reaches the minimum
  decay.logistic_path(x, y, strengths, "adversary")    # compared with l_1 weight decay

`robust_opt.plots.linear` draws the last three.
"""
