r"""Makes a data set of robust or of non-robust features, from a trained net and its training set.

  python -m robust_opt.construct --workdir=runs/mnist_l2 --kind=inverted --output=runs/d_robust
  python -m robust_opt.construct --workdir=runs/mnist_standard --kind=random --radius=1.5 \
      --output=runs/d_rand

The kinds and their source are in robust_opt/data/constructed.py. --output gets shards (.npz, no
pickle), card.json and a README.md that says what it is. Killed, the same command goes on from the
last shard. Train on it with --config.dataset.train_files=runs/d_rand; the test set stays the true
one.
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
from robust_opt.studies.study import Study
from robust_opt.types import Array

BATCH = 100


class Options(NamedTuple):
  """What to make, and of what.

  Attributes:
    source: of a run, as subject.load takes it.
    kind: of constructed.KINDS.
    output: a folder, new or of the same command.
    settings: how far and how long.
    examples: the first so many of the training set; 0: all.
    seed: of all that is random.
    shard_size: examples a file.
  """

  source: dict[str, Any]
  kind: str
  output: Path
  settings: Settings
  examples: int = 0
  seed: int = 0
  shard_size: int = 5000


# (x [B, *S], y [B], ids [B]) -> images [B, *S], labels [B]
Make = Callable[[Array, Array, Array], tuple[Array, Array]]


def run(options: Options) -> datasets.Dataset:
  """Makes what is not made yet; returns the whole."""
  if options.shard_size < 1 or options.examples < 0:
    raise InputError(
      f"--shard_size must be >= 1 and --examples >= 0 (0: all), but were {options.shard_size} and "
      f"{options.examples}."
    )
  net = target.load_net(options.source)
  original = net.train
  if np.any(original.labels < 0):
    raise InputError(
      f"--workdir={options.source['workdir']} learnt from examples without a label; a data set can "
      f"be made of a run alone whose --config.dataset.labels is 0."
    )
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
  study = Study(options.output, description, work=float(count), flag="--output")
  make = jax.jit(functools.partial(_make, options, original, net))
  files = []
  try:
    for first in range(0, count, options.shard_size):
      ids = np.arange(first, min(first + options.shard_size, count), dtype=np.int32)
      path = options.output / f"shard-{first // options.shard_size:05d}.npz"
      files.append(path.name)
      try:
        constructed.read_shard(path)
        study.progress(float(len(ids)), f"{path.name}: made before", skipped=True)
      except InputError:  # absent or cut short
        with study.timed("make"):
          constructed.write_shard(path, _shard(make, original, ids))
        study.progress(float(len(ids)), path.name)
  finally:
    study.close()
  card = {
    "name": f"{original.name} {options.kind}",
    "num_classes": original.num_classes,
    "image_shape": list(original.images.shape[1:]),
    **description,
    "net": net.title,
    "trained_on": {"norm": net.norm, "radius": net.radius},
    "files": files,
  }
  write_json(options.output / "card.json", card)
  with atomic_write(options.output / "README.md") as file:
    file.write(_readme(card).encode())
  print(f"The data set is in {options.output}")
  return constructed.load(options.output)


def is_finished(output: Path) -> bool:
  """Whether the folder holds a whole data set."""
  return (output / "card.json").exists()


def _make(
  options: Options, original: datasets.Dataset, net: target.Net, x: Array, y: Array, ids: Array
) -> tuple[Array, Array]:
  """Images and labels of a batch."""
  start_key, target_key = jax.random.split(jax.random.key(options.seed))
  if options.kind == "inverted":
    keys = keys_of(start_key, ids)
    places = constructed.other_places(keys, ids, len(original.labels))
    start = training.take(training.ArrayData(original.images, original.labels), places).x
    return constructed.inverted(net.features_fn, x, start, options.settings), y
  if options.kind == "random":
    keys = keys_of(target_key, ids)
    targets = constructed.random_targets(keys, original.num_classes)
  else:
    targets = constructed.next_class(y, original.num_classes)
  return constructed.towards(net.logits_fn, x, targets, options.settings), targets


def _shard(make: Make, original: datasets.Dataset, ids: np.ndarray) -> Shard:
  """In batches of one size, the last filled up with repetitions."""
  images, labels = [], []
  for first in range(0, len(ids), BATCH):
    part = ids[first : first + BATCH]
    full = np.resize(part, BATCH)
    given = (pixels(original.images[full]), original.labels[full], full)
    made = make(*map(jnp.asarray, given))
    images.append(np.asarray(made[0])[: len(part)])
    labels.append(np.asarray(made[1], np.int32)[: len(part)])
  return Shard(np.concatenate(images), np.concatenate(labels), ids, original.labels[ids])


_WORDS = {
  "inverted": (
    "Every image began as another of the set and was changed until the net represents it like the "
    "original, whose label it has."
  ),
  "random": (
    "Every image is an original, moved within an l_2 ball until the net takes it for a random "
    "class, which is its label. To a person most labels are wrong."
  ),
  "deterministic": (
    "Every image is an original, moved within an l_2 ball until the net takes it for the class "
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
- files: `shard-*.npz`, each `images`, `labels`, `ids` (places in the original set) and
  `original_labels`; `numpy.load` reads them without pickle
- rights: those of the original set; not for use as a benchmark of clean accuracy
"""


def main(argv: list[str]) -> None:
  """Flags to options."""
  given = flags.FLAGS
  commands.refuse_positional(argv)
  usual = constructed.INVERSION if given.kind == "inverted" else constructed.TARGETED
  values = {name: given[name].value for name in Settings._fields}
  run(
    Options(
      source={k: given[k].value or "" for k in ("workdir", "data_dir", "cache_dir", "checkpoint")},
      kind=given.kind,
      output=Path(given.output),
      settings=usual._replace(**{k: v for k, v in values.items() if v is not None}),
      examples=given.examples,
      seed=given.seed,
      shard_size=given.shard_size,
    )
  )


def define_flags() -> None:
  """Only where this file is the program, so that importing it defines none."""
  flags.DEFINE_string("workdir", None, "Of a run of robust_opt.main: the net.", required=True)
  flags.DEFINE_enum("kind", None, constructed.KINDS, "What to make.", required=True)
  flags.DEFINE_string("output", None, "A folder, new or of the same command.", required=True)
  flags.DEFINE_float("radius", None, "l_2, in pixels of [0, 1].", lower_bound=0.0)
  flags.DEFINE_integer("num_steps", None, "Gradients an image.", lower_bound=1)
  flags.DEFINE_float("step", None, "l_2, of each of them.", lower_bound=0.0)
  flags.DEFINE_integer("examples", 0, "The first so many of the training set; 0: all.")
  flags.DEFINE_integer("seed", 0, "Of all that is random.", lower_bound=0)
  flags.DEFINE_integer("shard_size", 5000, "Examples a file.")
  flags.DEFINE_string("data_dir", "", "Where prepared sets lie; empty: the run's own.")
  flags.DEFINE_string("cache_dir", "", "Where arrays are cached; empty: the run's own.")
  flags.DEFINE_enum("checkpoint", None, ["last", "best"], "Of the run; not given: its config's.")


if __name__ == "__main__":
  define_flags()
  app.run(commands.with_sentences(main), flags_parser=commands.parse)
