"""MNIST, trades: accuracy on the clean example, the same prediction in the whole ball.

Zhang et al. 2019 (arXiv 1901.08573), equation 5.

  python -m robust_opt.main --config=configs/mnist_trades.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.trades(config)
  return config
