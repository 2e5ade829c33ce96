"""MNIST, layer-wise Jacobians: layers that contract around every example.

Gu and Rigazio 2015 (arXiv 1412.5068), deep contractive networks; no adversary.

  python -m robust_opt.main --config=configs/mnist_layer_jacobian.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.layer_jacobian(config)
  return config
