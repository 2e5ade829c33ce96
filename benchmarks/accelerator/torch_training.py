"""Throughput of the same training in PyTorch, eager or compiled, with what its users would set.

Channels last, cuDNN's benchmark mode, fused loops over parameters in the optimizer, autocast for
bfloat16; the data is on the device.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import clock, torch_nets
from benchmarks.accelerator import training
from benchmarks.accelerator.training import LINF_RADIUS, LINF_STEP, MEAN, NUM_ASCENTS, STD, Size

NETS: dict[str, Callable[[float], nn.Module]] = {"vgg": torch_nets.vgg, "mlp": torch_nets.mlp}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def throughput(
  name: str, precision: str, method: str, batch: int, size: Size, compiled: bool
) -> dict[str, Any]:
  """Images/s, compile time and memory."""
  set_precision(precision, benchmark=True)
  torch.manual_seed(0)
  net = nn.Sequential(torch_nets.Standardize(MEAN, STD), NETS[name](size.width))
  net = net.to(DEVICE).to(memory_format=torch.channels_last)
  step = _step(net, torch.compile(net) if compiled else net, method, precision, batch, size)
  if DEVICE == "cuda":
    torch.cuda.reset_peak_memory_stats()
  began = time.perf_counter()
  step()
  wait()
  first = time.perf_counter() - began
  for _ in range(min(10, size.steps)):  # cuDNN chooses its algorithms
    step()

  def run() -> None:
    for _ in range(size.steps):
      step()
    wait()

  seconds = clock.median_seconds(run, size.repeats) / size.steps
  held = {"memory_mb": torch.cuda.max_memory_allocated() / 1e6} if DEVICE == "cuda" else {}
  row = {"images_per_s": batch / seconds, "compile_s": first if compiled else 0.0, **held}
  release()
  return row


def release() -> None:
  """Gives cached memory of the device back, for JAX."""
  if DEVICE == "cuda":
    torch.cuda.empty_cache()
  torch.compiler.reset()


def wait() -> None:
  """Until the device is done."""
  if DEVICE == "cuda":
    torch.cuda.synchronize()


def set_precision(precision: str, benchmark: bool) -> None:
  """Products of float32 in full or with factors of TF32; whether cuDNN tries its algorithms.

  It does so for every shape of a batch: no gain where shapes change.
  """
  """Products of float32 in full or with factors of TF32."""
  torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
  torch.backends.cudnn.allow_tf32 = precision != "float32"
  torch.backends.cudnn.benchmark = benchmark


def _step(
  net: nn.Module, forward: Any, method: str, precision: str, batch: int, size: Size
) -> Callable[[], None]:
  """One update with a batch of random images."""
  optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, foreach=True)
  count = max(size.examples, batch)
  images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, device=DEVICE)
  images = images.contiguous(memory_format=torch.channels_last)
  labels = torch.randint(0, 10, (count,), device=DEVICE)
  low = precision == "bfloat16"
  autocast = torch.autocast(DEVICE, torch.bfloat16) if low else contextlib.nullcontext()

  def gradient(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_(True)
    loss = F.cross_entropy(forward(x), y, reduction="sum")
    return torch.autograd.grad(loss, x)[0]

  def perturbed(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if method == "standard":
      return x
    net.requires_grad_(False)
    if method == "algorithm 1":
      g = gradient(x, y)
      lengths = g.flatten(1).norm(dim=1).clamp_min(1e-30)
      adversarial = x + training.L2_RADIUS * g / lengths[:, None, None, None]
    else:
      delta = torch.empty_like(x).uniform_(-LINF_RADIUS, LINF_RADIUS)
      for _ in range(NUM_ASCENTS[method]):
        point = (x + delta).clamp_(0, 1)
        delta = point + LINF_STEP * gradient(point, y).sign() - x
        delta.clamp_(-LINF_RADIUS, LINF_RADIUS)
      adversarial = (x + delta).clamp_(0, 1)
    net.requires_grad_(True)
    return adversarial.detach()

  def step() -> None:
    ids = torch.randint(0, count, (batch,), device=DEVICE)
    x, y = images[ids].float().div_(255), labels[ids]
    with autocast:
      loss = F.cross_entropy(forward(perturbed(x, y)), y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()

  return step
