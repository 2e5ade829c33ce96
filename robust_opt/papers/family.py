r"""Compares every method of robust training for one budget, on the same data and network.

  python -m robust_opt.papers.family --dataset=digits --preset=quick --workdir=runs/family_digits
  python -m robust_opt.papers.family --dataset=mnist --preset=paper --workdir=runs/family \
      --data_dir=/path/to/tensorflow_datasets

Each method of experiments/methods.py trains on the same data with the same network, optimizer and
number of forward and backward passes over the training set; cheaper methods take more epochs. With
--budget=updates all take the same number of updates instead, and the question is what a cheaper
update costs in robustness. Every network is then evaluated over the same l_inf ball by PGD of 50
steps and by AutoAttack, and the updates of all methods are timed side by side. The runs are in
--workdir, as robust_opt.main leaves them, and the table in --workdir/results. The same command
resumes. A table is extended by a seed or a method, on any machine, with

  ... --seeds=4 --known=results/family/mnist/measured.json
"""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from robust_opt import commands, statistics, tables
from robust_opt.errors import InputError
from robust_opt.experiments import build, costs, methods, target
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import run as experiment
from robust_opt.experiments.sections import choose
from robust_opt.files import write_json
from robust_opt.sets import LInf
from robust_opt.studies import accuracy
from robust_opt.studies import options as study_options
from robust_opt.studies.options import configured, option
from robust_opt.studies.study import Study, sha256_of
from robust_opt.training import sharding

# Updates are timed on the first examples of the training set, in calls of several updates.
TIMED_EXAMPLES, TIMED_UPDATES, TIMED_CALLS = 6000, 20, 5
# What is kept of a network.
MEASURED = (
  "method", "seed", "device", "examples", "pgd", "autoattack", "clean", "tested", "epochs",
  "overfitting", "params_sha256",
)  # fmt: skip
Runs = dict[str, list[dict[str, Any]]]  # by method the measurements of every seed


@dataclasses.dataclass(frozen=True)
class Preset:
  """The numbers of the study."""

  seeds: int = option("Networks of every method.", low=1)
  passes: int = option("Over the training set, for every method (of updates: epochs).", low=1)
  examples: int = option("Attack the first so many test examples; 0: all.", low=0)
  version: str = option("Of AutoAttack.", choices=["standard", "quick"])
  budget: str = option("What is the same for all.", "passes", choices=["passes", "updates"])


PRESETS = {
  ("quick", "digits"): Preset(seeds=1, passes=24, examples=100, version="quick"),
  ("quick", "mnist"): Preset(seeds=1, passes=10, examples=100, version="quick"),
  ("paper", "digits"): Preset(seeds=5, passes=120, examples=0, version="standard"),
  ("paper", "mnist"): Preset(seeds=3, passes=40, examples=500, version="standard"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(study_options.Options[Preset]):
  """What to run and where."""

  methods: Sequence[str] = option(f"Not given: all of {', '.join(methods.ALL)}.", ())
  known: Sequence[str] = option("Files results/measured.json: networks not to train again.", ())

  @property
  def names(self) -> Sequence[str]:
    """The methods to compare."""
    return self.methods or tuple(methods.ALL)


def base_config(dataset: str) -> ConfigDict:
  """What all methods share."""
  if dataset == "mnist":
    config = config_lib.mnist_methods()
  else:
    config = config_lib.digits()
    choose(config, "set", "LInf", radius=0.15, box=config_lib.PIXEL_BOX)
    choose(config, "schedule", "cosine")
  # The table needs the clean accuracy of a run only; attacks follow.
  config.evaluation.sweep, config.evaluation.radii.l1 = (0.0, 1.0), 0.0
  return config


def config_of(options: Options, name: str, seed: int) -> ConfigDict:
  """The config of one run of a method: as many epochs as the budget allows, at least one."""
  method, preset = methods.ALL[name], options.preset

  def settle(config: ConfigDict) -> None:
    config.seed = seed
    cost = method.passes if preset.budget == "passes" else method.updates
    config.training.epochs = max(1, round(preset.passes / cost))
    method.apply(config)
    if config.set.name != "L2":
      config.evaluation.radii.l2 = 0.0  # only methods that train over l_2 need it

  return configured(base_config(options.dataset), options, settle)


def identity(options: Options, name: str, seed: int, digests: dict[str, str]) -> str:
  """A hash of all that the measurements of a network depend on, except versions and the device.

  `digests`: of the data, from datasets.fingerprints.
  """
  config = config_lib.as_dict(config_of(options, name, seed))
  del config["data"]["data_dir"], config["data"]["cache_dir"]
  evaluation = {
    "examples": options.preset.examples,
    "version": options.preset.version,
    "radius": base_config(options.dataset).set.radius,
    "pgd": [accuracy.PGD_STEPS, accuracy.PGD_RELATIVE_STEP],
    "data": digests,
  }
  return sha256_of(json.dumps(config, sort_keys=True), json.dumps(evaluation, sort_keys=True))


def run(options: Options) -> tables.Table:
  """Trains, attacks and writes what is not done yet; returns the table."""
  unknown = sorted(set(options.names) - set(methods.ALL))
  if unknown:
    allowed = ", ".join(methods.ALL)
    raise InputError(f"--methods must be among {allowed}, but {', '.join(unknown)} is not.")
  seeds, path = range(1, options.preset.seeds + 1), options.workdir / "results" / "measured.json"
  known = _known(options.known)
  description = study_options.description(options)
  digests = description["data"]
  # By seeds first, so that a study that is stopped has all methods.
  pairs = [(name, seed) for seed in seeds for name in options.names]
  keys = {pair: identity(options, *pair, digests) for pair in pairs}
  timing = 0.2 * len(options.names)
  with Study(options.workdir, description, work=len(keys) + timing) as study:
    # Measurements of other methods in this directory are kept.
    measured = _known([path]) if path.exists() else {}
    known |= measured
    for (name, seed), key in keys.items():
      measured[key] = known[key] if key in known else _measure(options, study, name, seed)
      study.progress(1.0, f"{name}, seed {seed}", skipped=key in known)
      write_json(path, measured)
    times = _times(options, study, timing, digests)
  runs = {name: [measured[keys[name, seed]] for seed in seeds] for name in options.names}
  table = table_of(options.dataset, options.preset, runs, times)
  manifest = study.manifest("robust_opt.papers.family", study_options.values(options.preset))
  study.publish({"family": table}, manifest)
  return table


def _known(paths: Sequence[Path | str]) -> dict[str, dict[str, Any]]:
  """The measurements in files of earlier studies, by `identity`."""
  known: dict[str, dict[str, Any]] = {}
  for path in map(Path, paths):
    try:
      content = json.loads(path.read_text(encoding="utf-8"))
      known |= {key: {name: value[name] for name in MEASURED} for key, value in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      raise InputError(
        f"--known must name files results/measured.json of this command, but {path} is not one "
        f"({error!r})."
      ) from error
  return known


def _measure(options: Options, study: Study, name: str, seed: int) -> dict[str, Any]:
  """Trains and attacks one network: the values of MEASURED by name."""
  workdir = options.workdir / name / str(seed)
  with study.timed(f"train {name}"):
    summary = experiment.run(config_of(options, name, seed), workdir)
  with study.timed(f"attack {name}"):
    attacked = attack(options, workdir)
  detected = summary["overfitting"]
  return attacked | {
    "method": name,
    "seed": seed,
    "device": _device(),
    **accuracy.of_summary(summary),
    "epochs": summary["config"]["training"]["epochs"],
    "overfitting": [detected["kind"]] if detected else [],
    "params_sha256": summary["params_sha256"],
  }


def attack(options: Options, workdir: Path) -> dict[str, Any]:
  """Accuracies over the l_inf ball of the base config, whatever the network was trained over."""
  evaluated = target.load({"workdir": str(workdir), **options.places}, options.preset.examples)
  u = LInf(base_config(options.dataset).set.radius, box=(0.0, 1.0))
  robust = functools.partial(accuracy.robust_accuracy, evaluated, u)
  return {
    "examples": len(evaluated.y),
    "pgd": robust(accuracy.PGD),
    "autoattack": robust(options.preset.version),
  }


def _times(options: Options, study: Study, work: float, digests: dict[str, str]) -> Any:
  """By method the time of an update, relative to standard training's."""
  names = dict.fromkeys(["standard", *options.names])
  configs = {name: config_of(options, name, 1) for name in names}

  def compute() -> dict[str, float]:
    train, part = build.splits(configs["standard"]).train, slice(TIMED_EXAMPLES)
    train = train._replace(images=train.images[part], labels=train.labels[part])
    cost = costs.side_by_side(configs, train, TIMED_UPDATES, TIMED_CALLS)
    return {name: costs.ratio(cost[name], cost["standard"]) for name in options.names}

  identities = [identity(options, name, 1, digests) for name in names]
  path = options.workdir / "times.json"
  made_from = sha256_of(_device(), *identities)
  return study.once("time of an update", path, made_from, compute, work=work)


def _device() -> str:
  return f"{sharding.devices_in_words()}, jax {jax.__version__}"


def table_of(dataset: str, preset: Preset, runs: Runs, times: Mapping[str, float]) -> tables.Table:
  """A row for each method: mean over the seeds that learned, 95 % interval, the value of each seed.

  `times`: of an update, relative to standard training's.
  """
  autoattack = "AutoAttack" if preset.version == "standard" else "AutoAttack (quick)"
  pgd = f"PGD-{accuracy.PGD_STEPS}"
  accuracies = {"clean": "clean", autoattack: "autoattack", pgd: "pgd"}
  against = f"{pgd} minus robust, by seed"
  columns = ["method", *accuracies, *(f"{title} by seed" for title in accuracies)]
  columns += ["time of an update", "passes an update", "epochs", "source"]
  columns += [against] if "robust" in runs else []
  if any(run["overfitting"] for seeds in runs.values() for run in seeds):
    columns.append("overfitting")
  rows = []
  for name, seeds in runs.items():
    method = methods.ALL[name]
    row: dict[str, Any] = {
      "method": name,
      "source": method.source,
      "passes an update": f"{method.passes / method.updates:g}",
      "epochs": seeds[0]["epochs"],
      "time of an update": f"{times[name]:.2f}",
      "overfitting": _overfitting(seeds),
    }
    for title, key in accuracies.items():
      count = seeds[0]["tested" if key == "clean" else "examples"]
      row[title] = tables.Percent.of([run[key] for run in seeds], count, _learned(seeds))
      row[f"{title} by seed"] = row[title].by_seed()
    if "robust" in runs:
      row[against] = _differences(seeds, runs["robust"])
    rows.append(row)
  budget = (
    f"as many updates as {preset.passes} epochs have."
    if preset.budget == "updates"
    else f"some {preset.passes} forward and backward passes over the training set, in whole epochs."
  )
  note = (
    f"{tables.interval_note(preset.seeds)} {tables.FAILED_NOTE} Every method: {budget} Clean: the "
    f"whole test set; attacked: its first {seeds[0]['examples']} examples. Time of an update: "
    f"relative to standard training's, the two taking turns in one process ({_device()}); each "
    "replay of free training is an update."
  )
  radius = base_config(dataset).set.radius
  title = f"Robust training on {dataset}: accuracy (%) over l_inf, radius {radius:g}"
  return tables.Table(title, columns, rows, [note])


def _learned(runs: Sequence[dict[str, Any]]) -> Any:
  """Which seeds did not fail to learn, [S]."""
  return statistics.has_learned([run["clean"] for run in runs], accuracy.NUM_CLASSES)


def _differences(runs: Sequence[dict[str, Any]], robust: Sequence[dict[str, Any]]) -> str:
  """PGD accuracy minus that of Algorithm 1 of the same seed, in points."""
  learned = _learned(runs) & _learned(robust)
  points = [100 * (mine["pgd"] - other["pgd"]) for mine, other in zip(runs, robust, strict=True)]
  return ", ".join(f"{d:+z.1f}" if ok else "failed" for d, ok in zip(points, learned))


def _overfitting(runs: Sequence[dict[str, Any]]) -> str:
  """'Robust overfitting (2 of 3)': each kind that was detected, and for how many seeds."""
  counts = Counter(kind for run in runs for kind in set(run["overfitting"]))
  return ", ".join(
    f"{k.capitalize()} overfitting ({counts[k]} of {len(runs)})" for k in sorted(counts)
  )


if __name__ == "__main__":
  commands.run_study(Options, PRESETS, run)
