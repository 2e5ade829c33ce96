"""MNIST, PGD training: Algorithm 1 with seven steps from a random start inside.

Madry et al. 2018 (arXiv 1706.06083) on the paper's net; mnist_madry.py is their own recipe.

  python -m robust_opt.main --config=configs/mnist_pgd.py --workdir=RUN
"""

from ml_collections import ConfigDict

from robust_opt.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  config.attack.num_steps, config.attack.random_start = 7, True
  return config
