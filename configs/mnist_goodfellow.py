"""MNIST, goodfellow: half of the loss is clean.

Goodfellow, Shlens and Szegedy 2015 (arXiv 1412.6572), section 6.

  python -m robust_opt.main --config=configs/mnist_goodfellow.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.goodfellow(config)
  return config
