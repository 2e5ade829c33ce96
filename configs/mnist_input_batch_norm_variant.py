"""MNIST, robust over the l_inf ball: with the input batch norm of the authors' 2015 robust nets.

A variant of Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), Table 1.

  python -m robust_opt.main --config=configs/mnist_input_batch_norm_variant.py --workdir=RUN

The same in the whole study (every table and figure, all seeds):

  python -m robust_opt.papers.shaham2015 --dataset=mnist --preset=paper --workdir=RUN \
      --robust_override=model.input_batch_norm=True
"""

from ml_collections import ConfigDict

from robust_opt.experiments.config import MNIST_STD, mnist, standardised


def get_config() -> ConfigDict:
  config = mnist()
  config.uncertainty.name = "linf"
  config.uncertainty.radius = standardised(0.2, std=MNIST_STD)
  config.model.input_batch_norm = True
  return config
