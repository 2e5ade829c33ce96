"""MNIST, robust over the l_2 ball.

Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), Table 1.

  python -m robust_opt.main --config=configs/mnist_l2.py --workdir=RUN

RUNTIME_mnist_l2
"""

from ml_collections import ConfigDict

from robust_opt.config import MNIST_STD, mnist, standardised


def get_config() -> ConfigDict:
  config = mnist()
  config.uncertainty.name = "l2"
  config.uncertainty.radius = standardised(2.0, std=MNIST_STD)
  return config
