"""Files that are whole or absent: written beside their place, flushed, then renamed into it."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
  """A binary file that appears at `path` when the block ends well, and not at all otherwise."""
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


def write_json(path: Path, value: Any) -> None:
  """Writes strict JSON (a NaN is an error), atomically."""
  text = json.dumps(value, indent=2, allow_nan=False) + "\n"
  with atomic_write(path) as file:
    file.write(text.encode())


def _umask() -> int:
  # The umask can only be read by setting it.
  mask = os.umask(0)
  os.umask(mask)
  return mask
