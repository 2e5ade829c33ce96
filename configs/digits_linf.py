"""Handwritten digits (embedded), robust over the l_inf ball.

Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), the recipe of its Table 1, scaled down.

  python -m robust_opt.main --config=configs/digits_linf.py --workdir=RUN

Takes about 20 s on two CPU cores, 5 of them training. Expect 99 % on clean test digits and 86
to 90 % under one l_inf step of radius 0.1 (360 digits, of which each is 0.28 %; seed 0, several
CPUs). CPUs round differently, which 30 epochs amplify, and other seeds vary as much.
"""

from ml_collections import ConfigDict

from robust_opt.experiments.config import digits, train_over


def get_config() -> ConfigDict:
  return train_over(digits(), "linf")
