"""Networks of robust_opt in PyTorch, with the same weights.

module = nn.Sequential(Standardize(mean, std), vgg_of(params, model_state))
logits = module(channels_first(x))
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

BLOCKS = (  # of the VGG: (features, rate of the following dropout)
  ((64, 0.3), (64, 0.0)),
  ((128, 0.4), (128, 0.0)),
  ((256, 0.4), (256, 0.4), (256, 0.0)),
  ((512, 0.4), (512, 0.4), (512, 0.0)),
  ((512, 0.4), (512, 0.4), (512, 0.0)),
)


def channels_first(x: np.ndarray) -> torch.Tensor:
  """[B, H, W, C] -> [B, C, H, W]."""
  return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def channels_last(x: torch.Tensor) -> np.ndarray:
  """[B, C, H, W] -> [B, H, W, C]."""
  return np.ascontiguousarray(np.moveaxis(x.detach().cpu().numpy(), 1, -1))


class Standardize(nn.Module):
  """Pads with black pixels and standardizes, as the models of robust_opt do."""

  def __init__(self, mean: Sequence[float], std: Sequence[float], padding: int = 0) -> None:
    super().__init__()
    self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
    self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))
    self.padding = padding

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> [B, C, H', W']."""
    return (nn.functional.pad(x, (self.padding,) * 4) - self.mean) / self.std


def mnist_cnn(params: Any) -> nn.Module:
  """The MNIST network of Shaham et al. with these weights, for padded and standardized images."""
  module = nn.Sequential(
    nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(3),
    nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(256, 200), nn.ReLU(), nn.Linear(200, 10),
  )  # fmt: skip
  _copy_conv(module[0], params["conv1"])
  _copy_conv(module[3], params["conv2"])
  _copy_dense(module[7], {**params["dense1"], "kernel": _channels_first(params["dense1"], 64)})
  _copy_dense(module[9], params["dense2"])
  return module


def digits_cnn(params: Any) -> nn.Module:
  """`robust_opt.models.DigitsCNN` with these weights, for standardized images [B, 1, 8, 8]."""
  module = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10),
  )  # fmt: skip
  _copy_conv(module[0], params["ConvPool_0"])
  _copy_conv(module[3], params["ConvPool_1"])
  _copy_dense(module[7], {**params["Dense_0"], "kernel": _channels_first(params["Dense_0"], 64)})
  _copy_dense(module[9], params["Dense_1"])
  return module


def vgg(width: float = 1.0, dropout: bool = True) -> nn.Sequential:
  """The VGG of Shaham et al. for standardized images [B, 3, 32, 32], as in robust_opt.models."""

  def drop(rate: float) -> list[nn.Module]:
    return [nn.Dropout(rate)] if dropout and rate else []

  layers: list[nn.Module] = []
  channels = 3
  for block in BLOCKS:
    for features, rate in block:
      features = int(features * width)
      norm = nn.BatchNorm2d(features, eps=1e-3)
      layers += [nn.Conv2d(channels, features, 3, padding=1), norm, nn.ReLU(), *drop(rate)]
      channels = features
    layers.append(nn.MaxPool2d(2))
  hidden = int(512 * width)
  layers += [nn.Flatten(), *drop(0.5), nn.Linear(channels, hidden)]
  layers += [nn.BatchNorm1d(hidden, eps=1e-3), nn.ReLU(), *drop(0.5), nn.Linear(hidden, 10)]
  return nn.Sequential(*layers)


def mlp(width: float = 1.0) -> nn.Sequential:
  """Three dense layers for images [B, 3, 32, 32]."""
  hidden = int(1024 * width)
  first, second = nn.Linear(3 * 32 * 32, hidden), nn.Linear(hidden, hidden)
  return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), nn.Linear(hidden, 10))


def vgg_of(params: Any, model_state: Any) -> nn.Module:
  """The VGG with these weights, for evaluation."""
  module = vgg(params["Conv_0"]["kernel"].shape[-1] / 64, dropout=False)
  kinds = {"Conv": nn.Conv2d, "Dense": nn.Linear, "BatchNorm": (nn.BatchNorm2d, nn.BatchNorm1d)}
  for kind, types in kinds.items():
    layers = [layer for layer in module if isinstance(layer, types)]
    for index, layer in enumerate(layers):
      weights = params[f"{kind}_{index}"]
      if kind == "BatchNorm":
        _copy_norm(layer, weights, model_state["batch_stats"][f"{kind}_{index}"])
      else:
        (_copy_conv if kind == "Conv" else _copy_dense)(layer, weights)
  return module.eval()


def _copy_norm(layer: Any, weights: Any, statistics: Any) -> None:
  _set(layer.weight, weights["scale"])
  _set(layer.bias, weights["bias"])
  _set(layer.running_mean, statistics["mean"])
  _set(layer.running_var, statistics["var"])


def _copy_conv(layer: Any, weights: Any) -> None:
  _set(layer.weight, weights["kernel"].transpose(3, 2, 0, 1))
  _set(layer.bias, weights["bias"])


def _copy_dense(layer: Any, weights: Any) -> None:
  _set(layer.weight, weights["kernel"].T)
  _set(layer.bias, weights["bias"])


def _channels_first(weights: Any, channels: int) -> np.ndarray:
  """The kernel of a dense layer after 2 x 2 pixels, whose order is another one in PyTorch.

  Flattening puts rows and columns before the channels in JAX, after them in PyTorch.
  """
  kernel = np.asarray(weights["kernel"])
  return kernel.reshape(2, 2, channels, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)


def _set(tensor: Any, values: np.ndarray) -> None:
  with torch.no_grad():
    tensor.copy_(torch.from_numpy(np.array(values)))
