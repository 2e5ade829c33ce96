"""MNIST, half precision: Algorithm 1 whose ascent computes in bfloat16.

Ours: whether robust training can cost as much as standard training.

  python -m robust_opt.main --config=configs/mnist_half_precision.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.half_precision(config)
  return config
