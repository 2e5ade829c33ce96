"""MNIST, mart: what is misclassified when clean weighs more.

Wang et al. 2020 (ICLR).

  python -m robust_opt.main --config=configs/mnist_mart.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.mart(config)
  return config
