"""MNIST, n fgsm: one step from noise in twice the ball, never cut back.

de Jorge et al. 2022 (arXiv 2202.01181).

  python -m robust_opt.main --config=configs/mnist_n_fgsm.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.n_fgsm(config)
  return config
