"""MNIST, MART: what is misclassified when clean weighs more.

Wang et al. 2020 (ICLR, "Improving adversarial robustness requires revisiting misclassified
examples"), with beta = 5 and seven steps.

  python -m robust_opt.main --config=configs/mnist_mart.py --workdir=RUN
"""

from ml_collections import ConfigDict

from robust_opt.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  config.objective = ConfigDict({"name": "mart", "beta": 5.0})
  config.attack.num_steps, config.attack.random_start = 7, True
  return config
