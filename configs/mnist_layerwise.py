"""MNIST, layer-wise: one step that moves the input of every layer.

After Nokland 2015 (arXiv 1510.04189), whose adversarial gradient moves the first.

  python -m robust_opt.main --config=configs/mnist_layerwise.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.layerwise(config)
  return config
