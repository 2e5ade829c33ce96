"""MNIST, alternating: Algorithm 1 at every second update, the clean batch at the others.

Ours: whether robust training can cost as much as standard training.

  python -m robust_opt.main --config=configs/mnist_alternate.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.alternate(config)
  return config
