"""Handwritten digits (embedded), the baseline, standard training.

Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), the recipe of its Table 1, scaled down.

  python -m robust_opt.main --config=configs/digits_standard.py --workdir=RUN

RUNTIME_digits_standard
"""

from ml_collections import ConfigDict

from robust_opt.config import digits


def get_config() -> ConfigDict:
  config = digits()
  config.attack.num_steps = 0
  return config
