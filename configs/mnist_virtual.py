"""MNIST, virtual adversarial training: a prediction that is smooth around every example.

Miyato et al. 2015 (arXiv 1507.00677): one step of power iteration over the l_2 ball.

  python -m robust_opt.main --config=configs/mnist_virtual.py --workdir=RUN
"""

from ml_collections import ConfigDict

from robust_opt.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  config.uncertainty.name, config.uncertainty.radius = "l2", 2.0
  config.evaluation.radii.l2 = 2.0
  config.objective = ConfigDict({"name": "virtual", "alpha": 1.0})
  config.attack.name, config.attack.num_steps = "power_iteration", 1
  return config
