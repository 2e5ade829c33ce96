"""The margins of ResNet-2B by auto_LiRPA, for benchmarks/certificates.py: PyTorch alone, no JAX.

  python benchmarks/certificates_torch.py x_y.npz resnet2b.pth theirs.npz [2] [CROWN] [20]

x_y.npz has x [N, 32, 32, 3] in [0, 1] and y [N]; then the radius in 1/255, the method of
auto_LiRPA, and the batch size. auto_LiRPA 0.3, the version on PyPI, is from before PyTorch
1.13: `modernize` lets it run under PyTorch 2.14 and NumPy 2.
"""

import importlib
import sys
import time
import types

import numpy as np
import torch
from torch import nn

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def modernize() -> None:
  """Puts back the names that auto_LiRPA 0.3 imports."""
  module = types.ModuleType("numpy.lib.arraysetops")
  vars(module)["isin"] = np.isin
  sys.modules["numpy.lib.arraysetops"] = module
  exporter = "torch.onnx._internal.torchscript_exporter"
  for name in ("utils", "symbolic_helper"):
    new, old = (
      importlib.import_module(f"{package}.{name}") for package in (exporter, "torch.onnx")
    )
    for attribute in set(dir(new)) - set(dir(old)):
      setattr(old, attribute, getattr(new, attribute))
  options = importlib.import_module(f"{exporter}._globals").GLOBALS
  torch.onnx.symbolic_helper._set_opset_version = lambda version: setattr(
    options, "export_onnx_opset_version", version
  )
  torch._C.Node.__getitem__ = lambda node, key: getattr(node, node.kindOf(key))(key)


class Block(nn.Module):
  """A residual block of two convolutions."""

  def __init__(self, features: int, out: int, stride: int) -> None:
    super().__init__()
    self.conv1 = nn.Conv2d(features, out, 3, stride, 1)
    self.conv2 = nn.Conv2d(out, out, 3, 1, 1)
    shortcut = [nn.Conv2d(features, out, 1, stride)] if stride > 1 else []
    self.shortcut = nn.Sequential(*shortcut)

  def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
    y = self.conv2(torch.relu(self.conv1(x)))
    return torch.relu(y + self.shortcut(x))


class ResNet2B(nn.Module):
  """The network, of standardized images."""

  def __init__(self) -> None:
    super().__init__()
    self.conv1 = nn.Conv2d(3, 8, 3, 2, 1)
    self.layer1 = nn.Sequential(Block(8, 16, 2), Block(16, 16, 1))
    self.linear1, self.linear2 = nn.Linear(1024, 100), nn.Linear(100, 10)

  def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
    x = self.layer1(torch.relu(self.conv1(x)))
    return self.linear2(torch.relu(self.linear1(torch.flatten(x, 1))))


def main(data: str, weights: str, output: str, *rest: str) -> None:
  """Writes the margins and prints their time."""
  radius, method, size = (*rest, *("2", "CROWN", "20")[len(rest) :])
  modernize()
  lirpa = importlib.import_module("auto_LiRPA")
  BoundedModule, BoundedTensor = lirpa.BoundedModule, lirpa.BoundedTensor

  members = BoundedModule._named_members
  BoundedModule._named_members = lambda *args, remove_duplicate=True, **rest: members(*args, **rest)
  arrays, net = np.load(data), ResNet2B()
  saved = torch.load(weights, map_location="cpu", weights_only=True)
  net.load_state_dict(saved.get("state_dict", saved))
  x = torch.tensor(arrays["x"]).permute(0, 3, 1, 2).contiguous()
  y, batch, eps = torch.tensor(arrays["y"]).long(), int(size), float(radius) / 255
  bounded = BoundedModule(net.eval().requires_grad_(False), x[:batch], device="cpu")
  mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
  standardized = lambda images: (images.clamp(0, 1) - mean) / std  # noqa: E731
  found, began = [], time.process_time()
  for part, labels in zip(x.split(batch), y.split(batch), strict=True):
    others = ~torch.eye(10, dtype=bool)[labels]
    directions = (torch.eye(10)[labels][:, None] - torch.eye(10))[others].view(len(part), 9, 10)
    ball = lirpa.PerturbationLpNorm(
      norm=np.inf, eps=eps, x_L=standardized(part - eps), x_U=standardized(part + eps)
    )
    image = BoundedTensor(standardized(part), ball)
    lower, _ = bounded.compute_bounds(x=(image,), C=directions, method=method, bound_upper=False)
    found.append(lower.detach().amin(1).numpy())
  margins = np.concatenate(found)
  np.savez(output, margins=margins)
  print(f"{method} at {radius}/255: {np.mean(margins > 0):.2%} of {len(x)} verified, "
        f"{time.process_time() - began:.1f} CPU s")  # fmt: skip


if __name__ == "__main__":
  main(*sys.argv[1:])
