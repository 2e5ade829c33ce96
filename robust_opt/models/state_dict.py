"""PyTorch state dicts: their arrays as parameters of our networks, and back.

  net = models.ARCHITECTURES["PreActResNet18"](num_classes=10)
  params, model_state = from_state_dict(net, state_dict, image_shape=(32, 32, 3))
  state_dict = to_state_dict(net, params, model_state)           # the same arrays, bit for bit

A network that has a PyTorch counterpart says how that one names its modules, in a method
torch_name(name), and which of its dense layers take flattened images, in torch_flattened(). PyTorch
has convolutions as [out, in, h, w], dense layers as [out, in], and flattens [C, H, W].
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from robust_opt.errors import InputError
from robust_opt.types import ModelState, Params

StateDict = Mapping[str, np.ndarray]

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# What wrappers such as DataParallel put before every name.
_WRAPPERS = re.compile(r"^((module|model|_orig_mod)\.)+")
# Names of a standardization within a PyTorch network.
_MEAN, _STD = ("mu", "mean", "normalize.mean"), ("sigma", "std", "normalize.std")
_SHOWN = 5  # names in an error


class _Leaf(NamedTuple):
  """An array of a network, beside its counterpart in a state dict."""

  key: str  # in the state dict
  shape: tuple[int, ...]  # of ours
  kind: str = ""  # "conv" or "dense" of PyTorch; else both are the same array
  channels: int = 0  # of the images whose flattening is a dense layer's input; 0: it is none

  def export(self, array: np.ndarray) -> np.ndarray:
    """The counterpart of our array."""
    if self.kind == "conv":
      array = array.transpose(3, 2, 0, 1)
    elif self.kind == "dense":
      if self.channels:
        array = array.reshape(-1, self.channels, array.shape[-1]).swapaxes(0, 1)
      array = array.reshape(self.shape).T
    return np.ascontiguousarray(array)

  def read(self, array: np.ndarray) -> np.ndarray:
    """Our array of a counterpart that has the right shape."""
    if self.kind == "conv":
      array = array.transpose(2, 3, 1, 0)
    elif self.kind == "dense":
      if self.channels:
        array = array.reshape(len(array), self.channels, -1).swapaxes(1, 2)
      array = array.reshape(self.shape[::-1]).T
    return np.ascontiguousarray(array)

  def counterpart_shape(self) -> tuple[int, ...]:
    """The shape of the counterpart."""
    order = (3, 2, 0, 1) if self.kind == "conv" else (1, 0)
    return tuple(self.shape[axis] for axis in order) if self.kind else self.shape


def has_counterpart(net: Any) -> bool:
  """Whether the network names its PyTorch counterpart."""
  return hasattr(net, "torch_name")


def shapes_of(net: Any, image_shape: Sequence[int]) -> tuple[Params, ModelState]:
  """Parameters and batch statistics of a network as jax.ShapeDtypeStructs, not computed."""
  if not isinstance(net, nn.Module):
    return jax.eval_shape(lambda key: net.init(key, tuple(image_shape)), jax.random.key(0))
  variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
  return variables["params"], {k: v for k, v in variables.items() if k != "params"}


def counterpart_shapes(net: Any, shapes: tuple[Params, ModelState]) -> dict[str, tuple[int, ...]]:
  """Names and shapes of the arrays that a network reads from a state dict."""
  return {leaf.key: leaf.counterpart_shape() for leaf in _leaves(net, shapes).values()}


def from_state_dict(
  net: Any, state_dict: StateDict, image_shape: Sequence[int]
) -> tuple[Params, ModelState]:
  """Parameters, and batch statistics or {}, of a state dict, as NumPy arrays.

  Prefixes of wrappers ("module.", "model.") are taken off. Counters of batches and of averages, a
  standardization (see `moments`) and modules that the counterpart does not use are left out.

  Args:
    net: a network; without a method torch_name the names are those of `to_state_dict`.
    state_dict: names -> arrays.
    image_shape: [H, W, C] of the images.

  Raises:
    InputError: names or shapes do not match; the sentence says which, on both sides.
  """
  shapes = shapes_of(net, image_shape)
  leaves = _leaves(net, shapes)
  given = _own_entries(net, state_dict)
  _check_match(net, given, leaves.values())

  def read(path: Any, like: Any) -> np.ndarray:
    leaf = leaves[path]
    return leaf.read(np.asarray(given[leaf.key], like.dtype))

  params, model_state = jax.tree_util.tree_map_with_path(read, shapes)
  return params, model_state


def to_state_dict(net: Any, params: Params, model_state: ModelState) -> dict[str, np.ndarray]:
  """The state dict of the PyTorch counterpart, with a counter of 0 batches per normalization.

  That of a network without one has our own arrays by their paths, as "params.Dense_0.kernel".
  """
  arrays = dict(jax.tree_util.tree_leaves_with_path((params, model_state)))
  found = {}
  for path, leaf in _leaves(net, (params, model_state)).items():
    found[leaf.key] = leaf.export(np.asarray(arrays[path]))
    if leaf.key.endswith(".running_var"):
      found[leaf.key.replace("running_var", "num_batches_tracked")] = np.asarray(0, np.int64)
  return found


def moments(state_dict: StateDict) -> dict[str, tuple[float, ...]]:
  """The mean and std by which a PyTorch network standardizes, if its state has them; else {}.

  They are entries "mu" and "sigma" (RobustBench), or "mean" and "std", also of a module normalize.
  """
  stripped = {_WRAPPERS.sub("", key): value for key, value in state_dict.items()}
  for pair in zip(_MEAN, _STD, strict=True):
    if set(pair) <= stripped.keys():
      values = (tuple(map(float, np.ravel(stripped[key]))) for key in pair)
      return dict(zip(("mean", "std"), values, strict=True))
  return {}


def _own_entries(net: Any, state_dict: StateDict) -> dict[str, np.ndarray]:
  """The entries that a network must have, by their names without prefixes."""
  stripped = {_WRAPPERS.sub("", key): value for key, value in state_dict.items()}
  unused = getattr(net, "torch_unused", "") or r"(?!)"
  ignored = re.compile(rf"{unused}|.*num_batches_tracked$|n_averaged$")
  standardization = {*_MEAN, *_STD}
  return {
    key: value
    for key, value in stripped.items()
    if key not in standardization and not ignored.match(key)
  }


def _leaves(net: Any, tree: tuple[Params, ModelState]) -> dict[Any, _Leaf]:
  """Path of every array in (params, model_state) -> its counterpart."""
  leaves = {}
  for path, array in jax.tree_util.tree_leaves_with_path(tree):
    leaf = _torch_leaf if has_counterpart(net) else _own_leaf
    leaves[path] = leaf(net, path, tuple(array.shape))
  return leaves


def _own_leaf(net: Any, path: Any, shape: tuple[int, ...]) -> _Leaf:
  """An array by its path."""
  del net
  name = jax.tree_util.keystr(path[1:], simple=True, separator=".")
  return _Leaf(".".join([("params", "model_state")[path[0].idx], name]), shape)


def _torch_leaf(net: Any, path: Any, shape: tuple[int, ...]) -> _Leaf:
  """An array of a Linen module, as PyTorch has it."""
  first = 2 if path[0].idx else 1  # after the collection, of statistics
  *modules, name = (part.key for part in path[first:])
  module = "_".join(modules)
  key = ".".join([net.torch_name(module), _LEAVES.get(name, name)] if modules else [name])
  kind = {2: "dense", 4: "conv"}[len(shape)] if name == "kernel" else ""
  flattened = net.torch_flattened() if hasattr(net, "torch_flattened") else {}
  return _Leaf(key, shape, kind, flattened.get(module, 0) if kind else 0)


def _check_match(net: Any, given: StateDict, leaves: Iterable[_Leaf]) -> None:
  """InputError with what is on one side only, or of another shape there."""
  own = {leaf.key: leaf.counterpart_shape() for leaf in leaves}
  parts = [
    f"{words}: {_listed(sorted(keys))}"
    for words, keys in (
      ("only in the file", given.keys() - own.keys()),
      (f"only in {type(net).__name__}", own.keys() - given.keys()),
    )
    if keys
  ]
  differing = [
    f"{key} {list(given[key].shape)} in the file, {list(shape)} in {type(net).__name__}"
    for key, shape in own.items()
    if key in given and given[key].shape != shape
  ]
  parts += [f"of another shape: {_listed(differing)}"] if differing else []
  if parts:
    raise InputError(f"The weights are not those of this {type(net).__name__}; {'; '.join(parts)}.")


def _listed(entries: list[str]) -> str:
  """The first entries, and how many more there are."""
  more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
  return ", ".join(entries[:_SHOWN]) + more
