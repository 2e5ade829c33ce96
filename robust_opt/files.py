"""Atomic writes: a file is written to a temporary name, flushed, then renamed.

  write_json(path, value)
  write_sealed(path, {"images": images, "net": sha256})   # .npz: arrays and a SHA-256 of them
  with read_sealed(path, "collection") as arrays:         # as written, or an InputError
    ...

A killed write leaves the old file, and a `.part`.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from robust_opt.errors import InputError, WriteError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
  """A binary file that appears at `path` if the block succeeds; otherwise the previous one stays.

  Raises:
    WriteError: it could not be written.
  """
  with name_in_errors(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
      with os.fdopen(handle, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
      mask = os.umask(0)  # which can only be read by setting it
      os.umask(mask)
      os.chmod(name, 0o666 & ~mask)
      os.replace(name, path)
    except BaseException:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(name)
      raise


@contextlib.contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
  """Turns an OSError into a WriteError that names the file; that of a full disk does not."""
  try:
    yield
  except WriteError:
    raise
  except OSError as error:
    raise WriteError(f"{path} could not be written ({error.strerror or error}).") from error


def write_json(path: Path, value: Any) -> None:
  """Writes strict JSON atomically; NaN is an error."""
  text = json.dumps(value, indent=2, allow_nan=False) + "\n"
  with atomic_write(path) as file:
    file.write(text.encode())


def write_sealed(path: Path, arrays: Mapping[str, Any], compressed: bool = True) -> None:
  """Writes an .npz without pickle that contains the SHA-256 of its arrays, atomically.

  Equal arrays give equal bytes. The name "sha256" is reserved; an array that needs pickle is a
  TypeError, a file that cannot be written a WriteError.
  """
  kept: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
  for name, array in kept.items():
    if array.dtype.hasobject:
      raise TypeError(f"{name} must hold numbers or strings, but has the type {array.dtype}.")
  with atomic_write(path) as file:
    save = np.savez_compressed if compressed else np.savez
    save(file, **kept, sha256=np.array(_digest(kept)))


@contextlib.contextmanager
def read_sealed(path: Path, kind: str) -> Iterator[dict[str, np.ndarray]]:
  """The arrays of a file of `write_sealed`, by name, for the block.

  Raises:
    InputError: the file is absent, damaged or changed, or the block fails, since the file is not of
      this kind.
  """
  try:
    # Opened here: np.load leaves a damaged archive open.
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
    if str(arrays.pop("sha256", "")) != _digest(arrays):
      raise ValueError("its arrays do not match their SHA-256")
    yield arrays
  except Exception as error:  # a damaged archive makes zipfile and NumPy raise almost anything
    reason = str(error) or type(error).__name__
    raise InputError(f"{path} is not a readable {kind} ({reason}).") from error


def leftovers(directory: Path) -> list[Path]:
  """The files that killed writes have left in a directory."""
  return sorted(directory.glob(".*.part"))


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
  """SHA-256 of names, types, shapes and values."""
  sha = hashlib.sha256()
  for name in sorted(arrays):
    array = np.ascontiguousarray(arrays[name])
    sha.update(f"{name} {array.dtype.str} {array.shape};".encode())
    sha.update(array.tobytes())
  return sha.hexdigest()
