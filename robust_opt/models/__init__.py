"""Networks in Flax Linen, one short file each, and Flax modules as pure functions.

  net = models.MnistCNN(num_classes=10)
  params, model_state = models.init(net, key, image_shape=(28, 28, 1))
  apply = models.from_linen(net)              # an ApplyFn for make_train_step and make_evaluate

Every network takes images in pixels of [0, 1] and standardizes them in its first layer by the
fields mean and std, a number or one per channel, so radii are always in pixels. Some also have a
list of layers (models.affine), for certified bounds and layer-wise penalties.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from robust_opt.errors import InputError
from robust_opt.models.digits_cnn import DigitsCNN
from robust_opt.models.linear import SoftmaxRegression
from robust_opt.models.madry_cnn import MadryCNN
from robust_opt.models.maxout import ConvMaxout, Maxout
from robust_opt.models.mlp import MLP
from robust_opt.models.mnist_cnn import MnistCNN
from robust_opt.models.rbf import DeepRBF, ShallowRBF
from robust_opt.models.vgg import VGG
from robust_opt.types import ApplyFn, Array, ModelState, Params

__all__ = [
  "MLP",
  "VGG",
  "ConvMaxout",
  "DeepRBF",
  "DigitsCNN",
  "MadryCNN",
  "Maxout",
  "MnistCNN",
  "ShallowRBF",
  "SoftmaxRegression",
  "from_linen",
  "init",
  "representation",
]


def init(module: nn.Module, key: Array, image_shape: Sequence[int]) -> tuple[Params, ModelState]:
  """Initial parameters, and batch statistics if the module has any (otherwise {})."""
  variables = jax.jit(module.init)(key, jnp.zeros((1, *image_shape)))
  model_state = {name: value for name, value in variables.items() if name != "params"}
  return variables["params"], model_state


def from_linen(module: nn.Module) -> ApplyFn:
  """A module whose __call__ takes (x, train), as a pure function."""

  def apply(
    params: Params, model_state: ModelState, x: Array, *, train: bool, key: Array | None
  ) -> tuple[Array, ModelState]:
    variables = {"params": params, **model_state}
    rngs = None if key is None else {"dropout": key}
    mutable = list(model_state) if train else []
    logits, updated = module.apply(variables, x, train=train, rngs=rngs, mutable=mutable)
    return logits, {**model_state, **updated}

  return apply


def representation(module: nn.Module) -> ApplyFn:
  """The input of the module's last nn.Dense as an ApplyFn, x [B, *S] -> [B, F].

  An InputError from the function if the module has no nn.Dense.
  """

  def apply(
    params: Params, model_state: ModelState, x: Array, *, train: bool, key: Array | None
  ) -> tuple[Array, ModelState]:
    inputs: list[Array] = []

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
      if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
        inputs.append(args[0])
      return call(*args, **kwargs)

    with nn.intercept_methods(record):
      _, model_state = from_linen(module)(params, model_state, x, train=train, key=key)
    if not inputs:
      raise InputError(f"{type(module).__name__} has no nn.Dense whose input could represent x.")
    return inputs[-1].reshape(x.shape[0], -1), model_state

  return apply
