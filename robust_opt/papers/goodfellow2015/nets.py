"""The networks of Goodfellow et al. 2015, each kind as a config, and FGSM on them.

config = config_of("maxout_adversarial", options, seed=1)
net = load("maxout_adversarial", workdir, options.places)
x_adv = fgsm(net, x, y, 0.25)
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import robust_opt as ro
from robust_opt import losses
from robust_opt.data import datasets
from robust_opt.evaluation import collection
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import methods, target
from robust_opt.experiments.sections import choose
from robust_opt.types import Array, LogitsFn, LossFn

# l_inf, in pixels of [0, 1], without the pixel box, as in the paper. The paper does not state the
# scaling of its CIFAR-10. At MNIST's radius no network learns our digits of 8 x 8 pixels robustly.
RADII = {"mnist": 0.25, "cifar10": 0.1, "digits": 0.15}
# The share of the input's radius that every hidden layer is perturbed by. On MNIST a network learns
# at 0.2 and 0.4 (of 0.25), but not at 0.8 or at the input's own radius.
HIDDEN_SHARE = 0.4


class Kind(NamedTuple):
  """One kind of network.

  Attributes:
    words: what it is, for a table.
    top: what its outputs are, for losses.probabilities.
    change: makes the config of standard maxout training into its own.
    cost: of its training relative to the standard maxout network, to estimate the time left.
  """

  words: str
  top: str
  change: Callable[[ConfigDict], None]
  cost: float = 1.0


class TrainedNet(NamedTuple):
  """A trained network as it is attacked and evaluated.

  Attributes:
    logits_fn: x [B, *S] -> [B, C].
    loss: that it was trained by and is attacked by.
    top: of its kind.
  """

  logits_fn: LogitsFn
  loss: LossFn
  top: str


def base_config(dataset: str) -> ConfigDict:
  """Standard training of the maxout network of 2 x 240 units.

  The paper's weights start uniform in +-0.005, and its rate of 0.1 is nearly constant over hundreds
  of epochs. In ten epochs such a network barely begins to learn; hence larger weights and a cosine.
  """
  make = {"digits": config_lib.digits, "mnist": config_lib.mnist, "cifar10": config_lib.cifar}
  config = make[dataset]()
  choose(config, "attack", "none")
  choose(config, "set", "LInf", radius=RADII[dataset])
  config.evaluation.sweep = (0.0, 1.0)
  config.evaluation.radii.l2 = config.evaluation.radii.l1 = 0.0
  choose(config, "optimizer", "sgd", learning_rate=0.1, momentum=0.7)
  choose(config, "schedule", "cosine")
  config.weights.decay = 0.0
  config.weights.max_column_norm = 1.9365
  config.training.shuffle = True
  config.training.watch_examples = (
    0  # the best checkpoint is by the run's own attack, as in the paper
  )
  config.checkpoint.keep = 1
  channels = 3 if dataset == "cifar10" else 1
  config.data.mean, config.data.std = (0.0,) * channels, (1.0,) * channels
  choose(config, "model", "Maxout", init_scale=0.05)
  return config


def _softmax(config: ConfigDict) -> None:
  choose(config, "model", "SoftmaxRegression")
  config.weights.max_column_norm = 0.0


def _adversarial(config: ConfigDict) -> None:
  """Half of the loss on FGSM examples; the checkpoint of the least adversarial held-out error."""
  methods.goodfellow(config)
  config.evaluation.checkpoint = "best"


def _noise(name: str, config: ConfigDict) -> None:
  choose(config, "attack", name)


def _half(second: bool, config: ConfigDict) -> None:
  half = {"digits": 700, "mnist": 30_000}[config.data.name]
  config.data.train_start = half if second else 0
  config.data.train_examples = 0 if second else half
  config.training.epochs *= 2  # as many updates as on the whole


def _sigmoid(config: ConfigDict) -> None:
  choose(config, "objective", "robust", loss="one_vs_all")


def _rbf(name: str, config: ConfigDict) -> None:
  choose(config, "model", name)
  choose(config, "objective", "robust", loss="independent")
  choose(config, "optimizer", "adam", learning_rate=0.01)
  config.weights.max_column_norm = 0.0


def _mlp(config: ConfigDict) -> None:
  choose(config, "model", "MLP")
  config.weights.max_column_norm = 0.0


def _mlp_adversarial(config: ConfigDict) -> None:
  _mlp(config)
  methods.robust(config)
  config.evaluation.checkpoint = "best"


def _mlp_hidden(config: ConfigDict) -> None:
  """Perturbs hidden layers instead of the input; the paper does not say by how much."""
  _mlp(config)
  hidden_radius = HIDDEN_SHARE * config.set.radius
  choose(config, "attack", "layerwise", hidden_radius=hidden_radius)
  config.set.radius = 0.0


def _large(change: Callable[[ConfigDict], None], config: ConfigDict) -> None:
  change(config)
  config.model.widths = (1600, 1600)


def _plain(config: ConfigDict) -> None:
  del config


def _conv_maxout(config: ConfigDict) -> None:
  choose(config, "model", "ConvMaxout")
  config.optimizer.learning_rate = 0.03  # at 0.1 one seed of two diverged


def _kind(
  words: str, top: str, change: Callable[..., None], *arguments: Any, cost: float = 1.0
) -> Kind:
  return Kind(words, top, functools.partial(change, *arguments), cost)


KINDS: dict[str, Kind] = {
  "softmax": _kind("softmax regression", "softmax", _softmax, cost=0.2),
  "maxout": _kind("maxout, 2 x 240 units", "softmax", _plain),
  "maxout_adversarial": _kind("the same, trained adversarially", "softmax", _adversarial, cost=3.0),
  "maxout_signs": _kind("the same, on random signs", "softmax", _noise, "random_signs"),
  "maxout_uniform": _kind("the same, on uniform noise", "softmax", _noise, "uniform_noise"),
  "maxout_first_half": _kind("maxout, first half of the data", "softmax", _half, False),
  "maxout_second_half": _kind("maxout, second half of the data", "softmax", _half, True),
  "sigmoid": _kind("maxout, independent sigmoids on top", "sigmoid", _sigmoid),
  "rbf": _kind("shallow RBF", "rbf", _rbf, "ShallowRBF", cost=0.5),
  "deep_rbf": _kind("RBF with a hidden layer", "rbf", _rbf, "DeepRBF", cost=0.7),
  "mlp": _kind("perceptron, 2 x 200 ReLU", "softmax", _mlp, cost=0.3),
  "mlp_adversarial": _kind("the same, input perturbed", "softmax", _mlp_adversarial, cost=0.5),
  "mlp_hidden": _kind("the same, hidden layers perturbed", "softmax", _mlp_hidden, cost=0.5),
}
LARGE: dict[str, Kind] = {
  "maxout_large": _kind("maxout, 2 x 1600 units", "softmax", _large, _plain, cost=15.0),
  "maxout_large_adversarial": _kind(
    "the same, trained adversarially", "softmax", _large, _adversarial, cost=45.0
  ),
}
CIFAR: dict[str, Kind] = {"conv_maxout": _kind("convolutional maxout", "softmax", _conv_maxout)}
ALL = KINDS | LARGE | CIFAR


def load(kind: str, workdir: Path, places: dict[str, Any]) -> TrainedNet:
  """The network of a finished run, at the checkpoint that the run reports on."""
  net = target.load_net({"workdir": str(workdir), **places})
  top = ALL[kind].top
  return TrainedNet(net.logits_fn, loss_of(top), top)


def loss_of(top: str) -> LossFn:
  """The loss that networks of that top are trained by."""
  (name,) = (name for name, kind in losses.KINDS.items() if kind == top)
  return getattr(losses, name)


def gradient(net: TrainedNet, x: Array, y: Array, batch_size: int = 1000) -> Array:
  """The input gradient of the loss, [B, *S], in batches."""
  parts = [slice(i, i + batch_size) for i in range(0, len(x), batch_size)]
  return jnp.concatenate([_gradient(net.logits_fn, x[p], y[p], net.loss) for p in parts])


@functools.partial(jax.jit, static_argnames="loss")
def _gradient(logits_fn: LogitsFn, x: Array, y: Array, loss: LossFn) -> Array:
  return jax.grad(lambda x: jnp.sum(loss(logits_fn(x), y)))(x)


def fgsm(net: TrainedNet, x: Array, y: Array, radius: float) -> Array:
  """x + radius sign(gradient), [B, *S]; not clipped to the pixel box, as in the paper."""
  return x + ro.LInf(radius).steepest_ascent(gradient(net, x, y), x)


def logits(net: TrainedNet, x: Array, batch_size: int = 1000) -> Array:
  """[B, C], in batches."""
  parts = [_call(net.logits_fn, x[i : i + batch_size]) for i in range(0, len(x), batch_size)]
  return jnp.concatenate(parts)


@jax.jit
def _call(logits_fn: LogitsFn, x: Array) -> Array:
  return logits_fn(x)


def ensemble(nets: list[TrainedNet]) -> TrainedNet:
  """The logarithm of the members' mean probabilities, which cross-entropy takes as logits."""
  members = [net.logits_fn for net in nets]

  def log_mean(members: list[LogitsFn], x: Array) -> Array:
    log_p = jnp.stack([jax.nn.log_softmax(member(x)) for member in members])
    return jax.nn.logsumexp(log_p, axis=0) - jnp.log(float(len(members)))

  return TrainedNet(jax.tree_util.Partial(log_mean, members), losses.cross_entropy, "softmax")


def dataset(name: str, split: str, places: dict[str, Any]) -> datasets.Dataset:
  """A data set, from where it is cached."""
  return datasets.load(
    name, split, data_dir=places["data_dir"] or None, cache_dir=places["cache_dir"] or None
  )


def test_examples(name: str, count: int, places: dict[str, Any]) -> tuple[Array, Array]:
  """The first test images [N, *S] in [0, 1], and labels [N]; 0: all."""
  test, part = dataset(name, "test", places), slice(0, count or None)
  images, labels = collection.pixels(test.images[part]), test.labels[part]
  return jnp.asarray(images), jnp.asarray(labels.astype(np.int32))
