"""CIFAR-10, recipes from the literature: --config=configs/cifar.py:NAME, or NAME,l2.

  python -m robust_opt.main --config=configs/cifar.py:trades --workdir=RUN
  python -m robust_opt.evaluate --workdir=RUN --checkpoint=best

Over the l_inf ball of radius 8/255 in the pixel box, or with `,l2` over the l_2 ball of radius
128/255, where PGD takes steps of 15/255. PreActResNet-18 except for the last two, batches of 128,
SGD with momentum 0.9, random crops and flips. What makes a method that method is its function in
robust_opt/experiments/methods.py.

None has been run at full length yet: that needs an accelerator. Published are accuracies in %,
l_inf, clean and under AutoAttack, from the authors' code, tables or logs; where they are not known
to us, and where one was recalled and not checked, the table says so.

|  NAME        |  source                                  |  published: clean / AutoAttack       |
|  pgd_at      |  Rice et al. 2020 (arXiv 2002.11569)     |  - / 48.67; PGD, last epoch: 45.59   |
|  trades      |  Zhang et al. 2019 (arXiv 1901.08573)    |  - / 49.45                           |
|  mart        |  Wang et al. 2020 (ICLR)                 |  not known                           |
|  awp         |  Wu et al. 2020 (arXiv 2004.05884)       |  85.36 / 53.97 (WideResNet-34-10)    |
|  trades_awp  |  the same, over TRADES                   |  - / 51.62                           |
|  ema         |  Chen et al. 2021 (ICLR)                 |  not known                           |
|  free        |  Shafahi et al. 2019 (arXiv 1904.12843)  |  not known                           |
|  fgsm_rs     |  Wong et al. 2020 (arXiv 2001.03994)     |  83.81 / 43.21                       |
|  n_fgsm      |  de Jorge et al. 2022 (arXiv 2202.01181) |  PGD-50: 48.1 (recalled)             |
|  grad_align  |  Andriushchenko, Flammarion (2007.02617) |  81.0 / PGD-50: 47.6 (recalled)      |
|  liet        |  Pan et al. 2025 (ICCV)                  |  80.86 / 50.11                       |
|  wang2023    |  Wang et al. 2023 (arXiv 2302.04638)     |  92.44 / 67.31; l_2: 95.16 / 83.63   |

`liet` leads the single-step methods of the FastAT benchmark (arXiv 2604.22853): ResNet-18 in 43
minutes on its GPU, where N-FGSM with the same averages and label smoothing has 77.98 / 48.12.
`wang2023` (DMWideResNet-28-10) also wants 20 million generated images, 70 % of every batch:
--config.data.extra=FILE.npz --config.data.extra_fraction=0.7; without them it is TRADES with
averaged weights and label smoothing. A quarter of an hour on a CPU, to see that it runs:

  ... --config.training.epochs=1 --config.model.width=0.125 --config.schedule.name=constant
      --config.data.train_examples=2000 --config.data.test_examples=200
"""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from robust_opt.errors import InputError
from robust_opt.experiments import methods, overrides
from robust_opt.experiments.config import cifar_recipes, train_over
from robust_opt.experiments.sections import choose

PGD_10 = ["attack.num_steps=10"]
EPOCHS_30 = ["schedule.name=triangular", "training.epochs=30"]
TRADES = [
  *PGD_10,
  *("training.epochs=100", "schedule.boundaries=(75, 90)", "weights.decay=2e-4"),
]
SMOOTHING = 2 / 3  # leaves the label 0.4, as the source's 0.6 that go to the other classes


class Recipe(NamedTuple):
  """A method, and what the source's recipe changes of `cifar_recipes`."""

  apply: Callable[[ConfigDict], None]
  changes: list[str]


def liet(config: ConfigDict) -> None:
  """One step from label information."""
  choose(config, "attack", "liet")


RECIPES = {
  "pgd_at": Recipe(methods.pgd, [*PGD_10, "attack.train_mode=True"]),
  "trades": Recipe(methods.trades, TRADES),
  "mart": Recipe(
    methods.mart,
    [
      *PGD_10,
      *("training.epochs=120", "optimizer.learning_rate=0.01", "weights.decay=3.5e-3"),
      *("schedule.boundaries=(75, 90, 100)", "schedule.factors=(0.1, 0.1, 0.1)"),
    ],
  ),
  "awp": Recipe(methods.awp, [*PGD_10, "attack.train_mode=True", "weights.perturbation=0.01"]),
  "trades_awp": Recipe(
    methods.trades, [*PGD_10, "weights.perturbation=0.005", "evaluation.checkpoint=best"]
  ),
  "ema": Recipe(methods.average, [*PGD_10, "attack.train_mode=True", "weights.average=0.999"]),
  "free": Recipe(
    methods.free,
    [
      *("attack.num_replays=8", "optimizer.learning_rate=0.04"),
      *("schedule.name=triangular", "training.epochs=11"),
    ],
  ),
  "fgsm_rs": Recipe(
    methods.fast,
    [
      *("schedule.name=triangular", "training.epochs=15"),
      *("optimizer.learning_rate=0.2", "attack.train_mode=True"),
    ],
  ),
  "n_fgsm": Recipe(
    methods.n_fgsm, [*EPOCHS_30, "optimizer.learning_rate=0.2", "attack.train_mode=True"]
  ),
  "grad_align": Recipe(
    methods.grad_align, [*EPOCHS_30, "optimizer.learning_rate=0.3", "attack.train_mode=True"]
  ),
  "liet": Recipe(
    liet,
    [
      *("model.name=ResNet18", "schedule.name=one_cycle", "training.epochs=100"),
      *(f"training.label_smoothing={SMOOTHING}", "weights.average=0.9995"),
      "evaluation.checkpoint=best",
    ],
  ),
  "wang2023": Recipe(
    methods.trades,
    [
      *PGD_10,
      *("objective.beta=5.0", "model.name=DMWideResNet-28-10", "training.epochs=400"),
      *("training.batch_size=512", "optimizer.learning_rate=0.2", "optimizer.nesterov=True"),
      *("schedule.name=warmup_cosine", "schedule.warmup=0.025", "weights.average=0.995"),
      *("training.label_smoothing=0.1", "evaluation.checkpoint=best"),
    ],
  ),
}


def get_config(name: str = "pgd_at") -> ConfigDict:
  method, _, norm = name.partition(",")
  if method not in RECIPES or norm not in ("", "linf", "l2"):
    known = ", ".join(RECIPES)
    raise InputError(
      f"configs/cifar.py:NAME must have one of {known}, or NAME,l2, but had {name!r}"
    )
  config, recipe = cifar_recipes(), RECIPES[method]
  recipe.apply(config)
  if norm == "l2":
    train_over(config, "l2")
    if config.attack.get("num_steps", 1) > 1:
      config.attack.relative_step = 15 / 128
  overrides.apply_all(config, recipe.changes)
  return config
