"""The configuration: every key with its default, the recipe of each data set, and the checks.

configs/*.py are short files over `digits`, `mnist` and `cifar`; any key can be overridden on the
command line, `--config.training.epochs=5`. Radii, images and saved examples are in pixels of
[0, 1] everywhere; a radius that a paper states in standardised units is converted where it is
written, by `standardised`, which names the standard deviation.
"""

import json
import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from robust_opt import tables
from robust_opt.errors import InputError

NORMS = ("linf", "l2", "l1")
MAXIMIZERS = ("pgd", "frank_wolfe", "lbfgs", "power_iteration", "n_fgsm", "free", "recall")
NOISES = ("uniform_noise", "random_signs")  # what is no adversary: its control
LOSSES = ("cross_entropy", "one_vs_all", "independent")

# Mean and standard deviation of the pixels of the training sets. MNIST's are those of the paper's
# code, over images padded to 32x32.
DIGITS_MEAN, DIGITS_STD = 0.3053, 0.3757
MNIST_MEAN, MNIST_STD = 0.1000, 0.2752
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def standardised(radius: float, std: float) -> float:
  """A radius in units of the standardised image, (x - mean) / std, as one in pixels of [0, 1]."""
  return radius * std


def base() -> ConfigDict:
  """Every key. A key that is not here does not exist, and its override is refused."""
  config = ConfigDict()
  config.seed = 0

  config.dataset = ConfigDict()
  config.dataset.name = "digits"  # or any image classification set of TensorFlow Datasets
  config.dataset.data_dir = ""  # where prepared sets lie; empty: TFDS' own default
  config.dataset.cache_dir = ""  # where arrays are cached; empty: the user's cache directory
  config.dataset.holdout = 0.1  # fraction of the training set kept back to choose a checkpoint
  config.dataset.train_start = 0  # leave out so many training examples at the beginning
  config.dataset.train_examples = 0  # use only the first so many of them; 0: all
  config.dataset.train_files = ""  # to learn from instead: a folder of robust_opt.construct
  config.dataset.labels = 0  # so many training examples have one, equally many a class; 0: all
  config.dataset.test_examples = 0  # likewise; every result states the number it counts

  config.model = ConfigDict()  # name: a class of robust_opt.models; the rest: its attributes
  config.model.name = "DigitsCNN"
  config.model.mean = (DIGITS_MEAN,)  # of the pixels, one a channel; (): from the training set
  config.model.std = (DIGITS_STD,)

  config.uncertainty = ConfigDict()
  config.uncertainty.name = "linf"  # linf, l2 or l1; state the radius with it
  config.uncertainty.radius = 0.1  # in pixels of [0, 1]; 0 is the clean example, exactly
  config.uncertainty.warmup = 0.0  # share of the training in which the radius grows from 0
  config.uncertainty.box = False  # whether perturbed images must stay within [0, 1]
  # The l_2 ball within the tangent plane of the data: autoencoder or local_pca. To train by only.
  config.uncertainty.tangents = "none"
  config.uncertainty.tangent_rank = 10  # dimensions of that plane
  config.uncertainty.hidden_radius = (
    0.0  # l_inf, of the inputs of all later layers besides; 0: none
  )

  config.attack = ConfigDict()
  # Of more than one step: pgd, frank_wolfe, lbfgs; of any number: power_iteration; n_fgsm, from
  # noise in twice the ball; free, which replays a batch so often; recall, in the directions that
  # the example's last visit left. Of one step, blind: uniform_noise and random_signs.
  config.attack.name = "pgd"
  config.attack.num_steps = 1  # 0: standard training; 1: Algorithm 1; more: the ascent of that name
  config.attack.relative_step = (
    0.25  # of the radius, for pgd of more than one step or from a sample
  )
  config.attack.random_start = False  # from a sample of the set, for pgd
  config.attack.every = 1  # every so-manieth update has an adversary, the others the clean batch
  config.attack.dtype = "float32"  # of the net while the adversary ascends; or bfloat16, float16
  config.attack.train_mode = False  # the authors' choice: dropout and batch statistics on

  # A function of objectives; the rest: its own. Of robust and mixture loss= cross_entropy, or
  # one_vs_all (sigmoids) or independent (RBF nets).
  config.objective = ConfigDict({"name": "robust"})

  config.penalty = ConfigDict()  # what the learner pays beside
  config.penalty.name = "operator_norm"  # or layer_jacobian, gradient_alignment
  config.penalty.weight = 0.0  # 0: none

  config.optimizer = ConfigDict()
  config.optimizer.name = "sgd"  # any of optax that takes a learning rate, or dampened_sgd
  config.optimizer.kwargs = ConfigDict({"momentum": 0.9})  # its own; ={} for one that takes none
  config.optimizer.learning_rate = 0.01
  config.optimizer.schedule = "constant"  # constant, inverse_time, halving, cosine, triangular
  config.optimizer.inverse_time_rate = 5e-6  # a of 1 / (1 + a step), for inverse_time
  config.optimizer.halving_epochs = 25.0  # how often, for halving
  config.optimizer.average = 0.0  # decay of an average of the weights, which is then what is judged
  config.optimizer.weight_decay = 0.0  # l_2 penalty on all parameters, added to the gradient
  config.optimizer.max_column_norm = 0.0  # l_2 bound on the weights that lead to a unit; 0: none

  config.training = ConfigDict()
  config.training.epochs = 30
  config.training.batch_size = 32
  config.training.shuffle = True
  config.training.augment = ()  # of "flip", "crop"
  config.training.weight_perturbation = 0.0  # gamma of adversarial weight perturbation; 0: none
  config.training.watch_examples = 500  # held out, on which overfitting is looked for; 0: it is not
  config.training.on_overfitting = "say"  # or "stop", and report on the best checkpoint
  config.training.steps_per_scan = 100  # at most so many updates between looks at the clock

  config.evaluation = ConfigDict()
  config.evaluation.batch_size = 100  # changes speed and memory, not the answer
  # A norm of radius 0 is left out, unless it is the one that is trained over.
  config.evaluation.radii = ConfigDict({"linf": 0.1, "l2": 0.5, "l1": 1.0})  # pixels
  config.evaluation.sweep = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # multiples of the radii
  config.evaluation.checkpoint = "last"  # or "best", by held-out robust accuracy

  config.checkpoint = ConfigDict()
  config.checkpoint.keep = 2  # the last so many, and the best beside them
  config.checkpoint.every_epochs = 1
  config.lock()
  for part in (
    config.model,
    config.objective,
    config.optimizer.kwargs,
  ):  # what is there depends on the name
    part.unlock()
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
  config.dataset.name = "mnist"
  config.dataset.holdout = 1 / 12  # 5,000 of 60,000
  config.model = ConfigDict({"name": "MnistCNN", "input_batch_norm": False})
  config.model.mean, config.model.std = (MNIST_MEAN,), (MNIST_STD,)
  config.optimizer.learning_rate = 1e-3
  config.optimizer.schedule = "inverse_time"
  config.optimizer.weight_decay = 1e-3
  config.training.epochs = 120
  config.training.batch_size = 100
  config.training.shuffle = False
  config.evaluation.radii.linf = standardised(0.2, std=MNIST_STD)
  config.evaluation.radii.l2 = standardised(2.0, std=MNIST_STD)
  config.evaluation.radii.l1 = standardised(2.0, std=MNIST_STD)
  config.uncertainty.radius = config.evaluation.radii.linf
  config.evaluation.sweep = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
  return config


def mnist_methods() -> ConfigDict:
  """MNIST over the l_inf ball of radius 0.2 in the pixel box, where methods are compared."""
  config = mnist()
  config.uncertainty.name, config.uncertainty.radius, config.uncertainty.box = "linf", 0.2, True
  config.evaluation.radii.linf, config.evaluation.radii.l2 = 0.2, 2.0
  config.evaluation.sweep = (0.0, 0.5, 1.0, 1.5)
  config.optimizer.learning_rate, config.optimizer.schedule = 0.02, "cosine"
  config.optimizer.weight_decay = 0.0
  config.training.shuffle = True
  config.training.epochs = 12
  return config


def cifar() -> ConfigDict:
  """CIFAR-10 as in the authors' code, but on standardised RGB rather than contrast-normalised YUV.

  Of the radii only that of l_2 is the authors'; the others keep MNIST's proportions to it.
  """
  config = base()
  config.seed = 1
  config.dataset.name = "cifar10"
  config.dataset.holdout = 0.1
  config.model = ConfigDict({"name": "VGG", "dropout": True, "width": 1.0, "dtype": "float32"})
  config.model.mean, config.model.std = CIFAR_MEAN, CIFAR_STD
  config.attack.train_mode = True
  config.optimizer.learning_rate = 0.1
  config.optimizer.schedule = "halving"
  config.optimizer.weight_decay = 5e-4
  config.training.epochs = 300
  config.training.batch_size = 128
  config.evaluation.radii.linf = standardised(0.02, std=CIFAR_STD[1])
  config.evaluation.radii.l2 = standardised(0.2, std=CIFAR_STD[1])
  config.evaluation.radii.l1 = standardised(0.2, std=CIFAR_STD[1])
  config.uncertainty.radius = config.evaluation.radii.linf
  config.evaluation.sweep = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
  return config


def get_config() -> ConfigDict:
  """What `python -m robust_opt.main` runs when no --config is given: digits, l_inf."""
  return digits()


# key -> (what holds for an allowed value, the same in words)
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
  "seed": (lambda v: 0 <= v < 2**32, "an integer, 0 <= seed < 2^32"),
  "model.mean": (lambda v: all(map(math.isfinite, v)), "a tuple of finite numbers, in pixels"),
  "model.std": (lambda v: all(0 < s < math.inf for s in v), "a tuple of finite numbers > 0"),
  "dataset.holdout": (lambda v: 0 < v < 1, "a fraction, 0 < holdout < 1"),
  "dataset.train_start": (lambda v: v >= 0, "an integer >= 0"),
  "dataset.train_examples": (lambda v: v >= 0, "an integer >= 0 (0: all)"),
  "dataset.labels": (lambda v: v >= 0, "an integer >= 0 (0: all)"),
  "dataset.test_examples": (lambda v: v >= 0, "an integer >= 0 (0: all)"),
  "uncertainty.name": (lambda v: v in NORMS, f"one of {', '.join(NORMS)}"),
  "uncertainty.radius": (
    lambda v: 0 <= v < math.inf,
    "a finite number >= 0, in pixels of [0, 1] (0: the clean example)",
  ),
  "uncertainty.warmup": (lambda v: 0 <= v <= 1, "a share of the training, 0 <= warmup <= 1"),
  "uncertainty.tangents": (
    lambda v: v in ("none", "autoencoder", "local_pca"),
    "one of none, autoencoder, local_pca",
  ),
  "uncertainty.tangent_rank": (lambda v: v >= 1, "an integer >= 1"),
  "uncertainty.hidden_radius": (lambda v: 0 <= v < math.inf, "a finite number >= 0 (0: none)"),
  "attack.every": (lambda v: v >= 1, "an integer >= 1"),
  "attack.dtype": (
    lambda v: v in ("float32", "bfloat16", "float16"),
    "one of float32, bfloat16, float16",
  ),
  "penalty.name": (
    lambda v: v in ("operator_norm", "layer_jacobian", "gradient_alignment"),
    "one of operator_norm, layer_jacobian, gradient_alignment",
  ),
  "penalty.weight": (lambda v: 0 <= v < math.inf, "a finite number >= 0 (0: none)"),
  "attack.name": (
    lambda v: v in MAXIMIZERS + NOISES,
    f"one of {', '.join(MAXIMIZERS + NOISES)}",
  ),
  "attack.num_steps": (lambda v: v >= 0, "an integer >= 0 (0: standard training)"),
  "attack.relative_step": (lambda v: 0 < v <= 2, "a fraction of the radius, 0 < step <= 2"),
  "optimizer.learning_rate": (lambda v: 0 < v < math.inf, "a finite number > 0"),
  "optimizer.schedule": (
    lambda v: v in ("constant", "inverse_time", "halving", "cosine", "triangular"),
    "one of constant, inverse_time, halving, cosine, triangular",
  ),
  "optimizer.inverse_time_rate": (lambda v: 0 <= v < math.inf, "a finite number >= 0"),
  "optimizer.halving_epochs": (lambda v: 0 < v < math.inf, "a finite number of epochs > 0"),
  "optimizer.average": (lambda v: 0 <= v < 1, "a decay, 0 <= average < 1 (0: none)"),
  "optimizer.weight_decay": (lambda v: 0 <= v < math.inf, "a finite number >= 0"),
  "optimizer.max_column_norm": (lambda v: 0 <= v < math.inf, "a finite number >= 0 (0: none)"),
  "training.epochs": (lambda v: v >= 1, "an integer >= 1"),
  "training.batch_size": (lambda v: v >= 1, "an integer >= 1"),
  "training.weight_perturbation": (lambda v: 0 <= v < math.inf, "a finite number >= 0 (0: none)"),
  "training.watch_examples": (lambda v: v >= 0, "an integer >= 0 (0: none)"),
  "training.on_overfitting": (lambda v: v in ("say", "stop"), "say or stop"),
  "training.steps_per_scan": (lambda v: v >= 1, "an integer >= 1"),
  "training.augment": (lambda v: set(v) <= {"flip", "crop"}, "a tuple of 'flip', 'crop'"),
  "evaluation.batch_size": (lambda v: v >= 1, "an integer >= 1"),
  "evaluation.checkpoint": (lambda v: v in ("last", "best"), "last or best"),
  "evaluation.sweep": (
    lambda v: len(v) > 0 and all(0 <= m < math.inf for m in v),
    "a tuple of finite multiples >= 0 of the radii",
  ),
  **{
    f"evaluation.radii.{norm}": (lambda v: 0 <= v < math.inf, "a finite number >= 0, in pixels")
    for norm in NORMS
  },
  "checkpoint.keep": (lambda v: v >= 1, "an integer >= 1"),
  "checkpoint.every_epochs": (lambda v: v >= 1, "an integer >= 1"),
}


# What lies below these is the business of the class that is named there.
_OPEN = ("optimizer.kwargs.", "objective.")


def validate(config: ConfigDict) -> None:
  """Checks ranges and names; types are ConfigDict's own business.

  Raises:
    InputError: names the key, the value and what is allowed.
  """
  flat = flattened(config.to_dict())
  for key in sorted(flattened(base().to_dict()).keys() - flat.keys()):
    if not key.startswith(_OPEN):
      raise InputError(
        f"The config must hold every key of robust_opt.experiments.config, but lacks {key}."
      )
  for key, (allowed, words) in _RULES.items():
    value = flat[key]
    try:
      fine = bool(allowed(value))
    except TypeError:
      fine = False
    if not fine:
      raise InputError(f"--config.{key} must be {words}, but was {value!r}.")


def trains_robustly(config: ConfigDict) -> bool:
  """Whether there is an adversary, one that attacks or that of a gradient penalty."""
  attacked = config.attack.num_steps > 0 and config.attack.name not in NOISES
  return attacked or config.objective.name == "gradient_penalty"


def adversary(config: ConfigDict) -> str:
  """The set that a config trains over, in words; empty where there is no adversary."""
  given = config.uncertainty
  if not trains_robustly(config):
    return ""
  words = tables.ball_name(given.name, given.radius)
  if given.hidden_radius:
    words += f" and hidden layers by {given.hidden_radius:.4g}"
  if given.tangents != "none":
    words += " along tangent planes"
  return words


def as_dict(config: ConfigDict) -> dict[str, Any]:
  """The resolved config as plain JSON values (tuples become lists)."""
  return json.loads(json.dumps(config.to_dict()))


# Where things lie is no part of what is computed: these may differ between a run and its resume.
# (The data that is found there is compared by workdirs.)
_PLACES = ("dataset.data_dir", "dataset.cache_dir", "dataset.train_files")


Same = Callable[[str, Any, Any], bool]  # (key, old, new) -> whether the two values agree
# Characters of a value in a message.
_LONGEST = 80


def equal(key: str, old: Any, new: Any) -> bool:
  """Whether two values agree exactly."""
  del key
  return bool(old == new)


def differences(old: dict[str, Any], new: dict[str, Any], same: Same = equal) -> list[str]:
  """Keys that make two resolved configs different experiments, as 'key: old -> new'."""
  flat_old, flat_new = flattened(old), flattened(new)
  keys = sorted((flat_old.keys() | flat_new.keys()) - set(_PLACES))
  missing = "(absent)"
  pairs = ((key, flat_old.get(key, missing), flat_new.get(key, missing)) for key in keys)
  return [
    f"{key}: {textwrap.shorten(str(old), _LONGEST)} -> {textwrap.shorten(str(new), _LONGEST)}"
    for key, old, new in pairs
    if not same(key, old, new)
  ]


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """The leaves of a resolved config by their dotted keys."""
  leaves: dict[str, Any] = {}
  for key, value in tree.items():
    inner = isinstance(value, Mapping)
    leaves |= flattened(value, f"{prefix}{key}.") if inner else {prefix + key: value}
  return leaves
