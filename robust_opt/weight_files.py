"""Files of weights: .safetensors, and PyTorch's own; both as names -> arrays.

  file = read(Path("net.pth"))              # file.state_dict, file.moments
  write(Path("net.safetensors"), *file)

Nothing but arrays is read (weights_only). A path that is a folder stands for the file HUB_FILE in
it, as on the Hugging Face Hub.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robust_opt import extras
from robust_opt.errors import InputError
from robust_opt.files import atomic_write
from robust_opt.models import state_dict as state_dicts

SAFETENSORS, TORCH = (".safetensors",), (".pth", ".pt", ".model", ".bin")
_METADATA = "robust_opt"  # the key of ours in a .safetensors file
HUB_FILE = "model.safetensors"
# Where training scripts keep the state dict within what they save.
_NESTED = (
  *("state_dict", "model_state_dict", "model", "net", "last"),
  *("state_dict_ema", "ema_state_dict", "model_ema", "ema"),  # of an average, if there is no other
)


class WeightsFile(NamedTuple):
  """What a file of weights holds."""

  state_dict: dict[str, np.ndarray]
  moments: dict[str, tuple[float, ...]]  # mean and std of the pixels; {}: the file has none


def read(path: Path) -> WeightsFile:
  """What a file holds, or HUB_FILE in a folder; errors begin with the path, as for `load_torch`."""
  path = path / HUB_FILE if path.is_dir() else path
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


def write(path: Path, state_dict: Mapping[str, np.ndarray], moments: Mapping[str, Any]) -> None:
  """Writes a .safetensors file, with mean and std, or a .pth or .pt file, which cannot hold them.

  Raises:
    InputError: another ending.
    MissingExtraError: the package that writes it is not installed.
  """
  _check_suffix(path, (*SAFETENSORS, *TORCH[:2]))
  if path.suffix in SAFETENSORS:
    extras.require("weights", "safetensors")
    from safetensors.numpy import save

    # One entry of metadata, since the order of several is random.
    metadata = {_METADATA: json.dumps(moments)} if moments else {}
    with atomic_write(path) as out:
      out.write(save(dict(state_dict), metadata))
    return
  extras.require("torch", "torch")
  import torch

  with atomic_write(path) as out:
    torch.save({key: torch.from_numpy(np.array(v)) for key, v in state_dict.items()}, out)


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
