r"""Ilyas et al. 2019: adversarial examples are not bugs, they are features (arXiv 1905.02175).

  python -m robust_opt.papers.ilyas2019 --dataset=digits --preset=quick --workdir=runs/ilyas2019
  python -m robust_opt.papers.ilyas2019 --dataset=mnist --preset=paper --workdir=runs/ilyas_mnist \
      --data_dir=/path/to/tensorflow_datasets

CIFAR-10 as in the paper wants an accelerator. For what runs on one CPU core in three hours, a
small net, a third of the images, ten epochs, see docs/results/ilyas2019_cifar10.md.

Trains a standard and a robust net, makes four data sets of them (robust_opt.construct), trains
fresh nets on each by standard training and judges them on the true test set. Beside it the Gaussian
model of the paper, in closed form. --workdir/results gets the table, what it says of every claim,
and two figures. The same command goes on where it was stopped.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from robust_opt import commands, construct, statistics, tables
from robust_opt.data import constructed, datasets
from robust_opt.data.constructed import Settings
from robust_opt.errors import InputError
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import methods, overrides, target
from robust_opt.experiments import run as experiment
from robust_opt.files import write_json
from robust_opt.papers import family
from robust_opt.plots import explanations
from robust_opt.studies.study import Study, sha256_of
from robust_opt.theory import gaussian


class Set(NamedTuple):
  """One data set of the paper.

  Attributes:
    kind: of constructed.KINDS; empty: the original.
    net: which net it is made of.
    published: clean and robust accuracy on CIFAR-10, [readme] of the authors; None: not stated.
    words: what it holds.
  """

  kind: str
  net: str
  published: tuple[float, float] | None
  words: str


SETS = {
  "original": Set("", "", None, "the training set as it is"),
  "D_R": Set("inverted", "robust", (84, 48), "robust features only"),
  "D_NR": Set("inverted", "standard", (88, 0), "inverted from a standard net"),
  "D_rand": Set("random", "standard", (63, 0), "non-robust features of a random class"),
  "D_det": Set("deterministic", "standard", (44, 0), "non-robust features of the next class"),
}


class Numbers(NamedTuple):
  """What a preset sets; a flag of the same name goes before it.

  Attributes:
    seeds: nets that learn from every set.
    epochs: of every training.
    examples: of every set; 0: as many as the training set has.
    tested: the first so many test examples are attacked; 0: all.
    trained_radius: l_2, in pixels of [0, 1], that the robust net is trained over.
    radius: l_2, that D_rand and D_det are made within.
    tested_radius: l_2, that the learners are attacked within.
    inversion_steps: gradients an image of D_R and D_NR.
    inversion_step: l_2, of each of them; together they must reach from one image to another.
    attack_steps: gradients an image of D_rand and D_det.
  """

  seeds: int
  epochs: int
  examples: int
  tested: int
  trained_radius: float
  radius: float
  tested_radius: float
  inversion_steps: int
  inversion_step: float
  attack_steps: int


PRESETS = {
  ("quick", "digits"): Numbers(1, 8, 0, 100, 0.8, 1.5, 0.4, 200, 0.5, 100),
  ("quick", "mnist"): Numbers(1, 3, 2000, 100, 2.0, 2.0, 0.75, 100, 1.0, 100),
  ("paper", "digits"): Numbers(5, 40, 0, 0, 0.8, 1.5, 0.4, 1000, 0.1, 100),
  ("paper", "mnist"): Numbers(3, 8, 0, 500, 2.0, 2.0, 0.75, 200, 0.5, 100),
  ("quick", "cifar10"): Numbers(1, 2, 500, 100, 0.5, 0.5, 0.25, 50, 2.0, 100),
  ("paper", "cifar10"): Numbers(3, 150, 0, 0, 0.5, 0.5, 0.25, 1000, 0.1, 100),
}


class Options(NamedTuple):
  """What to run and where.

  Attributes:
    dataset: digits, mnist or cifar10.
    workdir: new, or that of the same study.
    numbers: of a preset, or other ones.
    data_dir: where prepared sets lie; empty: TFDS' default.
    cache_dir: where arrays are cached; empty: the user's cache directory.
    override: key=value on the config of every net.
  """

  dataset: str
  workdir: Path
  numbers: Numbers
  data_dir: str = ""
  cache_dir: str = ""
  override: Sequence[str] = ()


def _cifar() -> ConfigDict:
  """The VGG, its images augmented; the adversary climbs in evaluation mode."""
  config = config_lib.cifar()
  config.attack.train_mode = False
  config.training.augment = ("crop", "flip")
  return config


GROUNDS = {"digits": config_lib.digits, "mnist": config_lib.mnist_methods, "cifar10": _cifar}


def config_of(options: Options, seed: int) -> ConfigDict:
  """Standard training on the original set."""
  config = GROUNDS[options.dataset]()
  config.seed = seed
  config.dataset.data_dir, config.dataset.cache_dir = options.data_dir, options.cache_dir
  config.uncertainty.name, config.uncertainty.radius = "l2", options.numbers.trained_radius
  config.uncertainty.box = True
  config.optimizer.schedule = "cosine"
  config.training.epochs = options.numbers.epochs
  config.evaluation.sweep = (0.0, 1.0)
  config.evaluation.radii.linf = config.evaluation.radii.l1 = 0.0
  methods.standard(config)
  for item in options.override:
    overrides.override(config, item)
  config_lib.validate(config)
  return config


def run(options: Options) -> tables.Table:
  """Trains, makes and judges what is not done yet; returns the table."""
  numbers, seeds = options.numbers, range(1, options.numbers.seeds + 1)
  for name in ("trained_radius", "radius", "tested_radius", "inversion_step"):
    if not getattr(numbers, name) > 0:
      raise InputError(f"--{name} must be > 0, in pixels, but was {getattr(numbers, name)}.")
  description = {
    "dataset": options.dataset,
    **numbers._asdict(),
    "override": list(options.override),
    "data": datasets.fingerprints(options.dataset, options.data_dir, options.cache_dir),
  }
  work = 2.0 + len(SETS) + len(SETS) * len(seeds)
  study = Study(options.workdir, description, work=work)
  learnt: dict[str, list[dict[str, Any]]] = {}
  try:
    # At once over the whole ball a net may never begin to learn.
    for name, method in (("standard", methods.standard), ("robust", methods.curriculum)):
      config = config_of(options, 0)
      method(config)
      skipped = experiment.is_finished(_net(options, name))
      with study.timed(f"train the {name} net"):
        experiment.run(config, _net(options, name))
      study.progress(1.0, f"the {name} net", skipped)
    for name, what in SETS.items():
      skipped = not what.kind or construct.is_finished(_made(options, name))
      if what.kind:
        with study.timed(f"make {name}"):
          construct.run(_construction(options, name))
      study.progress(1.0, name, skipped)
    for name in SETS:
      learnt[name] = [_learn(options, study, name, seed) for seed in seeds]
  finally:
    study.close()
  table = table_of(options, learnt)
  results = options.workdir / "results"
  tables.write(table, results / "sets")
  said = claims(learnt, 1.0 / 10)
  tables.write(said, results / "claims")
  figures(options, results)
  write_json(results / "manifest.json", manifest(options, study, learnt))
  for shown in (table, said):
    print(tables.markdown(shown))
  print(f"Everything about this study is in {options.workdir}")
  return table


def _net(options: Options, name: str) -> Path:
  return options.workdir / "nets" / name


def _made(options: Options, name: str) -> Path:
  return options.workdir / "sets" / name


def _construction(options: Options, name: str) -> construct.Options:
  what, numbers = SETS[name], options.numbers
  if what.kind == "inverted":
    settings = Settings(0.0, numbers.inversion_steps, numbers.inversion_step)
  else:
    settings = Settings(numbers.radius, numbers.attack_steps, numbers.radius / 5)
  source = {
    "workdir": str(_net(options, what.net)),
    "data_dir": options.data_dir,
    "cache_dir": options.cache_dir,
  }
  return construct.Options(source, what.kind, _made(options, name), settings, numbers.examples)


def _learn(options: Options, study: Study, name: str, seed: int) -> dict[str, Any]:
  """A fresh net, taught by standard training, and what it is worth on the true test set."""
  config, workdir = config_of(options, seed), options.workdir / "learners" / name / str(seed)
  if SETS[name].kind:
    config.dataset.train_files = str(_made(options, name))
  elif options.numbers.examples:  # as many as the others have, beside what is held out
    held = config.dataset.holdout
    config.dataset.train_examples = round(options.numbers.examples / (1 - held))
  with study.timed(f"learn from {name}"):
    summary = experiment.run(config, workdir)
  return study.once(
    f"{name}, seed {seed}",
    workdir / "judged.json",
    sha256_of(summary["params_sha256"], json.dumps(options.numbers._asdict())),
    functools.partial(_judge, options, name, workdir, summary),
    work=1.0,
  )


def _judge(options: Options, name: str, workdir: Path, summary: dict[str, Any]) -> dict[str, Any]:
  """Clean accuracy on the whole test set, and under PGD-50 on its first examples."""
  places = {"data_dir": options.data_dir, "cache_dir": options.cache_dir}
  if SETS[name].kind:
    places["train_files"] = str(_made(options, name))
  found = target.load({"workdir": str(workdir), **places}, options.numbers.tested)
  return {
    "clean": family.clean(summary),
    "tested": family.tested(summary),
    "robust": family.standing(found, "l2", options.numbers.tested_radius, family.PGD),
    "examples": len(found.y),
    "params_sha256": summary["params_sha256"],
  }


def table_of(options: Options, learnt: dict[str, list[dict[str, Any]]]) -> tables.Table:
  """A row for each set, the published figures beside ours.

  No seed is set aside as failed: that a learner is no better than chance on the true test set is
  what is asked here.
  """
  columns = [
    "learnt from", "what it holds", "clean", "robust", "clean by seed", "robust by seed",
    "published clean / robust",
  ]  # fmt: skip
  rows = []
  for name, runs in learnt.items():
    clean = tables.Percent.of([run["clean"] for run in runs], runs[0]["tested"])
    robust = tables.Percent.of([run["robust"] for run in runs], runs[0]["examples"])
    published = "{} / {}".format(*(SETS[name].published or ("", ""))).strip(" /")
    row = (name, SETS[name].words, clean, robust, clean.by_seed(), robust.by_seed(), published)
    rows.append(dict(zip(columns, row, strict=True)))
  numbers, count = options.numbers, learnt["original"][0]["examples"]
  return tables.Table(
    f"Learnt from constructed sets of {options.dataset}: accuracy (%) on the true test set",
    columns,
    rows,
    [
      f"{tables.interval_note(numbers.seeds)} Seeds are of the learners; the sets are made once: "
      f"of a standard net, {_accuracy(options, 'standard')} right, and of one trained by PGD over "
      f"l_2 {numbers.trained_radius:g}, {_accuracy(options, 'robust')} right; D_rand and D_det "
      f"within l_2 {numbers.radius:g}. "
      f"Robust: PGD-50 over l_2 {numbers.tested_radius:g}, first {count} test examples. "
      f"Published: CIFAR-10, l_2 0.25 (authors' repository).",
    ],
  )


def _accuracy(options: Options, name: str) -> str:
  """Of the net that sets are made of, on clean test examples: a net that has failed is seen."""
  summary = json.loads((_net(options, name) / "summary.json").read_text(encoding="utf-8"))
  return f"{100 * family.clean(summary):.1f} %"


def claims(learnt: dict[str, list[dict[str, Any]]], chance: float) -> tables.Table:
  """What the paper says, what was measured, and whether it holds here."""

  def values(name: str, what: str) -> list[float]:
    return [run[what] for run in learnt[name]]

  count = len(learnt["original"])
  tests = [
    (
      "Standard training on robust features gives a robust net: D_R against the original",
      statistics.paired_t(values("D_R", "robust"), values("original", "robust")),
    ),
    (
      "It is the robust net that they come from: D_R against D_NR, robust",
      statistics.paired_t(values("D_R", "robust"), values("D_NR", "robust")),
    ),
    (
      "Non-robust features of a random class are enough for the true test set: D_rand, clean, "
      "against chance",
      statistics.paired_t(values("D_rand", "clean"), [chance] * count),
    ),
    (
      "And where every label is wrong to a person: D_det, clean, against chance",
      statistics.paired_t(values("D_det", "clean"), [chance] * count),
    ),
  ]
  said = statistics.verdicts([test for _, test in tests])
  rows = [
    {
      "claim": words,
      "difference (points)": f"{100 * test.difference:+z.2f}",
      "p (Holm)": tables.p_value(verdict.p),
      "holds here": verdict.answer,
    }
    for (words, test), verdict in zip(tests, said, strict=True)
  ]
  return tables.Table(
    "What the paper says of them",
    ["claim", "difference (points)", "p (Holm)", "holds here"],
    rows,
    [tables.claims_note(count)],
  )


def figures(options: Options, results: Path) -> None:
  """Images of every set beside what they were made of, and the Gaussian model."""
  shards = {
    name: constructed.read_shard(_made(options, name) / "shard-00000.npz")
    for name, what in SETS.items()
    if what.kind
  }
  source = {"workdir": str(_net(options, "standard")), "data_dir": options.data_dir}
  train = target.load_net(source | {"cache_dir": options.cache_dir}).train
  chosen = np.array([np.flatnonzero(train.labels[:1000] == label)[0] for label in range(8)])
  chosen = chosen[chosen < min(len(shard.labels) for shard in shards.values())]
  rows = {"original": (construct.pixels(train.images[chosen]), train.labels[chosen])}
  rows |= {name: (shard.images[chosen], shard.labels[chosen]) for name, shard in shards.items()}
  explanations.labeled_rows(rows, results / "sets.png")

  budgets = np.concatenate([[0.0], np.geomspace(0.01, 30.0, 60)])
  covariance, mean = np.diag([1.0, 0.05]), np.array([1.0, 0.4])
  fits = [gaussian.robust_fit(covariance, budget) for budget in budgets]
  cosines = np.array([gaussian.alignment(fit.covariance, mean) for fit in fits])
  shown = [gaussian.robust_fit(covariance, budget).covariance for budget in (0.0, 0.3, 1.0, 10.0)]
  explanations.gaussian_model(
    mean, shown, ["none", "0.3", "1", "10"], budgets, cosines, results / "gaussian.png"
  )


def manifest(
  options: Options, study: Study, learnt: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
  """What the tables were made of."""
  made = study.made_by("robust_opt.papers.ilyas2019", options.numbers._asdict())
  return made | {
    "cards": {
      name: {k: v for k, v in constructed.read_card(_made(options, name)).items() if k != "files"}
      for name, what in SETS.items()
      if what.kind
    },
    "learnt": learnt,
  }


def main(argv: list[str]) -> None:
  """Flags to options."""
  commands.refuse_positional(argv)
  run(Options(**commands.study_of(PRESETS), override=tuple(flags.FLAGS.override)))


def define_flags() -> None:
  """Only where this file is the program, so that importing it defines none."""
  commands.define_study_flags(GROUNDS)
  flags.DEFINE_integer("seeds", None, "Nets that learn from every set.", lower_bound=1)
  flags.DEFINE_integer("epochs", None, "Of every training.", lower_bound=1)
  flags.DEFINE_integer("examples", None, "Of every set; 0: all.", lower_bound=0)
  flags.DEFINE_integer("tested", None, "Attack the first so many; 0: all.", lower_bound=0)
  flags.DEFINE_float("trained_radius", None, "l_2, of the robust net.", lower_bound=0.0)
  flags.DEFINE_float("radius", None, "l_2, of D_rand and D_det.", lower_bound=0.0)
  flags.DEFINE_float("tested_radius", None, "l_2, of the attack on learners.", lower_bound=0.0)
  flags.DEFINE_integer("inversion_steps", None, "Of D_R and D_NR.", lower_bound=1)
  flags.DEFINE_float("inversion_step", None, "l_2, of each of them.", lower_bound=0.0)
  flags.DEFINE_integer("attack_steps", None, "Of D_rand and D_det.", lower_bound=1)
  words = "key=value on the config of every net, e.g. model.width=0.125; may be repeated."
  flags.DEFINE_multi_string("override", [], words)


if __name__ == "__main__":
  define_flags()
  app.run(commands.with_sentences(main), flags_parser=commands.parse)
