"""MNIST, szegedy: examples found by L-BFGS within an l_2 ball, fed back beside the clean ones.

Szegedy et al. 2014 (arXiv 1312.6199).

  python -m robust_opt.main --config=configs/mnist_szegedy.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.szegedy(config)
  return config
