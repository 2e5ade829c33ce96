"""The nets that the attacks are compared on: trained by robust_opt, then copied to PyTorch.

  net = load("mnist", "pgd", Path("runs/bench"), data_dir="DIR")
  net.logits_fn, net.module, net.x, net.y

Four nets per data set: standard training, FGSM training (which may overfit catastrophically), PGD
training, and "masked", the standard net with its logits multiplied by 100: its cross-entropy
saturates, so that the gradient is rounded to zero, while the predictions are unchanged.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn

from robust_opt.experiments import config as config_lib
from robust_opt.experiments import run as experiment
from robust_opt.experiments import target
from robust_opt.experiments.sections import choose
from robust_opt.types import Array, LogitsFn

DATASETS = ("mnist", "cifar10")
KINDS = ("standard", "fgsm", "pgd", "masked")
MASK = 100.0
# In pixels, chosen so that some but not all images are broken.
TRAINING_RADIUS = {"mnist": 0.15, "cifar10": 4 / 255}
RADII: dict[tuple[str, bool], dict[str, float]] = {  # (data set, robustly trained)
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
  module: nn.Module = _paper_net(params) if dataset == "mnist" else _vgg(params, model_state)
  module = nn.Sequential(Standardize(config.data.mean, config.data.std, dataset), module)
  logits_fn: LogitsFn = trained_net.logits_fn
  if kind == "masked":
    logits_fn = jax.tree_util.Partial(_scaled, trained_net.logits_fn)
    module = nn.Sequential(module, Scale())
  module.eval().requires_grad_(False)
  x, y = trained_net.x, trained_net.y
  ours = np.asarray(logits_fn(jnp.asarray(x[:200])))
  theirs = module(channels_first(x[:200])).numpy()
  difference = float(np.abs(ours - theirs).max() / np.abs(ours).max())
  if difference > 1e-5:
    raise ValueError(f"The logits in JAX and PyTorch differ by {difference:.1e} of the largest.")
  return Net(logits_fn, module, x, y, RADII[dataset, trained != "standard"])


def channels_first(x: np.ndarray) -> torch.Tensor:
  """[B, H, W, C] -> [B, C, H, W]."""
  return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def channels_last(x: torch.Tensor) -> np.ndarray:
  """[B, C, H, W] -> [B, H, W, C]."""
  return np.ascontiguousarray(np.moveaxis(x.detach().numpy(), 1, -1))


class Standardize(nn.Module):
  """Pads MNIST to 32 x 32 and standardizes, as the models of robust_opt do."""

  def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], dataset: str) -> None:
    super().__init__()
    self.mean = torch.tensor(mean).reshape(-1, 1, 1)
    self.std = torch.tensor(std).reshape(-1, 1, 1)
    self.padding = 2 if dataset == "mnist" else 0

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> [B, C, H', W']."""
    return (nn.functional.pad(x, (self.padding,) * 4) - self.mean) / self.std


class Scale(nn.Module):
  """Multiplies the logits by MASK."""

  def forward(self, logits: torch.Tensor) -> torch.Tensor:
    """[B, C] -> [B, C]."""
    return MASK * logits


def _scaled(logits_fn: LogitsFn, x: Array) -> Array:
  return MASK * logits_fn(x)


def _config(dataset: str, kind: str, data_dir: str) -> ConfigDict:
  """A few minutes of training on two cores; high accuracy is not needed here."""
  config = config_lib.mnist() if dataset == "mnist" else config_lib.cifar()
  config.data.data_dir = data_dir
  choose(config, "set", "LInf", radius=TRAINING_RADIUS[dataset], box=config_lib.PIXEL_BOX)
  choose(config, "attack", {"standard": "none", "fgsm": "steepest", "pgd": "pgd"}[kind])
  choose(config, "schedule", "cosine")
  config.evaluation.sweep = (0.0, 1.0)
  if dataset == "mnist":
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


def _paper_net(params: Any) -> nn.Module:
  module = nn.Sequential(
    nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(3),
    nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(256, 200), nn.ReLU(), nn.Linear(200, 10),
  )  # fmt: skip
  _copy_conv(module[0], params["conv1"])
  _copy_conv(module[3], params["conv2"])
  # Flattening puts rows and columns before the channels in JAX, after them in PyTorch.
  dense1 = params["dense1"]["kernel"].reshape(2, 2, 64, 200).transpose(2, 0, 1, 3).reshape(256, 200)
  _copy_dense(module[7], {"kernel": dense1, "bias": params["dense1"]["bias"]})
  _copy_dense(module[9], params["dense2"])
  return module


def _vgg(params: Any, model_state: Any) -> nn.Module:
  """Without dropout, which has no effect in evaluation mode."""
  layers: list[nn.Module] = []
  statistics = model_state["batch_stats"]
  index = 0

  def norm(features: int) -> nn.Module:
    layer = nn.BatchNorm1d(features, eps=1e-3) if index > 12 else nn.BatchNorm2d(features, eps=1e-3)
    scale, running = params[f"BatchNorm_{index}"], statistics[f"BatchNorm_{index}"]
    _set(layer.weight, scale["scale"])
    _set(layer.bias, scale["bias"])
    _set(layer.running_mean, running["mean"])
    _set(layer.running_var, running["var"])
    return layer

  for depth in (2, 2, 3, 3, 3):
    for _ in range(depth):
      weights = params[f"Conv_{index}"]
      _, _, channels, features = weights["kernel"].shape
      conv = nn.Conv2d(channels, features, 3, padding=1)
      _copy_conv(conv, weights)
      layers += [conv, norm(features), nn.ReLU()]
      index += 1
    layers.append(nn.MaxPool2d(2))
  hidden, last = (nn.Linear(*params[f"Dense_{i}"]["kernel"].shape) for i in (0, 1))
  _copy_dense(hidden, params["Dense_0"])
  _copy_dense(last, params["Dense_1"])
  return nn.Sequential(*layers, nn.Flatten(), hidden, norm(hidden.out_features), nn.ReLU(), last)


def _copy_conv(layer: Any, weights: Any) -> None:
  _set(layer.weight, weights["kernel"].transpose(3, 2, 0, 1))
  _set(layer.bias, weights["bias"])


def _copy_dense(layer: Any, weights: Any) -> None:
  _set(layer.weight, weights["kernel"].T)
  _set(layer.bias, weights["bias"])


def _set(tensor: Any, values: np.ndarray) -> None:
  with torch.no_grad():
    tensor.copy_(torch.from_numpy(np.array(values)))
