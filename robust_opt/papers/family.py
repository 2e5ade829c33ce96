r"""Every method of robust training on one ground, for one budget: the table of the family.

  python -m robust_opt.papers.family --dataset=digits --preset=quick --workdir=runs/family_digits
  python -m robust_opt.papers.family --dataset=mnist --preset=paper --workdir=runs/family \
      --data_dir=/path/to/tensorflow_datasets

Each method of experiments/methods.py trains on the same data with the same net, optimizer and
number of forward and backward passes over the training set; the cheap ones take more epochs. With
--budget=updates all take the same number of updates instead, and the question is what a cheaper
update costs in robustness. Every net is then judged over the same l_inf ball: PGD of 50 steps and
AutoAttack; and what an update of each method takes is timed side by side. The runs lie in
--workdir, as robust_opt.main leaves them, and the table in --workdir/results. The same command goes
on where it was stopped. There measured.json stands for the nets: a table grows by a seed or a
method, on any machine, with

  ... --seeds=4 --known=results/family/mnist/measured.json
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

import robust_opt as ro
from robust_opt import commands, losses, statistics, tables
from robust_opt.attacks import white_box
from robust_opt.attacks.types import LogitsAttack
from robust_opt.data import datasets
from robust_opt.errors import InputError
from robust_opt.evaluation import autoattack
from robust_opt.experiments import build, costs, methods, target
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import run as experiment
from robust_opt.files import write_json
from robust_opt.studies.study import Study, sha256_of
from robust_opt.training import sharding
from robust_opt.types import Array

NUM_CLASSES = 10  # of every data set here
PGD_STEPS, PGD_RELATIVE_STEP = 50, 0.1
# Updates are timed on the first so many training examples, so many in a call, so many calls.
TIMED_EXAMPLES, TIMED_UPDATES, TIMED_CALLS = 6000, 20, 5


def _pgd(norm: str, radius: Array, rank: Array, channel_axis: int | None) -> LogitsAttack:
  del rank, channel_axis
  ball = ro.sets.BALLS[norm](radius, autoattack.BOX)
  step = ro.LInf if norm == "linf" else ro.L2
  maximizer = ro.pgd(ball, step(PGD_RELATIVE_STEP * radius))
  return white_box.ascent(ro.ascend(maximizer, PGD_STEPS, keep_best=True), losses.cross_entropy)


PGD = (autoattack.Phase(f"pgd-{PGD_STEPS}", _pgd),)


class Numbers(NamedTuple):
  """What a preset sets; a flag of the same name goes before it.

  Attributes:
    seeds: nets of every method.
    passes: over the training set, forward and backward, that each method may make; with the budget
      `updates`, epochs.
    examples: the first so many test examples are attacked; 0: all.
    version: of the ensemble.
    budget: what is the same for all, `passes` or `updates`.
  """

  seeds: int
  passes: int
  examples: int
  version: str
  budget: str = "passes"


PRESETS = {
  ("quick", "digits"): Numbers(seeds=1, passes=24, examples=100, version="quick"),
  ("quick", "mnist"): Numbers(seeds=1, passes=10, examples=100, version="quick"),
  ("paper", "digits"): Numbers(seeds=5, passes=120, examples=0, version="standard"),
  ("paper", "mnist"): Numbers(seeds=3, passes=40, examples=500, version="standard"),
}


class Options(NamedTuple):
  """What to run and where.

  Attributes:
    dataset: digits or mnist.
    workdir: new, or that of the same study.
    numbers: of a preset, or other ones.
    chosen: names of robust_opt.experiments.methods.
    known: files of earlier studies, results/measured.json; nets in them are not trained again.
    data_dir: where prepared sets lie; empty: TFDS' default.
    cache_dir: where arrays are cached; empty: the user's cache directory.
  """

  dataset: str
  workdir: Path
  numbers: Numbers
  chosen: Sequence[str] = tuple(methods.ALL)
  known: Sequence[Path] = ()
  data_dir: str = ""
  cache_dir: str = ""


def ground(dataset: str) -> ConfigDict:
  """What all methods share."""
  if dataset == "mnist":
    config = config_lib.mnist_methods()
  else:
    config = config_lib.digits()
    config.uncertainty.radius, config.uncertainty.box = 0.15, True
    config.evaluation.radii.linf = config.uncertainty.radius
    config.optimizer.schedule = "cosine"
  # What the table needs of a run is its clean accuracy; the rest is attacked afterwards.
  config.evaluation.sweep, config.evaluation.radii.l1 = (0.0, 1.0), 0.0
  return config


def config_of(options: Options, name: str, seed: int) -> ConfigDict:
  """The config of a method's run: as many epochs as the budget pays for, at least one."""
  config, method = ground(options.dataset), methods.ALL[name]
  config.seed = seed
  config.dataset.data_dir, config.dataset.cache_dir = options.data_dir, options.cache_dir
  numbers = options.numbers
  cost = method.passes if numbers.budget == "passes" else method.updates
  config.training.epochs = max(1, round(numbers.passes / cost))
  method.apply(config)
  if config.uncertainty.name != "l2":
    config.evaluation.radii.l2 = 0.0  # set until now for the methods that train over it
  return config


def identity(options: Options, name: str, seed: int, digests: dict[str, str]) -> str:
  """A hash of all that what is measured of a net depends on, but versions and the device.

  Args:
    options: of the study.
    name: of the method.
    seed: of the net.
    digests: of the data, from data.fingerprints.
  """
  numbers = options.numbers
  config = config_lib.as_dict(config_of(options, name, seed))
  del config["dataset"]["data_dir"], config["dataset"]["cache_dir"]
  judged = {
    "examples": numbers.examples,
    "version": numbers.version,
    "radius": ground(options.dataset).uncertainty.radius,
    "pgd": [PGD_STEPS, PGD_RELATIVE_STEP],
    "data": digests,
  }
  return sha256_of(json.dumps(config, sort_keys=True), json.dumps(judged, sort_keys=True))


def run(options: Options) -> tables.Table:
  """Trains, attacks and writes what is not done yet; returns the table."""
  unknown = sorted(set(options.chosen) - set(methods.ALL))
  if unknown:
    raise InputError(
      f"--methods must be of {', '.join(methods.ALL)}, but {', '.join(unknown)} is none of them."
    )
  numbers, seeds = options.numbers, range(1, options.numbers.seeds + 1)
  results = options.workdir / "results"
  known = _known(options.known)
  digests = datasets.fingerprints(options.dataset, options.data_dir, options.cache_dir)
  description = {"dataset": options.dataset, **numbers._asdict(), "data": digests}
  timing = 0.2 * len(options.chosen)
  study = Study(options.workdir, description, work=len(options.chosen) * len(seeds) + timing)
  # What this directory holds of other methods stays.
  kept = _known([results / "measured.json"]) if (results / "measured.json").exists() else {}
  known |= kept
  try:
    for seed in seeds:  # so that a study that is stopped has seen every method
      for name in options.chosen:
        key = identity(options, name, seed, digests)
        kept[key] = known[key] if key in known else _measure(options, study, name, seed)
        study.progress(1.0, f"{name}, seed {seed}", skipped=key in known)
        write_json(results / "measured.json", kept)
    times = _times(options, study, timing, digests)
  finally:
    study.close()
  measured = {
    name: [kept[identity(options, name, seed, digests)] for seed in seeds]
    for name in options.chosen
  }
  table = table_of(options, measured, times)
  tables.write(table, results / "family")
  made = study.made_by("robust_opt.papers.family", options.numbers._asdict())
  write_json(results / "manifest.json", made)
  print(tables.markdown(table))
  print(f"Everything about this study is in {options.workdir}")
  return table


def _times(
  options: Options, study: Study, work: float, digests: dict[str, str]
) -> dict[str, float]:
  """Time of an update beside standard training's, of every chosen method."""
  names = dict.fromkeys(["standard", *options.chosen])
  configs = {name: config_of(options, name, 1) for name in names}

  def compute() -> dict[str, float]:
    train = build.splits(configs["standard"]).train
    part = slice(TIMED_EXAMPLES)
    train = train._replace(images=train.images[part], labels=train.labels[part])
    found = costs.side_by_side(configs, train, TIMED_UPDATES, TIMED_CALLS)
    return {name: costs.beside(found[name], found["standard"]) for name in options.chosen}

  identities = [identity(options, name, 1, digests) for name in names]
  path = options.workdir / "times.json"
  return study.once("time of an update", path, sha256_of(_device(), *identities), compute, work)


def _device() -> str:
  return f"{sharding.devices_in_words()}, jax {jax.__version__}"


def _known(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
  """What files of earlier studies hold, by `identity`."""
  known: dict[str, dict[str, Any]] = {}
  for path in paths:
    try:
      found = json.loads(path.read_text(encoding="utf-8"))
      known |= {key: {name: value[name] for name in MEASURED} for key, value in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      raise InputError(
        f"--known must name files results/measured.json of this command, but {path} is none "
        f"({error!r})."
      ) from error
  return known


def _measure(options: Options, study: Study, name: str, seed: int) -> dict[str, Any]:
  """Trains and attacks one net: the values of MEASURED by name."""
  workdir = options.workdir / name / str(seed)
  with study.timed(f"train {name}"):
    summary = experiment.run(config_of(options, name, seed), workdir)
  with study.timed(f"attack {name}"):
    attacked = attack(options, workdir)
  made = {"method": name, "seed": seed, "device": _device()}
  return made | attacked | _of_run(summary)


# What is kept of a net.
MEASURED = (
  "method", "seed", "device", "examples", "pgd", "autoattack", "clean", "tested", "epochs",
  "overfitting", "params_sha256",
)  # fmt: skip


def attack(options: Options, workdir: Path) -> dict[str, Any]:
  """Accuracies over the l_inf ball of the ground, whatever the net was trained over."""
  places = {"data_dir": options.data_dir, "cache_dir": options.cache_dir}
  found = target.load({"workdir": str(workdir), **places}, options.numbers.examples)
  radius = ground(options.dataset).uncertainty.radius
  return {
    "examples": len(found.y),
    "pgd": standing(found, "linf", radius, PGD),
    "autoattack": standing(found, "linf", radius, options.numbers.version),
  }


def standing(
  found: target.Subject, norm: str, radius: float, version: str | tuple[autoattack.Phase, ...]
) -> float:
  """The share of the examples that stand a version of the ensemble, or PGD alone."""
  return ro.autoattack(
    found.logits_fn,
    found.x,
    found.y,
    norm=norm,
    radius=radius,
    version=version,
    batch_size=min(100, len(found.y)),
  ).robust_accuracy


def clean(summary: dict[str, Any]) -> float:
  """The share of the whole test set that a run is right on."""
  result = summary["results"][0]
  return result["correct"] / result["total"]


def tested(summary: dict[str, Any]) -> int:
  """How many test examples `clean` is a share of."""
  return summary["results"][0]["total"]


def _learned(runs: list[dict[str, Any]]) -> np.ndarray:
  return statistics.has_learned([run["clean"] for run in runs], NUM_CLASSES)


def _of_run(summary: dict[str, Any]) -> dict[str, Any]:
  """What training left: clean accuracy on the whole test set, and what went wrong."""
  detected = summary["overfitting"]
  return {
    "clean": clean(summary),
    "tested": tested(summary),
    "epochs": summary["config"]["training"]["epochs"],
    "overfitting": [f"{detected['kind'].capitalize()} overfitting"] if detected else [],
    "params_sha256": summary["params_sha256"],
  }


def table_of(
  options: Options, measured: dict[str, list[dict[str, Any]]], times: dict[str, float]
) -> tables.Table:
  """A row for each method: mean over the seeds that learned, 95 % interval, every seed's value.

  Args:
    options: what was run.
    measured: by method, what is kept of the net of every seed.
    times: by method, of an update, beside standard training's.
  """
  ensemble_name = "AutoAttack" if options.numbers.version == "standard" else "AutoAttack (quick)"
  pgd = f"PGD-{PGD_STEPS}"
  accuracies = {"clean": "clean", ensemble_name: "autoattack", pgd: "pgd"}
  columns = [*accuracies, *(f"{title} by seed" for title in accuracies)]
  columns = ["method", *columns, "time of an update", "passes an update", "epochs", "source"]
  robust = measured.get("robust")
  beside = f"{pgd} minus robust, by seed"
  if robust:
    columns.append(beside)
  if any(run["overfitting"] for runs in measured.values() for run in runs):
    columns.append("overfitting")
  rows = []
  for name, runs in measured.items():
    method = methods.ALL[name]
    row: dict[str, Any] = {
      "method": name,
      "source": method.source,
      "passes an update": f"{method.passes / method.updates:g}",
      "epochs": runs[0]["epochs"],
    }
    for title, key in accuracies.items():
      count = runs[0]["tested" if key == "clean" else "examples"]
      row[title] = tables.Percent.of([run[key] for run in runs], count, _learned(runs))
      row[f"{title} by seed"] = row[title].by_seed()
    if robust:
      both = _learned(runs) & _learned(robust)
      pairs = [100 * (mine["pgd"] - its["pgd"]) for mine, its in zip(runs, robust, strict=True)]
      row[beside] = ", ".join(f"{d:+z.1f}" if ok else "failed" for d, ok in zip(pairs, both))
    row["time of an update"] = f"{times[name]:.2f}"
    said = sorted({sentence for r in runs for sentence in r["overfitting"]})
    counts = [f"{s} ({sum(s in r['overfitting'] for r in runs)} of {len(runs)})" for s in said]
    row["overfitting"] = ", ".join(counts)
    rows.append(row)
  config, count = ground(options.dataset), next(iter(measured.values()))[0]["examples"]
  return tables.Table(
    f"Robust training on {options.dataset}: accuracy (%) over l_inf, radius "
    f"{config.uncertainty.radius:g}",
    columns,
    rows,
    [
      f"{tables.interval_note(options.numbers.seeds)} {tables.FAILED_NOTE} "
      f"{_budget(options.numbers)} Clean: the whole "
      f"test set; attacked: its first {count} examples. Time of an update: beside standard "
      f"training's, the two in turns in one process ({_device()}); of free training each replay is "
      "an update.",
    ],
  )


def _budget(numbers: Numbers) -> str:
  if numbers.budget == "updates":
    return f"Every method: as many updates as {numbers.passes} epochs have."
  return (
    f"Every method: some {numbers.passes} forward and backward passes over the training set, in "
    f"whole epochs."
  )


def main(argv: list[str]) -> None:
  """Flags to options."""
  given = flags.FLAGS
  commands.refuse_positional(argv)
  run(
    Options(
      **commands.study_of(PRESETS),
      chosen=tuple(given.methods) or tuple(methods.ALL),
      known=tuple(map(Path, given.known)),
    )
  )


def define_flags() -> None:
  """Only where this file is the program, so that importing it defines none."""
  commands.define_study_flags(["digits", "mnist"])
  flags.DEFINE_list("methods", [], f"By default all of {', '.join(methods.ALL)}.")
  flags.DEFINE_list("known", [], "Files results/measured.json whose nets are not trained again.")
  flags.DEFINE_integer("seeds", None, "Nets of every method.", lower_bound=1)
  flags.DEFINE_integer("passes", None, "Over the training set, for every method.", lower_bound=1)
  flags.DEFINE_integer("examples", None, "Attack the first so many; 0: all.", lower_bound=0)
  flags.DEFINE_enum("budget", None, ["passes", "updates"], "What is the same for all.")
  flags.DEFINE_enum("version", None, ["standard", "quick"], "Of the ensemble.")


if __name__ == "__main__":
  define_flags()
  app.run(commands.with_sentences(main), flags_parser=commands.parse)
