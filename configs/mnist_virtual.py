"""MNIST, virtual: a prediction that is smooth in an l_2 ball, without labels.

Miyato, Maeda, Koyama, Nakae and Ishii 2015 (arXiv 1507.00677).

  python -m robust_opt.main --config=configs/mnist_virtual.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.virtual(config)
  return config
