"""AutoAttack on a PyTorch model, whose gradients come from a callback.

  python recipes/torch_bridge.py

Trains a small network on scikit-learn's digits with PyTorch, and evaluates it with AutoAttack.
Replace the module in `train` with your own, and keep `bridge`.

Cost: every gradient runs the network forward twice and backward once, in PyTorch, and copies the
batch to the host and back; a small ConvNet on a CPU took twice the time of PyTorch alone. This is
for evaluation, not for training: JAX does not see the parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

import robust_opt as ro
from robust_opt.data import datasets
from robust_opt.types import LogitsFn

RADIUS = 0.15  # in pixels of [0, 1]


def bridge(module: nn.Module, num_classes: int) -> LogitsFn:
  """A JAX function with a gradient in x, which calls a PyTorch module.

  Args:
    module: [B, C, H, W], pixels in [0, 1] -> logits [B, num_classes], float32; put into evaluation
      mode here. Standardization is a layer of it.
    num_classes: the number of logits.

  Returns:
    logits_fn: [B, H, W, C] -> [B, num_classes]. It can be compiled and differentiated once, in
    reverse mode; vmap calls the module one batch at a time.
  """
  module.eval()
  device = next((p.device for p in module.parameters()), torch.device("cpu"))

  # Within a callback nothing may call JAX: it could wait for the callback forever.
  def tensor(array: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(array), device=device)

  def forward(x: Any) -> np.ndarray:
    with torch.no_grad():
      return module(tensor(x).movedim(-1, 1)).cpu().numpy()

  def backward(x: Any, cotangent: Any) -> np.ndarray:
    with torch.enable_grad():
      leaf = tensor(x).requires_grad_()
      (grad,) = torch.autograd.grad(module(leaf.movedim(-1, 1)), leaf, tensor(cotangent))
    return grad.cpu().numpy()

  @jax.custom_vjp
  def logits_fn(x: jax.Array) -> jax.Array:
    shape = jax.ShapeDtypeStruct((len(x), num_classes), jnp.float32)
    return jax.pure_callback(forward, shape, x, vmap_method="sequential")

  def pullback(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    shape = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    return (jax.pure_callback(backward, shape, x, cotangent, vmap_method="sequential"),)

  logits_fn.defvjp(lambda x: (logits_fn(x), x), pullback)
  return logits_fn


def train(epochs: int = 20) -> nn.Module:
  """A net after some epochs of Adam, all of it PyTorch's."""
  digits = datasets.load("digits", "train")
  images = torch.tensor(digits.images / np.float32(255)).movedim(-1, 1)
  labels = torch.tensor(digits.labels).long()
  torch.manual_seed(0)
  module = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
  optimizer = torch.optim.Adam(module.parameters(), 2e-3)
  for _ in range(epochs):
    for ids in torch.randperm(len(labels)).split(64):
      optimizer.zero_grad()
      nn.functional.cross_entropy(module(images[ids]), labels[ids]).backward()
      optimizer.step()
  return module


def main() -> ro.Verdict:
  """What AutoAttack leaves of the net, on 80 test digits."""
  digits = datasets.load("digits", "test")
  images, labels = digits.images[:80] / np.float32(255), digits.labels[:80]
  net = bridge(train(), num_classes=10)
  verdict = ro.autoattack(net, images, labels, ro.LInf(RADIUS, box=(0.0, 1.0)), version="quick")
  print(f"standard: {verdict.clean_accuracy:.0%} clean, {verdict.robust_accuracy:.0%} under attack")
  worst = np.abs(verdict.images - images).max()
  print(f"the adversarial images are at most {worst:.3f} away")
  return verdict


if __name__ == "__main__":
  main()
