"""CIFAR-10, the baseline, standard training.

Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), Table 2.

  python -m robust_opt.main --config=configs/cifar_standard.py --workdir=RUN

RUNTIME_cifar_standard
"""

from ml_collections import ConfigDict

from robust_opt.config import cifar


def get_config() -> ConfigDict:
  config = cifar()
  config.attack.num_steps = 0
  return config
