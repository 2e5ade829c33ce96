"""CIFAR-10, robust over the l_2 ball.

Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), Table 2.

  python -m robust_opt.main --config=configs/cifar_l2.py --workdir=RUN

RUNTIME_cifar_l2
"""

from ml_collections import ConfigDict

from robust_opt.config import CIFAR_STD, cifar, standardised


def get_config() -> ConfigDict:
  config = cifar()
  config.uncertainty.name = "l2"
  config.uncertainty.radius = standardised(0.2, std=CIFAR_STD[1])
  return config
