"""MNIST with 100 labels: virtual adversarial training as the semi-supervised method it is.

Miyato, Maeda, Koyama, Nakae and Ishii 2015 (arXiv 1507.00677), section 4.2.2. The other 54,900
images train the net to be smooth around them; what they show is not used.

  python -m robust_opt.main --config=configs/mnist_few_labels.py --workdir=RUN

The same net on the 100 labelled images alone:

  ... --config.objective.name=robust --config.attack.num_steps=0 --config.training.epochs=300
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.virtual(config)
  config.dataset.labels = 100
  config.training.epochs = 6
  return config
