"""MNIST, a penalty on the input gradient: robust optimisation to first order, without an attack.

Shaham et al. 2015 (arXiv 1511.05432), section 5: over the l_inf ball the penalty is 0.2 times the
l_1 norm of the gradient (double backpropagation, Drucker and LeCun 1992, in another norm).

  python -m robust_opt.main --config=configs/mnist_gradient_penalty.py --workdir=RUN
"""

from ml_collections import ConfigDict

from robust_opt.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  config.objective = ConfigDict({"name": "gradient_penalty"})
  config.attack.num_steps = 0
  return config
