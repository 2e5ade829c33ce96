"""The nets that the attacks are compared on: trained by robust_opt, then copied to PyTorch.

  net = load("mnist", "pgd", Path("runs/bench"), data_dir="DIR")
  net.logits_fn, net.module, net.x, net.y

Four nets per data set: standard training, FGSM training (which may overfit catastrophically), PGD
training, and "masked", the standard net with its logits multiplied by 100: its cross-entropy
saturates, so that the gradient is rounded to zero, while the predictions are unchanged.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn

from benchmarks import torch_nets
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import run as experiment
from robust_opt.experiments import target
from robust_opt.experiments.sections import choose
from robust_opt.types import Array, LogitsFn

DATASETS = ("mnist", "cifar10")
SMALL = "digits"  # embedded, for quick comparisons
KINDS = ("standard", "fgsm", "pgd", "masked")
MASK = 100.0
# In pixels, chosen so that some but not all images are broken.
TRAINING_RADIUS = {"digits": 0.1, "mnist": 0.15, "cifar10": 4 / 255}
RADII: dict[tuple[str, bool], dict[str, float]] = {  # (data set, robustly trained)
  ("digits", False): {"linf": 0.1, "l2": 0.6, "l1": 1.5},
  ("digits", True): {"linf": 0.1, "l2": 0.6, "l1": 1.5},
  ("mnist", False): {"linf": 0.1, "l2": 1.2, "l1": 8.0},
  ("mnist", True): {"linf": 0.15, "l2": 1.5, "l1": 8.0},
  ("cifar10", False): {"linf": 1 / 255, "l2": 0.1, "l1": 1.5},
  ("cifar10", True): {"linf": 4 / 255, "l2": 0.3, "l1": 4.0},
}


class Net(NamedTuple):
  """A net in JAX and in PyTorch, and its test data.

  Attributes:
    logits_fn: [B, H, W, C] in [0, 1] -> logits [B, 10].
    module: the same net in PyTorch, for [B, C, H, W].
    x: [N, H, W, C] float32.
    y: [N] int32.
    radii: norm -> radius of the attacks.
  """

  logits_fn: LogitsFn
  module: nn.Module
  x: np.ndarray
  y: np.ndarray
  radii: Mapping[str, float]


def load(dataset: str, kind: str, workdir: Path, data_dir: str) -> Net:
  """Trains the net, or restores it from `workdir`."""
  trained = "standard" if kind == "masked" else kind
  config = _config(dataset, trained, data_dir)
  run = workdir / f"{dataset}_{trained}"
  experiment.run(config, run)
  trained_net = target.load({"workdir": str(run), "data_dir": data_dir})
  assert isinstance(trained_net.logits_fn, jax.tree_util.Partial)
  params, model_state = jax.tree.map(np.asarray, trained_net.logits_fn.args)
  module = {
    "digits": lambda: torch_nets.digits_cnn(params),
    "mnist": lambda: torch_nets.mnist_cnn(params),
    "cifar10": lambda: torch_nets.vgg_of(params, model_state),
  }[dataset]()
  padding = 2 * (dataset == "mnist")
  standardize = torch_nets.Standardize(config.data.mean, config.data.std, padding)
  module = nn.Sequential(standardize, module)
  logits_fn: LogitsFn = trained_net.logits_fn
  if kind == "masked":
    logits_fn = jax.tree_util.Partial(_scaled, trained_net.logits_fn)
    module = nn.Sequential(module, Scale())
  module.eval().requires_grad_(False)
  x, y = trained_net.x, trained_net.y
  ours = np.asarray(logits_fn(jnp.asarray(x[:200])))
  theirs = module(torch_nets.channels_first(x[:200])).numpy()
  difference = float(np.abs(ours - theirs).max() / np.abs(ours).max())
  if difference > 1e-5:
    raise ValueError(f"The logits in JAX and PyTorch differ by {difference:.1e} of the largest.")
  return Net(logits_fn, module, x, y, RADII[dataset, trained != "standard"])


class Scale(nn.Module):
  """Multiplies the logits by MASK."""

  def forward(self, logits: torch.Tensor) -> torch.Tensor:
    """[B, C] -> [B, C]."""
    return MASK * logits


def _scaled(logits_fn: LogitsFn, x: Array) -> Array:
  return MASK * logits_fn(x)


def _config(dataset: str, kind: str, data_dir: str) -> ConfigDict:
  """A few minutes of training on two cores; high accuracy is not needed here."""
  config = {"digits": config_lib.digits, "mnist": config_lib.mnist, "cifar10": config_lib.cifar}[
    dataset
  ]()
  config.data.data_dir = data_dir
  choose(config, "set", "LInf", radius=TRAINING_RADIUS[dataset], box=config_lib.PIXEL_BOX)
  choose(config, "attack", {"standard": "none", "fgsm": "steepest", "pgd": "pgd"}[kind])
  choose(config, "schedule", "cosine")
  config.evaluation.sweep = (0.0, 1.0)
  if dataset == "digits":
    config.training.epochs = 8
  elif dataset == "mnist":
    config.optimizer.learning_rate = 0.02
    config.training.epochs = 4
  else:
    config.model.dropout, config.model.width = False, 0.125
    config.data.train_examples = 8192
    config.optimizer.learning_rate = 0.05
    config.training.batch_size = 32
    config.training.epochs = 4
    config.data.test_examples = 1000
  return config
