"""MNIST, GradAlign: one step, and a gradient that points the same way within the ball.

Andriushchenko and Flammarion 2020 (arXiv 2007.02617).

  python -m robust_opt.main --config=configs/mnist_grad_align.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.grad_align(config)
  return config
