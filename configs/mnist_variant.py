"""MNIST over the l_inf ball, one thing changed: --config=configs/mnist_variant.py:NAME.

  python -m robust_opt.main --config=configs/mnist_variant.py:lbfgs --workdir=RUN

Variants of Shaham, Yamada and Negahban 2015 (arXiv 1511.05432), Table 1. Each takes as long as
configs/mnist_linf.py, pgd four times and lbfgs ten times as long. None was run for the paper's 120
epochs.

|  NAME              |  what is changed                                                         |
|  box               |  perturbed images stay images                                            |
|  shuffle           |  the training set is shuffled in every epoch                             |
|  pgd               |  7 steps of projected gradient ascent rather than one step               |
|  lbfgs             |  5 steps of projected L-BFGS                                             |
|  input_batch_norm  |  the input batch norm of the authors' 2015 robust nets                   |
|  dampening         |  the authors' dampened SGD exactly: Torch does not dampen the first      |
|                    |  gradient, which therefore has ten times the weight of any other         |
|  radius=MULTIPLE   |  a multiple of the paper's radius, as in radius=2                        |

The same in the whole study (every table and figure, all seeds) is an override of it:

  python -m robust_opt.papers.shaham2015 --dataset=mnist --preset=paper --workdir=RUN \
      --robust_override=attack.name=lbfgs
"""

from ml_collections import ConfigDict

from robust_opt.errors import InputError
from robust_opt.experiments import overrides
from robust_opt.experiments.config import MNIST_STD, mnist, standardized, train_over

OVERRIDES = {
  "box": ["set.box=(0.0, 1.0)"],
  "shuffle": ["training.shuffle=True"],
  "pgd": ["attack.name=pgd", "attack.num_steps=7", "attack.random_start=False"],
  "lbfgs": ["attack.name=lbfgs"],
  "input_batch_norm": ["model.input_batch_norm=True"],
  "dampening": ["optimizer.name=dampened_sgd", "optimizer.learning_rate=0.01"],
}


def get_config(name: str = "radius=2") -> ConfigDict:
  config = train_over(mnist(), "linf")
  kind, _, multiple = name.partition("=")
  if kind == "radius":
    config.set.radius = round(float(multiple) * standardized(0.2, std=MNIST_STD), 6)
  elif name in OVERRIDES:
    overrides.apply_all(config, OVERRIDES[name])
  else:
    known = ", ".join([*OVERRIDES, "radius=MULTIPLE"])
    raise InputError(f"configs/mnist_variant.py:NAME must have one of {known}, but had {name!r}")
  return config
