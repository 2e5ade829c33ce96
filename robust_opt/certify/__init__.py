"""What can be proved about robustness, against which every attack is measured.

  exact.linear_margin(weights, bias, x, y, "l2", 0.5)         # the exact worst case, linear models
  layers = from_params(net, params)
  certified(layers, x, y, "linf", 0.1, box=(0.0, 1.0)).robust  # a proof, or False; ReLU nets
  certify_smoothed(keys, logits_fn, x, sigma=0.25)            # another classifier, and its radius

For every example the certified radius is at most the exact one, and that at most the radius of any
attack that succeeds. `layers` describes a net as bounds can follow it.
"""

from robust_opt.certify.bounds import Certificate, certified, logit_bounds
from robust_opt.certify.exact import linear_distance, linear_margin
from robust_opt.certify.smoothing import SmoothedCertificate, certify_smoothed, class_counts
from robust_opt.models.affine import (
  Affine,
  Conv,
  Dense,
  Flatten,
  Layer,
  MaxPool,
  Pad,
  ReLU,
  apply,
  from_params,
  in_float32,
  stages,
)

__all__ = [
  "Affine",
  "Certificate",
  "Conv",
  "Dense",
  "Flatten",
  "Layer",
  "MaxPool",
  "Pad",
  "ReLU",
  "SmoothedCertificate",
  "apply",
  "certified",
  "certify_smoothed",
  "class_counts",
  "from_params",
  "in_float32",
  "linear_distance",
  "linear_margin",
  "logit_bounds",
  "stages",
]
