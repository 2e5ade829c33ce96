"""MNIST, robust over the l_inf ball: twice the paper's radius, or any multiple of it.

A variant of Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), Table 1.

  python -m robust_opt.main --config=configs/mnist_radius_variant.py --workdir=RUN

The same in the whole study (every table and figure, all seeds):

  python -m robust_opt.papers.shaham2015 --dataset=mnist --preset=paper --workdir=RUN \
      --override=evaluation.radii.linf=0.11008

A sweep over radii:

  for multiple in 0.5 1 2 4; do
    python -m robust_opt.main --config=configs/mnist_radius_variant.py:$multiple \
        --workdir=runs/radius_$multiple
  done
"""

from ml_collections import ConfigDict

from robust_opt.experiments.config import MNIST_STD, mnist, standardised


def get_config(multiple: str = "2") -> ConfigDict:
  config = mnist()
  config.uncertainty.name = "linf"
  # Rounded, so that it can be typed: 2 is 0.11008.
  config.uncertainty.radius = round(float(multiple) * standardised(0.2, std=MNIST_STD), 6)
  config.evaluation.radii.linf = config.uncertainty.radius
  return config
