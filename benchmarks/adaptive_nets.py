"""Networks of all kinds, over l_inf and l_2, on which `adaptive.py` compares two versions.

  for case in cases(data_dir, weights):
    logits_fn, x, y = case.load(1000)       # x [1000, *S] in [0, 1]

Those for digits are trained here, in seconds, on 597 digits, and attacked on the other 1,200. Those
for MNIST and CIFAR-10 are other people's weights, of alpha-beta-CROWN's repository (BSD 3-Clause).
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import robust_opt as ro
from robust_opt import models
from robust_opt.data import datasets
from robust_opt.evaluation.collection import pixels
from robust_opt.sets import Ball
from robust_opt.types import Array, LogitsFn

BOX = (0.0, 1.0)
TRAINING_RADII = {"linf": 0.15, "l2": 0.8}
EPOCHS, BATCH = 40, 32
SCALE = 100.0  # of the logits of a masked net: its cross-entropy saturates
Moments = dict[str, Any]
CIFAR: Moments = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
RESNET: Moments = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)}


class Case(NamedTuple):
  """A network, images and the set to attack it over.

  Attributes:
    name: of the network.
    u: the set.
    load: number of images -> (logits_fn, x [N, *S] in [0, 1], y [N]).
  """

  name: str
  u: Ball
  load: Callable[[int], tuple[LogitsFn, np.ndarray, np.ndarray]]


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
  """All 1,797 digits: those of the test set first."""
  parts = [datasets.load("digits", split) for split in ("test", "train")]
  images = np.concatenate([pixels(part.images) for part in parts])
  return images, np.concatenate([part.labels for part in parts]).astype(np.int32)


@functools.cache
def trained(kind: str, norm: str, net: str = "DigitsCNN") -> jax.tree_util.Partial:
  """A network for digits, trained on the last 597 of them."""
  x, y = (array[1200:] for array in digits())
  u = ro.sets.ball_of(norm)(TRAINING_RADII[norm], box=BOX)
  steps = ro.pgd(u, type(u)(u.radius / 4), random_start=False)
  attacks = {"standard": ro.ascend(steps, 0), "fgsm": ro.steepest(u)}
  attack = attacks.get(kind, ro.ascend(steps, 7))
  module = models.ARCHITECTURES[net](num_classes=10, mean=0.3, std=0.38)
  plan = ro.EpochPlan(len(x), BATCH)
  num_steps = EPOCHS * plan.num_steps
  optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
  objective = ro.trades(6.0) if kind == "trades" else ro.robust()
  step = ro.make_train_step(models.apply_of(module), optimizer, objective, attack)
  params, model_state = models.init(module, jax.random.key(0), image_shape=(8, 8, 1))
  state = ro.init_state(params, model_state, optimizer)
  scan = jax.jit(ro.make_scan(step, plan), static_argnums=3)
  state, _ = scan(state, ro.ArrayData(x, y), jax.random.key(1), num_steps)
  return jax.tree_util.Partial(module.apply, {"params": state.params})


def masked(logits_fn: LogitsFn) -> LogitsFn:
  """The same net, whose cross-entropy saturates: its gradient is rounded to 0."""
  return jax.tree_util.Partial(lambda net, x: SCALE * net(x), logits_fn)


def quantized(logits_fn: jax.tree_util.Partial, levels: int, share: float) -> LogitsFn:
  """An MLP whose hidden units are rounded.

  Of each unit `share` is rounded, the rest is not: the gradient is (1 - share) of the true slope
  within a step of the staircase, and 0 everywhere if share is 1.
  """

  def rounded(params: dict[str, Any], x: Array) -> Array:
    x = ((x - 0.3) / 0.38).reshape(len(x), -1)
    *hidden, last = (params[f"Dense_{i}"] for i in range(len(params)))
    for layer in hidden:
      x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
      x = share * jnp.round(x * levels) / levels + (1 - share) * x
    return x @ last["kernel"] + last["bias"]

  return jax.tree_util.Partial(rounded, logits_fn.args[0]["params"])


def pretrained(
  dataset: str, file: str, architecture: str, data_dir: Path, weights: Path, moments: Moments
) -> Callable[[int], tuple[LogitsFn, np.ndarray, np.ndarray]]:
  """Loads other people's weights, and the first test images."""

  def load(count: int) -> tuple[LogitsFn, np.ndarray, np.ndarray]:
    test = datasets.load(dataset, "test", data_dir=str(data_dir))
    x, y = pixels(test.images[:count]), test.labels[:count].astype(np.int32)
    path = weights / f"{file}.safetensors"
    net = ro.load_torch(path, architecture, image_shape=x.shape[1:], **moments)
    return net.logits_fn, x, y

  return load


def cases(data_dir: Path, weights: Path) -> list[Case]:
  """All of them; `data_dir` has prepared data sets, `weights` the state dicts as .safetensors."""

  def case(
    name: str, norm: str, radius: float, kind: str, net: str = "MLP", change: Any = None
  ) -> Case:
    def load(count: int) -> tuple[LogitsFn, np.ndarray, np.ndarray]:
      x, y = digits()
      logits_fn = trained(kind, norm, net)
      return (change(logits_fn) if change else logits_fn), x[:count], y[:count]

    return Case(f"digits, {net} {name}", ro.sets.ball_of(norm)(radius, box=BOX), load)

  mnist = functools.partial(pretrained, "mnist", data_dir=data_dir, weights=weights, moments={})
  cifar = functools.partial(pretrained, "cifar10", data_dir=data_dir, weights=weights)
  staircase = functools.partial(quantized, levels=1, share=0.8)
  flat = functools.partial(quantized, levels=2, share=1.0)
  return [
    case("standard", "linf", 0.05, "standard"),
    case("FGSM", "linf", 0.12, "fgsm"),
    case("PGD", "linf", 0.12, "pgd"),
    case("TRADES", "linf", 0.12, "trades"),
    case("standard", "l2", 0.4, "standard"),
    case("PGD", "l2", 0.5, "pgd"),
    case("TRADES", "l2", 0.5, "trades"),
    case("PGD, logits times 100", "linf", 0.12, "pgd", change=masked),
    case("PGD, units rounded by 80 %", "linf", 0.1, "pgd", change=staircase),
    case("PGD, units rounded", "linf", 0.1, "pgd", change=flat),
    case("PGD", "linf", 0.12, "pgd", "ConvNet"),
    case("TRADES", "l2", 0.5, "trades", "ConvNet"),
    Case(
      "MNIST, ConvNet adversarial",
      ro.LInf(0.2, box=BOX),
      mnist("mnist_cnn_a_adv", "ConvNet"),
    ),
    Case("MNIST, ConvNet adversarial", ro.L2(1.5, box=BOX), mnist("mnist_cnn_a_adv", "ConvNet")),
    Case(
      "CIFAR-10, ConvNet adversarial",
      ro.LInf(2 / 255, box=BOX),
      cifar("cifar_cnn_a_adv", "ConvNet", moments=CIFAR),
    ),
    Case(
      "CIFAR-10, ResNet-2B",
      ro.LInf(1 / 255, box=BOX),
      cifar("resnet2b", "ResNet2B", moments=RESNET),
    ),
  ]
