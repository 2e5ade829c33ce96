r"""Shaham, Yamada and Negahban 2015 (arXiv 1511.05432): every table, figure and claim.

  python -m robust_opt.papers.shaham2015 --dataset=digits --preset=quick --workdir=runs/digits
  python -m robust_opt.papers.shaham2015 --dataset=mnist --preset=paper --workdir=runs/mnist \
      --data_dir=/path/to/tensorflow_datasets

Trains four nets (baseline, robust over the l_1, l_2 and l_inf ball) for several seeds at once,
makes each seed's adversarial collection from its baseline, attacks every net by its own gradient,
and writes workdir/results. Run it again on the same --workdir to go on where it was stopped.

All training images are used and the nets are those after the last epoch, as in the paper: there is
no validation split, and nothing is selected on the test set. Radii are in pixels of [0, 1].
"""

import functools
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from robust_opt import commands
from robust_opt.arrays import digest
from robust_opt.data import datasets
from robust_opt.experiments import build, engine, overrides, seeds
from robust_opt.experiments import config as config_lib
from robust_opt.files import write_json
from robust_opt.models import layers
from robust_opt.papers.shaham2015 import nets as parts
from robust_opt.papers.shaham2015 import report as report
from robust_opt.studies.study import Study, command, file_sha256, sha256_of
from robust_opt.training import ArrayData, TrainState, streams
from robust_opt.types import Array

NETS = ("baseline", "l1", "l2", "linf")
RECIPES = {"digits": config_lib.digits, "mnist": config_lib.mnist, "cifar10": config_lib.cifar}
ATTACK_STEPS = {"single": 1, "pgd": 50}


class Numbers(NamedTuple):
  """What a preset sets; a flag of the same name goes before it.

  Attributes:
    seeds: nets of each kind; the first seed is the recipe's.
    epochs: 0 is the recipe's.
    pgd_examples: PGD attacks the first so many test examples; 0: all.
    points: how often an epoch the clean test accuracy is taken, at most.
    epochs_per_call: epochs between two checkpoints.
  """

  seeds: int
  epochs: int
  pgd_examples: int
  points: int
  epochs_per_call: int


PRESETS = {
  ("quick", "digits"): Numbers(seeds=3, epochs=15, pgd_examples=50, points=2, epochs_per_call=5),
  ("quick", "mnist"): Numbers(seeds=2, epochs=2, pgd_examples=200, points=4, epochs_per_call=1),
  ("quick", "cifar10"): Numbers(seeds=2, epochs=1, pgd_examples=100, points=2, epochs_per_call=1),
  ("paper", "digits"): Numbers(seeds=5, epochs=0, pgd_examples=0, points=4, epochs_per_call=10),
  ("paper", "mnist"): Numbers(seeds=5, epochs=0, pgd_examples=0, points=4, epochs_per_call=10),
  ("paper", "cifar10"): Numbers(seeds=1, epochs=0, pgd_examples=0, points=1, epochs_per_call=5),
}


class Options(NamedTuple):
  """What to run and where; the places, `vmapped` and `evaluation_batch` do not change the results.

  Attributes:
    dataset: of RECIPES.
    workdir: new, or that of the same study.
    numbers: of a preset, or other ones.
    data_dir: where prepared sets lie; empty: TFDS' default.
    cache_dir: where arrays are cached; empty: the user's cache directory.
    vmapped: whether the seeds are one program, rather than one after the other.
    precision: of float32 products on an accelerator; "default" may be TF32 or bfloat16.
    evaluation_batch: examples that an evaluation takes at a time; it changes speed and memory, not
      the answer.
    autoattack_examples: AutoAttack attacks the first so many test examples, of the nets of the
      first seed; 0: none. It may be asked for when all else is done.
    override: key=value on the recipe of every net.
    robust_override: the same on the robust nets only.
  """

  dataset: str
  workdir: Path
  numbers: Numbers
  data_dir: str = ""
  cache_dir: str = ""
  vmapped: bool = False
  precision: str = "highest"
  evaluation_batch: int = 100
  autoattack_examples: int = 0
  override: Sequence[str] = ()
  robust_override: Sequence[str] = ()


def net_config(options: Options, net: str) -> ConfigDict:
  """The recipe of one net; a baseline is the same program with no ascent step."""
  config = RECIPES[options.dataset]()
  config.dataset.data_dir, config.dataset.cache_dir = options.data_dir, options.cache_dir
  config.training.epochs = options.numbers.epochs or config.training.epochs
  chosen = [*options.override, *(options.robust_override if net != "baseline" else ())]
  if net == "baseline":
    config.attack.num_steps = 0
  else:
    config.uncertainty.name = net
  for item in chosen:
    overrides.override(config, item)
  if net != "baseline":
    config.uncertainty.radius = config.evaluation.radii[net]
  config_lib.validate(config)
  return config


def load(config: ConfigDict, split: str) -> datasets.Dataset:
  """A whole split: the paper keeps nothing back."""
  data_dir, cache_dir = config.dataset.data_dir or None, config.dataset.cache_dir or None
  dataset = datasets.load(config.dataset.name, split, data_dir=data_dir, cache_dir=cache_dir)
  count = config.dataset[f"{split}_examples"] or len(dataset.labels)
  return dataset._replace(images=dataset.images[:count], labels=dataset.labels[:count])


class Work(NamedTuple):
  """How much each part is, in epochs of the baseline: only for the progress and the time left.

  Attributes:
    epochs: of training.
    share: test examples / training examples.
    radii: of a sweep.
    pgd_share: of the test examples that PGD attacks.
    autoattack_share: of the test examples that AutoAttack attacks.
    seeds: nets of each kind.
  """

  epochs: int
  share: float
  radii: int
  pgd_share: float
  autoattack_share: float
  seeds: int

  def epoch(self, net: str) -> float:
    """One epoch: a forward and a backward pass, and as much again to ascend."""
    return 1.0 if net == "baseline" else 2.0

  def collection(self) -> float:
    """One seed's collection and scores, of about 40 forward passes over the test set."""
    return 10 * self.share / self.seeds

  def sweep(self, kind: str) -> float:
    """One net under one attack at every radius; an ascent step costs 2/3 of an update."""
    examples = self.share * (self.pgd_share if kind == "pgd" else 1.0)
    return examples * self.radii * (0.7 * ATTACK_STEPS[kind] + 0.7)

  def autoattack(self) -> float:
    """One net of one seed; of its 7,000 passes most are queries, without a gradient."""
    return 2000 * self.share * self.autoattack_share / self.seeds

  def total(self) -> float:
    """Of the whole study."""
    training = self.epochs * sum(self.epoch(net) for net in NETS)
    sweeps = 3 * len(NETS) * sum(self.sweep(kind) for kind in ATTACK_STEPS)
    autoattack = 3 * len(NETS) * self.autoattack()
    return training + self.seeds * self.collection() + sweeps + autoattack


class Nets(NamedTuple):
  """The four nets and what they share."""

  nets: dict[str, parts.Net]
  train: datasets.Dataset
  test: datasets.Dataset
  seeds: list[int]
  keys: Array


def run(options: Options) -> None:
  """The whole study, part after part."""
  numbers, workdir = options.numbers, options.workdir
  configs = {name: net_config(options, name) for name in NETS}
  first = configs["baseline"]
  train, test = load(first, "train"), load(first, "test")
  seed_names = [first.seed + i for i in range(numbers.seeds)]
  description = {
    "dataset": options.dataset,
    "seeds": seed_names,
    "pgd_examples": numbers.pgd_examples,
    "points": numbers.points,
    "precision": options.precision,
    "nets": {name: _placeless(config) for name, config in configs.items()},
    "data": {"train": datasets.fingerprint(train), "test": datasets.fingerprint(test)},
  }
  work = Work(
    epochs=first.training.epochs,
    share=len(test.labels) / len(train.labels),
    radii=len(first.evaluation.sweep),
    pgd_share=(numbers.pgd_examples or len(test.labels)) / len(test.labels),
    autoattack_share=options.autoattack_examples / len(test.labels),
    seeds=numbers.seeds,
  )
  study = Study(workdir, description, work.total())
  try:
    with jax.default_matmul_precision(options.precision):
      keys = jax.vmap(jax.random.key)(np.array(seed_names))
      nets = {
        name: parts.assembled(
          config,
          build.Splits(train, test, test),
          keys,
          vmapped=options.vmapped,
          batch_size=options.evaluation_batch,
        )
        for name, config in configs.items()
      }
      study_nets = Nets(nets, train, test, seed_names, keys)
      states = train_all(study, study_nets, numbers, work)
      measured = measure(study, study_nets, states, numbers.pgd_examples, work)
      count = options.autoattack_examples
      measured["autoattack"] = autoattack(study, study_nets, states, count, work) if count else {}
    with study.timed("report"):
      report.write({"dataset": options.dataset} | measured, workdir / "results")
    value = manifest(options, study, study_nets, states)
    write_json(workdir / "results" / "manifest.json", value)
  finally:
    study.close()
  print((workdir / "results" / "accuracy.md").read_text())
  print((workdir / "results" / "claims.md").read_text())
  print(f"Everything about this study is in {workdir}")


def train_all(study: Study, nets: Nets, numbers: Numbers, work: Work) -> dict[str, TrainState]:
  """Every net's state after its last epoch."""
  keys = jax.vmap(streams)(nets.keys).evaluation
  return {
    name: engine.train_seeds(
      study.workdir / name,
      net.experiment,
      nets.seeds,
      functools.partial(parts.count_correct, net, net.experiment.test, keys),
      points=numbers.points,
      epochs_per_call=numbers.epochs_per_call,
      timed=functools.partial(study.timed, f"train {name}"),
      progress=lambda epochs, words, skipped=False, name=name: study.progress(
        work.epoch(name) * epochs, f"{name}: {words}", skipped
      ),
    )
    for name, net in nets.nets.items()
  }


def measure(
  study: Study, study_nets: Nets, states: dict[str, TrainState], pgd_examples: int, work: Work
) -> dict[str, Any]:
  """All numbers of the report, each part once."""
  nets, test = study_nets.nets, study_nets.test
  hashes = {name: seeds.net_digests(state, len(study_nets.seeds)) for name, state in states.items()}
  measured: dict[str, Any] = {
    "seeds": study_nets.seeds,
    "train_total": len(study_nets.train.labels),
    "test_total": len(test.labels),
    "epochs": nets["baseline"].config.training.epochs,
    "radii": nets["baseline"].config.evaluation.radii.to_dict(),
    "curves": {name: seeds.curve(study.workdir / name, study_nets.seeds) for name in NETS},
    "scores": [],
    "sweeps": {name: {} for name in NETS},
  }
  for index, seed in enumerate(study_nets.seeds):
    weights = {name: seeds.of_seed(state, index) for name, state in states.items()}
    path = study.workdir / "collections" / f"seed{seed}.npz"
    with study.timed("collections"):
      examples = parts.verified_collection(path, nets["baseline"], weights["baseline"], test)
    measured["scores"].append(
      study.once(
        f"collection and scores of seed {seed}",
        path.with_suffix(".json"),
        sha256_of(file_sha256(path), *(hashes[name][index] for name in NETS)),
        functools.partial(parts.scores, examples, nets, weights, test),
        work.collection(),
      )
    )
    if index == 0:
      measured["examples"] = parts.sample(examples, nets["baseline"], weights["baseline"])
  evaluation_keys = jax.vmap(streams)(study_nets.keys).evaluation
  for kind, steps in ATTACK_STEPS.items():
    count = (pgd_examples if kind == "pgd" else 0) or len(test.labels)
    part = ArrayData(*jax.device_put((test.images[:count], test.labels[:count])))
    for name, net in nets.items():
      for norm in config_lib.NORMS:
        measured["sweeps"][name].setdefault(kind, {})[norm] = study.once(
          f"{name} under {norm}, {steps} step{'s' if steps > 1 else ''}",
          study.workdir / name / f"sweep_{norm}_{kind}.json",
          sha256_of(*hashes[name]),
          functools.partial(parts.sweep, net, states[name], norm, steps, part, evaluation_keys),
          work.sweep(kind),
        )
  return measured


def autoattack(
  study: Study, study_nets: Nets, states: dict[str, TrainState], count: int, work: Work
) -> dict[str, dict[str, Any]]:
  """By net and norm what AutoAttack leaves of the first test examples, for the first seed."""
  found: dict[str, dict[str, Any]] = {name: {} for name in NETS}
  for name, net in study_nets.nets.items():
    weights = seeds.of_seed(states[name], 0)
    for norm in config_lib.NORMS:
      found[name][norm] = study.once(
        f"{name} under {norm}, AutoAttack",
        study.workdir / name / f"autoattack_{norm}.json",
        sha256_of(seeds.net_digests(states[name], 1)[0], str(count)),
        functools.partial(parts.autoattacked, net, weights, norm, study_nets.test, count),
        work.autoattack(),
      )
  return found


def manifest(
  options: Options, study: Study, nets: Nets, states: dict[str, TrainState]
) -> dict[str, Any]:
  """What the results were made of, by what, and how long it took."""
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "matplotlib")
  seconds = study.seconds()
  trained = [seconds[f"train {name}"] for name in NETS]
  device = jax.devices()[0]
  folder = study.workdir / "collections"
  return {
    "command": command("robust_opt.papers.shaham2015", sys.argv[1:]),
    "numbers": options.numbers._asdict(),
    "seeds": nets.seeds,
    "configs": {name: _placeless(net.config) for name, net in nets.nets.items()},
    "versions": {name: metadata.version(name) for name in packages}
    | {"python": platform.python_version()},
    "device": {
      "platform": device.platform,
      "kind": device.device_kind,
      "count": jax.device_count(),
      "formulation": "matmul" if layers.use_matmul() else "native",
      "matmul_precision": options.precision,
      "vmapped_seeds": options.vmapped,
    },
    "wall_seconds": seconds,
    "wall_seconds_total": round(sum(seconds.values()), 1),
    "training_over_standard_trainings": round(sum(trained) / (len(NETS) * trained[0]), 3),
    "sha256": {
      "data": {s.split: datasets.fingerprint(s) for s in (nets.train, nets.test)},
      "checkpoints": {name: digest(state) for name, state in states.items()},
      "nets": {name: seeds.net_digests(state, len(nets.seeds)) for name, state in states.items()},
      "collections": {path.name: file_sha256(path) for path in sorted(folder.glob("*.npz"))},
    },
  }


def _placeless(config: ConfigDict) -> dict[str, Any]:
  value = config_lib.as_dict(config)
  value["dataset"] |= {"data_dir": "", "cache_dir": ""}
  return value


def main(argv: list[str]) -> None:
  """Flags to options."""
  given = flags.FLAGS
  commands.refuse_positional(argv)
  layers.formulation = None if given.formulation == "auto" else given.formulation
  on_cpu = jax.default_backend() == "cpu"
  run(
    Options(
      **commands.study_of(PRESETS),
      vmapped=not on_cpu if given.vmap_seeds is None else given.vmap_seeds,
      precision=given.matmul_precision,
      evaluation_batch=given.evaluation_batch or (100 if on_cpu else 2000),
      autoattack_examples=given.autoattack_examples,
      override=given.override,
      robust_override=given.robust_override,
    )
  )


def define_flags() -> None:
  """Only where this file is the program, so that importing it defines none."""
  commands.define_study_flags(RECIPES)
  for name, low in zip(Numbers._fields, (1, 0, 0, 1, 1)):
    flags.DEFINE_integer(name, None, f"The preset's {name}, or this.", lower_bound=low)
  flags.DEFINE_boolean("vmap_seeds", None, "Seeds in one program; by default not on CPU.")
  forms = ["auto", "matmul", "native"]
  flags.DEFINE_enum("formulation", "auto", forms, "Of convolutions; auto: by backend.")
  words = "Of float32 products on an accelerator; default may be TF32 or bfloat16."
  flags.DEFINE_enum("matmul_precision", "highest", ["highest", "high", "default"], words)
  words = "Examples an evaluation takes at a time; by default 100 on CPU, else 2000."
  flags.DEFINE_integer("evaluation_batch", None, words, lower_bound=1)
  words = "AutoAttack on so many test examples of the first seed's nets; 0: none."
  flags.DEFINE_integer("autoattack_examples", 0, words, lower_bound=0)
  words = "key=value on the recipe of every net, e.g. training.shuffle=True; may be repeated."
  flags.DEFINE_multi_string("override", [], words)
  words = "The same on the robust nets only, e.g. model.input_batch_norm=True."
  flags.DEFINE_multi_string("robust_override", [], words)
