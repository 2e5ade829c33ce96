"""Attacks on logits, which measure robust accuracy.

  from robust_opt.attacks.square import square
  from robust_opt.attacks.minimal import deepfool

  u = ro.L2(0.5, box=(0.0, 1.0))
  delta, fooled = square(u)(keys, logits_fn, x, y)        # keys [B], x [B, *S], y [B]
  everywhere = ro.L2(math.inf, box=(0.0, 1.0))
  delta, fooled = deepfool(everywhere)(keys, logits_fn, x, y)  # the smallest delta that fools

white_box (any inner maximizer), fab, square and transfer search within the set. The minimal-norm
attacks (minimal, penalized, sigma_zero, szegedy, fab_minimal) look for the smallest perturbation in
the set: a radius of math.inf allows any size, and x + delta stays in the box. support.py lists the
sets that each attack takes. targets.py aims any of them at a class. `ro.autoattack` and
`ro.minimal` combine them.
"""
