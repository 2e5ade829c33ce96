"""MNIST, TRADES: accuracy on the clean example, and the same prediction in the whole ball.

Zhang et al. 2019 (arXiv 1901.08573), equation 5, with beta = 6 and seven steps.

  python -m robust_opt.main --config=configs/mnist_trades.py --workdir=RUN
"""

from ml_collections import ConfigDict

from robust_opt.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  config.objective = ConfigDict({"name": "trades", "beta": 6.0})
  config.attack.num_steps, config.attack.random_start = 7, True
  return config
