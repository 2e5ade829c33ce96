"""Networks in Flax Linen, one short file each, and Flax modules as pure functions.

  net = models.MnistCNN(num_classes=10)
  params, model_state = models.init(net, key, image_shape=(28, 28, 1))
  apply = models.apply_of(net)                # an ApplyFn for make_train_step and make_evaluate
  net = models.ARCHITECTURES["WideResNet-34-10"](num_classes=10)   # by name; docs/models.md

Every network takes images in pixels of [0, 1] and standardizes them in its first layer by the
fields mean and std, a number or one per channel, so radii are always in pixels. Some also have a
list of layers (models.affine), for layer-wise penalties.

A network of another library (NNX, Equinox, Haiku, plain functions) is a PureNet, a pair of pure
functions: recipes/ has an adapter of a few lines for each.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from robust_opt.checks import has_parameter
from robust_opt.errors import InputError
from robust_opt.models.conv_net import ConvNet
from robust_opt.models.digits_cnn import DigitsCNN
from robust_opt.models.linear import SoftmaxRegression
from robust_opt.models.madry_cnn import MadryCNN
from robust_opt.models.maxout import ConvMaxout, Maxout
from robust_opt.models.mlp import MLP
from robust_opt.models.mnist_cnn import MnistCNN
from robust_opt.models.preact_resnet import DMPreActResNet, PreActResNet
from robust_opt.models.rbf import DeepRBF, ShallowRBF
from robust_opt.models.resnet import ResNet
from robust_opt.models.resnet_2b import ResNet2B
from robust_opt.models.vgg import VGG
from robust_opt.models.vit import ViT
from robust_opt.models.wide_resnet import DMWideResNet, WideResNet
from robust_opt.types import ApplyFn, Array, ModelState, Params, PureNet

__all__ = [
  "ARCHITECTURES",
  "MLP",
  "VGG",
  "ConvMaxout",
  "ConvNet",
  "DMPreActResNet",
  "DMWideResNet",
  "DeepRBF",
  "DigitsCNN",
  "MadryCNN",
  "Maxout",
  "MnistCNN",
  "PreActResNet",
  "ResNet",
  "ResNet2B",
  "ShallowRBF",
  "SoftmaxRegression",
  "ViT",
  "WideResNet",
  "apply_of",
  "check",
  "definition",
  "from_linen",
  "init",
  "representation",
]


Net = nn.Module | PureNet

_NETS: dict[str, Callable[..., nn.Module]] = {
  name: value
  for name, value in list(globals().items())
  if name in __all__ and inspect.isclass(value) and issubclass(value, nn.Module)
}
_BOTTLENECKS: dict[str, Any] = {"stage_sizes": (3, 4, 6, 3), "bottleneck": True}
# Every network by name, also those of the literature that are a class with certain attributes.
ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = _NETS | {
  "PreActResNet18": functools.partial(PreActResNet, stage_sizes=(2, 2, 2, 2)),
  "DMPreActResNet18": functools.partial(DMPreActResNet, stage_sizes=(2, 2, 2, 2)),
  "ResNet18": functools.partial(ResNet, stage_sizes=(2, 2, 2, 2)),
  "ResNet50": functools.partial(ResNet, **_BOTTLENECKS),
  "ResNet18-ImageNet": functools.partial(ResNet, stage_sizes=(2, 2, 2, 2), stem="imagenet"),
  "ResNet50-ImageNet": functools.partial(ResNet, **_BOTTLENECKS, stem="imagenet"),
  "WideResNet-28-10": functools.partial(WideResNet, depth=28, width=10),
  "WideResNet-34-10": functools.partial(WideResNet, depth=34, width=10),
  "WideResNet-70-16": functools.partial(WideResNet, depth=70, width=16),
  "DMWideResNet-28-10": functools.partial(DMWideResNet, depth=28, width=10),
  "DMWideResNet-34-10": functools.partial(DMWideResNet, depth=34, width=10),
  "DMWideResNet-70-16": functools.partial(DMWideResNet, depth=70, width=16),
  "ViT-Ti": functools.partial(ViT, dim=192, depth=12, heads=3),
  "ViT-S": functools.partial(ViT, dim=384, depth=12, heads=6),
  "ViT-B": functools.partial(ViT, dim=768, depth=12, heads=12),
}


def check(net: Any, name: str) -> Net:
  """The net, if it is one; `name` is that of the factory that gave it.

  Raises:
    InputError: it is neither a Linen module nor a PureNet.
  """
  if isinstance(net, nn.Module):
    return net
  expected = {
    "init": ("key", "image_shape"),
    "apply": ("params", "model_state", "x", "train", "key"),
  }
  for method, names in expected.items():
    function = getattr(net, method, None)
    if not callable(function) or not {*names} <= inspect.signature(function).parameters.keys():
      raise InputError(
        f"--config.model.name={name} must give a Flax Linen module, or an object with "
        f"init(key, image_shape) and apply(params, model_state, x, train, key), but the "
        f"{type(net).__name__} that it gave has no such {method}."
      )
  return net


def definition(net: Net) -> str:
  """The text that determines, with its parameters, what a network computes.

  That of a module is its repr, with its fields. A PureNet's is followed by the source of the file
  that defines it.
  """
  if isinstance(net, nn.Module):
    return repr(net)
  file = inspect.getmodule(net.apply)
  try:
    source = inspect.getsource(file) if file else ""
  except (OSError, TypeError):  # typed into an interpreter
    source = ""
  return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(net)) + "\n" + source


def init(module: Net, key: Array, image_shape: Sequence[int]) -> tuple[Params, ModelState]:
  """Initial parameters, and batch statistics if the module has any (otherwise {})."""
  if not isinstance(module, nn.Module):
    return jax.jit(lambda key: module.init(key, tuple(image_shape)))(key)
  initialize = functools.partial(module.init, **_train(module, False))
  variables = jax.jit(initialize)(key, jnp.zeros((1, *image_shape)))
  model_state = {name: value for name, value in variables.items() if name != "params"}
  return variables["params"], model_state


def apply_of(net: Net) -> ApplyFn:
  """A network as a pure function."""
  return from_linen(net) if isinstance(net, nn.Module) else net.apply


def from_linen(module: nn.Module) -> ApplyFn:
  """A module whose __call__ takes (x, train), or x alone, as a pure function."""

  def apply(
    params: Params, model_state: ModelState, x: Array, *, train: bool, key: Array | None
  ) -> tuple[Array, ModelState]:
    variables = {"params": params, **model_state}
    rngs = None if key is None else {"dropout": key}
    mutable = list(model_state) if train else []
    logits, updated = module.apply(
      variables, x, **_train(module, train), rngs=rngs, mutable=mutable
    )
    return logits, {**model_state, **updated}

  return apply


def _train(module: nn.Module, train: bool) -> dict[str, Any]:
  """The argument that tells a module whether it is trained, if it takes one."""
  return {"train": train} if has_parameter(type(module).__call__, "train") else {}


def representation(module: Net) -> ApplyFn:
  """The input of the module's last nn.Dense as an ApplyFn, x [B, *S] -> [B, F].

  An InputError from the function if the module has no nn.Dense, or is no Linen module.
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
      _, model_state = apply_of(module)(params, model_state, x, train=train, key=key)
    if not inputs:
      raise InputError(f"{type(module).__name__} has no nn.Dense whose input could represent x.")
    return inputs[-1].reshape(x.shape[0], -1), model_state

  return apply
