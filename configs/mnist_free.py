"""MNIST, free: every backward pass moves theta and delta, on a batch that is replayed.

Shafahi et al. 2019 (arXiv 1904.12843).

  python -m robust_opt.main --config=configs/mnist_free.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.free(config)
  return config
