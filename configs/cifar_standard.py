"""CIFAR-10, the baseline, standard training.

Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), Table 2.

  python -m robust_opt.main --config=configs/cifar_standard.py --workdir=RUN

300 epochs want an accelerator and were not run yet; published: 90.79 % on clean test images
(recalled, not checked). For a look on a CPU, two minutes:

  ... --config.training.epochs=1 --config.model.width=0.125
      --config.data.train_examples=1000 --config.data.test_examples=200
"""

from ml_collections import ConfigDict

from robust_opt.experiments.config import cifar
from robust_opt.experiments.sections import choose


def get_config() -> ConfigDict:
  config = cifar()
  choose(config, "attack", "none")
  return config
