"""MNIST, the baseline, standard training.

Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), Table 1.

  python -m robust_opt.main --config=configs/mnist_standard.py --workdir=RUN

RUNTIME_mnist_standard
"""

from ml_collections import ConfigDict

from robust_opt.config import mnist


def get_config() -> ConfigDict:
  config = mnist()
  config.attack.num_steps = 0
  return config
