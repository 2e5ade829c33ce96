"""MNIST, adversarial examples found by L-BFGS and fed back beside the clean ones.

Szegedy et al. 2014 (arXiv 1312.6199), section 4.3, in the frame of Shaham et al. 2015: the mixture
objective, five steps of projected L-BFGS inside an l_2 ball.

  python -m robust_opt.main --config=configs/mnist_szegedy.py --workdir=RUN
"""

from ml_collections import ConfigDict

from robust_opt.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  config.uncertainty.name, config.uncertainty.radius = "l2", 2.0
  config.evaluation.radii.l2 = 2.0
  config.objective = ConfigDict({"name": "mixture", "alpha": 0.5})
  config.attack.name, config.attack.num_steps = "lbfgs", 5
  return config
