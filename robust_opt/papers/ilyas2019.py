r"""Ilyas et al. 2019: adversarial examples are not bugs, they are features (arXiv 1905.02175).

  python -m robust_opt.papers.ilyas2019 --dataset=digits --preset=quick --workdir=runs/ilyas2019
  python -m robust_opt.papers.ilyas2019 --dataset=mnist --preset=paper --workdir=runs/ilyas_mnist \
      --data_dir=/path/to/tensorflow_datasets

CIFAR-10 as in the paper needs an accelerator; docs/results/ilyas2019_cifar10.md reduces it to three
hours on one CPU core.

Trains a standard and a robust network, constructs four data sets with them (robust_opt.construct),
trains new networks on each by standard training and evaluates them on the true test set. Also the
Gaussian model of the paper, in closed form. --workdir/results gets the table, the claims and two
figures. The same command resumes.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from robust_opt import commands, construct, statistics, tables
from robust_opt.data import constructed
from robust_opt.data.constructed import Settings
from robust_opt.errors import InputError
from robust_opt.evaluation.collection import pixels
from robust_opt.experiments import build, methods, target
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import run as experiment
from robust_opt.experiments.sections import choose
from robust_opt.plots import explanations
from robust_opt.sets import L2
from robust_opt.sets.radii import check_extent
from robust_opt.studies import accuracy, claims
from robust_opt.studies import options as study_options
from robust_opt.studies.claims import Claim
from robust_opt.studies.options import configured, option
from robust_opt.studies.study import Study, sha256_of
from robust_opt.theory import gaussian

CHANCE = 1 / accuracy.NUM_CLASSES


class Source(NamedTuple):
  """How one data set of the paper is made."""

  kind: str  # of constructed.KINDS; empty: the original
  network: str  # that it is constructed with
  published: str  # clean and robust accuracy on CIFAR-10, from the authors' README
  words: str  # what it holds


CONSTRUCTED = {
  "D_R": Source("inverted", "robust", "84 / 48", "robust features only"),
  "D_NR": Source("inverted", "standard", "88 / 0", "inverted from a standard net"),
  "D_rand": Source("random", "standard", "63 / 0", "non-robust features of a random class"),
  "D_det": Source("deterministic", "standard", "44 / 0", "non-robust features of the next class"),
}
SETS = {"original": Source("", "", "", "the training set as it is")} | CONSTRUCTED
Runs = dict[str, list[dict[str, Any]]]  # by data set what was measured of every seed


@dataclasses.dataclass(frozen=True)
class Preset:
  """The numbers of the study; radii and steps in l_2, in pixels of [0, 1]."""

  seeds: int = option("Networks trained on every set.", low=1)
  epochs: int = option("Of every training run.", low=1)
  examples: int = option("Of every set; 0: as many as the training set has.", low=0)
  tested: int = option("Attack the first so many test examples; 0: all.", low=0)
  trained_radius: float = option("That the robust network is trained over.", low=0.0)
  radius: float = option("That D_rand and D_det are constructed within.", low=0.0)
  tested_radius: float = option("That networks trained on the sets are attacked within.", low=0.0)
  inversion_steps: int = option("Gradient steps for an image of D_R and D_NR.", low=1)
  inversion_step: float = option("Of each; together they must cross from image to image.", low=0.0)
  attack_steps: int = option("Gradient steps for an image of D_rand and D_det.", low=1)


PRESETS = {
  ("quick", "digits"): Preset(1, 8, 0, 100, 0.8, 1.5, 0.4, 200, 0.5, 100),
  ("quick", "mnist"): Preset(1, 3, 2000, 100, 2.0, 2.0, 0.75, 100, 1.0, 100),
  ("paper", "digits"): Preset(5, 40, 0, 0, 0.8, 1.5, 0.4, 1000, 0.1, 100),
  ("paper", "mnist"): Preset(3, 8, 0, 500, 2.0, 2.0, 0.75, 200, 0.5, 100),
  ("quick", "cifar10"): Preset(1, 2, 500, 100, 0.5, 0.5, 0.25, 50, 2.0, 100),
  ("paper", "cifar10"): Preset(3, 150, 0, 0, 0.5, 0.5, 0.25, 1000, 0.1, 100),
}
Options = study_options.Options[Preset]


def base_config(dataset: str) -> ConfigDict:
  """What all networks share; on CIFAR-10 the VGG with augmentation, attacked in evaluation mode."""
  makers = {"digits": config_lib.digits, "mnist": config_lib.mnist_methods}
  config = makers.get(dataset, config_lib.cifar)()
  if dataset == "cifar10":
    config.attack.train_mode = False
    config.training.augment = ("crop", "flip")
  choose(config, "schedule", "cosine")
  config.evaluation.sweep = (0.0, 1.0)
  config.evaluation.radii.linf = config.evaluation.radii.l1 = 0.0
  return config


def config_of(options: Options, seed: int, method: str = "standard") -> ConfigDict:
  """A method of training on the original set."""

  def settle(config: ConfigDict) -> None:
    config.seed, config.training.epochs = seed, options.preset.epochs
    radius = options.preset.trained_radius
    choose(config, "set", "L2", radius=radius, box=config_lib.PIXEL_BOX)
    methods.ALL[method].apply(config)

  return configured(base_config(options.dataset), options, settle)


def run(options: Options) -> tables.Table:
  """Trains, constructs and evaluates what is not done yet; returns the table."""
  preset = study_options.values(options.preset)
  for name in ("trained_radius", "radius", "tested_radius", "inversion_step"):
    if not preset[name] > 0:
      raise InputError(f"--{name} must be > 0, in pixels, but was {preset[name]}.")
  description = study_options.description(options)
  seeds = range(1, options.preset.seeds + 1)
  # Over the whole ball from the start a network may never begin to learn: hence the curriculum.
  networks = {"standard": "standard", "robust": "curriculum"}
  configs = {name: config_of(options, 0, method) for name, method in networks.items()}
  shape = build.splits(configs["standard"]).test.images.shape[1:]
  for name in ("trained_radius", "radius", "tested_radius"):
    check_extent(L2(preset[name]), shape, f"--{name}={preset[name]:g}")
  with Study(
    options.workdir, description, work=2.0 + len(CONSTRUCTED) + len(SETS) * len(seeds)
  ) as study:
    for name, config in configs.items():
      skipped = experiment.is_finished(_network(options, name))
      with study.timed(f"train the {name} net"):
        experiment.run(config, _network(options, name))
      study.progress(1.0, f"the {name} net", skipped)
    for name in CONSTRUCTED:
      skipped = construct.is_finished(_constructed(options, name))
      with study.timed(f"make {name}"):
        construct.run(_construction(options, name))
      study.progress(1.0, name, skipped)
    runs = {name: [_train_on(options, study, name, seed) for seed in seeds] for name in SETS}
  table = table_of(options, runs)
  figures(options, options.workdir / "results")
  made = study.manifest("robust_opt.papers.ilyas2019", preset)
  made |= {"cards": {name: _card(options, name) for name in CONSTRUCTED}, "learnt": runs}
  study.publish({"sets": table, "claims": claims_table(runs)}, made)
  return table


def _network(options: Options, name: str) -> Path:
  return options.workdir / "nets" / name


def _constructed(options: Options, name: str) -> Path:
  return options.workdir / "sets" / name


def _construction(options: Options, name: str) -> construct.Options:
  preset, source = options.preset, SETS[name]
  if source.kind == "inverted":
    settings = Settings(0.0, preset.inversion_steps, preset.inversion_step)
  else:
    settings = Settings(preset.radius, preset.attack_steps, preset.radius / 5)
  network, output = _network(options, source.network), _constructed(options, name)
  run = {"workdir": str(network), **options.places}
  return construct.Options(run, source.kind, output, settings, preset.examples)


def _train_on(options: Options, study: Study, name: str, seed: int) -> dict[str, Any]:
  """A new network by standard training on a set, and its accuracies on the true test set."""
  config, workdir = config_of(options, seed), options.workdir / "learners" / name / str(seed)
  if name in CONSTRUCTED:
    config.data.train_files = str(_constructed(options, name))
  elif options.preset.examples:  # as many as the others have, besides what is held out
    config.data.train_examples = round(options.preset.examples / (1 - config.data.holdout))
  with study.timed(f"learn from {name}"):
    summary = experiment.run(config, workdir)
  made_from = sha256_of(summary["params_sha256"], json.dumps(study_options.values(options.preset)))
  part, path = f"{name}, seed {seed}", workdir / "evaluated.json"
  return study.once(part, path, made_from, _evaluate, options, name, workdir, summary, work=1.0)


def _evaluate(
  options: Options, name: str, workdir: Path, summary: dict[str, Any]
) -> dict[str, Any]:
  """Clean accuracy on the whole test set, and under PGD-50 on its first examples."""
  files = str(_constructed(options, name)) if name in CONSTRUCTED else ""
  source = {"workdir": str(workdir), "train_files": files, **options.places}
  evaluated, radius = target.load(source, options.preset.tested), options.preset.tested_radius
  robust = accuracy.robust_accuracy(evaluated, L2(radius, box=(0.0, 1.0)), accuracy.PGD)
  attacked = {"robust": robust, "examples": len(evaluated.y)}
  return accuracy.of_summary(summary) | attacked | {"params_sha256": summary["params_sha256"]}


def table_of(options: Options, runs: Runs) -> tables.Table:
  """A row for each set, the published figures beside ours.

  No seed is set aside as failed: whether a network trained on a set is better than chance on the
  true test set is the question.
  """
  rows = []
  for name, seeds in runs.items():
    clean = tables.Percent.of([run["clean"] for run in seeds], seeds[0]["tested"])
    robust = tables.Percent.of([run["robust"] for run in seeds], seeds[0]["examples"])
    rows.append(
      {
        "learnt from": name,
        "what it holds": SETS[name].words,
        "clean": clean,
        "robust": robust,
        "clean by seed": clean.by_seed(),
        "robust by seed": robust.by_seed(),
        "published clean / robust": SETS[name].published,
      }
    )
  preset, count = options.preset, runs["original"][0]["examples"]
  note = (
    f"{tables.interval_note(preset.seeds)} Each seed is a network trained on the same set. The "
    f"sets are constructed once: with a standard network of {_clean(options, 'standard')} clean "
    f"accuracy, and with one trained by PGD over l_2 {preset.trained_radius:g}, of "
    f"{_clean(options, 'robust')}; D_rand and D_det within l_2 {preset.radius:g}. "
    f"Robust: PGD-50 over l_2 {preset.tested_radius:g}, first {count} test examples. "
    f"Published: CIFAR-10, l_2 0.25 (authors' repository)."
  )
  title = f"Trained on constructed sets of {options.dataset}: accuracy (%) on the true test set"
  return tables.Table(title, list(rows[0]), rows, [note])


def _clean(options: Options, name: str) -> str:
  """The clean accuracy of a network that sets are constructed with, which shows if it failed."""
  summary = json.loads((_network(options, name) / "summary.json").read_text(encoding="utf-8"))
  return f"{100 * accuracy.of_summary(summary)['clean']:.1f} %"


# (claim, the set learned from, the accuracy, the set to compare with; empty: chance).
CLAIMS = [
  ("Standard training on robust features gives a robust net: D_R against the original",
   "D_R", "robust", "original"),
  ("It is the robust net that they come from: D_R against D_NR, robust", "D_R", "robust", "D_NR"),
  ("Non-robust features of a random class are enough for the true test set: D_rand, clean, "
   "against chance", "D_rand", "clean", ""),
  ("And where every label is wrong to a person: D_det, clean, against chance",
   "D_det", "clean", ""),
]  # fmt: skip


def claims_table(runs: Runs) -> tables.Table:
  """What the paper claims of the sets, and whether it holds here."""
  listed = []
  for claim, name, what, other in CLAIMS:
    values = [run[what] for run in runs[name]]
    others = [run[what] for run in runs[other]] if other else [CHANCE] * len(values)
    test = statistics.paired_t(values, others)
    listed.append(Claim(claim, test, {"difference (points)": f"{100 * test.difference:+z.2f}"}))
  columns = ["claim", "difference (points)", claims.P, claims.ANSWER]
  note = claims.note(len(runs["original"]))
  return claims.table("The claims of the paper", listed, columns, note)


def figures(options: Options, results: Path) -> None:
  """Images of every set beside their sources, and the Gaussian model."""
  shards = {
    name: constructed.read_shard(_constructed(options, name) / "shard-00000.npz")
    for name in CONSTRUCTED
  }
  network = {"workdir": str(_network(options, "standard")), **options.places}
  train = target.load_run(**network).train
  ids = np.array([np.flatnonzero(train.labels[:1000] == label)[0] for label in range(8)])
  ids = ids[ids < min(len(shard.labels) for shard in shards.values())]
  rows = {"original": (pixels(train.images[ids]), train.labels[ids])}
  rows |= {name: (shard.images[ids], shard.labels[ids]) for name, shard in shards.items()}
  explanations.labeled_rows(rows, results / "sets.png")

  budgets = np.concatenate([[0.0], np.geomspace(0.01, 30.0, 60)])
  covariance, mean = np.diag([1.0, 0.05]), np.array([1.0, 0.4])
  fits = [gaussian.robust_fit(covariance, budget) for budget in budgets]
  cosines = np.array([gaussian.alignment(fit.covariance, mean) for fit in fits])
  shown = [gaussian.robust_fit(covariance, budget).covariance for budget in (0.0, 0.3, 1.0, 10.0)]
  explanations.gaussian_model(
    mean, shown, ["none", "0.3", "1", "10"], budgets, cosines, results / "gaussian.png"
  )


def _card(options: Options, name: str) -> dict[str, Any]:
  """What a constructed set says of itself, without its files."""
  card = constructed.read_card(_constructed(options, name))
  return {key: value for key, value in card.items() if key != "files"}


if __name__ == "__main__":
  commands.run_study(Options, PRESETS, run)
