"""MNIST, gradient penalty: the dual norm of the input gradient, by double backpropagation.

Drucker and LeCun 1992, in the dual norm of Shaham et al. 2015 (arXiv 1511.05432).

  python -m robust_opt.main --config=configs/mnist_gradient_penalty.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.gradient_penalty(config)
  return config
