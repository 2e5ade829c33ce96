"""One small file of all that a study has found, to carry away from the machine that it ran on.

  written = write(workdir, Path("study.zip"))       # --archive of every study
  written.names, written.left_out

It holds `results/` (tables, figures, manifest) and the JSON values of every part: no checkpoints,
no data, no networks.
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

from robust_opt.errors import InputError
from robust_opt.files import atomic_write

LARGEST = 1_000_000  # bytes, of one file


class Written(NamedTuple):
  """The files of an archive, and those too large for it, relative to the work directory."""

  names: list[str]
  left_out: list[str]


def check_path(path: Path) -> None:
  """InputError if no archive can have this name, before a study runs for hours."""
  if path.suffix != ".zip" or path.is_dir():
    raise InputError(f"--archive must be a file that ends in .zip, but was {str(path)!r}.")


def write(workdir: Path, path: Path) -> Written:
  """Writes the archive of a study, atomically; equal files give equal bytes.

  Raises:
    WriteError: it could not be written.
  """
  files = sorted(file for file in workdir.rglob("*") if _belongs(file.relative_to(workdir), file))
  names = {file: file.relative_to(workdir).as_posix() for file in files}
  kept = [file for file in files if file.stat().st_size <= LARGEST]
  with atomic_write(path) as raw, zipfile.ZipFile(raw, "w") as archive:
    for file in kept:
      # Without the time of the file, so that bytes depend on the results alone.
      entry = zipfile.ZipInfo(f"{workdir.name}/{names[file]}")
      entry.external_attr = 0o644 << 16
      archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
  return Written([names[file] for file in kept], [names[f] for f in files if f not in kept])


def _belongs(name: Path, file: Path) -> bool:
  """Whether a file is a result or a value of a part; Orbax keeps JSON beside its arrays, too."""
  if not file.is_file() or file.suffix == ".part" or "checkpoints" in name.parts:
    return False
  return name.parts[0] == "results" or file.suffix == ".json"
