"""Files that are whole or absent: written beside their place, flushed, then renamed into it."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from robust_opt.errors import WriteError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
  """A binary file that appears at `path` when the block ends well, and not at all otherwise.

  Raises:
    WriteError: it could not be written; what was at `path` before is there still.
  """
  with name_in_errors(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
      with os.fdopen(handle, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
      os.chmod(name, 0o666 & ~_umask())
      os.replace(name, path)
    except BaseException:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(name)
      raise


@contextlib.contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
  """Turns an OSError into a WriteError: a full disk raises one that does not name the file."""
  try:
    yield
  except WriteError:
    raise
  except OSError as error:
    raise WriteError(f"{path} could not be written ({error.strerror or error}).") from error


def write_json(path: Path, value: Any) -> None:
  """Writes strict JSON (a NaN is an error), atomically."""
  text = json.dumps(value, indent=2, allow_nan=False) + "\n"
  with atomic_write(path) as file:
    file.write(text.encode())


def leftovers(directory: Path) -> list[Path]:
  """What atomic writes that were killed have left in a directory."""
  return sorted(directory.glob(".*.part"))


def _umask() -> int:
  # The umask can only be read by setting it.
  mask = os.umask(0)
  os.umask(mask)
  return mask
