"""MNIST, recalled: the directions that the last epoch left, at the price of standard training.

Ours; one_pass.make_recall_train_step.

  python -m robust_opt.main --config=configs/mnist_recall.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.recall(config)
  return config
