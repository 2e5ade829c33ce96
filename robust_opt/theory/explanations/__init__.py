"""Measurements that explain adversarial examples, for any net.

  epsilons = jnp.linspace(-1, 1, 201)
  logits = epsilon_sweep(logits_fn, x, jnp.sign(gradient), epsilons)     # [E, B, C]
  wrong = ~jax.vmap(losses.correct, (0, None))(logits, y)                # [E, B]
  linearity(epsilons, logits).knee                  # near 1: lines that meet at x
  intervals(wrong).runs                             # few: regions, not pockets

|  claim                                              |  measured by                           |
|  small changes add up over many pixels              |  activation_growth                     |
|  nets are locally linear along a perturbation       |  epsilon_sweep, linearity              |
|  adversarial examples lie in contiguous regions     |  intervals, plane, components          |
|  a rotation toward the gradient is enough           |  rotate_toward, smallest_angle         |
|  nets make the same mistakes, as linear classifiers |  agreement_on_mistakes,                |
|  do                                                 |  transfer_matrix, effective_weights    |
|  nets are confident on mistakes and on rubbish      |  confidence_on_mistakes, rubbish_rate  |

All functions are pure, and all but `components` can be jitted; a fraction of no examples is NaN.
Perturbed points are not clipped to the pixel box. Source: Goodfellow, Shlens and Szegedy 2015,
"Explaining and harnessing adversarial examples" (arXiv 1412.6572); docstrings cite its sections.
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
