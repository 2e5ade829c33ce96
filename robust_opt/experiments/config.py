"""The configuration: every key with its default, the recipe of each data set, and the checks.

  config = digits()
  choose(config, "set", "L2", radius=0.5)
  choose(config, "attack", "pgd", num_steps=7)

configs/*.py are short files over `digits`, `mnist` and `cifar`; any key can be overridden on the
command line, `--config.training.epochs=5`. Radii, images and saved examples are in pixels of
[0, 1] everywhere; `standardized` converts a radius that a paper states in other units.
"""

import json
import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from robust_opt.data.pipeline import AUGMENTATIONS, MIXTURES
from robust_opt.errors import InputError
from robust_opt.experiments import sections
from robust_opt.experiments.attacks import CONTROLS
from robust_opt.experiments.loggers import LOGGERS
from robust_opt.experiments.sections import choose
from robust_opt.precision import PRODUCTS
from robust_opt.sets import BALLS
from robust_opt.sets.words import in_words

PIXEL_BOX = (0.0, 1.0)
# Mean and standard deviation of the pixels of the training sets. MNIST's are those of the paper's
# code, over images padded to 32x32.
DIGITS_MEAN, DIGITS_STD = 0.3053, 0.3757
MNIST_MEAN, MNIST_STD = 0.1000, 0.2752
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def standardized(radius: float, std: float) -> float:
  """A radius in units of the standardized image, (x - mean) / std, as one in pixels of [0, 1]."""
  return radius * std


def base() -> ConfigDict:
  """Every key of a config; sections with a `name` are changed by `choose`."""
  config = ConfigDict({"seed": 0})
  # A run's work directory or a file whose weights to start from; empty: at random.
  config.init_from = ""
  config.logging = "tensorboard"  # or wandb, mlflow: who gets the numbers of metrics.jsonl
  config.data = ConfigDict()
  # Or an image classification set of TensorFlow Datasets, files or a folder: data/datasets.py.
  config.data.name = "digits"
  config.data.mean = (DIGITS_MEAN,)  # of the pixels, one a channel; (): from the training set
  config.data.std = (DIGITS_STD,)
  config.data.data_dir = ""  # where prepared sets lie; empty: TFDS' own default
  config.data.cache_dir = ""  # where arrays are cached; empty: the user's cache directory
  config.data.holdout = 0.1  # fraction of the training set kept back to choose a checkpoint
  config.data.image_size = 0  # of a folder of images: height and width to resize to; 0: as they are
  # A split of more bytes stays on the host, and is streamed; 0: a quarter of the device's memory.
  config.data.max_device_bytes = 0
  config.data.workers = 0  # processes that decode streamed images; 0: threads
  config.data.train_start = 0  # leave out this many training examples at the beginning
  config.data.train_examples = 0  # use only the first so many of the others; 0: all
  config.data.train_files = ""  # train on these instead: a folder of robust_opt.construct
  # Further training images, such as synthetic ones: an .npz file with labels; empty: none.
  config.data.extra = ""
  config.data.extra_fraction = 0.0  # of every batch that is theirs
  config.data.labels = 0  # labeled training examples, equally many a class; 0: all
  config.data.test_examples = 0  # likewise; every result states the number it counts

  # What each may name, and with which keys: sections.py, attacks.py.
  for section in sections.SECTIONS:
    config[section] = ConfigDict()
  choose(config, "model", "DigitsCNN")
  choose(config, "set", "LInf", radius=0.1)  # radii in pixels of [0, 1]
  choose(config, "attack", "steepest")
  choose(config, "objective", "robust")
  choose(config, "penalty", "none")
  choose(config, "optimizer", "sgd", learning_rate=0.01, momentum=0.9)
  choose(config, "schedule", "constant")  # of the learning rate

  config.weights = ConfigDict()
  config.weights.decay = 0.0  # l_2 penalty on all parameters, added to the gradient
  config.weights.average = 0.0  # decay of an average of the weights, which is then evaluated
  config.weights.max_column_norm = 0.0  # l_2 bound on the weights that lead to a unit; 0: none
  config.weights.perturbation = 0.0  # gamma of adversarial weight perturbation; 0: none

  config.training = ConfigDict()
  config.training.epochs = 30
  config.training.batch_size = 32
  # Of products in the updates: float32, tf32, or bfloat16 for the whole network; parameters,
  # statistics, losses and evaluations are float32. default: float32, by products of the device.
  config.training.precision = "default"
  config.training.shuffle = True
  # In turn: "flip", "crop", "cutout", "trivial_augment"; after them "mixup" or "cutmix".
  config.training.augment = ()
  config.training.label_smoothing = 0.0  # share of the label that all classes share equally
  config.training.watch_examples = 500  # held out, to detect overfitting; 0: do not
  config.training.on_overfitting = "say"  # or "stop", and report on the best checkpoint
  config.training.on_no_progress = "say"  # or "stop" a training that stays at chance, with code 1
  config.training.steps_per_scan = 100  # at most so many updates between looks at the clock

  config.evaluation = ConfigDict()
  config.evaluation.batch_size = 100  # changes speed and memory, not the answer
  # Further balls to measure; 0: not. That of the norm of config.set is unused.
  config.evaluation.radii = ConfigDict({"linf": 0.1, "l2": 0.5, "l1": 1.0})  # pixels
  config.evaluation.sweep = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # multiples of the radii
  config.evaluation.checkpoint = "last"  # or "best", by held-out robust accuracy

  config.checkpoint = ConfigDict()
  config.checkpoint.keep = 2  # how many of the last to keep, in addition to the best
  config.checkpoint.every_epochs = 1
  config.lock()
  for section in sections.SECTIONS:
    config[section].unlock()
  return config


def digits() -> ConfigDict:
  """Handwritten digits of scikit-learn, 8x8: the embedded data set, trained in seconds."""
  config = base()
  config.optimizer.learning_rate = 0.02
  config.checkpoint.every_epochs = 5
  return config


def mnist() -> ConfigDict:
  """MNIST as in the authors' code; Torch's dampened rate of 1e-2 is optax' 1e-3."""
  config = base()
  config.seed = 1
  config.data.name, config.data.holdout = "mnist", 1 / 12  # 5,000 of 60,000
  config.data.mean, config.data.std = (MNIST_MEAN,), (MNIST_STD,)
  choose(config, "model", "MnistCNN")
  config.optimizer.learning_rate = 1e-3
  choose(config, "schedule", "inverse_time", rate=5e-6)
  config.weights.decay = 1e-3
  config.training.update(epochs=120, batch_size=100, shuffle=False)
  radii = {"linf": 0.2, "l2": 2.0, "l1": 2.0}
  config.evaluation.radii.update({n: standardized(r, std=MNIST_STD) for n, r in radii.items()})
  train_over(config, "linf")
  config.evaluation.sweep = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
  return config


def mnist_methods() -> ConfigDict:
  """MNIST over the l_inf ball of radius 0.2 in the pixel box, where methods are compared."""
  config = mnist()
  config.evaluation.radii.linf, config.evaluation.radii.l2 = 0.2, 2.0
  choose(config, "set", "LInf", radius=0.2, box=PIXEL_BOX)
  config.evaluation.sweep = (0.0, 0.5, 1.0, 1.5)
  config.optimizer.learning_rate = 0.02
  choose(config, "schedule", "cosine")
  config.weights.decay = 0.0
  config.training.update(epochs=12, shuffle=True)
  return config


def cifar() -> ConfigDict:
  """CIFAR-10 as in the authors' code, but on standardized RGB rather than contrast-normalized YUV.

  Of the radii only that of l_2 is the authors'; the others keep MNIST's proportions to it.
  """
  config = base()
  config.seed = 1
  config.data.name, config.data.holdout = "cifar10", 0.1
  config.data.mean, config.data.std = CIFAR_MEAN, CIFAR_STD
  choose(config, "model", "VGG", dropout=True, width=1.0)
  choose(config, "attack", "steepest", train_mode=True)
  config.optimizer.learning_rate = 0.1
  choose(config, "schedule", "halving", epochs=25.0)
  config.weights.decay = 5e-4
  config.training.update(epochs=300, batch_size=128)
  radii = {"linf": 0.02, "l2": 0.2, "l1": 0.2}
  config.evaluation.radii.update({n: standardized(r, std=CIFAR_STD[1]) for n, r in radii.items()})
  train_over(config, "linf")
  config.evaluation.sweep = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
  return config


def cifar_recipes() -> ConfigDict:
  """CIFAR-10 over the l_inf ball of radius 8/255 in the pixel box, where recipes are compared.

  PreActResNet-18, PGD training and the schedule of Rice, Wong and Kolter 2020 (arXiv 2002.11569);
  of the training images 1,000 are held out.
  """
  config = cifar()
  config.data.holdout = 0.02
  choose(config, "model", "PreActResNet18")
  config.evaluation.radii.update(linf=8 / 255, l2=128 / 255, l1=12.0)
  choose(config, "set", "LInf", radius=8 / 255, box=PIXEL_BOX)
  choose(config, "attack", "pgd", num_steps=10, train_mode=True)
  choose(config, "schedule", "piecewise")
  config.training.update(epochs=200, augment=("crop", "flip"))
  config.evaluation.update(sweep=(0.0, 0.5, 1.0, 1.5), batch_size=500)
  return config


def train_over(config: ConfigDict, norm: str) -> ConfigDict:
  """Makes config.set the ball of that norm whose radius config.evaluation.radii has; same box."""
  box, radius = config.set.get("box"), config.evaluation.radii[norm]
  choose(config, "set", BALLS[norm].__name__, radius=radius, box=box)
  return config


def get_config() -> ConfigDict:
  """What `python -m robust_opt.main` runs when no --config is given: digits, l_inf."""
  return digits()


def _finite(value: float) -> bool:
  return 0 <= value < math.inf


_DTYPES = ("float32", "bfloat16", "float16")
_PRECISIONS = ("default", *PRODUCTS)
_AUGMENTATIONS, _MIXTURES = (", ".join(map(repr, names)) for names in (AUGMENTATIONS, MIXTURES))
# An allowed value in words, what holds for one, and the keys that it is said of.
_RULES: list[tuple[str, Callable[[Any], bool], str]] = [
  ("an integer, 0 <= seed < 2^32", lambda v: 0 <= v < 2**32, "seed"),
  ("a tuple of finite numbers, in pixels", lambda v: all(map(math.isfinite, v)), "data.mean"),
  ("a tuple of finite numbers > 0", lambda v: all(0 < s < math.inf for s in v), "data.std"),
  ("a fraction, 0 < holdout < 1", lambda v: 0 < v < 1, "data.holdout"),
  ("an integer >= 0 (0: all)", lambda v: v >= 0, "data.train_start data.train_examples"),
  ("an integer >= 0 (0: all)", lambda v: v >= 0, "data.labels data.test_examples"),
  ("a fraction, 0 <= extra_fraction < 1", lambda v: 0 <= v < 1, "data.extra_fraction"),
  ("a share of the training, 0 <= warmup <= 1", lambda v: 0 <= v <= 1, "attack.warmup"),
  ("one of float32, bfloat16, float16", lambda v: v in _DTYPES, "attack.dtype"),
  ("one of default, float32, tf32, bfloat16", lambda v: v in _PRECISIONS, "training.precision"),
  ("a finite number > 0", lambda v: 0 < v < math.inf, "optimizer.learning_rate"),
  ("a finite number >= 0 (0: none)", _finite, "weights.decay weights.max_column_norm"),
  ("a finite number >= 0 (0: none)", _finite, "weights.perturbation"),
  ("a decay, 0 <= average < 1 (0: none)", lambda v: 0 <= v < 1, "weights.average"),
  ("an integer >= 1", lambda v: v >= 1, "attack.every training.epochs training.batch_size"),
  ("an integer >= 1", lambda v: v >= 1, "training.steps_per_scan evaluation.batch_size"),
  ("an integer >= 1", lambda v: v >= 1, "checkpoint.keep checkpoint.every_epochs"),
  ("an integer >= 0 (0: none)", lambda v: v >= 0, "training.watch_examples"),
  (
    "say or stop",
    lambda v: v in ("say", "stop"),
    "training.on_overfitting training.on_no_progress",
  ),
  (
    f"a tuple of {_AUGMENTATIONS}, and at most one of {_MIXTURES}",
    lambda v: {*v} <= {*AUGMENTATIONS, *MIXTURES} and sum(name in MIXTURES for name in v) <= 1,
    "training.augment",
  ),
  ("a share, 0 <= label_smoothing < 1", lambda v: 0 <= v < 1, "training.label_smoothing"),
  (f"one of {', '.join(LOGGERS)}", lambda v: v in LOGGERS, "logging"),
  ("last or best", lambda v: v in ("last", "best"), "evaluation.checkpoint"),
  ("an integer >= 0", lambda v: v >= 0, "data.image_size data.max_device_bytes data.workers"),
  (
    "a tuple of finite multiples >= 0 of the radii",
    lambda v: len(v) > 0 and all(map(_finite, v)),
    "evaluation.sweep",
  ),
  ("a finite number >= 0, in pixels", _finite, "evaluation.radii.linf evaluation.radii.l2"),
  ("a finite number >= 0, in pixels", _finite, "evaluation.radii.l1"),
]


def validate(config: ConfigDict) -> None:
  """InputError unless keys, names and ranges are allowed; types are ConfigDict's own business."""
  flat = flattened(config.to_dict())
  named = tuple(f"{section}." for section in sections.SECTIONS)
  for key in sorted(flattened(base().to_dict()).keys() ^ flat.keys()):
    if not key.startswith((*named, "evaluation.radii.")):
      verb = "lacks" if key not in flat else "has the unknown key"
      raise InputError(
        f"A config has the keys of robust_opt.experiments.config; this {verb} {key}."
      )
  for section in sections.SECTIONS:
    sections.check_section(config, section)
  for words, allowed, keys in _RULES:
    for key in keys.split():
      try:
        fine = key not in flat or bool(allowed(flat[key]))
      except TypeError:
        fine = False
      if not fine:
        raise InputError(f"--config.{key} must be {words}, but was {flat[key]!r}.")
  if bool(config.data.mean) != bool(config.data.std):
    raise InputError(
      f"--config.data.mean and --config.data.std must both be given, or both be () to be measured "
      f"on the training set, but were {config.data.mean} and {config.data.std}."
    )
  if bool(config.data.extra) != bool(config.data.extra_fraction):
    raise InputError(
      f"--config.data.extra and --config.data.extra_fraction need each other, but were "
      f"{config.data.extra!r} and {config.data.extra_fraction}."
    )
  u = sections.make_set(config, lambda name, rank: lambda x: x)
  sections.make(config, "attack")
  sections.make(config, "objective", u=u)
  total = 2 * config.training.epochs
  rate = sections.make(config, "schedule", peak=1.0, total=total, steps_per_epoch=2)
  sections.make_optimizer(config, rate)


def trains_robustly(config: ConfigDict) -> bool:
  """Whether there is an adversary, one that attacks or that of a penalty or of bounds."""
  alone = config.objective.name in ("gradient_penalty", "ibp")
  return config.attack.name not in CONTROLS or alone


def adversary(config: ConfigDict) -> str:
  """The set that a config trains over, in words; empty where there is no adversary."""
  if not trains_robustly(config):
    return ""
  hidden = config.attack.get("hidden_radius")
  own = in_words(config.set.to_dict())
  return f"{own} and hidden layers by {hidden:.4g}" if hidden else own


# Values that change nothing: a run without the key is the same run. They are not written.
_UNWRITTEN = {
  "init_from": "",
  "data.extra": "",
  "data.extra_fraction": 0.0,
  "logging": "tensorboard",
  "data.image_size": 0,
  "data.max_device_bytes": 0,
  "data.workers": 0,
  "training.precision": "default",
  "training.label_smoothing": 0.0,
  "training.on_no_progress": "say",
}


def as_dict(config: ConfigDict) -> dict[str, Any]:
  """The resolved config as plain JSON values, tuples as lists; see `from_dict`.

  The radius of the set's own norm, which is unused, `_UNWRITTEN` values and, where there is neither
  attack nor warm-up, its key are left out.
  """
  value = json.loads(json.dumps(config.to_dict()))
  value["evaluation"]["radii"].pop(config.set.name.lower(), None)
  if value["attack"] == {"name": "none", "warmup": 0.0}:  # the same run as without the key
    del value["attack"]["warmup"]
  for key, default in _UNWRITTEN.items():
    node, name = _parent(value, key)
    if node.get(name) == default:
      del node[name]
  return value


def from_dict(values: Mapping[str, Any]) -> ConfigDict:
  """The config of `as_dict`, lists as tuples; not validated."""

  def with_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
      return {key: with_tuples(entry) for key, entry in value.items()}
    return tuple(value) if isinstance(value, list) else value

  plain = with_tuples(values)
  for key, default in _UNWRITTEN.items():
    node, name = _parent(plain, key)
    node.setdefault(name, default)
  return ConfigDict(plain)


def _parent(tree: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
  """The dictionary that holds a dotted key of at most two parts, and the key in it."""
  section, _, name = key.rpartition(".")
  return (tree[section] if section else tree), name


# Where things lie or go is no part of what is computed: these may differ between a run and its
# resume. (The data that is found there is compared by workdirs.)
_PLACES = (
  "data.data_dir",
  "data.cache_dir",
  "data.extra",
  "data.train_files",
  "data.workers",
  "logging",
)

Same = Callable[[str, Any, Any], bool]  # (key, old, new) -> whether the two values agree


def equal(_: str, old: Any, new: Any) -> bool:
  """Whether two values agree exactly."""
  return bool(old == new)


def differences(old: dict[str, Any], new: dict[str, Any], same: Same = equal) -> list[str]:
  """Keys that make two resolved configs different experiments, as 'key: old -> new'."""
  flat_old, flat_new = flattened(old), flattened(new)
  changed = []
  for key in sorted((flat_old.keys() | flat_new.keys()) - set(_PLACES)):
    values = [flat.get(key, "(absent)") for flat in (flat_old, flat_new)]
    if not same(key, *values):
      changed.append(f"{key}: " + " -> ".join(textwrap.shorten(str(v), 80) for v in values))
  return changed


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """The leaves of a resolved config by their dotted keys."""
  leaves: dict[str, Any] = {}
  for key, value in tree.items():
    inner = isinstance(value, Mapping)
    leaves |= flattened(value, f"{prefix}{key}.") if inner else {prefix + key: value}
  return leaves
