"""MNIST, robust over the l_2 ball.

Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), Table 1.

  python -m robust_opt.main --config=configs/mnist_l2.py --workdir=RUN

The paper's 120 epochs would take some 25 minutes on two CPU cores and were not run yet; published:
99.28 to 99.29 % on clean test images.
"""

from ml_collections import ConfigDict

from robust_opt.experiments.config import mnist, train_over


def get_config() -> ConfigDict:
  return train_over(mnist(), "l2")
