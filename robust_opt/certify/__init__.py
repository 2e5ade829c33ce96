"""Proofs of robustness.

  linear_margin(weights, bias, x, y, ro.L2(0.5))        # the exact worst case of a linear model
  layers = from_params(net, params)
  certified(layers, x, y, ro.LInf(0.1, box=(0.0, 1.0))).robust  # ReLU nets: a proof, or False
  certify_smoothed(keys, logits_fn, x, sigma=0.25)      # another classifier, with its own radius

For every example: certified radius <= exact radius <= radius of any successful attack.
`models.affine` describes a net as the list of layers that `certified` takes.
"""

from robust_opt.certify.bounds import Certificate, certified, from_params, logit_bounds
from robust_opt.certify.exact import linear_distance, linear_margin
from robust_opt.certify.smoothing import SmoothedCertificate, certify_smoothed, class_counts

__all__ = [
  "Certificate",
  "SmoothedCertificate",
  "certified",
  "certify_smoothed",
  "class_counts",
  "from_params",
  "linear_distance",
  "linear_margin",
  "logit_bounds",
]
