"""Robust training by name: each method is a set, an attack and an objective, put into a config.

  config = config_lib.mnist_methods()
  methods.ALL["trades"].apply(config)

An equal budget of `passes` makes methods comparable: the backward passes of an update over its
batch, each with its forward pass, whether they give a gradient in theta, in x or in both. A step of
L-BFGS, with its line search, counts as four; what finds tangent planes is not counted.
"""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from robust_opt.experiments.config import train_over
from robust_opt.experiments.sections import choose

PGD_STEPS, REPLAYS, LBFGS_STEPS = 7, 4, 5


class Method(NamedTuple):
  """One way of robust training."""

  source: str  # paper
  passes: float  # of a batch
  apply: Callable[[ConfigDict], None]  # changes a config of `standard` training
  updates: int = 1  # of theta that a batch gives


def standard(config: ConfigDict) -> None:
  """No adversary."""
  choose(config, "attack", "none")


def robust(config: ConfigDict) -> None:
  """One steepest-ascent step, and the perturbed batch alone."""
  choose(config, "attack", "steepest")


def strong_adversary(config: ConfigDict) -> None:
  """The same over an l_2 ball, the learning with a strong adversary of Huang et al."""
  robust(config)
  train_over(config, "l2")


def goodfellow(config: ConfigDict) -> None:
  """Half of the loss is clean."""
  robust(config)
  choose(config, "objective", "mixture", alpha=0.5)


def szegedy(config: ConfigDict) -> None:
  """Examples found by L-BFGS within an l_2 ball, trained on together with the clean ones."""
  goodfellow(config)
  train_over(config, "l2")
  choose(config, "attack", "lbfgs", num_steps=LBFGS_STEPS)


def virtual(config: ConfigDict) -> None:
  """A prediction that is smooth in an l_2 ball, by power iteration and without labels."""
  train_over(config, "l2")
  choose(config, "objective", "virtual", alpha=1.0)
  choose(config, "attack", "power_iteration", num_steps=1)


def gradient_penalty(config: ConfigDict) -> None:
  """Robust to first order: the dual norm of the input gradient, by double backpropagation."""
  choose(config, "objective", "gradient_penalty")
  choose(config, "attack", "none")


def operator_norm(config: ConfigDict) -> None:
  """No adversary, but layers that cannot lengthen a perturbation much."""
  standard(config)
  choose(config, "penalty", "operator_norm", weight=1e-3)


def layer_jacobian(config: ConfigDict) -> None:
  """No adversary, but layers that contract."""
  standard(config)
  choose(config, "penalty", "layer_jacobian", weight=1e-4)


def manifold_tangent(config: ConfigDict) -> None:
  """One step along the manifold of the data, whose planes an auto-encoder has learned."""
  robust(config)
  planes = {"name": "autoencoder", "rank": 10}
  choose(config, "set", "TangentAt", radius=config.evaluation.radii.l2, basis_of=planes)


def layerwise(config: ConfigDict) -> None:
  """One step that moves the input of every layer.

  On MNIST over l_inf 0.2 the network does not begin to learn with hidden layers moved by 0.1 or
  more, and is worse at 0.05 than at 0.02.
  """
  choose(config, "attack", "layerwise", hidden_radius=0.02)


def recall(config: ConfigDict) -> None:
  """Algorithm 1 in directions an epoch old, at the price of standard training."""
  choose(config, "attack", "recall")


def alternate(config: ConfigDict) -> None:
  """Algorithm 1 at every second update, the clean batch at the others."""
  choose(config, "attack", "steepest", every=2)


def half_precision(config: ConfigDict) -> None:
  """Algorithm 1 whose ascent computes in bfloat16: a direction needs few bits."""
  choose(config, "attack", "steepest", dtype="bfloat16")


def fast(config: ConfigDict) -> None:
  """A random start and one step, a little longer than the radius, cut back."""
  choose(config, "attack", "pgd", num_steps=1, random_start=True, relative_step=1.25)


def grad_align(config: ConfigDict) -> None:
  """One step, and a gradient that points the same way within the ball."""
  robust(config)
  choose(config, "penalty", "gradient_alignment", weight=0.2)


def n_fgsm(config: ConfigDict) -> None:
  """One step from noise in twice the ball, never cut back."""
  choose(config, "attack", "n_fgsm")


def free(config: ConfigDict) -> None:
  """Every backward pass moves theta and delta, on a batch that is replayed."""
  choose(config, "attack", "free", num_replays=REPLAYS)


def pgd(config: ConfigDict) -> None:
  """Seven steps from a random start."""
  choose(config, "attack", "pgd", num_steps=PGD_STEPS)


def trades(config: ConfigDict) -> None:
  """Accuracy on the clean example, the same prediction in the whole ball."""
  pgd(config)
  choose(config, "objective", "trades", beta=6.0)


def mart(config: ConfigDict) -> None:
  """Examples misclassified without a perturbation have a larger weight."""
  pgd(config)
  choose(config, "objective", "mart", beta=5.0)


def awp(config: ConfigDict) -> None:
  """PGD training at weights that are perturbed adversarially too."""
  pgd(config)
  config.weights.perturbation = 0.005


def average(config: ConfigDict) -> None:
  """PGD training, evaluated at an average of the weights."""
  pgd(config)
  config.weights.average = 0.995


def curriculum(config: ConfigDict) -> None:
  """PGD training over a ball that grows in the first third; Cai et al. let the steps grow."""
  choose(config, "attack", "pgd", num_steps=PGD_STEPS, warmup=1 / 3)


def ibp(config: ConfigDict) -> None:
  """Half of the loss is at the worst logits that intervals allow, over a ball that grows."""
  choose(config, "attack", "none", warmup=0.5)
  choose(config, "objective", "ibp", alpha=0.5)


def mtl_ibp(config: ConfigDict) -> None:
  """The same, and the other half at adversarial examples."""
  choose(config, "attack", "pgd", num_steps=PGD_STEPS, warmup=0.5)
  choose(config, "objective", "ibp", alpha=0.5)


def sabr(config: ConfigDict) -> None:
  """Bounds over a small box around the adversarial example alone."""
  choose(config, "attack", "pgd", num_steps=PGD_STEPS, warmup=0.5)
  choose(config, "objective", "ibp", alpha=1.0, share=0.4)


ALL: dict[str, Method] = {
  "standard": Method("", 1, standard),
  "robust": Method("Shaham et al. 2015", 2, robust),
  "strong_adversary": Method("Huang et al. 2015", 2, strong_adversary),
  "goodfellow": Method("Goodfellow et al. 2015", 3, goodfellow),
  "szegedy": Method("Szegedy et al. 2014", 4 * LBFGS_STEPS + 2, szegedy),
  "virtual": Method("Miyato et al. 2015", 4, virtual),
  "gradient_penalty": Method("Drucker and LeCun 1992", 2, gradient_penalty),
  "operator_norm": Method("Szegedy et al. 2014", 1, operator_norm),
  "layer_jacobian": Method("Gu and Rigazio 2015", 2, layer_jacobian),
  "manifold_tangent": Method("Rifai et al. 2011", 2, manifold_tangent),
  "layerwise": Method("after Nokland 2015", 2, layerwise),
  "recall": Method("ours", 1, recall),
  "alternate": Method("ours", 1.5, alternate),
  "half_precision": Method("ours", 2, half_precision),
  "fast": Method("Wong et al. 2020", 2, fast),
  "grad_align": Method("Andriushchenko and Flammarion 2020", 7, grad_align),
  "n_fgsm": Method("de Jorge et al. 2022", 2, n_fgsm),
  "free": Method("Shafahi et al. 2019", REPLAYS, free, updates=REPLAYS),
  "pgd": Method("Madry et al. 2018", PGD_STEPS + 1, pgd),
  "trades": Method("Zhang et al. 2019", PGD_STEPS + 2, trades),
  "mart": Method("Wang et al. 2020", PGD_STEPS + 2, mart),
  "awp": Method("Wu et al. 2020", PGD_STEPS + 2, awp),
  "average": Method("Chen et al. 2021", PGD_STEPS + 1, average),
  "curriculum": Method("after Cai et al. 2018", PGD_STEPS + 1, curriculum),
  "ibp": Method("Gowal et al. 2018", 3, ibp),
  "mtl_ibp": Method("De Palma et al. 2023", PGD_STEPS + 3, mtl_ibp),
  "sabr": Method("Mueller et al. 2022", PGD_STEPS + 3, sabr),
}
