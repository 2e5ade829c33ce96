"""MNIST, fast: a random start and one step, a little longer than the radius, cut back.

Wong, Rice and Kolter 2020 (arXiv 2001.03994).

  python -m robust_opt.main --config=configs/mnist_fast.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.fast(config)
  return config
