"""Handwritten digits (embedded), robust over the l_2 ball.

Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), the recipe of its Table 1, scaled down.

  python -m robust_opt.main --config=configs/digits_l2.py --workdir=RUN

RUNTIME_digits_l2
"""

from ml_collections import ConfigDict

from robust_opt.config import digits


def get_config() -> ConfigDict:
  config = digits()
  config.uncertainty.name = "l2"
  config.uncertainty.radius = 0.5
  return config
