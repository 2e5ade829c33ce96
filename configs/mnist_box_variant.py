"""MNIST, robust over the l_inf ball: perturbed images stay images.

A variant of Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), Table 1.

  python -m robust_opt.main --config=configs/mnist_box_variant.py --workdir=RUN

The same in the whole study (every table and figure, all seeds):

  python -m robust_opt.papers.shaham2015 --dataset=mnist --preset=paper --workdir=RUN \
      --override=uncertainty.box=True
"""

from ml_collections import ConfigDict

from robust_opt.experiments.config import MNIST_STD, mnist, standardised


def get_config() -> ConfigDict:
  config = mnist()
  config.uncertainty.name = "linf"
  config.uncertainty.radius = standardised(0.2, std=MNIST_STD)
  config.uncertainty.box = True
  return config
