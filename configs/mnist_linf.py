"""MNIST, robust over the l_inf ball.

Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), Table 1.

  python -m robust_opt.main --config=configs/mnist_linf.py --workdir=RUN

RUNTIME_mnist_linf
"""

from ml_collections import ConfigDict

from robust_opt.config import MNIST_STD, mnist, standardised


def get_config() -> ConfigDict:
  config = mnist()
  config.uncertainty.name = "linf"
  config.uncertainty.radius = standardised(0.2, std=MNIST_STD)
  return config
