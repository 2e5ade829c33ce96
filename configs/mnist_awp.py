"""MNIST, awp: pGD training at weights that are perturbed adversarially too.

Wu, Xia and Wang 2020 (arXiv 2004.05884).

  python -m robust_opt.main --config=configs/mnist_awp.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.awp(config)
  return config
