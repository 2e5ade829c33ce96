"""Proofs of robustness.

  linear_margin(weights, bias, x, y, ro.L2(0.5))         # the exact worst case of a linear model
  certify(logits_fn, x, y, ro.LInf(0.1, box=(0.0, 1.0))) # a network: a proof, or False
  certify_smoothed(keys, logits_fn, x, sigma=0.25)       # another classifier, with its own radius

For every example: certified radius <= exact radius <= radius of any successful attack.
"""

from robust_opt.certificates.bounds import Certificate, Margins, certify, logit_bounds, margins
from robust_opt.certificates.exact import linear_distance, linear_margin
from robust_opt.certificates.smoothing import SmoothedCertificate, certify_smoothed, class_counts

__all__ = [
  "Certificate",
  "Margins",
  "SmoothedCertificate",
  "certify",
  "certify_smoothed",
  "class_counts",
  "linear_distance",
  "linear_margin",
  "logit_bounds",
  "margins",
]
