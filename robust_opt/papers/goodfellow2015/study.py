r"""Goodfellow, Shlens and Szegedy 2015: explaining and harnessing adversarial examples.

  python -m robust_opt.papers.goodfellow2015 --dataset=digits --preset=quick --workdir=runs/gss
  python -m robust_opt.papers.goodfellow2015 --dataset=mnist --preset=paper --workdir=runs/gss2 \
      --data_dir=/path/to/tensorflow_datasets

Trains the networks of the paper (arXiv 1412.6572), except the MP-DBM, over several seeds and
measures its claims: the linear explanation, FGSM, adversarial training and its controls, rotation,
capacity, rubbish class examples, transfer, ensembles. With --dataset=cifar10, the one number that
the paper has there. The runs are in --workdir, as robust_opt.main leaves them; --workdir/results
gets the tables and figures. The same command resumes.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import robust_opt as ro
from robust_opt import tables
from robust_opt.data import datasets
from robust_opt.evaluation import collection
from robust_opt.evaluation.accuracy import logits_of
from robust_opt.experiments import build, engine, seeds
from robust_opt.experiments import run as experiment
from robust_opt.experiments.assembly import assemble
from robust_opt.papers.goodfellow2015 import measure, report
from robust_opt.papers.goodfellow2015 import nets as nets_lib
from robust_opt.studies import options as study_options
from robust_opt.studies.options import configured, option
from robust_opt.studies.study import Study, sha256_of
from robust_opt.training import TrainState
from robust_opt.types import Array


@dataclasses.dataclass(frozen=True)
class Preset:
  """The numbers of the study."""

  seeds: int = option("Networks of every kind.", low=1)
  epochs: int = option("Of every training run.", low=1)
  large_epochs: int = option("Of the networks of 1600 units; 0: none is trained.", low=0)
  members: int = option("Of the ensemble; 0: none.", low=0)
  tested: int = option("Measure on the first so many test examples; 0: all.", low=0)
  minimal: int = option("Attack the first so many by L-BFGS.", low=1)


PRESETS = {
  ("quick", "digits"): Preset(1, 6, 0, 3, 0, 20),
  ("quick", "mnist"): Preset(1, 1, 0, 3, 500, 10),
  ("quick", "cifar10"): Preset(1, 1, 0, 0, 500, 0),
  ("paper", "digits"): Preset(5, 60, 0, 12, 0, 100),
  ("paper", "mnist"): Preset(3, 10, 3, 12, 0, 100),
  ("paper", "cifar10"): Preset(3, 10, 0, 0, 0, 0),
}
Options = study_options.Options[Preset]


def kinds(options: Options) -> dict[str, nets_lib.Kind]:
  """What is trained on that data set."""
  if options.dataset == "cifar10":
    return nets_lib.CIFAR
  return nets_lib.KINDS | (nets_lib.LARGE if options.preset.large_epochs else {})


def config_of(options: Options, kind: str, seed: int) -> ConfigDict:
  """The config of one network."""

  def settle(config: ConfigDict) -> None:
    config.seed, config.training.epochs = seed, _epochs(options, kind)
    nets_lib.change(config, kind)

  return configured(nets_lib.base_config(options.dataset), options, settle)


def _epochs(options: Options, kind: str) -> int:
  return options.preset.large_epochs if kind in nets_lib.LARGE else options.preset.epochs


def run(options: Options) -> tables.Table:
  """Trains, measures and writes what is not done yet; returns the table of the paper's numbers."""
  preset, folder = study_options.values(options.preset), options.workdir / "measured"
  names, runs = list(kinds(options)), range(1, options.preset.seeds + 1)
  configs = {(name, seed): config_of(options, name, seed) for seed in runs for name in names}
  work = {name: kind.cost * _epochs(options, name) / 10 for name, kind in kinds(options).items()}
  members = preset["members"] * preset["epochs"] / 10
  total = preset["seeds"] * (sum(work.values()) + 1.0) + members + 1.0
  digests: dict[str, list[str]] = {name: [] for name in names}
  measured: dict[str, Any] = {"seeds": []}
  with Study(options.workdir, study_options.description(options), total) as study:
    for seed in runs:  # a study that is stopped has all kinds
      for name in names:
        workdir = _workdir(options, name, seed)
        skipped = experiment.is_finished(workdir)
        with study.timed(f"train {name}"):
          summary = experiment.run(configs[name, seed], workdir)
        digests[name].append(summary["params_sha256"])
        study.progress(work[name], f"{name}, seed {seed}", skipped)
      part, made_from = f"measure seed {seed}", sha256_of(*(digests[name][-1] for name in names))
      path = folder / f"{seed}.json"
      measured["seeds"].append(study.once(part, path, made_from, _measure, options, seed, work=1.0))
    if options.dataset != "cifar10":
      path = folder / "once.json"
      measured["once"] = study.once(
        "logistic regression", path, "", _measure_once, options, work=1.0
      )
      if options.preset.members:
        measured["ensemble"] = _ensemble(options, study)
  if options.dataset != "cifar10":
    _figures(options, measured, options.workdir / "results")
  shown = report.tables_of(measured, options.dataset, preset)
  manifest = study.manifest("robust_opt.papers.goodfellow2015", preset)
  study.publish({**shown, "found": measured}, manifest | {"params_sha256": digests})
  return shown["numbers"]


def _workdir(options: Options, name: str, seed: int) -> Path:
  return options.workdir / "nets" / name / str(seed)


def _load(options: Options, seed: int) -> dict[str, nets_lib.AttackedNet]:
  workdirs = {name: _workdir(options, name, seed) for name in kinds(options)}
  return {name: nets_lib.load(name, path, options.places) for name, path in workdirs.items()}


def _measure(options: Options, seed: int) -> dict[str, Any]:
  """All of one seed."""
  nets = _load(options, seed)
  x, y = nets_lib.test_examples(options.dataset, options.preset.tested, options.places)
  radius = nets_lib.RADII[options.dataset]
  out: dict[str, Any] = {"examples": len(y), "judged": measure.error_rates(nets, x, y, radius)}
  if options.dataset == "cifar10":
    return out
  key, some, few = jax.random.key(seed), slice(0, 500), slice(0, options.preset.minimal)
  _, regions = measure.plane_slices(nets["maxout"], x[:50], y[:50], 2 * radius, key)
  swept = ("maxout", "mlp")
  return out | {
    "transfer": measure.transfer_accuracy(nets, x, y, radius),
    "agreement": measure.agreement(nets, x, y, radius),
    "similarity": measure.similarity(nets, x[some]),
    "rubbish": measure.rubbish(nets, x, key),
    "turned": measure.rotation_sweep(nets, x[some], y[some]),
    "swept": {n: measure.epsilon_sweep(nets[n], x[some], y[some], radius) for n in swept},
    "regions": regions,
    "minimal": measure.minimal(nets, x[few], y[few], num_steps=30),
  }


def _measure_once(options: Options) -> dict[str, Any]:
  """What has no seed."""
  splits = (datasets.load(options.dataset, name, **options.places) for name in ("train", "test"))
  train, test = ((collection.pixels(split.images), split.labels) for split in splits)
  radius = nets_lib.RADII[options.dataset]
  return {
    "growth": measure.activation_growth(jax.random.key(0), radius),
    "logistic": measure.logistic(train, test, radius),
  }


def _ensemble(options: Options, study: Study) -> dict[str, float]:
  """Members trained together, of seeds that no other network has."""
  count, names = options.preset.members, range(101, 101 + options.preset.members)
  config = config_of(options, "maxout", 0)
  test = datasets.load(options.dataset, "test", **options.places)
  few = test._replace(images=test.images[:100], labels=test.labels[:100])
  splits = build.Splits(build.splits(config).train, few, few)
  keys = jax.vmap(jax.random.key)(np.array(names))
  ensemble = assemble(config, splits, keys, vmapped=seeds.vmap_is_faster(convolutional=False))

  def count_correct(state: TrainState) -> Array:
    clean = ensemble.evaluate(state, ensemble.test, ro.LInf(0.0), ro.steepest)
    return clean.clean_correct.sum(axis=1)

  def progress(epochs: int, words: str, skipped: bool = False) -> None:
    study.progress(epochs * count / 10, f"ensemble, {words}", skipped)

  timed = functools.partial(study.timed, "update the ensemble")
  with study.timed("train the ensemble"):
    state = engine.train_seeds(
      options.workdir / "ensemble", ensemble, names, count_correct,
      points=1, epochs_per_call=1, timed=timed, progress=progress,
    )  # fmt: skip
  weights = [seeds.of_seed(state, member) for member in range(count)]
  loss, logits_fns = nets_lib.loss_of("softmax"), [logits_of(ensemble.apply, *w) for w in weights]
  members = [nets_lib.AttackedNet(logits_fn, loss, "softmax") for logits_fn in logits_fns]
  x, y = nets_lib.test_examples(options.dataset, options.preset.tested, options.places)
  radius, path = nets_lib.RADII[options.dataset], options.workdir / "measured" / "ensemble.json"
  made_from = sha256_of(*seeds.net_digests(state, count))
  return study.once(
    "measure the ensemble", path, made_from, measure.ensemble_errors, members, x, y, radius
  )


def _figures(options: Options, measured: dict[str, Any], results: Path) -> None:
  """Figures of numbers alone, and those that need the networks of the first seed."""
  report.figures_of_numbers(measured, results)
  x, y = nets_lib.test_examples(options.dataset, 500, options.places)
  radius = nets_lib.RADII[options.dataset]
  report.figures_of_nets(_load(options, 1), x, y, radius, results)
  report.figure_of_logistic(measured["once"]["logistic"], x, y, radius, results)
