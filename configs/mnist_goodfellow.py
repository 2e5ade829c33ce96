"""MNIST, half clean and half adversarial: the mixture of Goodfellow et al.

Goodfellow, Shlens and Szegedy 2015 (arXiv 1412.6572), section 6: alpha = 0.5, one l_inf step.

  python -m robust_opt.main --config=configs/mnist_goodfellow.py --workdir=RUN
"""

from ml_collections import ConfigDict

from robust_opt.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  config.objective = ConfigDict({"name": "mixture", "alpha": 0.5})
  return config
