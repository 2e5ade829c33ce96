r"""Shaham, Yamada and Negahban 2015 (arXiv 1511.05432): every table, figure and claim.

  python -m robust_opt.papers.shaham2015 --dataset=digits --preset=quick --workdir=runs/digits
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
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

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
  vmap_seeds: bool | None = option("Seeds in one program; not given: except on CPU.", None)
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
  data_dir, cache_dir = config.data.data_dir or None, config.data.cache_dir or None
  dataset = datasets.load(config.data.name, split, data_dir=data_dir, cache_dir=cache_dir)
  count = config.data[f"{split}_examples"] or len(dataset.labels)
  return dataset._replace(images=dataset.images[:count], labels=dataset.labels[:count])


class Work(NamedTuple):
  """The work of each part in epochs of the baseline, to estimate the time left.

  Attributes:
    epochs: of training.
    share: test examples / training examples.
    radii: of a sweep.
    attacked: the share of the test examples that "pgd" and "autoattack" attack.
    seeds: networks of each kind.
  """

  epochs: int
  share: float
  radii: int
  attacked: dict[str, float]
  seeds: int

  def epoch(self, net: str) -> float:
    """One epoch: a forward and a backward pass, and as much again to ascend."""
    return 1.0 if net == "baseline" else 2.0

  def collection(self) -> float:
    """One seed's collection and its counts, of about 40 forward passes over the test set."""
    return 10 * self.share / self.seeds

  def sweep(self, kind: str) -> float:
    """One network under one attack at every radius; an ascent step costs 2/3 of an update."""
    examples = self.share * self.attacked.get(kind, 1.0)
    return examples * self.radii * (0.7 * ATTACK_STEPS[kind] + 0.7)

  def autoattack(self) -> float:
    """One network of one seed; most of its 7,000 passes are queries, without a gradient."""
    return 2000 * self.share * self.attacked["autoattack"] / self.seeds

  def total(self) -> float:
    """Of the whole study."""
    training = self.epochs * sum(self.epoch(net) for net in NETS)
    sweeps = 3 * len(NETS) * sum(self.sweep(kind) for kind in ATTACK_STEPS)
    autoattack = 3 * len(NETS) * self.autoattack()
    return training + self.seeds * self.collection() + sweeps + autoattack


class StudyNets(NamedTuple):
  """The four networks and what they share."""

  nets: dict[str, SeededNet]
  train: datasets.Dataset
  test: datasets.Dataset
  seeds: list[int]
  keys: Array


def run(options: Options) -> None:
  """The whole study, part after part."""
  layers.formulation = None if options.formulation == "auto" else options.formulation
  preset, configs = options.preset, {name: net_config(options, name) for name in NETS}
  first = configs["baseline"]
  train, test = load(first, "train"), load(first, "test")
  seed_names = [first.seed + i for i in range(preset.seeds)]
  description = {
    "dataset": options.dataset,
    "seeds": seed_names,
    "pgd_examples": preset.pgd_examples,
    "points": preset.points,
    "precision": options.matmul_precision,
    "nets": {name: _without_places(config) for name, config in configs.items()},
    "data": {"train": datasets.fingerprint(train), "test": datasets.fingerprint(test)},
  }
  total = len(test.labels)
  attacked = {"pgd": preset.pgd_examples or total, "autoattack": options.autoattack_examples}
  work = Work(
    epochs=first.training.epochs,
    share=total / len(train.labels),
    radii=len(first.evaluation.sweep),
    attacked={kind: count / total for kind, count in attacked.items()},
    seeds=preset.seeds,
  )
  with (
    Study(options.workdir, description, work.total()) as study,
    jax.default_matmul_precision(options.matmul_precision),
  ):
    keys = jax.vmap(jax.random.key)(np.array(seed_names))
    nets = _assembled(options, configs, build.Splits(train, test, test), keys)
    study_nets = StudyNets(nets, train, test, seed_names, keys)
    states = train_all(study, study_nets, preset, work)
    measured = {"dataset": options.dataset} | measure_all(study, study_nets, states, options, work)
    with study.timed("report"):
      report.draw(report.Accuracies(measured), options.workdir / "results")
    manifest = manifest_of(options, study, study_nets, states)
  study.publish(report.results_of(measured), manifest, shown=("accuracy", "claims"))


def _assembled(
  options: Options, configs: dict[str, ConfigDict], splits: build.Splits, keys: Array
) -> dict[str, SeededNet]:
  batch_size = options.evaluation_batch or (100 if _on_cpu() else 2000)
  return {
    name: assembled(config, splits, keys, vmapped=_vmapped(options), batch_size=batch_size)
    for name, config in configs.items()
  }


def _on_cpu() -> bool:
  return jax.default_backend() == "cpu"


def _vmapped(options: Options) -> bool:
  return not _on_cpu() if options.vmap_seeds is None else options.vmap_seeds


def train_all(study: Study, nets: StudyNets, preset: Preset, work: Work) -> dict[str, TrainState]:
  """The state of every network after its last epoch."""
  keys = jax.vmap(streams)(nets.keys).evaluation
  return {
    name: engine.train_seeds(
      study.workdir / name,
      net.experiment,
      nets.seeds,
      functools.partial(count_correct, net, net.experiment.test, keys),
      points=preset.points,
      epochs_per_call=preset.epochs_per_call,
      timed=functools.partial(study.timed, f"train {name}"),
      progress=lambda epochs, words, skipped=False, name=name: study.progress(
        work.epoch(name) * epochs, f"{name}: {words}", skipped
      ),
    )
    for name, net in nets.nets.items()
  }


def measure_all(
  study: Study, study_nets: StudyNets, states: dict[str, TrainState], options: Options, work: Work
) -> dict[str, Any]:
  """All numbers of the report, each part once."""
  nets, test = study_nets.nets, study_nets.test
  hashes = {name: seeds.net_digests(state, len(study_nets.seeds)) for name, state in states.items()}
  config = nets["baseline"].config
  measured: dict[str, Any] = {
    "seeds": study_nets.seeds,
    "train_total": len(study_nets.train.labels),
    "test_total": len(test.labels),
    "epochs": config.training.epochs,
    "radii": config.evaluation.radii.to_dict(),
    "curves": {name: seeds.curve(study.workdir / name, study_nets.seeds) for name in NETS},
    "scores": [],
    "sweeps": {name: {} for name in NETS},
  }
  for index, seed in enumerate(study_nets.seeds):
    weights = {name: seeds.of_seed(state, index) for name, state in states.items()}
    path = study.workdir / "collections" / f"seed{seed}.npz"
    with study.timed("collections"):
      examples = measure.verified_collection(path, nets["baseline"], weights["baseline"], test)
    counts = functools.partial(measure.collection_counts, examples, nets, weights, test)
    made_from = sha256_of(file_sha256(path), *(hashes[name][index] for name in NETS))
    part = f"collection and scores of seed {seed}"
    measured["scores"].append(
      study.once(part, path.with_suffix(".json"), made_from, counts, work.collection())
    )
    if index == 0:
      measured["examples"] = measure.sample(examples, nets["baseline"], weights["baseline"])
  evaluation_keys = jax.vmap(streams)(study_nets.keys).evaluation
  for kind, steps in ATTACK_STEPS.items():
    count = (options.preset.pgd_examples if kind == "pgd" else 0) or len(test.labels)
    attacked = ArrayData(*jax.device_put((test.images[:count], test.labels[:count])))
    for name, net in nets.items():
      measured["sweeps"][name][kind] = {
        norm: study.once(
          f"{name} under {norm}, {steps} step{'s' if steps > 1 else ''}",
          study.workdir / name / f"sweep_{norm}_{kind}.json",
          sha256_of(*hashes[name]),
          functools.partial(
            measure.radius_sweep, net, states[name], norm, steps, attacked, evaluation_keys
          ),
          work.sweep(kind),
        )
        for norm in BALLS
      }
  count = options.autoattack_examples
  measured["autoattack"] = autoattack(study, study_nets, states, count, work) if count else {}
  return measured


def autoattack(
  study: Study, study_nets: StudyNets, states: dict[str, TrainState], count: int, work: Work
) -> dict[str, dict[str, Any]]:
  """By network and norm what AutoAttack breaks of the first test examples, for the first seed."""
  broken: dict[str, dict[str, Any]] = {name: {} for name in NETS}
  for name, net in study_nets.nets.items():
    weights = seeds.of_seed(states[name], 0)
    for norm in BALLS:
      broken[name][norm] = study.once(
        f"{name} under {norm}, AutoAttack",
        study.workdir / name / f"autoattack_{norm}.json",
        sha256_of(seeds.net_digests(states[name], 1)[0], str(count)),
        functools.partial(measure.broken_by_autoattack, net, weights, norm, study_nets.test, count),
        work.autoattack(),
      )
  return broken


def manifest_of(
  options: Options, study: Study, nets: StudyNets, states: dict[str, TrainState]
) -> dict[str, Any]:
  """What the results were made of, by what, and how long it took."""
  seconds, device = study.seconds(), jax.devices()[0]
  trained = [seconds[f"train {name}"] for name in NETS]
  folder = study.workdir / "collections"
  numbers = study_options.values(options.preset)
  return study.manifest("robust_opt.papers.shaham2015", numbers) | {
    "seeds": nets.seeds,
    "configs": {name: _without_places(net.config) for name, net in nets.nets.items()},
    "device": {
      "platform": device.platform,
      "kind": device.device_kind,
      "count": jax.device_count(),
      "formulation": "matmul" if layers.use_matmul() else "native",
      "matmul_precision": options.matmul_precision,
      "vmapped_seeds": _vmapped(options),
    },
    "wall_seconds_total": round(sum(seconds.values()), 1),
    "training_over_standard_trainings": round(sum(trained) / (len(NETS) * trained[0]), 3),
    "sha256": {
      "data": {s.split: datasets.fingerprint(s) for s in (nets.train, nets.test)},
      "checkpoints": {name: digest(state) for name, state in states.items()},
      "nets": {name: seeds.net_digests(state, len(nets.seeds)) for name, state in states.items()},
      "collections": {path.name: file_sha256(path) for path in sorted(folder.glob("*.npz"))},
    },
  }


def _without_places(config: ConfigDict) -> dict[str, Any]:
  value = config_lib.as_dict(config)
  value["data"] |= {"data_dir": "", "cache_dir": ""}
  return value
