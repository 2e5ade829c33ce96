"""MNIST, robust over the l_inf ball: the authors' dampened SGD to the letter.

A variant of Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), Table 1.

  python -m robust_opt.main --config=configs/mnist_dampening_variant.py --workdir=RUN

The same in the whole study (every table and figure, all seeds):

  python -m robust_opt.papers.shaham2015 --dataset=mnist --preset=paper --workdir=RUN \
      --override=optimizer.name=dampened_sgd --override=optimizer.learning_rate=0.01

optax has no dampening; the recipe of configs/mnist_linf.py is this one but for the first gradient,
which Torch does not dampen, and which so counts ten times as much as any other.
"""

from ml_collections import ConfigDict

from robust_opt.experiments.config import MNIST_STD, mnist, standardised


def get_config() -> ConfigDict:
  config = mnist()
  config.uncertainty.name = "linf"
  config.uncertainty.radius = standardised(0.2, std=MNIST_STD)
  config.optimizer.name = "dampened_sgd"
  config.optimizer.learning_rate = 0.01
  return config
