"""MNIST, curriculum: PGD training over a ball that grows in the first third of the epochs.

Cai et al. 2018 (arXiv 1805.04807).

  python -m robust_opt.main --config=configs/mnist_curriculum.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.curriculum(config)
  return config
