"""Weights from and to files, PyTorch's among them.

  net = ro.load_torch("rice2020.pth", "PreActResNet18", mean=(0.49, 0.48, 0.45), std=(0.25,) * 3)
  accuracy = (net.predict(x) == y).mean()                # x [N, H, W, C], pixels in [0, 1]
  ro.save_weights(ro.load_run("runs/cifar"), "net.safetensors")

A .safetensors file needs the package safetensors. PyTorch's own files (.pth, .pt, .model, .bin)
need PyTorch, which reads nothing but arrays from them (weights_only). A network that has a PyTorch
counterpart (models.state_dict) is stored by that one's names, so that PyTorch reads it too; any
other one by the names of its parameters, as .safetensors only.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import flax.linen as nn
import numpy as np

from robust_opt import extras, models
from robust_opt.arrays import digest
from robust_opt.checks import described
from robust_opt.errors import InputError
from robust_opt.evaluation.accuracy import logits_of
from robust_opt.evaluation.batches import CPU_BATCH, predictions
from robust_opt.evaluation.collection import pixels
from robust_opt.files import atomic_write
from robust_opt.models import state_dict as state_dicts
from robust_opt.types import ApplyFn, LogitsFn, ModelState, Params

NETS = Path(__file__).parent / "nets"
SAFETENSORS, TORCH = (".safetensors",), (".pth", ".pt", ".model", ".bin")
_METADATA = "robust_opt"  # the key of ours in a .safetensors file
# Where training scripts keep the state dict within what they save.
_NESTED = ("state_dict", "model_state_dict", "model", "net")


class LoadedNet(NamedTuple):
  """A network with weights from a file; the fields are those of `ro.load_run`, without its data.

  Attributes:
    logits_fn: x [B, *S], pixels in [0, 1] -> logits [B, C], in evaluation mode; a Partial, whose
      arrays are the weights.
    features_fn: x [B, *S] -> the input of the last dense layer, [B, F]; likewise.
    sha256: of the weights.
    title: the name of the network and of the file.
    definition: the text of the network, its preprocessing included.
    params, model_state: the weights and the batch statistics, or {}, as NumPy arrays.
    apply: the network as `ro.make_train_step` takes it.
    net: the network, a Flax Linen module.
    card: of a network that comes with the package, how it was trained and what was measured.
  """

  logits_fn: LogitsFn
  features_fn: LogitsFn
  sha256: str
  title: str
  definition: str
  params: Params
  model_state: ModelState
  apply: ApplyFn
  net: nn.Module
  card: Mapping[str, Any] | None = None

  def predict(self, images: np.ndarray, batch_size: int = CPU_BATCH) -> np.ndarray:
    """The predicted classes [N] int32 of images [N, *S], pixels in [0, 1] or uint8 in [0, 255]."""
    return predictions(self.logits_fn, pixels(images), batch_size)

  def with_weights(self, params: Params, model_state: ModelState) -> "LoadedNet":
    """The same with other weights, as after further training; `title` and `card` stay."""
    return with_weights(self, params, model_state)


Loaded = TypeVar("Loaded", bound=Any)


def with_weights(net: Loaded, params: Params, model_state: ModelState) -> Loaded:
  """A value of `load_run` or `load_torch` with other weights, and the functions of these."""
  return net._replace(
    logits_fn=logits_of(net.apply, params, model_state),
    features_fn=logits_of(models.representation(net.net), params, model_state),
    sha256=digest((params, model_state)),
    params=params,
    model_state=model_state,
  )


class HasWeights(Protocol):
  """What `save_weights` stores: the value of `load_run` or `load_torch`."""

  @property
  def net(self) -> Any:
    """The network."""

  @property
  def params(self) -> Params:
    """Its parameters."""

  @property
  def model_state(self) -> ModelState:
    """Its batch statistics, or {}."""


class WeightsFile(NamedTuple):
  """What a file of weights holds."""

  state_dict: dict[str, np.ndarray]
  moments: dict[str, tuple[float, ...]]  # mean and std of the pixels; {}: the file has none


def load_torch(
  path: str | Path,
  architecture: str | nn.Module,
  *,
  image_shape: Sequence[int] = (32, 32, 3),
  **attributes: Any,
) -> LoadedNet:
  """A network with the weights of a PyTorch state dict, or of `save_weights`.

  Args:
    path: a .safetensors file, or a .pth, .pt, .model or .bin file of PyTorch: a state dict, or what
      a training script saved it in, under the key state_dict, model_state_dict, model or net.
    architecture: a key of `models.ARCHITECTURES`, or a module of robust_opt.models or of your own
      that has a method torch_name (docs/models.md).
    image_shape: [H, W, C] of its images.
    attributes: of the named architecture, such as num_classes, mean and std (of pixels in [0, 1]).
      Without mean and std, those in the file, if it has any.

  Raises:
    InputError: no such architecture or attribute, no such file, or it does not fit the network.
    MissingExtraError: the package that reads it is not installed.
  """
  path = Path(path)
  if isinstance(architecture, str):
    build(architecture, **attributes)  # the faults of the arguments first
  elif attributes:
    raise InputError(f"The attribute {next(iter(attributes))} is for an architecture by its name.")
  file = read(path)
  if not isinstance(architecture, str):
    return loaded(architecture, file, path, image_shape)
  if not attributes.keys() & {"mean", "std"}:
    attributes |= file.moments
  return loaded(build(architecture, **attributes), file, path, image_shape)


def load(name: str) -> LoadedNet:
  """A network that comes with the package, with its weights; nothing is downloaded.

    net = ro.load("digits_linf")
    net.card["clean"], net.card["robust"]            # what was measured, and how

  Args:
    name: of a file in robust_opt/nets: digits_linf.

  Raises:
    InputError: no such network, or its file is damaged.
    MissingExtraError: the package safetensors is not installed.
  """
  cards = {path.stem: path for path in NETS.glob("*.json")}
  if name not in cards:
    raise InputError(f"The networks of the package are {', '.join(cards)}, not {name!r}.")
  card = json.loads(cards[name].read_text(encoding="utf-8"))
  net = load_torch(NETS / f"{name}.safetensors", card["architecture"], image_shape=card["images"])
  if net.sha256 != card["sha256"]:
    raise InputError(f"{name} is damaged: SHA-256 {card['sha256']} -> {net.sha256}.")
  return net._replace(title=f"{name} of robust_opt", card=card)


def build(architecture: str, **attributes: Any) -> nn.Module:
  """The network of that name in `models.ARCHITECTURES`, with these attributes."""
  if architecture not in models.ARCHITECTURES:
    names = ", ".join(sorted(models.ARCHITECTURES))
    raise InputError(f"The architecture must be one of {names}, but was {architecture!r}.")
  try:
    return models.ARCHITECTURES[architecture](**attributes)
  except TypeError as error:
    raise InputError(f"The attributes do not fit {architecture}: {error}.") from error


def loaded(net: Any, file: WeightsFile, path: Path, image_shape: Sequence[int]) -> LoadedNet:
  """The network with these weights; `path` is where they are from, for its title and for errors."""
  try:
    params, model_state = state_dicts.from_state_dict(net, file.state_dict, image_shape)
  except InputError as error:
    shape = tuple(image_shape)
    raise InputError(f"{path}, for images of image_shape={shape}: {error}") from error
  apply = models.apply_of(net)
  return LoadedNet(
    logits_of(apply, params, model_state),
    logits_of(models.representation(net), params, model_state),
    digest((params, model_state)),
    f"{type(net).__name__} of {path.name}",
    models.definition(net),
    params,
    model_state,
    apply,
    net,
  )


def save_weights(run: HasWeights, path: str | Path) -> None:
  """Writes the weights of a network, to read them by `load_torch`, bit for bit the same.

  Args:
    run: the value of `ro.load_run` or `ro.load_torch`.
    path: a .safetensors file, which also keeps mean and std of the pixels, or a .pth or .pt file of
      PyTorch; an existing one is replaced.

  Raises:
    InputError: another kind of file, or a network without a PyTorch counterpart as .pth or .pt;
      `run` is something else.
    MissingExtraError: the package that writes it is not installed.
  """
  if not hasattr(run, "net"):
    raise InputError(
      f"save_weights takes the value of ro.load_run or ro.load_torch, or its with_weights(params, "
      f"model_state) after more training, but was given {described(run)}."
    )
  path = Path(path)
  _check_suffix(path, (*SAFETENSORS, *TORCH[:2]))
  state_dict = state_dicts.to_state_dict(run.net, run.params, run.model_state)
  if path.suffix in SAFETENSORS:
    extras.require("weights", "safetensors")
    from safetensors.numpy import save

    with atomic_write(path) as out:
      out.write(save(state_dict, _metadata(run.net)))
    return
  if not state_dicts.has_counterpart(run.net):
    name = type(run.net).__name__
    raise InputError(f"{name} has no PyTorch counterpart: {path} must end in .safetensors.")
  extras.require("torch", "torch")
  import torch

  with atomic_write(path) as out:
    torch.save({key: torch.from_numpy(np.array(v)) for key, v in state_dict.items()}, out)


def _metadata(net: Any) -> dict[str, str]:
  """Mean and std of the pixels, as JSON: one entry, since the order of several is random."""
  if not (hasattr(net, "mean") and hasattr(net, "std")):
    return {}
  return {_METADATA: json.dumps({k: np.ravel(getattr(net, k)).tolist() for k in ("mean", "std")})}


def read(path: Path) -> WeightsFile:
  """What a file holds; errors as for `load_torch`, which begin with the path."""
  _check_suffix(path, (*SAFETENSORS, *TORCH))
  if not path.is_file():
    raise InputError(f"{path}: there is no such file.")
  if path.suffix in SAFETENSORS:
    arrays, metadata = _read_safetensors(path)
    values = json.loads(metadata.get(_METADATA, "{}"))
    moments = {key: tuple(value) for key, value in values.items()}
  else:
    arrays, moments = _read_torch(path), {}
  return WeightsFile(arrays, moments or state_dicts.moments(arrays))


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  extras.require("weights", "safetensors")
  from safetensors import SafetensorError, safe_open

  try:
    with safe_open(path, framework="numpy") as file:
      return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
  except SafetensorError as error:
    raise InputError(f"{path} is no whole .safetensors file ({error}).") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
  extras.require("torch", "torch")
  import torch

  try:
    content = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # of pickle, of zipfile, or PyTorch's own
    first = str(error).splitlines()[0]
    raise InputError(f"{path} is no PyTorch file of arrays alone ({first}).") from error
  return {key: _as_array(value) for key, value in _state_dict_within(content, path).items()}


def _check_suffix(path: Path, allowed: Sequence[str]) -> None:
  if path.suffix not in allowed:
    raise InputError(f"{path}: a file of weights must end in {', '.join(allowed)}.")


def _state_dict_within(content: Any, path: Path) -> Mapping[str, Any]:
  """The first state dict in what a training script saved."""
  while isinstance(content, Mapping) and any(key in content for key in _NESTED):
    content = next(content[key] for key in _NESTED if key in content)
    content = content[0] if isinstance(content, list) and content else content
  if not isinstance(content, Mapping) or not all(hasattr(v, "numpy") for v in content.values()):
    raise InputError(
      f"{path} must hold a state dict, also under the key {', '.join(_NESTED)}, but holds a "
      f"{type(content).__name__}."
    )
  return content


def _as_array(tensor: Any) -> np.ndarray:
  """A tensor as an array, in float32 if it has fewer bits."""
  tensor = tensor.detach()
  if tensor.is_floating_point() and tensor.element_size() < 4:
    tensor = tensor.float()
  return np.asarray(tensor.numpy())
