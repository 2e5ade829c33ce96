"""MNIST, pgd: seven steps from a random start.

Madry et al. 2018 (arXiv 1706.06083) on the paper's net; mnist_madry.py is their own recipe.

  python -m robust_opt.main --config=configs/mnist_pgd.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.pgd(config)
  return config
