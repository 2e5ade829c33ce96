"""Attacks that read logits: what a robust accuracy is measured by.

  from robust_opt.attacks.square import square
  from robust_opt.attacks.minimal import deepfool

  found = square("linf", 0.3)(keys, logits_fn, x, y)         # within a radius: Found
  delta, found = deepfool("l2")(keys, logits_fn, x, y)       # the smallest that fools: Minimal

white_box (any inner maximiser), fab, square and transfer work within a radius; minimal, szegedy and
fab look for the smallest perturbation. `robust_opt.evaluation.autoattack` puts them together.
"""
