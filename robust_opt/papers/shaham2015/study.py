r"""Shaham, Yamada and Negahban 2015 (arXiv 1511.05432): every table, figure and claim.

  python -m robust_opt.papers.shaham2015 --dataset=digits --preset=quick --workdir=runs/shaham
  python -m robust_opt.papers.shaham2015 --dataset=mnist --preset=paper --workdir=runs/mnist \
      --data_dir=/path/to/tensorflow_datasets

Trains four networks (baseline, robust over the l_1, l_2 and l_inf ball) for several seeds at once,
makes each seed's adversarial collection from its baseline, attacks every network by its own
gradient, and writes workdir/results. The same command resumes.

All training images are used and the networks are those after the last epoch, as in the paper: there
is no validation split, and nothing is selected on the test set. Radii are in pixels of [0, 1].
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from robust_opt import tables
from robust_opt.arrays import digest
from robust_opt.data import datasets
from robust_opt.experiments import build, engine, seeds
from robust_opt.experiments import config as config_lib
from robust_opt.experiments.sections import choose
from robust_opt.models import layers
from robust_opt.papers.shaham2015 import measure, report
from robust_opt.papers.shaham2015.nets import SeededNet, assembled, count_correct
from robust_opt.sets import BALLS
from robust_opt.studies import options as study_options
from robust_opt.studies.options import OVERRIDE, configured, option
from robust_opt.studies.study import Study, file_sha256, sha256_of
from robust_opt.training import ArrayData, TrainState, streams
from robust_opt.types import Array

NETS = ("baseline", "l1", "l2", "linf")
RECIPES = {"digits": config_lib.digits, "mnist": config_lib.mnist, "cifar10": config_lib.cifar}
ATTACK_STEPS = {"single": 1, "pgd": 50}


@dataclasses.dataclass(frozen=True)
class Preset:
  """The numbers of the study."""

  seeds: int = option("Networks of each kind; the first seed is the recipe's.", low=1)
  epochs: int = option("Of every training run; 0: the recipe's.", low=0)
  pgd_examples: int = option("PGD attacks the first so many test examples; 0: all.", low=0)
  points: int = option("Clean test accuracies an epoch, at most.", low=1)
  epochs_per_call: int = option("Epochs between two checkpoints.", low=1)


PRESETS = {
  ("quick", "digits"): Preset(seeds=3, epochs=15, pgd_examples=50, points=2, epochs_per_call=5),
  ("quick", "mnist"): Preset(seeds=2, epochs=2, pgd_examples=200, points=4, epochs_per_call=1),
  ("quick", "cifar10"): Preset(seeds=2, epochs=1, pgd_examples=100, points=2, epochs_per_call=1),
  ("paper", "digits"): Preset(seeds=5, epochs=0, pgd_examples=0, points=4, epochs_per_call=10),
  ("paper", "mnist"): Preset(seeds=5, epochs=0, pgd_examples=0, points=4, epochs_per_call=10),
  ("paper", "cifar10"): Preset(seeds=1, epochs=0, pgd_examples=0, points=1, epochs_per_call=5),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(study_options.Options[Preset]):
  """What to run and where; vmap_seeds and evaluation_batch do not change the results."""

  robust_override: tuple[str, ...] = option(
    OVERRIDE.format("the robust networks only", "model.input_batch_norm=True"), ()
  )
  autoattack_examples: int = option(
    "AutoAttack on the first so many test examples, for the networks of the first seed; 0: none. "
    "It may be asked for when everything else is done.",
    0,
    low=0,
  )
  vmap_seeds: bool | None = option("Seeds in one program; not given: if faster.", None)
  formulation: str = option(
    "Of convolutions; auto: by backend.", "auto", choices=["auto", "matmul", "native"]
  )
  matmul_precision: str = option(
    "Of float32 products on an accelerator; default may be TF32 or bfloat16.",
    "highest",
    choices=["highest", "high", "default"],
  )
  evaluation_batch: int | None = option(
    "Examples that an evaluation takes at a time; not given: 100 on CPU, else 2000.", None, low=1
  )

  @property
  def epochs(self) -> int:
    """Of every training run: the preset's, or the recipe's."""
    return net_config(self, "baseline").training.epochs


def net_config(options: Options, net: str) -> ConfigDict:
  """The recipe of one network; a baseline is the same program without ascent steps."""

  def settle(config: ConfigDict) -> None:
    config.training.epochs = options.preset.epochs or config.training.epochs
    if net == "baseline":
      choose(config, "attack", "none")
    else:
      config_lib.train_over(config, net)

  robust = {} if net == "baseline" else {"robust_override": options.robust_override}
  return configured(RECIPES[options.dataset](), options, settle, robust)


def load(config: ConfigDict, split: str) -> datasets.Dataset:
  """A whole split: as in the paper, nothing is held out."""
  data = config.data
  dataset = datasets.load(data.name, split, data_dir=data.data_dir, cache_dir=data.cache_dir)
  part = slice(data[f"{split}_examples"] or None)
  return dataset._replace(images=dataset.images[part], labels=dataset.labels[part])


def work_of(options: Options, config: ConfigDict, trained: int, tested: int) -> dict[str, float]:
  """The work of one part of each kind, in epochs of the baseline, to estimate the time left.

  `trained` and `tested` are numbers of examples.
  """
  seeds, share = options.preset.seeds, tested / trained
  sweep = 0.7 * share * len(config.evaluation.sweep)  # an ascent step costs 2/3 of an update
  pgd_share = (options.preset.pgd_examples or tested) / tested
  work = {
    "baseline": 1.0,  # an epoch: a forward and a backward pass
    "robust": 2.0,  # and as much again to ascend
    "collection": 10 * share / seeds,  # of one seed: some 40 forward passes over the test set
    "single": sweep * (ATTACK_STEPS["single"] + 1),
    "pgd": sweep * (ATTACK_STEPS["pgd"] + 1) * pgd_share,
    # Of one seed: most of its 7,000 passes are queries, without a gradient.
    "autoattack": 2000 * share * options.autoattack_examples / tested / seeds,
  }
  attacks = len(BALLS) * len(NETS) * (work["single"] + work["pgd"] + work["autoattack"])
  training = config.training.epochs * (work["baseline"] + (len(NETS) - 1) * work["robust"])
  return work | {"total": training + seeds * work["collection"] + attacks}


class Trained(NamedTuple):
  """The networks after training, and what their measurements share."""

  options: Options
  study: Study
  work: dict[str, float]  # of `work_of`
  nets: dict[str, SeededNet]
  states: dict[str, TrainState]  # after the last epoch, of all seeds
  digests: dict[str, list[str]]  # of the network of every seed
  test: datasets.Dataset
  seeds: list[int]
  keys: Array  # of evaluation, one of each seed


def run(options: Options) -> None:
  """The whole study, part after part."""
  layers.formulation = None if options.formulation == "auto" else options.formulation
  preset, configs = options.preset, {name: net_config(options, name) for name in NETS}
  first = configs["baseline"]
  test = load(first, "test")
  splits = build.Splits(load(first, "train"), test, test)
  data = {split.split: datasets.fingerprint(split) for split in (splits.train, splits.test)}
  seed_names = [first.seed + i for i in range(preset.seeds)]
  resolved = {name: _without_places(config) for name, config in configs.items()}
  description = {
    "dataset": options.dataset,
    "seeds": seed_names,
    "pgd_examples": preset.pgd_examples,
    "points": preset.points,
    "precision": options.matmul_precision,
    "nets": resolved,
    "data": data,
  }
  totals = {"train_total": len(splits.train.labels), "test_total": len(test.labels)}
  work = work_of(options, first, *totals.values())
  with (
    Study(options.workdir, description, work["total"]) as study,
    jax.default_matmul_precision(options.matmul_precision),
  ):
    trained = train(options, study, configs, splits, seed_names, work)
    measured = {
      "dataset": options.dataset,
      "seeds": seed_names,
      **totals,
      "epochs": first.training.epochs,
      "radii": first.evaluation.radii.to_dict(),
      "curves": {name: seeds.curve(study.workdir / name, seed_names) for name in NETS},
      **collections(trained),
      "sweeps": sweeps(trained),
      "autoattack": autoattack(trained),
    }
    with study.timed("report"):
      report.draw(report.Accuracies(measured), options.workdir / "results")
  manifest = study.manifest("robust_opt.papers.shaham2015", study_options.values(preset))
  manifest |= {"seeds": seed_names, "configs": resolved} | _made_of(trained, data)
  study.publish(report.results_of(measured), manifest, shown=("accuracy", "claims"))


def train(
  options: Options,
  study: Study,
  configs: dict[str, ConfigDict],
  splits: build.Splits,
  seed_names: list[int],
  work: dict[str, float],
) -> Trained:
  """Trains every network for all seeds, from the newest checkpoint on."""
  seed_keys = jax.vmap(jax.random.key)(np.array(seed_names))
  keys = jax.vmap(streams)(seed_keys).evaluation
  settings = _vmapped(options), options.evaluation_batch or (100 if _on_cpu() else 2000)
  nets = {name: assembled(config, splits, seed_keys, *settings) for name, config in configs.items()}

  def progress(name: str, epochs: int, words: str, skipped: bool = False) -> None:
    kind = "baseline" if name == "baseline" else "robust"
    study.progress(work[kind] * epochs, f"{name}: {words}", skipped)

  states = {
    name: engine.train_seeds(
      study.workdir / name,
      net.experiment,
      seed_names,
      functools.partial(count_correct, net, net.experiment.test, keys),
      points=options.preset.points,
      epochs_per_call=options.preset.epochs_per_call,
      timed=functools.partial(study.timed, f"train {name}"),
      progress=functools.partial(progress, name),
    )
    for name, net in nets.items()
  }
  digests = {name: seeds.net_digests(state, len(seed_names)) for name, state in states.items()}
  return Trained(options, study, work, nets, states, digests, splits.test, seed_names, keys)


def _on_cpu() -> bool:
  return jax.default_backend() == "cpu"


def _vmapped(options: Options) -> bool:
  given = options.vmap_seeds
  return seeds.vmap_is_faster(convolutional=True) if given is None else given


def collections(trained: Trained) -> dict[str, Any]:
  """Of every seed the collection and how many of it each network gets right; a sample of one."""
  measured: dict[str, Any] = {"scores": []}
  study, nets = trained.study, trained.nets
  for index, seed in enumerate(trained.seeds):
    weights = {name: seeds.of_seed(state, index) for name, state in trained.states.items()}
    baseline = nets["baseline"], weights["baseline"]
    path = study.workdir / "collections" / f"seed{seed}.npz"
    with study.timed("collections"):
      examples = measure.verified_collection(path, *baseline, trained.test)
    scores = study.once(
      f"collection and scores of seed {seed}",
      path.with_suffix(".json"),
      sha256_of(file_sha256(path), *(trained.digests[name][index] for name in NETS)),
      measure.collection_counts, examples, nets, weights, trained.test,
      work=trained.work["collection"],
    )  # fmt: skip
    measured["scores"].append(scores)
    if index == 0:
      measured["examples"] = measure.sample(examples, *baseline)
  return measured


def sweeps(trained: Trained) -> dict[str, Any]:
  """By network, attack and norm the correct examples of each seed against the radius."""
  measured: dict[str, Any] = {name: {kind: {} for kind in ATTACK_STEPS} for name in NETS}
  test, pgd_examples = trained.test, trained.options.preset.pgd_examples
  for kind, steps in ATTACK_STEPS.items():
    count = (pgd_examples if kind == "pgd" else 0) or len(test.labels)
    data = ArrayData(*jax.device_put((test.images[:count], test.labels[:count])))
    for name, norm in itertools.product(NETS, BALLS):
      measured[name][kind][norm] = trained.study.once(
        f"{name} under {norm}, {tables.counted(steps, 'step')}",
        trained.study.workdir / name / f"sweep_{norm}_{kind}.json",
        sha256_of(*trained.digests[name]),
        measure.radius_sweep,
        *(trained.nets[name], trained.states[name], norm, steps, data, trained.keys),
        work=trained.work[kind],
      )
  return measured


def autoattack(trained: Trained) -> dict[str, dict[str, Any]]:
  """By network and norm what AutoAttack breaks of the first test examples, for the first seed."""
  count = trained.options.autoattack_examples
  broken: dict[str, dict[str, Any]] = {name: {} for name in NETS if count}
  for name, norm in itertools.product(broken, BALLS):
    weights = seeds.of_seed(trained.states[name], 0)
    broken[name][norm] = trained.study.once(
      f"{name} under {norm}, AutoAttack",
      trained.study.workdir / name / f"autoattack_{norm}.json",
      sha256_of(trained.digests[name][0], str(count)),
      measure.broken_by_autoattack,
      *(trained.nets[name], weights, norm, trained.test, count),
      work=trained.work["autoattack"],
    )
  return broken


def _made_of(trained: Trained, data: dict[str, str]) -> dict[str, Any]:
  """Of the manifest what only this study has: device, times and hashes."""
  seconds, device = trained.study.seconds(), jax.devices()[0]
  of_training = [seconds[f"train {name}"] for name in NETS]
  files = sorted((trained.study.workdir / "collections").glob("*.npz"))
  return {
    "device": {
      "platform": device.platform,
      "kind": device.device_kind,
      "count": jax.device_count(),
      "formulation": "matmul" if layers.use_matmul() else "native",
      "matmul_precision": trained.options.matmul_precision,
      "vmapped_seeds": _vmapped(trained.options),
    },
    "wall_seconds_total": round(sum(seconds.values()), 1),
    "training_over_standard_trainings": round(sum(of_training) / (len(NETS) * of_training[0]), 3),
    "sha256": {
      "data": data,
      "checkpoints": {name: digest(state) for name, state in trained.states.items()},
      "nets": trained.digests,
      "collections": {path.name: file_sha256(path) for path in files},
    },
  }


def _without_places(config: ConfigDict) -> dict[str, Any]:
  value = config_lib.as_dict(config)
  value["data"] |= {"data_dir": "", "cache_dir": ""}
  return value
