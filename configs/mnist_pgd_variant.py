"""MNIST, robust over the l_inf ball: 7 steps of projected gradient ascent inside.

A variant of Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), Table 1.

  python -m robust_opt.main --config=configs/mnist_pgd_variant.py --workdir=RUN

The same in the whole study (every table and figure, all seeds):

  python -m robust_opt.papers.shaham2015 --dataset=mnist --preset=paper --workdir=RUN \
      --robust_override=attack.num_steps=7
"""

from ml_collections import ConfigDict

from robust_opt.experiments.config import MNIST_STD, mnist, standardised


def get_config() -> ConfigDict:
  config = mnist()
  config.uncertainty.name = "linf"
  config.uncertainty.radius = standardised(0.2, std=MNIST_STD)
  config.attack.num_steps = 7
  return config
