"""Measurements that explain adversarial examples, of any net; no attack among them.

  epsilons = jnp.linspace(-1, 1, 201)
  logits = epsilon_sweep(logits_fn, x, jnp.sign(gradient), epsilons)     # [E, B, C]
  wrong = ~jax.vmap(losses.correct, (0, None))(logits, y)                # [E, B]
  linearity(epsilons, logits).knee                  # near 1: lines that meet at x
  intervals(wrong).runs                             # few: regions, not pockets

|  claim                                              |  measured by                           |
|  small changes add up over many pixels              |  activation_growth                     |
|  nets are locally linear along a perturbation       |  epsilon_sweep, linearity              |
|  adversarial examples lie in contiguous regions     |  intervals, plane, components          |
|  a turn towards the gradient is enough              |  rotate_toward, smallest_angle         |
|  nets err alike, as linear classifiers do           |  agreement_on_mistakes,                |
|                                                     |  transfer_matrix, effective_weights    |
|  nets are sure of their mistakes, and of rubbish    |  confidence_on_mistakes, rubbish_rate  |

Every function is pure and all but `components` may be compiled; a share of nothing is NaN. The
perturbed points are not cut to the pixel box. Source: Goodfellow, Shlens and Szegedy 2015,
"Explaining and harnessing adversarial examples" (arXiv 1412.6572), whose sections are named below.
"""

from robust_opt.theory.explanations.geometry import (
  Growth,
  Intervals,
  Linearity,
  activation_growth,
  components,
  epsilon_sweep,
  intervals,
  linearity,
  plane,
  rotate_toward,
  smallest_angle,
)
from robust_opt.theory.explanations.mistakes import (
  Agreement,
  Confidence,
  agreement_on_mistakes,
  confidence_on_mistakes,
  cosine_similarity,
  effective_weights,
  rubbish_rate,
  transfer_matrix,
)

__all__ = [
  "Agreement",
  "Confidence",
  "Growth",
  "Intervals",
  "Linearity",
  "activation_growth",
  "agreement_on_mistakes",
  "components",
  "confidence_on_mistakes",
  "cosine_similarity",
  "effective_weights",
  "epsilon_sweep",
  "intervals",
  "linearity",
  "plane",
  "rotate_toward",
  "rubbish_rate",
  "smallest_angle",
  "transfer_matrix",
]
