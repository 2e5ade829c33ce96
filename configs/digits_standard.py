"""Handwritten digits (embedded), the baseline, standard training.

Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), the recipe of its Table 1, scaled down.

  python -m robust_opt.main --config=configs/digits_standard.py --workdir=RUN

Takes about 20 s on two CPU cores, 5 of them training. Expect 99 % on clean test digits and 57
to 60 % under one l_inf step of radius 0.1 (360 digits, of which each is 0.28 %; seed 0, several
CPUs). CPUs round differently, which 30 epochs amplify, and other seeds vary as much.
"""

from ml_collections import ConfigDict

from robust_opt.experiments.config import digits
from robust_opt.experiments.sections import choose


def get_config() -> ConfigDict:
  config = digits()
  choose(config, "attack", "none")
  return config
