"""MNIST, operator norms: layers that cannot lengthen a perturbation much.

Szegedy et al. 2014 (arXiv 1312.6199), section 4.3; no adversary.

  python -m robust_opt.main --config=configs/mnist_operator_norm.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.operator_norm(config)
  return config
