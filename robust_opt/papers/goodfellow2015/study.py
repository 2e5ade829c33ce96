r"""Goodfellow, Shlens and Szegedy 2015: explaining and harnessing adversarial examples.

  python -m robust_opt.papers.goodfellow2015 --dataset=digits --preset=quick --workdir=runs/gss
  python -m robust_opt.papers.goodfellow2015 --dataset=mnist --preset=paper --workdir=runs/gss2 \
      --data_dir=/path/to/tensorflow_datasets

Trains the nets of the paper (arXiv 1412.6572) but the MP-DBM over several seeds and measures its
claims: the linear explanation, FGSM, adversarial training and its controls, rotation, capacity,
rubbish, transfer, ensembles. With --dataset=cifar10, the one number that the paper has there. The
runs lie in --workdir, as robust_opt.main leaves them; --workdir/results gets the tables and the
figures. The same command goes on where it was stopped.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

import robust_opt as ro
from robust_opt import commands, tables
from robust_opt.data import datasets
from robust_opt.evaluation import collection
from robust_opt.evaluation.accuracy import logits_of
from robust_opt.experiments import build, engine, seeds
from robust_opt.experiments import run as experiment
from robust_opt.experiments.assembly import assemble
from robust_opt.files import write_json
from robust_opt.papers.goodfellow2015 import nets as nets_lib
from robust_opt.papers.goodfellow2015 import parts as parts
from robust_opt.papers.goodfellow2015 import report as report
from robust_opt.studies.study import Study, sha256_of
from robust_opt.training import TrainState
from robust_opt.types import Array


class Numbers(NamedTuple):
  """What a preset sets; a flag of the same name goes before it.

  Attributes:
    seeds: nets of every kind.
    epochs: of every training.
    large_epochs: of the nets of 1600 units; 0: none are trained.
    members: of the ensemble.
    tested: the first so many test examples are what is measured on; 0: all.
    minimal: the first so many of them are attacked by L-BFGS.
  """

  seeds: int
  epochs: int
  large_epochs: int
  members: int
  tested: int
  minimal: int


PRESETS = {
  ("quick", "digits"): Numbers(1, 6, 0, 3, 0, 20),
  ("quick", "mnist"): Numbers(1, 1, 0, 3, 500, 10),
  ("quick", "cifar10"): Numbers(1, 1, 0, 0, 500, 0),
  ("paper", "digits"): Numbers(5, 60, 0, 12, 0, 100),
  ("paper", "mnist"): Numbers(3, 10, 3, 12, 0, 100),
  ("paper", "cifar10"): Numbers(3, 10, 0, 0, 0, 0),
}


class Options(NamedTuple):
  """What to run and where.

  Attributes:
    dataset: digits, mnist or cifar10.
    workdir: new, or that of the same study.
    numbers: of a preset, or other ones.
    data_dir: where prepared sets lie; empty: TFDS' default.
    cache_dir: where arrays are cached; empty: the user's cache directory.
  """

  dataset: str
  workdir: Path
  numbers: Numbers
  data_dir: str = ""
  cache_dir: str = ""

  @property
  def places(self) -> dict[str, str]:
    """Where data lies."""
    return {"data_dir": self.data_dir, "cache_dir": self.cache_dir}


def kinds(options: Options) -> dict[str, nets_lib.Kind]:
  """What is trained on that data set."""
  if options.dataset == "cifar10":
    return nets_lib.CIFAR
  return nets_lib.KINDS | (nets_lib.LARGE if options.numbers.large_epochs else {})


def run(options: Options) -> tables.Table:
  """Trains, measures and writes what is not done yet; returns the table of the paper's numbers."""
  numbers, chosen = options.numbers, kinds(options)
  cost = sum(_work(options, name, kind) for name, kind in chosen.items())
  work = numbers.seeds * (cost + 1.0) + numbers.members * numbers.epochs / 10 + 1.0
  description = {
    "dataset": options.dataset,
    **numbers._asdict(),
    "data": datasets.fingerprints(options.dataset, **options.places),
  }
  study = Study(options.workdir, description, work)
  try:
    found = _found(options, study, chosen)
  finally:
    study.close()
  results = options.workdir / "results"
  shown = report.tables_of(found, options.dataset, numbers._asdict())
  for name, table in shown.items():
    tables.write(table, results / name)
  if options.dataset != "cifar10":
    _figures(options, found, results)
  write_json(results / "found.json", found)
  write_json(results / "manifest.json", _manifest(options, study))
  for table in shown.values():
    print(tables.markdown(table))
  print(f"Everything about this study is in {options.workdir}")
  return shown["numbers"]


def _work(options: Options, name: str, kind: nets_lib.Kind) -> float:
  epochs = options.numbers.large_epochs if name in nets_lib.LARGE else options.numbers.epochs
  return kind.cost * epochs / 10


def _found(options: Options, study: Study, chosen: dict[str, nets_lib.Kind]) -> dict[str, Any]:
  """What is measured: {"seeds": an entry a seed, "once": what has no seed, "ensemble": ...}."""
  found: dict[str, Any] = {"seeds": []}
  for seed in range(1, options.numbers.seeds + 1):  # so that a study that is stopped has all kinds
    digests = []
    for name, kind in chosen.items():
      workdir = _workdir(options, name, seed)
      skipped = experiment.is_finished(workdir)
      with study.timed(f"train {name}"):
        summary = experiment.run(_config(options, name, seed), workdir)
      digests.append(summary["params_sha256"])
      study.progress(_work(options, name, kind), f"{name}, seed {seed}", skipped)
    found["seeds"].append(
      study.once(
        f"measure seed {seed}",
        options.workdir / "measured" / f"{seed}.json",
        sha256_of(*digests),
        functools.partial(_measure, options, seed),
        work=1.0,
      )
    )
  if options.dataset != "cifar10":
    found["once"] = study.once(
      "logistic regression", options.workdir / "measured" / "once.json", "", # of the data alone
      functools.partial(_once, options), work=1.0,
    )  # fmt: skip
    if options.numbers.members:
      found["ensemble"] = _ensemble(options, study)
  return found


def _config(options: Options, name: str, seed: int) -> Any:
  numbers, ground = options.numbers, nets_lib.ground(options.dataset)
  ground.dataset.data_dir, ground.dataset.cache_dir = options.data_dir, options.cache_dir
  epochs = numbers.large_epochs if name in nets_lib.LARGE else numbers.epochs
  return nets_lib.config_of(name, ground, epochs, seed)


def _workdir(options: Options, name: str, seed: int) -> Path:
  return options.workdir / "nets" / name / str(seed)


def _load(options: Options, seed: int) -> dict[str, nets_lib.Net]:
  return {
    name: nets_lib.load(name, _workdir(options, name, seed), options.places)
    for name in kinds(options)
  }


def _measure(options: Options, seed: int) -> dict[str, Any]:
  """All of one seed."""
  nets = _load(options, seed)
  x, y = nets_lib.first_tested(options.dataset, options.numbers.tested, options.places)
  radius = nets_lib.RADII[options.dataset]
  out: dict[str, Any] = {"examples": len(y), "judged": parts.judged(nets, x, y, radius)}
  if options.dataset == "cifar10":
    return out
  key, some = jax.random.key(seed), slice(0, 500)
  few = slice(0, options.numbers.minimal)
  _, regions = parts.sliced(nets["maxout"], x[:50], y[:50], 2 * radius, key)
  return out | {
    "transfer": parts.transferred(nets, x, y, radius),
    "agreement": parts.agreement(nets, x, y, radius),
    "similarity": parts.similarity(nets, x[some]),
    "rubbish": parts.rubbish(nets, x, key),
    "turned": parts.turned(nets, x[some], y[some]),
    "swept": {
      name: parts.swept(nets[name], x[some], y[some], radius) for name in ("maxout", "mlp")
    },
    "regions": regions,
    "minimal": parts.minimal(nets, x[few], y[few], num_steps=30),
  }


def _once(options: Options) -> dict[str, Any]:
  """What has no seed."""
  splits = (nets_lib.dataset(options.dataset, name, options.places) for name in ("train", "test"))
  train, test = ((collection.pixels(split.images), split.labels) for split in splits)
  return {
    "growth": parts.grown(jax.random.key(0), nets_lib.RADII[options.dataset]),
    "logistic": parts.logistic(train, test, nets_lib.RADII[options.dataset]),
  }


def _ensemble(options: Options, study: Study) -> dict[str, float]:
  """Members trained together, of seeds that no other net has; on an accelerator in one program."""
  numbers, names = options.numbers, range(101, 101 + options.numbers.members)
  config = _config(options, "maxout", 0)
  train = nets_lib.data_of(config)
  keys = jax.vmap(jax.random.key)(np.array(names))
  test = nets_lib.dataset(options.dataset, "test", options.places)
  few = test._replace(images=test.images[:100], labels=test.labels[:100])
  splits = build.Splits(train, few, few)
  ensemble = assemble(config, splits, keys, vmapped=jax.default_backend() != "cpu")

  def count_correct(state: TrainState) -> Array:
    clean = ensemble.evaluate(state, ensemble.test, ro.LInf(0.0), ro.steepest)
    return clean.clean_correct.sum(axis=1)

  with study.timed("train the ensemble"):
    state = engine.train_seeds(
      options.workdir / "ensemble",
      ensemble,
      names,
      count_correct,
      points=1,
      epochs_per_call=1,
      timed=functools.partial(study.timed, "update the ensemble"),
      progress=lambda count, words, **given: study.progress(
        count * numbers.members / 10, f"ensemble, {words}", **given
      ),
    )
  logits_fns = [
    logits_of(ensemble.apply, *seeds.of_seed(state, member)) for member in range(numbers.members)
  ]
  members = [nets_lib.Net(f, nets_lib.loss_of("softmax"), "softmax") for f in logits_fns]
  x, y = nets_lib.first_tested(options.dataset, numbers.tested, options.places)
  return study.once(
    "measure the ensemble",
    options.workdir / "measured" / "ensemble.json",
    sha256_of(*seeds.net_digests(state, numbers.members)),
    lambda: parts.of_ensemble(members, x, y, nets_lib.RADII[options.dataset]),
    work=0.0,
  )


def _figures(options: Options, found: dict[str, Any], results: Path) -> None:
  """Those that need nets, of the first seed; and those of numbers alone."""
  report.figures_of(found, results)
  nets = _load(options, 1)
  x, y = nets_lib.first_tested(options.dataset, 500, options.places)
  report.figures_of_nets(nets, x, y, nets_lib.RADII[options.dataset], results)
  shape = x.shape[1:3]
  weights = np.asarray(found["once"]["logistic"]["weights"]).reshape(shape)
  report.figure_of_logistic(
    weights, x, y, found["once"]["logistic"], nets_lib.RADII[options.dataset], results
  )


def _manifest(options: Options, study: Study) -> dict[str, Any]:
  """What the tables were made of."""
  made = study.made_by("robust_opt.papers.goodfellow2015", options.numbers._asdict())
  return made | {
    "params_sha256": {
      name: [
        json.loads((_workdir(options, name, seed) / "summary.json").read_text())["params_sha256"]
        for seed in range(1, options.numbers.seeds + 1)
      ]
      for name in kinds(options)
    },
  }


def main(argv: list[str]) -> None:
  """Flags to options."""
  commands.refuse_positional(argv)
  run(Options(**commands.study_of(PRESETS)))


def define_flags() -> None:
  """Only where this file is the program, so that importing it defines none."""
  commands.define_study_flags(nets_lib.RADII)
  flags.DEFINE_integer("seeds", None, "Nets of every kind.", lower_bound=1)
  flags.DEFINE_integer("epochs", None, "Of every training.", lower_bound=1)
  flags.DEFINE_integer("large_epochs", None, "Of the nets of 1600 units; 0: none.", lower_bound=0)
  flags.DEFINE_integer("members", None, "Of the ensemble; 0: none.", lower_bound=0)
  flags.DEFINE_integer("tested", None, "Measure on the first so many; 0: all.", lower_bound=0)
  flags.DEFINE_integer("minimal", None, "Attack the first so many by L-BFGS.", lower_bound=1)
