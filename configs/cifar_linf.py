"""CIFAR-10, robust over the l_inf ball.

Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), Table 2.

  python -m robust_opt.main --config=configs/cifar_linf.py --workdir=RUN

RUNTIME_cifar_linf
"""

from ml_collections import ConfigDict

from robust_opt.config import CIFAR_STD, cifar, standardised


def get_config() -> ConfigDict:
  config = cifar()
  config.uncertainty.name = "linf"
  config.uncertainty.radius = standardised(0.02, std=CIFAR_STD[1])
  return config
