r"""Constructs a data set of robust or non-robust features with a trained network.

  python -m robust_opt.construct --workdir=runs/mnist_l2 --kind=inverted --output=runs/d_robust
  python -m robust_opt.construct --workdir=runs/mnist_standard --kind=random --radius=1.5 \
      --output=runs/d_rand

The kinds and their source are in robust_opt/data/constructed.py. --output gets shards (.npz, no
pickle), card.json and a README.md that describes the data set. After a kill, the same command
resumes from the last shard. Train on it with --config.data.train_files=runs/d_rand; the test set
remains the true one.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from robust_opt import commands, training
from robust_opt.data import constructed, datasets
from robust_opt.data.constructed import Settings, Shard
from robust_opt.errors import InputError
from robust_opt.evaluation.collection import pixels
from robust_opt.experiments import target
from robust_opt.files import atomic_write, write_json
from robust_opt.keys import keys_of
from robust_opt.sets import L2
from robust_opt.sets.radii import check_extent
from robust_opt.studies.study import Study
from robust_opt.types import Array

BATCH = 100


class Options(NamedTuple):
  """The data set to construct and its source."""

  source: dict[str, Any]  # a run, for target.load_run
  kind: str  # one of constructed.KINDS
  output: Path  # a folder, new or of the same command
  settings: Settings
  examples: int = 0  # from the start of the training set; 0: all
  seed: int = 0
  shard_size: int = 5000  # examples per file


# (x [B, *S], y [B], ids [B]) -> images [B, *S], labels [B]
Make = Callable[[Array, Array, Array], tuple[Array, Array]]


def run(options: Options) -> datasets.Dataset:
  """Constructs the missing shards; returns the whole data set."""
  if options.shard_size < 1 or options.examples < 0:
    raise InputError(
      f"--shard_size must be >= 1 and --examples >= 0 (0: all), but were {options.shard_size} and "
      f"{options.examples}."
    )
  net = target.load_run(**options.source)
  original = net.train
  if np.any(original.labels < 0):
    raise InputError(
      f"--workdir={options.source['workdir']} was trained on examples without a label; a data set "
      f"can be constructed only from a run whose --config.data.labels is 0."
    )
  if options.kind != "inverted":
    radius = options.settings.radius
    check_extent(L2(radius), original.images.shape[1:], f"--radius={radius:g}")
  count = min(options.examples or len(original.labels), len(original.labels))
  description = {
    "kind": options.kind,
    "settings": options.settings._asdict(),
    "examples": count,
    "seed": options.seed,
    "shard_size": options.shard_size,
    "net_sha256": net.sha256,
    "net_definition": net.definition,
    "data_sha256": datasets.fingerprint(original),
  }
  make = jax.jit(functools.partial(_make, options, net))
  files = []
  with Study(options.output, description, work=float(count), flag="--output") as study:
    for first in range(0, count, options.shard_size):
      ids = np.arange(first, min(first + options.shard_size, count), dtype=np.int32)
      path = options.output / f"shard-{first // options.shard_size:05d}.npz"
      files.append(path.name)
      try:
        constructed.read_shard(path)
        study.progress(float(len(ids)), f"{path.name}: done before", skipped=True)
      except InputError:  # absent or truncated
        with study.timed("make"):
          constructed.write_shard(path, _shard(make, original, ids))
        study.progress(float(len(ids)), path.name)
  card = {
    "name": f"{original.name} {options.kind}",
    "num_classes": original.num_classes,
    "image_shape": list(original.images.shape[1:]),
    **description,
    "net": net.title,
    "trained_over": net.set,
    "files": files,
  }
  write_json(options.output / "card.json", card)
  with atomic_write(options.output / "README.md") as file:
    file.write(_readme(card).encode())
  print(f"The data set is in {options.output}")
  return constructed.load(options.output)


def is_finished(output: Path) -> bool:
  """Whether the folder holds a complete data set."""
  return (output / "card.json").exists()


def _make(
  options: Options, net: target.TrainedNet, x: Array, y: Array, ids: Array
) -> tuple[Array, Array]:
  """Images and labels of a batch."""
  original = net.train
  start_key, target_key = jax.random.split(jax.random.key(options.seed))
  if options.kind == "inverted":
    others = constructed.other_ids(keys_of(start_key, ids), ids, len(original.labels))
    start = training.take(training.ArrayData(original.images, original.labels), others).x
    return constructed.inverted(net.features_fn, x, start, options.settings), y
  if options.kind == "random":
    targets = constructed.random_targets(keys_of(target_key, ids), original.num_classes)
  else:
    targets = constructed.next_class(y, original.num_classes)
  return constructed.towards(net.logits_fn, x, targets, options.settings), targets


def _shard(make: Make, original: datasets.Dataset, ids: np.ndarray) -> Shard:
  """Computes a shard in batches of one size, the last padded by repetition."""
  images, labels = [], []
  for first in range(0, len(ids), BATCH):
    part = ids[first : first + BATCH]
    full = np.resize(part, BATCH)
    batch = (pixels(original.images[full]), original.labels[full], full)
    new_images, new_labels = make(*map(jnp.asarray, batch))
    images.append(np.asarray(new_images)[: len(part)])
    labels.append(np.asarray(new_labels, np.int32)[: len(part)])
  return Shard(np.concatenate(images), np.concatenate(labels), ids, original.labels[ids])


_WORDS = {
  "inverted": (
    "Every image started as another image of the set and was changed until its representation in "
    "the network was that of the original, whose label it has."
  ),
  "random": (
    "Every image is an original, perturbed within an l_2 ball until the network predicts a random "
    "class, which is its label. To a person most labels are wrong."
  ),
  "deterministic": (
    "Every image is an original, perturbed within an l_2 ball until the network predicts the class "
    "after its own, which is its label. To a person all labels are wrong."
  ),
}


def _readme(card: dict[str, Any]) -> str:
  """The data card."""
  settings = ", ".join(f"{name} {value:g}" for name, value in card["settings"].items())
  shape = " x ".join(map(str, card["image_shape"]))
  return f"""# {card["name"]}

{_WORDS[card["kind"]]} Source: Ilyas et al. 2019 (arXiv 1905.02175), section 3.

- {card["examples"]} examples, {shape}, {card["num_classes"]} classes; float32 pixels in [0, 1]
- made by: {card["net"]}, weights {card["net_sha256"][:16]}
- {settings}, seed {card["seed"]}
- files: `shard-*.npz`, each `images`, `labels`, `ids` (indices in the original set) and
  `original_labels`; `numpy.load` reads them without pickle
- license: that of the original set; not for use as a benchmark of clean accuracy
"""


def main(argv: list[str]) -> None:
  """Runs with the options of the flags."""
  values = flags.FLAGS
  commands.refuse_positional(argv)
  source = {k: values[k].value or "" for k in ("workdir", "data_dir", "cache_dir", "checkpoint")}
  defaults = constructed.INVERSION if values.kind == "inverted" else constructed.TARGETED
  changed = {name: values[name].value for name in Settings._fields}
  settings = defaults._replace(**{k: v for k, v in changed.items() if v is not None})
  numbers = (values.examples, values.seed, values.shard_size)
  run(Options(source, values.kind, Path(values.output), settings, *numbers))


def define_flags() -> None:
  """Defines the flags; not at import."""
  flags.DEFINE_string("workdir", None, "Of a run of robust_opt.main: the network.", required=True)
  flags.DEFINE_enum("kind", None, constructed.KINDS, "What to construct.", required=True)
  flags.DEFINE_string("output", None, "A folder, new or of the same command.", required=True)
  commands.define_number("radius", "l_2, in pixels of [0, 1].", low=0.0)
  flags.DEFINE_integer("num_steps", None, "Gradient steps per image.", lower_bound=1)
  commands.define_number("step", "l_2, of each step.", low=0.0)
  flags.DEFINE_integer("examples", 0, "How many, from the start of the training set; 0: all.")
  flags.DEFINE_integer("seed", 0, "Of all randomness.", lower_bound=0)
  flags.DEFINE_integer("shard_size", 5000, "Examples per file.")
  flags.DEFINE_string("data_dir", "", "Where prepared data sets are; empty: as in the run.")
  flags.DEFINE_string("cache_dir", "", "Where arrays are cached; empty: as in the run.")
  words = "Which checkpoint of the run; not given: the one that its config names."
  flags.DEFINE_enum("checkpoint", None, ["last", "best"], words)


if __name__ == "__main__":
  define_flags()
  app.run(commands.with_sentences(main), flags_parser=commands.parse)
