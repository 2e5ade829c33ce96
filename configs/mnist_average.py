"""MNIST, average: PGD training, judged by an average of the weights.

Chen et al. 2021 (ICLR), Polyak and Juditsky 1992.

  python -m robust_opt.main --config=configs/mnist_average.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.average(config)
  return config
