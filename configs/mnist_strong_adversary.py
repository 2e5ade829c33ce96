"""MNIST, strong adversary: one steepest-ascent step in an l_2 ball.

Huang, Xu, Schuurmans and Szepesvari 2015 (arXiv 1511.03034).

  python -m robust_opt.main --config=configs/mnist_strong_adversary.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.strong_adversary(config)
  return config
