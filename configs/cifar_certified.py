"""CIFAR-10, certified training: --config=configs/cifar_certified.py:NAME.

  python -m robust_opt.main --config=configs/cifar_certified.py:mtl_ibp --workdir=RUN
  python -m robust_opt.evaluate --workdir=RUN --norm=linf --radius=2/255 --certify=crown

CNN-A of the verification literature (models.ConvNet), for proofs over the l_inf ball of radius
2/255 in the pixel box. The ball of the training is 2.2/255, and grows from 0 in the first
half. mtl_ibp and sabr attack by one step from a random start.

Gowal et al. 2018 (arXiv 1810.12715) have 70.21 % clean and 44.12 % certified with a large network.
Eight epochs, of some seven minutes of processor time, are a small budget; expect of ibp 52.8 and
34.4 %, of mtl_ibp 53.2 and 29.4 %, on 500 test images, by intervals (seed 1, jax 0.10.2).
"""

from ml_collections import ConfigDict

from robust_opt.errors import InputError
from robust_opt.experiments import methods
from robust_opt.experiments.config import cifar_recipes
from robust_opt.experiments.sections import choose

NAMES = ("ibp", "mtl_ibp", "sabr")


def get_config(name: str = "mtl_ibp") -> ConfigDict:
  if name not in NAMES:
    known = ", ".join(NAMES)
    raise InputError(f"configs/cifar_certified.py:NAME must have one of {known}, but had {name!r}")
  config = cifar_recipes()
  choose(config, "model", "ConvNet")
  choose(config, "optimizer", "adam", learning_rate=1e-3)
  choose(config, "schedule", "cosine")
  config.set.radius = config.evaluation.radii.linf = 2.2 / 255
  config.weights.decay = 0.0
  config.training.update(epochs=8, augment=("flip",))
  methods.ALL[name].apply(config)
  if name != "ibp":
    config.attack.update(num_steps=1, relative_step=1.25)
  if name == "mtl_ibp":
    config.objective.alpha = 0.2
  return config
