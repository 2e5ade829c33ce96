"""PyTorch's .pth files without PyTorch: the arrays of those that the tests trust."""

import collections
import pickle
import zipfile

import numpy as np

_TYPES = {"FloatStorage": np.float32, "DoubleStorage": np.float64, "LongStorage": np.int64}


def _tensor(storage, offset, shape, strides, *rest):
  strides = [stride * storage.itemsize for stride in strides]
  return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides).copy()


class _Unpickler(pickle.Unpickler):
  def __init__(self, archive):
    (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    super().__init__(archive.open(name))
    self._read = lambda key: archive.read(f"{name.removesuffix('/data.pkl')}/data/{key}")

  def find_class(self, module, name):
    if module == "torch" and name in _TYPES:
      return _TYPES[name]
    allowed = {"OrderedDict": collections.OrderedDict, "_rebuild_tensor_v2": _tensor}
    return allowed[name]

  def persistent_load(self, saved):
    _, dtype, key, _, _ = saved
    return np.frombuffer(self._read(key), dtype)


def read(path):
  """What torch.save wrote, with arrays in place of tensors."""
  with zipfile.ZipFile(path) as archive:
    return _Unpickler(archive).load()
