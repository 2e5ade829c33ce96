"""Weights from and to files, PyTorch's among them.

  net = ro.load_torch("rice2020.pth", "PreActResNet18", mean=(0.49, 0.48, 0.45), std=(0.25,) * 3)
  accuracy = (net.predict(x) == y).mean()                # x [N, H, W, C], pixels in [0, 1]
  ro.save_weights(ro.load_run("runs/cifar"), "net.safetensors")      # or "FOLDER", for ro.load

A .safetensors file needs the package safetensors. PyTorch's own files (.pth, .pt, .model, .bin)
need PyTorch, which reads nothing but arrays from them (weights_only). A network that has a PyTorch
counterpart (models.state_dict) is stored by that one's names, so that PyTorch reads it too; any
other one by the names of its parameters, as .safetensors only.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import flax.linen as nn
import numpy as np

from robust_opt import hub, models, weight_files
from robust_opt.arrays import digest
from robust_opt.checks import described
from robust_opt.errors import InputError
from robust_opt.evaluation.accuracy import logits_of
from robust_opt.evaluation.batches import CPU_BATCH, predictions
from robust_opt.evaluation.collection import pixels
from robust_opt.models import state_dict as state_dicts
from robust_opt.types import ApplyFn, LogitsFn, ModelState, Params

NETS = Path(__file__).parent / "nets"


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
    image_shape: [H, W, C] of its images.
    dataset: the name of the data set that it was trained on; "" if that is not known.
    card: of a network of `load`, its config.json: how it was trained and what was measured.
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
  image_shape: tuple[int, ...]
  dataset: str = ""
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

  @property
  def image_shape(self) -> tuple[int, ...]:
    """[H, W, C] of its images."""


def load_torch(
  path: str | Path,
  architecture: str | nn.Module,
  *,
  image_shape: Sequence[int] = (32, 32, 3),
  **attributes: Any,
) -> LoadedNet:
  """A network with the weights of a PyTorch state dict, or of `save_weights`.

  Args:
    path: a .safetensors file, a folder of `save_weights`, or a .pth, .pt, .model or .bin file of
      PyTorch: a state dict, or what
      a training script saved it in, under the key state_dict, model_state_dict, model, net
      or last, or else one of the average (state_dict_ema, ema_state_dict, model_ema, ema).
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
  file = weight_files.read(path)
  if not isinstance(architecture, str):
    return loaded(architecture, file, path, image_shape)
  if not attributes.keys() & {"mean", "std"}:
    attributes |= file.moments
  return loaded(build(architecture, **attributes), file, path, image_shape)


def load(name: str | Path) -> LoadedNet:
  """A network that comes with the package, or of a folder of `save_weights`; nothing is downloaded.

    net = ro.load("digits_linf")
    net.card["evaluations"]                          # what was measured, and how

  Args:
    name: of a folder in robust_opt/nets (cifar10_linf, digits_linf, mnist_l2, mnist_linf), or the
      path of a folder.

  Raises:
    InputError: no such network, or its files are damaged.
    MissingExtraError: the package safetensors is not installed.
  """
  shipped = sorted(path.parent.name for path in NETS.glob(f"*/{hub.CONFIG}"))
  folder, title = Path(name), f"{Path(name).name}"
  if str(name) in shipped:
    folder, title = NETS / name, f"{name} of robust_opt"
  elif not folder.is_dir():
    raise InputError(
      f"The networks of the package are {', '.join(shipped)}, not {str(name)!r}, which is no "
      f"folder of ro.save_weights either."
    )
  card = hub.read(folder)
  net = load_torch(
    folder, card["architecture"], image_shape=card["image_shape"], **card["attributes"]
  )
  if net.sha256 != card["sha256"]:
    raise InputError(f"{name} is damaged: SHA-256 {card['sha256']} -> {net.sha256}.")
  return net._replace(title=title, card=card, dataset=card.get("dataset", ""))


def build(architecture: str, **attributes: Any) -> nn.Module:
  """The network of that name in `models.ARCHITECTURES`, with these attributes."""
  if architecture not in models.ARCHITECTURES:
    names = ", ".join(sorted(models.ARCHITECTURES))
    raise InputError(f"The architecture must be one of {names}, but was {architecture!r}.")
  try:
    return models.ARCHITECTURES[architecture](**attributes)
  except TypeError as error:
    raise InputError(f"The attributes do not fit {architecture}: {error}.") from error


def loaded(
  net: Any, file: weight_files.WeightsFile, path: Path, image_shape: Sequence[int]
) -> LoadedNet:
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
    tuple(image_shape),
  )


def save_weights(
  run: HasWeights, path: str | Path, *, evaluations: Sequence[str | Path] = ()
) -> None:
  """Writes the weights of a network, to read them by `load_torch` or `load`, bit for bit the same.

  Args:
    run: the value of `ro.load_run`, `ro.load` or `ro.load_torch`.
    path: a .safetensors file, which also keeps mean and std of the pixels, or a .pth or .pt file of
      PyTorch; an existing one is replaced. A path without an ending is a folder as on the Hugging
      Face Hub (`robust_opt.hub`), which `load` reads without more arguments.
    evaluations: of the network, for the card of a folder: folders of robust_opt.evaluate.

  Raises:
    InputError: another kind of file, or a network without a PyTorch counterpart as .pth or .pt; a
      folder of a network that is not in robust_opt.models; an evaluation of other weights; `run` is
      something else.
    MissingExtraError: the package that writes it is not installed.
  """
  if not hasattr(run, "net"):
    raise InputError(
      f"save_weights takes the value of ro.load_run or ro.load_torch, or its with_weights(params, "
      f"model_state) after more training, but was given {described(run)}."
    )
  path, net = Path(path), run.net
  if evaluations and path.suffix:
    raise InputError(f"{path}: evaluations are for the card of a folder, a path without an ending.")
  if path.suffix in weight_files.TORCH and not state_dicts.has_counterpart(net):
    name = type(net).__name__
    raise InputError(f"{name} has no PyTorch counterpart: {path} must end in .safetensors.")
  state_dict = state_dicts.to_state_dict(net, run.params, run.model_state)
  if path.suffix:
    weight_files.write(path, state_dict, _moments(net))
    return
  sha256, dataset = digest((run.params, run.model_state)), getattr(run, "dataset", "")
  config = hub.describe(net, run.image_shape, sha256, dataset, list(map(Path, evaluations)))
  weight_files.write(path / weight_files.HUB_FILE, state_dict, _moments(net))
  hub.write(path, config)


def _moments(net: Any) -> dict[str, Any]:
  """Mean and std of the pixels, if the network standardizes them."""
  if not (hasattr(net, "mean") and hasattr(net, "std")):
    return {}
  return {key: np.ravel(getattr(net, key)).tolist() for key in ("mean", "std")}
